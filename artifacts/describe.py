"""A manifest for the eyes: what `engine inspect DIR` prints. Reads nothing but the manifest."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from math import prod

from rich.console import Group
from rich.table import Table
from rich.text import Text

from .manifest import DTYPE_BYTES, CacheGroup, Manifest, MemoryPlan, PooledInfo, Toolchain, WeightInfo
from .printable import printable
from .routes import RoutesInfo


def describe(manifest: Manifest) -> Group:
    """Tables for rich to print: what it is, its segments, weights, fusions, probe and files."""
    return Group(
        _summary(manifest),
        _segments(manifest),
        *([_kernels(manifest), _graphs(manifest)] if manifest.graphs else []),
        _weights(manifest.weights.values()),
        _fusions(manifest),
        *([_unfused(manifest.unfused)] if manifest.unfused is not None else []),
        _probe(manifest),
        _files(manifest),
    )


def describe_weights(manifest: Manifest) -> Table:
    """A table for rich to print: every weight. What several parameters were joined to is a row with all their names."""
    rows = [(", ".join(weight.sources), weight.format, str(weight.shape), _bytes(weight)) for weight in manifest.weights.values()]
    return _table("Weights", ("made from", "format", "shape", "bytes"), rows, ("bytes",))


def human_bytes(count: float) -> str:
    """`1536` -> `1.5 KiB`."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], numbers: Sequence[str] = ()) -> Table:
    table = Table(title=Text(title, style="bold"), title_justify="left", box=None, pad_edge=False, show_header=any(columns))
    for column in columns:
        table.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(f"{cell:,}" if isinstance(cell, int) else printable(str(cell))) for cell in row))
    return table


def _summary(manifest: Manifest) -> Table:
    model, tools, memory = manifest.model, manifest.toolchain, manifest.memory
    rows = [
        ("architecture", f"{model.architecture}, {model.num_layers} layers, hidden size {model.hidden_size}"),
        ("parameters", f"{model.parameters:,}"),
        ("context", f"{model.max_context:,} tokens, vocabulary {model.vocab_size:,}"),
        *([("makes", _pooled(manifest.pooled))] if manifest.pooled is not None else []),
        *([("tells", _routes(manifest.routes))] if manifest.routes is not None else []),
        (
            "weights from",
            f"{model.source_format}, quantize {model.quantize}" + (f", calibrated with {model.calibration}" if model.calibration else ""),
        ),
        ("digest", manifest.digest),
        ("target", manifest.target),
        ("made by", ", ".join([f"engine {tools.engine}", f"torch {tools.torch}", *_compilers(tools)])),
        ("made at", datetime.fromtimestamp(manifest.created, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")),
        *((f"cache {group.name}", _cache(group)) for group in manifest.caches),
        ("memory of a step", f"weights {human_bytes(memory.weight_bytes)}, {_activations(memory)}"),
        *((f"program {name}", f"{len(program.calls)} calls") for name, program in manifest.programs.items()),
        *([("tuned on", manifest.tuned_on)] if manifest.tuned_on else []),
        *([("tool calls", manifest.forms.tools or "none known")] if manifest.forms else []),
        *([("reasoning", manifest.forms.reasoning or "none known")] if manifest.forms else []),
    ]
    return _table(printable(model.name), ("", " "), rows)


def _pooled(pooled: PooledInfo) -> str:
    if pooled.task == "score":
        return f"a score of a pair of texts, activation {pooled.activation}"
    scaled = ", scaled to length 1" if pooled.normalize else ""
    prompts = f"; prompts {', '.join(pooled.prompts)}" if pooled.prompts else ""
    return f"a vector of {pooled.size:,} numbers of a text, pooled by {pooled.pooling}{scaled}{prompts}"


def _routes(routes: RoutesInfo) -> str:
    return f"the {routes.chosen} of {routes.experts:,} experts that each token chose, in {len(routes.layers)} layers"


def _cache(group: CacheGroup) -> str:
    seen = {
        "full": "",
        "latent": f", latents of {group.head_dim:,}",
        "window": f" of a window of {group.window:,}",
        "chunk": f" of a chunk of {group.window:,}",
    }[group.kind]
    per_token = human_bytes(group.bytes_per_block / group.block_size)
    return f"{len(group.layers)} layers, {group.dtype}, blocks of {group.block_size} tokens{seen}, {per_token} per token"


def _activations(memory: MemoryPlan) -> str:
    """T: tokens of the step, S: its sequences, R: its rows of logits."""
    terms = [human_bytes(factor) + (f" x {term}" if term != "1" else "") for term, factor in memory.activations.items()]
    return "activations " + (" + ".join(terms) or "none")


def _compilers(tools: Toolchain) -> list[str]:
    return [*([tools.compiler] if tools.compiler else []), *([f"triton {tools.triton}"] if tools.triton else [])]


def _segments(manifest: Manifest) -> Table:
    rows = [(segment.key[:16], segment.nodes, segment.calls, manifest.files[segment.file].bytes) for segment in manifest.segments]
    return _table("\nSegments", ("key", "graph nodes", "calls a step", "bytes"), rows, ("graph nodes", "calls a step", "bytes"))


def _kernels(manifest: Manifest) -> Table:
    columns = ("function", "cubin", "threads", "registers", "stack", "shared memory")
    rows = [(k.function, k.file.rpartition("/")[2][:16], k.threads, k.registers, k.stack_bytes, k.shared_bytes) for k in manifest.kernels]
    return _table("\nKernels", columns, rows, columns[2:])


def _graphs(manifest: Manifest) -> Table:
    rows = [(graph.kind, graph.tokens, graph.sequences, graph.nodes, human_bytes(graph.workspace_bytes)) for graph in manifest.graphs]
    title = f"\nCUDA graphs of {len(manifest.kernels)} kernels"
    return _table(title, ("kind", "tokens", "sequences", "launches", "workspace"), rows, ("tokens", "sequences", "launches", "workspace"))


def _weights(weights: Iterable[WeightInfo]) -> Table:
    tensors: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for weight in weights:
        tensors[weight.format] += 1
        sizes[weight.format] += _bytes(weight)
    rows = [(name, tensors[name], size, human_bytes(size)) for name, size in sizes.most_common()]
    return _table("\nWeights", ("format", "tensors", "bytes", ""), rows, ("tensors", "bytes"))


def _bytes(weight: WeightInfo) -> int:
    return prod(weight.shape) * DTYPE_BYTES[weight.dtype]


def _fusions(manifest: Manifest) -> Table:
    rows = [(report.name, report.matches, report.nodes_before, report.nodes_after) for report in manifest.fusion]
    return _table("\nPasses", ("pass", "matches", "nodes before", "after"), rows, ("matches", "nodes before", "after"))


def _unfused(unfused: Mapping[str, int]) -> Table:
    rows = list(unfused.items()) or [("nothing", 0)]
    return _table("\nUnfused", ("operator on one thread", "times"), rows, ("times",))


def _probe(manifest: Manifest) -> Table:
    rows = [(len(prompt.tokens), prompt.top_tokens[0], prompt.logits_sha256[:16] or "-") for prompt in manifest.probe.prompts]
    title = f"\nGolden probe, recorded on the {manifest.probe.recorded_on}"
    return _table(title, ("prompt tokens", "likeliest token", "logits sha256"), rows, ("prompt tokens", "likeliest token"))


def _files(manifest: Manifest) -> Table:
    rows = [(name, info.bytes, info.sha256[:16]) for name, info in sorted(manifest.files.items())]
    return _table("\nFiles", ("path", "bytes", "sha256"), rows, ("bytes",))
