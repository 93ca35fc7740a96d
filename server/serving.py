"""A server's life from its event loop on: load, announce, serve, drain."""

import asyncio
import contextlib
import gc
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, cast

import uvicorn

from .. import heap
from ..artifacts import check_servable, check_text, load_manifest
from ..artifacts.nvidia_target import CAPABILITIES
from ..errors import ArtifactError, UsageError, WorkerError
from .dialects.planning import ModelLimits
from .http.app import build_app
from .http.connection import Connection
from .http.limits import BodyMemory
from .late import import_late
from .metrics import Metrics
from .options import ServeOptions, WorkerOptions
from .parsing.names import FormNames
from .process_age import process_age
from .service import Service
from .text.text import Text
from .tokenizing import Tokenizing
from .workers.client import WorkerClient
from .workers.fleet import Fleet
from .workers.process import WorkerHandle
from .workers.recent_requests import RecentRequests
from .workers.weights_check import check_weights_in_background

FLUSH_SECONDS = 2
LATE_SECONDS = 1.0
SWITCH_SECONDS = 0.001
"""How long a thread with long work keeps the event loop waiting for the interpreter, each time."""


def run_server(options: ServeOptions, listener: socket.socket, workers: Sequence[tuple[WorkerOptions, WorkerHandle]]) -> int:
    """See `serve`."""
    phases = {"server_imports": process_age()}
    log(f"server_imports {phases['server_imports']:.2f} s")
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_Serving(options, listener, workers, phases).run())


def log(line: str) -> None:
    """Whoever reads the log may be gone, or its disk full: that is no reason to stop serving."""
    with contextlib.suppress(OSError, ValueError):
        print(f"engine: {line}", file=sys.stderr, flush=True)


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def _fleet(options: ServeOptions, workers: Sequence[tuple[WorkerOptions, WorkerHandle]]) -> Fleet:
    given_up = RecentRequests()
    names = [""] if len(workers) == 1 else [f"replica {number}: " for number in range(len(workers))]
    replicas = [WorkerClient(*worker, given_up=given_up, log=partial(_log_of, name)) for worker, name in zip(workers, names, strict=True)]
    return Fleet(replicas, max_queue=options.max_queue, log=log)


def _log_of(worker: str, line: str) -> None:
    log(f"{worker}{line}")


class _HttpServer(uvicorn.Server):
    """Signals are the business of `_Serving`: uvicorn would end by the signal and not with exit code 0."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Serving:
    def __init__(
        self,
        options: ServeOptions,
        listener: socket.socket,
        workers: Sequence[tuple[WorkerOptions, WorkerHandle]],
        phases: dict[str, float],
    ) -> None:
        self._options = options
        self._listener = listener
        self._phases = phases
        self._fleet = _fleet(options, workers)
        self._signals: asyncio.Queue[int] = asyncio.Queue()

    async def run(self) -> int:
        sys.setswitchinterval(SWITCH_SECONDS)
        self._catch_signals()
        log(f"listening at {_url(self._listener)}, loading {self._options.artifacts}")
        http = self._http_server(self._load())
        gc.freeze()  # what is loaded stays: later collections need not look at it, and stop no stream for it
        gc.enable()
        fleet_task = asyncio.create_task(self._fleet.run())
        http_task = asyncio.create_task(http.serve(sockets=[self._listener]))
        announcement = asyncio.create_task(self._announce())
        importing = asyncio.create_task(self._import_late())
        checking = asyncio.create_task(self._check_weights())
        stopping = asyncio.create_task(self._until_stopped())
        try:
            await asyncio.wait((fleet_task, http_task, stopping), return_when=asyncio.FIRST_COMPLETED)
            failed = any(task.done() and task.exception() for task in (fleet_task, http_task))
            code = 1 if failed else await stopping
            self._fleet.stop()
            http.should_exit = True
            await asyncio.gather(fleet_task, http_task)
            return code if self._fleet.weights != "damaged" else code or ArtifactError.exit_code
        finally:
            http.should_exit = True
            for task in (announcement, importing, checking, stopping):
                task.cancel()
            await asyncio.gather(fleet_task, http_task, announcement, importing, checking, stopping, return_exceptions=True)

    def _load(self) -> Service:
        started = time.monotonic()
        manifest = self._manifest = load_manifest(self._options.artifacts, digest=self._options.digest)
        check_servable(manifest)
        if self._options.replicas > 1 and manifest.target in CAPABILITIES:
            raise UsageError(
                f"--replicas is for artifacts for CPUs, and this one is for {manifest.target}",
                hint="start a server for each GPU, with CUDA_VISIBLE_DEVICES",
            )
        check_text(self._options.artifacts, manifest)
        text = self._text = Text.load(self._options.artifacts / "tokenizer", special_in_messages=self._options.special_in_messages)
        self._phases["tokenizer"] = time.monotonic() - started
        log(f"tokenizer {self._phases['tokenizer']:.2f} s")
        return Service(
            model=self._options.served_model_name or manifest.model.name,
            created=manifest.created,
            limits=ModelLimits.of(manifest, self._options.generation_config),
            text=text,
            tokenizing=Tokenizing(text, self._options.artifacts, manifest.digest),
            forms=FormNames.chosen(manifest.forms, self._options.tool_parser, self._options.reasoning_parser),
            fleet=self._fleet,
            metrics=Metrics(self._phases),
            hold_timeout=self._options.hold_timeout,
            stream_silence=self._options.stream_silence,
            pooled=manifest.pooled,
        )

    def _http_server(self, service: Service) -> _HttpServer:
        config = uvicorn.Config(
            build_app(service, self._options),
            http=cast(Any, partial(Connection, patience=self._options.request_timeout, bodies=BodyMemory())),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=self._options.keep_alive,
            timeout_graceful_shutdown=FLUSH_SECONDS,
        )
        return _HttpServer(config)

    def _catch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signals.put_nowait, number)

    async def _announce(self) -> None:
        await self._fleet.until_ready()
        log(f"ready in {process_age():.2f} s at {_url(self._listener)}")

    async def _import_late(self) -> None:
        """Once the start is over, which has no time for it. A request that is sooner imports what it needs by itself."""
        await self._fleet.until_ready()
        await asyncio.sleep(LATE_SECONDS)
        await asyncio.to_thread(import_late, self._text.template)
        await asyncio.to_thread(heap.give_back)

    async def _check_weights(self) -> None:
        """Find out whether the weights are those that were built; if they are not, stop serving, but stay to say so."""
        await self._fleet.until_ready()
        if self._options.verify_weights == "background" and self._manifest.weight_files:
            try:
                await check_weights_in_background(self._options.artifacts, self._manifest.digest)
            except ArtifactError as error:
                log(f"ERROR: no request is served any more: {error}")
                self._fleet.fail()
                return
            except WorkerError as error:
                log(f"{error}; whether the weights are whole is not known")
                return
        if self._options.verify_weights != "off":
            self._fleet.weights = "whole"
            log("the weights are those that were built")

    async def _until_stopped(self) -> int:
        """The exit code: 0 after a signal and a drain, 128 + number if a second signal cut it short."""
        number = await self._signals.get()
        log(f"{signal.Signals(number).name}: finishing {self._fleet.live} requests; a second signal stops at once")
        draining = asyncio.create_task(self._fleet.drain(self._options.drain_timeout))
        impatient = asyncio.create_task(self._signals.get())
        await asyncio.wait((draining, impatient), return_when=asyncio.FIRST_COMPLETED)
        code = 0 if draining.done() else 128 + impatient.result()
        for task in (draining, impatient):
            task.cancel()
        await asyncio.gather(draining, impatient, return_exceptions=True)
        log("stopped")
        return code
