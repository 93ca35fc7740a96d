"""What a served model makes of texts: vectors, scores of pairs, and which of both it can."""

import math
from array import array
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from operator import mul

from ..artifacts import PooledInfo
from ..errors import RequestError
from .generation import Observer
from .offload import offload
from .text.token_jobs import Pairs, WholeTexts
from .text.whole_texts import Tokens
from .tokenizing import Tokenizing
from .vectors import Vectors, embeds
from .workers.fleet import Fleet

GENERATES = "generate"
WINDOW = 2
"""How many times the sequences that a step takes are sent to the worker at once."""


def tasks(info: PooledInfo | None) -> list[str]:
    """What a model can be asked for."""
    if info is None:
        return [GENERATES]
    return ["rerank", "score"] if info.task == "score" else ["embed", "rerank", "score"]


def check_task(info: PooledInfo | None, task: str) -> None:
    """Raises RequestError if the model cannot be asked for this."""
    if task in tasks(info):
        return
    if info is None:
        text, hint = "this model generates text, and makes no vectors or scores", "use /v1/chat/completions or /v1/completions"
    elif info.task == "score":
        text, hint = "this model scores pairs of texts, and does nothing else", "use /v1/rerank or /v1/score"
    else:
        text, hint = "this model makes vectors of texts, and generates none", "use /v1/embeddings, /v1/rerank or /v1/score"
    raise RequestError(text, param="model", code="task_not_supported", hint=hint)


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Vectors and scores by the workers. hold_timeout: seconds to wait for one that loads."""

    info: PooledInfo
    max_context: int
    vocab_size: int
    tokenizing: Tokenizing
    fleet: Fleet
    observer: Observer
    hold_timeout: float

    async def encode(
        self,
        texts: Sequence[str],
        *,
        prompt: str,
        truncate: int | None,
        param: str,
        most: int | None = None,
        keeps_end: bool = False,
    ) -> list[Tokens]:
        """Tokens of texts, with `prompt` in front of each. Raises RequestError.

        truncate: as `truncate_prompt_tokens`. most: the same, without special tokens. keeps_end: the beginning of a longer text is what
        is cut off.
        """
        whole = [prompt + text for text in texts] if prompt else texts
        found = await self.tokenizing.run(WholeTexts(whole, self.limit(truncate), most, keeps_end))
        self.check(found, param)
        return found

    async def scores(
        self,
        pairs: Sequence[tuple[str, str]],
        *,
        truncate: int | None,
        query_first: bool,
        most_of_second: int | None = None,
        raw: bool = False,
    ) -> tuple[list[float], int]:
        """Scores of pairs, and how many tokens they took: by the model's head, or the cosine of vectors.

        query_first: whether the first text of each is a question, and the second one of its answers. most_of_second: tokens of the second
        text, with what stands in front of it; the rest is cut off. raw: before the head's activation.
        """
        if self.info.task == "score":
            tokens = await self.tokenizing.run(Pairs(pairs, self.limit(truncate), most_of_second))
            self.check(tokens, "text_2")
            return [array("f", score)[0] for score in await self.vectors(tokens, raw=raw)], count(tokens)
        names = ("query", "document") if query_first else ("", "")
        sides = [list(dict.fromkeys(pair[side] for pair in pairs)) for side in (0, 1)]
        tokens = []
        for texts, name, most in zip(sides, names, (None, most_of_second), strict=True):
            tokens += await self.encode(texts, prompt=self.usual_prompt(name), truncate=truncate, param="text_2", most=most)
        rows = [array("f", vector) for vector in await self.vectors(tokens)]
        split = len(sides[0])
        of_first, of_second = dict(zip(sides[0], rows[:split], strict=True)), dict(zip(sides[1], rows[split:], strict=True))
        work = lambda: [cosine(of_first[first], of_second[second]) for first, second in pairs]  # noqa: E731
        return await offload(len(pairs) * self.info.size, work), count(tokens)

    async def vectors(self, tokens: Sequence[Tokens], *, dimensions: int = 0, raw: bool = False) -> list[bytes]:
        """Float32, little-endian, in the order of the texts. raw: as `Embed` has it. Raises RequestError."""
        ready = await self.fleet.hold(self.hold_timeout)
        if (longest := max(len(each.ids) for each in tokens)) > ready.max_tokens:
            raise RequestError(
                f"a text has {longest} tokens, but the KV cache holds {ready.max_tokens}",
                code="context_length_exceeded",
                hint="shorten it, or start the server with more --kv-memory",
            )
        window = WINDOW * ready.max_num_seqs
        requests = embeds(tokens, dimensions=dimensions, raw=raw)
        with closing(Vectors(self.fleet, requests, self.observer, window=window)) as found:
            return await found.all()

    def check(self, tokens: Sequence[Tokens], param: str) -> None:
        """Raises RequestError for a text that the model does not take."""
        for index, each in enumerate(tokens):
            if not each.ids:
                raise RequestError(f"text {index} has no tokens", param=param, hint="give it some text")
            if len(each.ids) > self.max_context:
                raise RequestError(
                    f"text {index} has {len(each.ids)} tokens, and the model takes {self.max_context}",
                    param=param,
                    code="context_length_exceeded",
                    hint="shorten it, or cut it with truncate_prompt_tokens: -1",
                )
            if min(each.ids) < 0 or max(each.ids) >= self.vocab_size:
                wrong = next(token for token in each.ids if not 0 <= token < self.vocab_size)
                raise RequestError(
                    f"text {index} has the token {wrong}, which is out of vocabulary: the model has {self.vocab_size} tokens",
                    param=param,
                    hint="POST /tokenize tells the tokens of a text",
                )

    def check_dimensions(self, dimensions: int) -> None:
        """Raises RequestError for more numbers than a vector has."""
        if dimensions > self.info.size:
            raise RequestError(f"dimensions is {dimensions}, but a vector has {self.info.size}", param="dimensions", hint="ask for fewer")

    def prompt(self, name: str | None) -> str:
        """What the checkpoint puts in front of a text, by its name there; None for what it usually puts there. Raises RequestError."""
        if name is not None and name not in self.info.prompts:
            known = ", ".join(map(repr, self.info.prompts)) or "none"
            raise RequestError(f"there is no prompt {name!r}", param="prompt_name", hint=f"this model has {known}")
        return self.info.prompts.get(self.info.default_prompt if name is None else name, "")

    def usual_prompt(self, name: str) -> str:
        """The prompt of that name where there is one, else the usual one."""
        return self.prompt(name if name in self.info.prompts else None)

    def limit(self, truncate: int | None) -> int | None:
        """Tokens to which a longer text is cut, None if it is not. truncate: as `truncate_prompt_tokens`. Raises RequestError."""
        if truncate is None:
            return None
        if not (truncate == -1 or 1 <= truncate <= self.max_context):
            raise RequestError(
                f"truncate_prompt_tokens is {truncate}, and the model takes {self.max_context} tokens",
                param="truncate_prompt_tokens",
                hint="-1 cuts to what it takes",
            )
        return self.max_context if truncate == -1 else truncate


def count(tokens: Sequence[Tokens]) -> int:
    return sum(len(each.ids) for each in tokens)


def cosine(first: Sequence[float], second: Sequence[float]) -> float:
    """Of two vectors; every sum is rounded once."""
    lengths = math.sqrt(math.fsum(map(mul, first, first))) * math.sqrt(math.fsum(map(mul, second, second)))
    return math.fsum(map(mul, first, second)) / lengths if lengths > 0 else 0.0
