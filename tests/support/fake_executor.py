"""An executor for tests of the scheduling around it: tiny, deterministic, and unforgiving.

Its "KV cache" remembers the token written to each slot. A row's logits are a pure function of the
tokens read back through the block table, so one wrong slot, table entry, position or length
anywhere gives other tokens than the sequence gets alone. So are the experts that a token chose.
"""

from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from engine.artifacts import CacheGroup, Manifest, MemoryPlan, ModelInfo, Probe, Program, RoutesInfo, Toolchain
from engine.artifacts.manifest import SCHEMA_VERSION
from engine.artifacts.step_inputs import step_inputs
from engine.protocol import PromptLogprob, SamplingParams
from engine.runtime.batch import StepInputs
from engine.runtime.sampling.device_sampling import Draws
from engine.runtime.sampling.grammar import Grammar
from engine.runtime.sampling.logprobs import prompt_logprob
from engine.runtime.sampling.sampler import sample
from engine.runtime.sampling.state import SamplingState

UNWRITTEN = -1
ROUTES = RoutesInfo(layers=[0, 2], experts=300, chosen=3)


def tiny_manifest(
    *, vocab_size: int = 32, max_context: int = 64, block_size: int = 4, windows: Sequence[int] = (0,), routes: RoutesInfo | None = ROUTES
) -> Manifest:
    """windows: of the cache groups, each of one layer; 0 for one that shows all tokens."""
    groups = [
        CacheGroup(
            name=f"window{window}" if window else "full",
            kind="window" if window else "full",
            window=window,
            layers=[layer],
            num_kv_heads=1,
            head_dim=1,
            block_size=block_size,
            dtype="float32",
        )
        for layer, window in enumerate(windows)
    ]
    return Manifest(
        schema=SCHEMA_VERSION,
        created=0,
        target="cpu",
        toolchain=Toolchain(engine="0", torch="0", compiler="none"),
        model=ModelInfo(
            name="tiny",
            architecture="none",
            vocab_size=vocab_size,
            max_context=max_context,
            hidden_size=1,
            num_layers=1,
            parameters=0,
            quantize="none",
            source_format="none",
        ),
        routes=routes,
        caches=groups,
        kernel_library="",
        segments=[],
        programs={"step": Program(inputs=step_inputs(group.name for group in groups), calls=[], results={"logits": "value:0"})},
        weights={},
        memory=MemoryPlan(weight_bytes=0, activations={}),
        fusion=[],
        probe=Probe(recorded_on="reference", prompts=[]),
        files={},
    )


def logits_of(history: Sequence[int], vocab_size: int, poison: int | None = None) -> NDArray[np.float32]:
    """Logits [V] after these tokens; all NaN if `poison` is among them."""
    if poison is not None and poison in history:
        return np.full(vocab_size, np.nan, np.float32)
    digest = blake2b(np.asarray(history, np.int64).tobytes(), digest_size=8).digest()
    generator = np.random.default_rng(int.from_bytes(digest, "little"))
    return (2 * generator.standard_normal(vocab_size)).astype(np.float32)


def experts_of(history: Sequence[int]) -> NDArray[np.int32]:
    """What the last of these tokens chose, [layers, chosen]."""
    digest = blake2b(np.asarray(history, np.int64).tobytes(), digest_size=2 * len(ROUTES.layers) * ROUTES.chosen).digest()
    return (np.frombuffer(digest, np.uint16) % ROUTES.experts).reshape(len(ROUTES.layers), ROUTES.chosen).astype(np.int32)


def solo(
    prompt: Sequence[int],
    params: SamplingParams,
    *,
    vocab_size: int = 32,
    max_context: int = 64,
    capacity: int = 10**6,
    stop_ids: frozenset[int] = frozenset(),
    draw: Callable[[NDArray[np.float32], SamplingState], int] | None = None,
    window: int = 0,
    grammar: Grammar | None = None,
) -> list[int]:
    """The tokens this request gets when it is computed alone, without any scheduler.

    draw: how the executor draws what is a plain draw, if it does. window: tokens that a row sees; 0 for all.
    grammar: what the tokens must follow, none of which is taken without its logits.
    """
    state = SamplingState(params, list(prompt), [], stop_ids, grammar)
    tokens = list(prompt)
    for _ in range(min(params.max_tokens, max_context - len(prompt), capacity + 1 - len(prompt))):
        row = logits_of(tokens[-window:], vocab_size)
        if grammar is not None:
            grammar.fill()
        if draw is not None and state.is_plain_draw(state.index):
            token = draw(row, state)
        else:
            token = sample(row[None], [0], [state], argmax)[0].token
        tokens.append(token)
        state.record(token)
        if token in stop_ids:
            break
    return tokens[len(prompt) :]


def solo_scores(prompt: Sequence[int], params: SamplingParams, *, vocab_size: int = 32) -> list[PromptLogprob]:
    """What this request is told of its prompt when it is computed alone: nothing if it does not ask."""
    if params.prompt_logprobs is None:
        return []
    rows = (logits_of(prompt[:place], vocab_size) for place in range(1, len(prompt)))
    scores = [prompt_logprob(row, token, params.prompt_logprobs) for row, token in zip(rows, prompt[1:], strict=True)]
    assert None not in scores
    return [score for score in scores if score is not None]


def solo_routes(prompt: Sequence[int], answer: Sequence[int], params: SamplingParams) -> list[bytes]:
    """What this request is told of the experts of its tokens, all but the last that was chosen: nothing if it does not ask."""
    if params.routed_from is None:
        return []
    tokens = [*prompt, *answer[:-1]]
    return [experts_of(tokens[: place + 1]).astype(np.uint16).tobytes() for place in range(params.routed_from, len(tokens))]


def argmax(logits: NDArray[np.float32], rows: Sequence[int]) -> list[int]:
    """As `StepExecutor.choose` without draws: numpy finds a NaN before anything else."""
    found = [int(logits[row].argmax()) for row in rows]
    return [token if np.isfinite(logits[row, token]) else -1 for row, token in zip(rows, found, strict=True)]


class FakeExecutor:
    """steps: (T, S, R) of every step so far. poison: a token that makes the logits after it NaN. num_blocks: of every cache group.

    A row's logits are those after the tokens that it sees in the group that shows it most; what it
    sees in the others must be the end of that.
    """

    can_draw = False

    def __init__(self, *, num_blocks: int, manifest: Manifest | None = None, poison: int | None = None) -> None:
        self.manifest = manifest or tiny_manifest()
        self.pools = {group.name: num_blocks for group in self.manifest.caches}
        self.poison = poison
        self.steps: list[tuple[int, int, int]] = []
        self.tokens = {group.name: np.full(num_blocks * group.block_size, UNWRITTEN, np.int64) for group in self.manifest.caches}
        self.places = {group.name: np.full(num_blocks * group.block_size, UNWRITTEN, np.int64) for group in self.manifest.caches}

    def step(self, inputs: StepInputs, draws: Draws | None = None) -> NDArray[np.float32]:
        assert draws is None
        arrays = inputs.arrays
        inputs.table(self.manifest.step.inputs)  # which looks at them as native code does
        tokens, positions = arrays["tokens"], arrays["positions"]
        starts, lengths = arrays["cu_seqlens"].tolist(), arrays["seq_lens"].tolist()
        self._arrays = arrays
        self.steps.append((len(tokens), len(lengths), len(arrays["logit_rows"])))
        assert starts[0] == 0
        assert starts[-1] == len(tokens) == len(positions)
        assert len(lengths) == len(starts) - 1
        for group in self.manifest.caches:
            slots = arrays[f"slot_mapping.{group.name}"]
            assert len(set(slots.tolist())) == len(slots) == len(tokens), "two tokens are written to one slot"
            self.tokens[group.name][slots], self.places[group.name][slots] = tokens, positions
        for row, length in enumerate(lengths):
            new = starts[row + 1] - starts[row]
            assert positions[starts[row] : starts[row + 1]].tolist() == list(range(length - new, length))
        return np.stack([self._logits(arrays, row) for row in arrays["logit_rows"].tolist()])

    def _logits(self, arrays: Mapping[str, NDArray[np.int32]], row: int) -> NDArray[np.float32]:
        """Of one of the step's tokens."""
        return logits_of(self._history(arrays, row), self.manifest.model.vocab_size, self.poison)

    def routes(self) -> NDArray[np.int32]:
        return np.stack([experts_of(self._history(self._arrays, row)) for row in range(len(self._arrays["tokens"]))])

    def _history(self, arrays: Mapping[str, NDArray[np.int32]], row: int) -> list[int]:
        """All tokens that one of the step's sees."""
        sequence = int(np.searchsorted(arrays["cu_seqlens"], row, side="right")) - 1
        length = int(arrays["positions"][row]) + 1
        seen = sorted((self._seen(group, arrays, sequence, length) for group in self.manifest.caches), key=len)
        assert all(seen[-1][-len(tokens) :] == tokens for tokens in seen)
        return seen[-1]

    def _seen(self, group: CacheGroup, arrays: Mapping[str, NDArray[np.int32]], sequence: int, length: int) -> list[int]:
        """The tokens that the last of `length` ones sees in a group."""
        places = np.arange(length - group.seen(length), length)
        blocks = arrays[f"block_table.{group.name}"][sequence, places // group.block_size]
        slots = blocks * group.block_size + places % group.block_size
        assert self.places[group.name][slots].tolist() == places.tolist(), "a block is read that holds something else"
        return [int(token) for token in self.tokens[group.name][slots]]

    choose = staticmethod(argmax)
