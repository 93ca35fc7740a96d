"""An artifact for sm90 whose kernels are numpy: a model whose logits are a hash of the tokens in its KV cache.

As `fake_executor`: one wrong slot, table entry, length or weight anywhere gives other tokens.
"""

import hashlib
from functools import partial
from pathlib import Path
from typing import Any

import fake_executor
import msgspec
import numpy as np
from fake_cuda import FakeCuda, Launched, fake_cubin, memory
from fake_executor import logits_of, tiny_manifest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from engine.artifacts import CacheGroup, FileInfo, Manifest, MemoryPlan, Probe, ProbePrompt, Program, WeightInfo
from engine.artifacts.graph import DRAW_INPUTS, GraphInfo, GraphTemplate, KernelInfo, Kind, Node, Output, Parameter, Place
from engine.artifacts.step_inputs import draw_inputs, step_inputs
from engine.runtime.sampling.philox import uniform
from engine.runtime.sampling.state import SamplingState

VOCAB = 32
MAX_CONTEXT = 64
BLOCK_SIZE = 4
DECODE = (1, 2, 4, 8)
MIXED = ((16, 4), (32, 8), (64, 8))
SCALE = 1.0
LOGITS_SHARED = 100_000
INPUTS = [*step_inputs(["full"]), *draw_inputs()]
BASES = [
    "workspace",
    *(f"input:{info.name}" for info in INPUTS),
    "weight:table",
    "weight:shift",
    *("cache:full.0.k", "cache:full.0.v", "cache:full.1.k", "cache:full.1.v"),
]
_POINTER: list[Parameter] = ["pointer"]
KERNELS: dict[str, tuple[int, int, list[Parameter]]] = {
    "embed": (128, 0, ["pointer", "pointer", "pointer", "pointer", "int32"]),
    "append": (64, 0, ["pointer", "pointer", "pointer", "pointer", "pointer", "int32", "int64", "pointer"]),
    "logits": (256, LOGITS_SHARED, [*_POINTER * 7, "int32", "int32", "int32", "float32"]),
    "sample": (32, 0, [*_POINTER * 7, "int32", "int32"]),
}
TOP = 4


def write_toy_artifact(directory: Path, *, max_context: int = MAX_CONTEXT, vocab_size: int = VOCAB) -> Manifest:
    """Write it and give its manifest."""
    directory.mkdir(parents=True, exist_ok=True)
    width = -(-max_context // BLOCK_SIZE)
    content: dict[str, bytes] = {}
    kernels = []
    for name, (threads, shared, parameters) in KERNELS.items():
        file = f"kernels/{name}.cubin"
        content[file] = fake_cubin(name)
        kernels.append(
            KernelInfo(file=file, function=name, threads=threads, shared_bytes=shared, parameters=parameters, registers=32, stack_bytes=0)
        )
    graphs = []
    sizes: list[tuple[Kind, int, int]] = [("decode", count, count) for count in DECODE]
    sizes += [("mixed", tokens, sequences) for tokens, sequences in MIXED]
    for kind, tokens, sequences in reversed(sizes):
        template, workspace = _template(tokens, sequences, width, vocab_size)
        file = f"graphs/{kind}-{tokens}-{sequences}.json"
        content[file] = template.encode()
        graphs.append(
            GraphInfo(file=file, kind=kind, sizes=_sizes(tokens, sequences, width), nodes=len(template.nodes), workspace_bytes=workspace)
        )
    for name, data in content.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_bytes(data)
    weights = _write_weights(directory, vocab_size)
    files = [*content, *{weight.file for weight in weights.values()}]
    manifest = msgspec.structs.replace(
        tiny_manifest(vocab_size=vocab_size, max_context=max_context, block_size=BLOCK_SIZE, routes=None),
        target="sm90",
        caches=[CacheGroup(name="full", kind="full", layers=[0, 1], num_kv_heads=1, head_dim=1, block_size=BLOCK_SIZE, dtype="float32")],
        programs={"step": Program(inputs=INPUTS, calls=[], results={"logits": "value:0", "tokens": "value:1"})},
        kernels=kernels,
        graphs=graphs,
        weights=weights,
        memory=MemoryPlan(weight_bytes=4 * vocab_size + 1, activations={"T": 4, "R": 4 * vocab_size + 4}),
        probe=Probe(recorded_on="target", prompts=[_golden([5, 6, 7, 8, 9], vocab_size), _golden([1, 2, 3], vocab_size)]),
        files={name: file_info(directory / name) for name in files},
    )
    (directory / "manifest.json").write_bytes(manifest.encode())
    return manifest


def _sizes(tokens: int, sequences: int, width: int) -> dict[str, int]:
    return {"T": tokens, "S": sequences, "S1": sequences + 1, "R": sequences, "B.full": width}


def file_info(path: Path) -> FileInfo:
    data = path.read_bytes()
    return FileInfo(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def _write_weights(directory: Path, vocab_size: int) -> dict[str, WeightInfo]:
    """A token's value is `3 * token + 1`, and a shift of one byte: sizes that leave gaps, in two files."""
    (directory / "weights").mkdir(exist_ok=True)
    table = 3 * np.arange(vocab_size, dtype=np.float32) + 1
    save_file({"shift": np.array([7], np.uint8)}, directory / "weights" / "a.safetensors")
    save_file({"table": table}, directory / "weights" / "b.safetensors")
    shift = WeightInfo(file="weights/a.safetensors", dtype="uint8", shape=[1], format="raw", sources=[], recipe=[])
    return {
        "shift": shift,
        "table": msgspec.structs.replace(shift, file="weights/b.safetensors", dtype="float32", shape=[vocab_size]),
    }


def _golden(tokens: list[int], vocab_size: int) -> ProbePrompt:
    logits = logits_of(tokens, vocab_size)
    top = np.argsort(-logits)[:TOP].tolist()
    return ProbePrompt(tokens=tokens, top_tokens=top, top_logits=logits[top].tolist(), logits_sha256="")


def _template(tokens: int, sequences: int, width: int, vocab_size: int) -> tuple[GraphTemplate, int]:
    """The graph of a step, and the bytes of its workspace."""
    logits = -(-4 * tokens // 256) * 256
    tokens_at = logits + -(-4 * sequences * vocab_size // 256) * 256
    at = {name: Place(base=index, offset=0) for index, name in enumerate(BASES)}
    x, out, drawn = at["workspace"], Place(base=0, offset=logits), Place(base=0, offset=tokens_at)
    cache = (at["cache:full.0.k"], at["cache:full.1.v"])
    inputs = [at[f"input:{name}"] for name in ("cu_seqlens", "seq_lens", "block_table.full", "logit_rows")]
    launches: list[tuple[int, list[Any]]] = [
        (0, [at["input:tokens"], at["weight:table"], at["weight:shift"], x, tokens]),
        (1, [x, at["input:positions"], at["input:slot_mapping.full"], *cache, tokens, -(2**40), 0]),
        (2, [*cache, *inputs, out, tokens, sequences, width, SCALE]),
        (3, [out, *(at[f"input:{name}"] for name in DRAW_INPUTS), drawn, sequences, vocab_size]),
    ]
    nodes = [Node(kernel=kernel, grid=(tokens, sequences, 1), arguments=arguments) for kernel, arguments in launches]
    outputs = {
        "logits": Output(place=out, dtype="float32", shape=[sequences, vocab_size]),
        "tokens": Output(place=drawn, dtype="int32", shape=[sequences]),
    }
    return GraphTemplate(bases=BASES, nodes=nodes, outputs=outputs), tokens_at + 4 * sequences


class ToyKernels:
    """Runs the toy's launches, and holds each step to the rules of padding.

    steps: (kind, T, S) of every step so far. drawn: the rows of each that had a draw. poison: a token after which the logits are NaN.
    """

    def __init__(self, fake: FakeCuda, directory: Path, manifest: Manifest, *, num_blocks: int, poison: int | None = None) -> None:
        self.poison = poison
        self.steps: list[tuple[str, int, int]] = []
        self.drawn: list[list[int]] = []
        self.max_slot = num_blocks * BLOCK_SIZE
        self._vocab = manifest.model.vocab_size
        self._slots: Any = None
        self._real = 0
        fake.declare(directory, manifest)
        fake.on_launch(self)

    def __call__(self, launched: Launched) -> None:
        threads, shared, parameters = KERNELS[launched.function]
        assert launched.image == fake_cubin(launched.function)
        assert (launched.block, launched.shared_bytes) == ((threads, 1, 1), shared)
        getattr(self, launched.function)(*launched.values(parameters))

    def embed(self, tokens: int, table: int, shift: int, x: int, count: int) -> None:
        assert [address % 256 for address in (tokens, table, shift, x)] == [0] * 4
        assert memory(shift, "u1", 1).tolist() == [7]
        memory(x, "f4", count)[:] = memory(table, "f4", self._vocab)[memory(tokens, "i4", count)]

    def append(self, x: int, positions: int, slots: int, keys: int, values: int, count: int, large: int, nothing: int) -> None:
        assert (large, nothing) == (-(2**40), 0)
        if self._slots is None:
            assert not memory(keys, "f4", self.max_slot).any(), "the cache begins with zeros"
            assert not memory(values, "f4", self.max_slot).any()
        self._slots = memory(slots, "i4", count)
        real = self._slots[self._slots >= 0]
        assert (self._slots[len(real) :] == -1).all()
        assert real.size == 0 or real.max() < self.max_slot
        memory(keys, "f4", self.max_slot)[real] = memory(x, "f4", count)[: len(real)]
        memory(values, "f4", self.max_slot)[real] = memory(positions, "i4", count)[: len(real)]

    def logits(
        self,
        keys: int,
        values: int,
        starts: int,
        lengths: int,
        table: int,
        wanted: int,
        out: int,
        tokens: int,
        count: int,
        width: int,
        scale: float,
    ) -> None:
        assert scale == SCALE
        start, length = memory(starts, "i4", count + 1), memory(lengths, "i4", count)
        blocks, rows = memory(table, "i4", count, width), memory(out, "f4", count, self._vocab)
        self._check_padding(start, length, count)
        histories = []
        for row in range(count):
            places = np.arange(length[row])
            slots = blocks[row, places // BLOCK_SIZE] * BLOCK_SIZE + places % BLOCK_SIZE
            found = (memory(keys, "f4", self.max_slot)[slots] - 1) / 3
            assert memory(values, "f4", self.max_slot)[slots].tolist() == places.tolist()
            histories.append(found.astype(int).tolist())
        for row, token in enumerate(memory(wanted, "i4", count)):
            assert 0 <= token < tokens
            sequence = int(np.searchsorted(start, token, side="right")) - 1
            seen = length[sequence] - (start[sequence + 1] - 1 - token) if sequence < self._real else 0
            rows[row] = logits_of(histories[sequence][:seen], self._vocab, self.poison) if seen else np.nan

    def _check_padding(self, start: Any, length: Any, count: int) -> None:
        total = len(self._slots)
        real, new = int((length > 0).sum()), int((self._slots >= 0).sum())
        self._real = real
        assert (length[real:] == 0).all()
        if total == count:
            self.steps.append(("decode", total, count))
            assert start.tolist() == list(range(count + 1))
            assert new == real
        else:
            self.steps.append(("mixed", total, count))
            assert start[0] == 0
            assert (start[real:] == new).all()
            assert (np.diff(start[: real + 1]) > 0).all()

    def sample(
        self, logits: int, temperature: int, top_k: int, top_p: int, min_p: int, uniform: int, out: int, count: int, vocab: int
    ) -> None:
        numbers = [
            memory(at, dtype, count) for at, dtype in zip((temperature, top_k, top_p, min_p, uniform), DRAW_INPUTS.values(), strict=True)
        ]
        rows, tokens = memory(logits, "f4", count, vocab), memory(out, "i4", count)
        assert not numbers[0][self._real :].any(), "padding is not drawn"
        tokens[:] = [draw_row(row, *(float(x) for x in given)) for row, *given in zip(rows, *numbers, strict=True)]
        self.drawn.append(np.flatnonzero(numbers[0]).tolist())


def draw_row(row: NDArray[np.float32], temperature: float, top_k: float, top_p: float, min_p: float, uniform: float) -> int:
    """As the operator `sample`: what is kept is drawn from in the order of ids."""
    peak = row.max()
    if not np.isfinite(peak):
        return -1
    if temperature == 0:
        return int(row.argmax())
    weights = np.exp((row.astype(np.float64) - peak) / temperature)
    order = np.argsort(-weights, kind="stable")
    order = order[: int(top_k)] if top_k else order
    cumulative = weights[order].cumsum()
    if top_p < 1:
        order = order[: int((cumulative < top_p * cumulative[-1]).sum()) + 1]
    kept = np.zeros_like(weights)
    kept[order] = np.where(weights[order] >= min_p, weights[order], 0)
    cumulative = kept.cumsum()
    return int((cumulative > uniform * cumulative[-1]).argmax())


def draw(row: NDArray[np.float32], state: SamplingState) -> int:
    """What the toy's graph draws for a sequence."""
    params = state.params
    u = uniform(state.seed, state.index)
    numbers = (np.float32(x) for x in (params.temperature, params.top_k, params.top_p, params.min_p, np.floor(u * 2**24) / 2**24))
    return draw_row(row, *(float(x) for x in numbers))


solo = partial(fake_executor.solo, draw=draw)
"""The tokens that a request gets alone on this GPU."""
