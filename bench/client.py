"""Drives an OpenAI-compatible server and notes when each token arrives.

The client shares the machine's cores with the server that it measures, so while the clock runs
it does next to nothing per token: a connection keeps the pieces of the body as they come, with
their times. They are read when everything is over (stream.py).
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from .connection import Clock, Pool, Server
from .stream import Exchange, Result, read_exchange
from .workload import Request

__all__ = ["Result", "run"]

_Send = Callable[[int, float | None], Awaitable[None]]


async def run(
    url: str,
    model: str,
    requests: Sequence[Request],
    *,
    concurrency: int | None = None,
    rate: float | None = None,
    time_limit_s: float | None = None,
    extra_body: Mapping[str, Any] | None = None,
    chat: bool = False,
    api_key: str | None = None,
    seed: int = 0,
) -> list[Result]:
    """Send every request as a stream, at temperature 0; one Result for each that was begun, in the order of `requests`.

    url: the server, with or without /v1. concurrency: requests in flight at once (None: no
    limit). rate: requests per second on average, at random times (a Poisson process drawn from
    `seed`), whatever the server does; None sends the next as soon as `concurrency` allows.
    time_limit_s: what is in flight then is cut off, and nothing more is sent. extra_body: fields
    added to every request; None takes a field away. chat: /v1/chat/completions, the prompt as a
    user's message, instead of /v1/completions. Times are seconds since this call.
    Raises UsageError for a url that is none. A server that fails is an error of each Result.
    """
    server = Server.parse(url, path="chat/completions" if chat else "completions", api_key=api_key)
    messages = [server.post(_body(model, request, chat, extra_body or {})) for request in requests]
    exchanges: dict[int, Exchange] = {}
    clock = Clock()
    pool = Pool(server, clock)

    async def send(index: int, due_s: float | None) -> None:
        exchange = exchanges[index] = Exchange(clock.now() if due_s is None else due_s)
        await pool.send(messages[index], exchange)

    work = (
        _closed_loop(send, len(requests), concurrency) if rate is None else _open_loop(send, len(requests), concurrency, rate, seed, clock)
    )
    try:
        async with asyncio.timeout(time_limit_s):
            await work
    except TimeoutError:
        _cut(exchanges.values(), clock.now())
    finally:
        pool.close()
    return [read_exchange(exchange, requests[index]) for index, exchange in sorted(exchanges.items())]


def _body(model: str, request: Request, chat: bool, extra: Mapping[str, Any]) -> bytes:
    asked = {"messages": [{"role": "user", "content": request.prompt}]} if chat else {"prompt": request.prompt}
    settings = {"temperature": 0, "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True}}
    fields = {"model": model, **asked, "max_tokens": request.max_tokens, **settings, **extra}
    return msgspec.json.encode({name: value for name, value in fields.items() if value is not None})


async def _closed_loop(send: _Send, count: int, concurrency: int | None) -> None:
    """Users who each send the next request as soon as their last one is answered."""
    remaining = iter(range(count))

    async def user() -> None:
        for index in remaining:
            await send(index, None)

    async with asyncio.TaskGroup() as users:
        for _ in range(min(count, concurrency or count)):
            users.create_task(user())


async def _open_loop(send: _Send, count: int, concurrency: int | None, rate: float, seed: int, clock: Clock) -> None:
    """Requests at random times. One that must wait for `concurrency` has begun when it was due."""
    source = random.Random(seed)
    places = asyncio.Semaphore(concurrency or count)
    due_s = 0.0

    async def when_there_is_room(index: int, due_s: float) -> None:
        async with places:
            await send(index, due_s)

    async with asyncio.TaskGroup() as group:
        for index in range(count):
            await asyncio.sleep(due_s - clock.now())
            group.create_task(when_there_is_room(index, due_s))
            due_s += source.expovariate(rate)


def _cut(exchanges: Iterable[Exchange], now_s: float) -> None:
    for exchange in exchanges:
        if exchange.end_s is None:
            exchange.end_s, exchange.cut = now_s, True
