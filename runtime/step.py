"""One step: what is to be computed, and what came out."""

import time
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..artifacts.manifest import Manifest
from ..protocol import PromptLogprob
from .batch import Batch, StepInputs
from .pooled import vector_of
from .sampling.device_sampling import Draws
from .sampling.logprobs import prompt_logprob
from .sampling.masks import Masks
from .sampling.sampler import NOT_FINITE, Choice, Logits, sample
from .scheduler import Chunk


class StepExecutor(Protocol):
    """What the engine needs of an executor."""

    @property
    def manifest(self) -> Manifest: ...

    @property
    def pools(self) -> Mapping[str, int]:
        """Blocks of each cache group, by name."""
        ...

    @property
    def can_draw(self) -> bool:
        """Whether `step` takes draws."""
        ...

    def step(self, inputs: StepInputs, draws: Draws | None = None) -> Logits:
        """Logits of the rows that the inputs want, or what a model without them gives for each. draws: those of them whose tokens
        the executor draws meanwhile."""
        ...

    def routes(self) -> NDArray[np.int32]:
        """The experts that the tokens of the last step chose, [T, layers, chosen], of an artifact that tells them; once for a step."""
        ...

    def choose(self, logits: Any, rows: Sequence[int]) -> list[int]:
        """For each of `rows` of what `step` gave the token drawn, or without a draw the index of the largest, the lowest of equals.

        -1 if the largest is infinite or one is NaN.
        """
        ...


class Step:
    """Chunks that are computed together. Some reach the end of their sequence, whose next token is chosen then.

    sequences: those whose next token is chosen; `rows`: by which row of logits. draws: those of the tokens
    that the executor draws; `drawn`, their rows. scoring: chunks of prompts whose tokens are scored, each with its first row.
    routed: chunks whose tokens' experts are wanted, each with the place of its first token.
    """

    def __init__(self, chunks: list[Chunk], batch: Batch, draws: Draws | None = None) -> None:
        self.chunks = chunks
        self.batch = batch
        self.draws = draws
        self.drawn: frozenset[int] = frozenset() if draws is None else frozenset(draws.rows.tolist())
        ends = list(accumulate(chunk.rows for chunk in chunks))
        self.sequences = [chunk.sequence for chunk in chunks if chunk.chooses]
        self.rows = [end - 1 for chunk, end in zip(chunks, ends, strict=True) if chunk.chooses]
        self.states = [sequence.sampling for sequence in self.sequences]
        self.scoring = [(chunk, end - chunk.rows) for chunk, end in zip(chunks, ends, strict=True) if chunk.sequence.scores and chunk.rows]
        places = accumulate((chunk.size for chunk in chunks), initial=0)
        self.routed = [(chunk, place) for chunk, place in zip(chunks, places, strict=False) if chunk.sequence.is_routed]


class Scores(NamedTuple):
    """Of the next tokens of a prompt, or why there are none."""

    logprobs: list[PromptLogprob]
    error: str | None = None


class Computed(NamedTuple):
    """choices: for each of the step's `sequences`. scores: for each of `scoring`. routes: of all tokens, if any are wanted. seconds: how
    long it took.

    surprises: whether a sequence ends, or goes on by more than one token, which nobody could know of
    before: a step planned ahead of this one counts on it in vain.
    """

    choices: list[Choice]
    scores: list[Scores]
    seconds: float
    surprises: bool
    routes: NDArray[np.int32] | None = None


def compute(executor: StepExecutor, step: Step, masks: Masks) -> Computed:
    """Run a step and choose its tokens, or finish its vectors. Touches nothing of a sequence but `last_token` and `sampling`.

    The next step waits for this one, and the machine with it: what can be done before or after is done there.
    """
    started = time.perf_counter()
    if (info := executor.manifest.pooled) is not None:
        rows = executor.step(step.batch.complete())
        wanted = zip(step.rows, step.sequences, strict=True)
        choices = [vector_of(rows[row], info, sequence.embed) for row, sequence in wanted if sequence.embed is not None]
        return Computed(choices, [], time.perf_counter() - started, any(choice.error for choice in choices))
    masks.begin(step.states)
    logits = executor.step(step.batch.complete(), step.draws)
    routes = executor.routes() if step.routed else None
    masks.wait()
    choices = sample(logits, step.rows, step.states, executor.choose, step.drawn)
    scores = [_score(logits, chunk, row) for chunk, row in step.scoring]
    surprises = any(each.error is not None for each in scores)
    for index, (sequence, choice) in enumerate(zip(step.sequences, choices, strict=True)):
        token, state = choice.token, sequence.sampling
        sequence.last_token = token
        state.record(token)
        if choice.error is not None or token in state.stop_ids:
            surprises = True
        elif state.may_jump and (forced := state.jump(sequence.max_length - sequence.num_prompt - state.index)):
            sequence.last_token = forced[-1]
            choices[index] = choice._replace(forced=forced)
            surprises = True
    return Computed(choices, scores, time.perf_counter() - started, surprises, routes)


def _score(logits: Logits, chunk: Chunk, row: int) -> Scores:
    """Each of the chunk's rows, from `row` on, scores the token after its own, as far as that is of the prompt."""
    sequence, end = chunk.sequence, chunk.start + chunk.size
    count = sequence.params.prompt_logprobs
    assert count is not None, "nobody asked for scores"
    logprobs: list[PromptLogprob] = []
    for offset, token in enumerate(sequence.tokens[end - chunk.rows + 1 : min(end + 1, sequence.num_prompt)].tolist()):
        logprob = prompt_logprob(logits[row + offset], token, count)
        if logprob is None:
            return Scores([], NOT_FINITE)
        logprobs.append(logprob)
    return Scores(logprobs)
