"""What an artifact's code does on an NVIDIA GPU: decode steps, prefill, start of its graphs, and what each rewrite gives.

    python benchmarks/gpu.py --work DIR [--models 1b,8b] [--quantize none,int8,int4] [--passes] [--json FILE]
    python benchmarks/gpu.py --work DIR --artifacts DIR,DIR

Models are shapes alone: their config.json is written here, they are built with --weights none, and
the GPU fills their weights and KV cache with random numbers. What is in --work already is used
again, so that the builds, which need no GPU, can be made elsewhere (--build-only). A step is its
CUDA graph, launched over and over and timed by the GPU's clock: what HTTP, scheduling and the
copies of a few inputs take is not in it (`engine bench latency` and `serve` have that). Reports,
judges nothing; docs/benchmarks.md says what each column is.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from engine.artifacts import Manifest, load_manifest
from engine.artifacts.step_arrays import step_arrays, whole_prompts
from engine.bench.limits import GpuLimits, measure_gpu_limits
from engine.bench.provenance import PACKAGES, provenance
from engine.bench.report import Report, Spread, Table, show, write_json
from engine.bench.step_bytes import kv_bytes_read, weight_bytes_per_step
from engine.errors import EngineError
from engine.runtime.batch import StepInputs
from engine.runtime.cuda.executor import CudaExecutor
from engine.runtime.cuda.timing import graph_seconds
from engine.runtime.probe import whole_prompt

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 131072,
    "vocab_size": 128256,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "attention_bias": False,
    "mlp_bias": False,
    "rope_theta": 500000.0,
}
SHAPES: dict[str, dict[str, Any]] = {
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "head_dim": 64, "tie_word_embeddings": True},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "head_dim": 128, "tie_word_embeddings": False},
    "tiny": {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "head_dim": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 1024,
        "tie_word_embeddings": True,
    },
}
"""Llama 3.2 1B, Llama 3.1 8B, and a shape to try this command with."""
MAX_CONTEXT = 4096
MATRIX = 8192
"""Rows and columns of the product by which torch's own matrix rate is measured."""


class Decode(msgspec.Struct, frozen=True, kw_only=True):
    """Steps of `batch` sequences of `context` tokens. Bytes: what a step must read."""

    batch: int
    context: int
    seconds: list[float]
    weight_bytes: int
    kv_bytes: int


class Prefill(msgspec.Struct, frozen=True, kw_only=True):
    """Steps of one whole prompt. macs: of its linears; those of attention are not counted."""

    tokens: int
    seconds: list[float]
    macs: int


class GraphStart(msgspec.Struct, frozen=True, kw_only=True):
    """How long one graph took to read, resolve and instantiate; the first ones also loaded code."""

    name: str
    nodes: int
    seconds: float


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """One artifact. without: the rewrite that was left out."""

    model: str
    quantize: str
    without: str | None
    code_bytes: int
    kernels: int
    phases: dict[str, float]
    graphs: list[GraphStart]
    decode: list[Decode]
    prefill: list[Prefill]


class GpuResults(msgspec.Struct, frozen=True, kw_only=True):
    """matrix_flops: per second, of torch's bf16 product on random numbers; None where torch has no GPU. starts: `engine bench startup`."""

    limits: GpuLimits
    matrix_flops: float | None
    measured: list[Measured]
    starts: Any | None


@dataclass(frozen=True, kw_only=True)
class Variant:
    """An artifact to measure."""

    model: str
    quantize: str
    without: str | None
    artifact: Path


def write_config(shape: str, directory: Path) -> Path:
    """A directory that is all that a build without weights wants."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(LLAMA | SHAPES[shape], indent=1) + "\n")
    return directory


def variants(options: argparse.Namespace) -> Iterator[Variant]:
    """What to measure, in order. Without a rewrite: the first model, as it is, at the end."""
    for artifact in options.artifacts:
        yield Variant(model=artifact.name, quantize=load_manifest(artifact).model.quantize, without=None, artifact=artifact)
    if options.artifacts:
        return
    for model, quantize in product(options.models, options.quantize):
        yield Variant(model=model, quantize=quantize, without=None, artifact=options.work / f"{model}-{quantize}")
    model = options.models[0]
    for name in optional_passes() if options.passes else ():
        yield Variant(model=model, quantize="none", without=name, artifact=options.work / f"{model}-without-{name}")


def optional_passes() -> list[str]:
    from engine.passes.pipeline import pipeline

    return [item.name for item in pipeline({}, (), "rows") if not item.required]


def build(variant: Variant, work: Path, target: str) -> str | None:
    """Build what is not there yet; why it could not be built, if so."""
    if (variant.artifact / "manifest.json").exists():
        return None
    config = write_config(variant.model, work / "configs" / variant.model)
    leave_out = ["--disable-pass", variant.without] if variant.without else []
    command = [sys.executable, "-P", "-m", "engine", "build", str(config), "--target", target, "--weights", "none"]
    command += ["--quantize", variant.quantize, "--max-context", str(MAX_CONTEXT), "--store", str(work / "store"), *leave_out]
    done = subprocess.run([*command, "-o", str(variant.artifact)], capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else done.stderr.strip()[-400:]


def decode_step(batch: int, context: int, manifest: Manifest) -> StepInputs:
    """One token for each of `batch` sequences of `context` tokens, whose blocks lie one after another."""
    sizes = {group.name: group.block_size for group in manifest.caches}
    prompts = [[row % manifest.model.vocab_size] * context for row in range(batch)]
    return StepInputs(step_arrays([piece._replace(start=context - 1) for piece in whole_prompts(prompts, sizes)], sizes))


def measure(variant: Variant, options: argparse.Namespace) -> Measured:
    manifest, phases = load_manifest(variant.artifact), dict[str, float]()
    longest = max(max(options.batch) * (max(options.context) + max(group.block_size for group in manifest.caches)), max(options.prefill))
    executor = CudaExecutor.load(
        variant.artifact,
        manifest,
        kv_memory=sum((longest // group.block_size + 1) * group.bytes_per_block for group in manifest.caches),
        max_num_seqs=max(options.batch),
        max_batch_tokens=max(options.prefill),
        random_numbers=True,
        on_phase=phases.__setitem__,
    )
    try:
        executor.graphs.wait()
        return Measured(
            model=variant.model,
            quantize=variant.quantize,
            without=variant.without,
            code_bytes=sum(manifest.files[name].bytes for name in manifest.code_files),
            kernels=len(manifest.kernels),
            phases=phases,
            graphs=[_graph(executor, number) for number in sorted(executor.graphs.made)],
            decode=[_decode(executor, batch, context, options.steps) for context, batch in product(options.context, options.batch)],
            prefill=[_prefill(executor, tokens, max(5, options.steps // 10)) for tokens in options.prefill],
        )
    finally:
        executor.close()


def _graph(executor: CudaExecutor, number: int) -> GraphStart:
    info = executor.manifest.graphs[number]
    return GraphStart(name=Path(info.file).stem, nodes=info.nodes, seconds=executor.graphs.seconds[number])


def _decode(executor: CudaExecutor, batch: int, context: int, steps: int) -> Decode:
    return Decode(
        batch=batch,
        context=context,
        seconds=_times(executor, decode_step(batch, context, executor.manifest), steps),
        weight_bytes=weight_bytes_per_step(executor.manifest, batch),
        kv_bytes=batch * kv_bytes_read(executor.manifest, context),
    )


def _prefill(executor: CudaExecutor, tokens: int, steps: int) -> Prefill:
    manifest = executor.manifest
    inputs = whole_prompt([token % manifest.model.vocab_size for token in range(tokens)], manifest.caches)
    return Prefill(tokens=tokens, seconds=_times(executor, inputs, steps), macs=tokens * linear_parameters(manifest))


def _times(executor: CudaExecutor, inputs: StepInputs, steps: int) -> list[float]:
    graph = executor.prepare(inputs)
    seconds = graph_seconds(executor.device, executor.stream, graph.handle, steps)
    executor.collect(graph, inputs.rows)
    return seconds


def linear_parameters(manifest: Manifest) -> int:
    """Weights that every token is multiplied by: all but the embedding and the logits' own, which only a last token sees."""
    model = manifest.model
    tables = sum(name in manifest.weights for name in ("embed.weight", "head.weight"))
    vectors = sum(prod(info.shape) for name, info in manifest.weights.items() if len(info.shape) == 1 and not name.endswith("inv_freq"))
    return model.parameters - tables * model.vocab_size * model.hidden_size - vectors


def matrix_flops() -> float | None:
    """Operations per second of torch's own bf16 product of two random matrices, if there is a torch that has a GPU."""
    code = f"""
import statistics, torch
a, b = (torch.randn({MATRIX}, {MATRIX}, dtype=torch.bfloat16, device="cuda:0") for _ in range(2))
times = []
for _ in range(13):
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record(); a @ b; end.record(); end.synchronize()
    times.append(begin.elapsed_time(end) / 1000)
print(2 * {MATRIX} ** 3 / statistics.median(times[3:]))
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    return float(done.stdout) if done.returncode == 0 else None


def first_tokens(artifact: Path, work: Path) -> Any:
    """What `engine bench startup` measures of an artifact with weights."""
    file = work / "startup.json"
    command = [sys.executable, "-P", "-m", "engine", "bench", "startup", "--artifacts", str(artifact), "--json", str(file)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return json.loads(file.read_text())


def tables(results: GpuResults) -> list[Table]:
    whole = [measured for measured in results.measured if measured.without is None]
    found = [_decode_table(whole, results), _prefill_table(whole, results), _start_table(whole)]
    if len(whole) < len(results.measured):
        found.append(_passes_table(results.measured))
    return found


def _name(measured: Measured) -> str:
    return measured.model if measured.quantize == "none" else f"{measured.model} {measured.quantize}"


def _decode_table(measured: Sequence[Measured], results: GpuResults) -> Table:
    rows = []
    for one, row in [(each, row) for each in measured for row in each.decode]:
        spread, read = Spread.of(row.seconds), row.weight_bytes + row.kv_bytes
        rate = read / spread.median
        sizes = (f"{row.weight_bytes / 1e6:,.0f}", f"{row.kv_bytes / 1e6:,.0f}")
        shares = (f"{row.batch / spread.median:,.0f}", f"{rate / 1e9:,.0f}", f"{rate / results.limits.read_bytes:.0%}")
        rows.append((_name(one), f"{row.batch}", f"{row.context:,}", spread.show(1e3, 3), *sizes, *shares))
    columns = ("model", "batch", "context", "ms/step", "weights MB", "KV MB", "tokens/s", "GB/s", "of copies' bandwidth")
    note = f"{results.limits.gpu}: copies within its memory read and write {results.limits.read_bytes / 1e9:,.0f} GB/s"
    return Table(title="Decode steps", columns=columns, rows=rows, notes=[note])


def _prefill_table(measured: Sequence[Measured], results: GpuResults) -> Table:
    rows = []
    for one, row in [(each, row) for each in measured for row in each.prefill]:
        spread = Spread.of(row.seconds)
        flops = 2 * row.macs / spread.median
        share = f"{flops / results.matrix_flops:.0%}" if results.matrix_flops else "-"
        rows.append(
            (_name(one), f"{row.tokens:,}", spread.show(1e3, 2), f"{row.tokens / spread.median:,.0f}", f"{flops / 1e12:,.0f}", share)
        )
    peak = f"{results.matrix_flops / 1e12:,.0f} TFLOP/s" if results.matrix_flops else "not measured: torch has no GPU here"
    note = f"peak, torch's bf16 product of two {MATRIX} x {MATRIX} random matrices: {peak}"
    return Table(title="Prefill, one prompt", columns=("model", "tokens", "ms", "tokens/s", "TFLOP/s", "of peak"), rows=rows, notes=[note])


def _start_table(measured: Sequence[Measured]) -> Table:
    rows = []
    for one in measured:
        made = [graph.seconds for graph in one.graphs]
        nodes = [graph.nodes for graph in one.graphs]
        graphs = (f"{len(made)}", f"{min(nodes)}-{max(nodes)}", f"{1e3 * sum(made):,.1f}", Spread.of(made).show(1e3, 2))
        rows.append((_name(one), f"{one.code_bytes / 1e6:.2f}", f"{one.kernels}", *graphs, f"{one.phases['load_code']:.3f}"))
    columns = ("model", "code MB", "kernels", "graphs", "nodes", "all, ms", "each, ms", "before the first request, s")
    return Table(title="Making graphs", columns=columns, rows=rows)


def _medians(one: Measured) -> list[float]:
    """Seconds of each kind of step, decode first."""
    return [Spread.of(seconds).median for seconds in [*(row.seconds for row in one.decode), *(row.seconds for row in one.prefill)]]


def _passes_table(measured: Sequence[Measured]) -> Table:
    left_out = [one for one in measured if one.without is not None]
    whole = next(one for one in measured if (one.model, one.quantize, one.without) == (left_out[0].model, "none", None))
    labels = [f"{row.batch} x {row.context:,}" for row in whole.decode] + [f"prefill {row.tokens:,}" for row in whole.prefill]
    medians = _medians(whole)
    rows = [(f"{whole.model}: nothing", *(f"{1e3 * median:.3f} ms" for median in medians), f"{whole.graphs[0].nodes}")]
    for one in left_out:
        ratios = [without / median for without, median in zip(_medians(one), medians, strict=True)]
        rows.append((str(one.without), *(f"{ratio:.3f}" for ratio in ratios), f"{one.graphs[0].nodes}"))
    return Table(title="Time without a rewrite / with all", columns=("without", *labels, "nodes"), rows=rows)


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _words(text: str) -> list[str]:
    return text.split(",")


def _paths(text: str) -> list[Path]:
    return [Path(part) for part in text.split(",")]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--work", type=Path, required=True, metavar="DIR", help="artifacts, kept and used again, and the store of their builds"
    )
    parser.add_argument("--models", type=_words, default=["1b"], metavar="A,B", help=f"shapes: {', '.join(SHAPES)} (default: 1b)")
    parser.add_argument("--artifacts", type=_paths, default=[], metavar="DIR,DIR", help="measure these, and build nothing")
    parser.add_argument("--quantize", type=_words, default=["none"], metavar="Q,Q", help="as engine build has it (default: none)")
    parser.add_argument("--passes", action="store_true", help="also the first model without each graph rewrite")
    parser.add_argument("--build-only", action="store_true", help="build what is missing, and stop: no GPU is needed")
    parser.add_argument("--batch", type=_numbers, default=[1, 8, 64], metavar="N,N", help="sequences of a decode step (default: 1,8,64)")
    parser.add_argument("--context", type=_numbers, default=[128, 2048], metavar="N,N", help="their tokens (default: 128,2048)")
    parser.add_argument("--prefill", type=_numbers, default=[512, 2048], metavar="N,N", help="tokens of a prompt (default: 512,2048)")
    parser.add_argument("--steps", type=int, default=200, metavar="N", help="of each kind; a tenth as many prefills (default: 200)")
    parser.add_argument("--serve", type=Path, metavar="DIR", help="an artifact with weights: from exec to its first token, too")
    parser.add_argument("--target", default="sm90", help="of the builds (default: sm90)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="everything measured; benchmarks/results keeps those that are quoted")
    options = parser.parse_args(arguments)
    if unknown := set(options.models) - set(SHAPES):
        parser.error(f"there is no shape {', '.join(sorted(unknown))}; there are {', '.join(SHAPES)}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    warnings, measured, chosen = list[str](), list[Measured](), list[Variant]()
    for variant in variants(options):
        print(f"{variant.artifact.name}: building", file=sys.stderr)
        failure = None if options.artifacts else build(variant, options.work, options.target)
        if failure:
            warnings.append(f"{variant.artifact.name} was not built: {failure}")
        else:
            chosen.append(variant)
    if options.build_only:
        print("\n".join(warnings), file=sys.stderr)
        return 1 if warnings else 0
    limits = measure_gpu_limits()
    for variant in chosen:
        print(f"{variant.artifact.name}: measuring", file=sys.stderr)
        measured.append(measure(variant, options))
    results = GpuResults(
        limits=limits,
        matrix_flops=matrix_flops(),
        measured=measured,
        starts=first_tokens(options.serve, options.work) if options.serve else None,
    )
    facts = provenance(chosen[0].artifact, (*PACKAGES, "triton"))
    report = Report(benchmark="gpu", tables=tables(results), settings=vars(options), results=results, provenance=facts, warnings=warnings)
    show(report, Console(width=None if sys.stdout.isatty() else 160))
    if options.json:
        write_json(report, options.json)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EngineError as error:
        sys.exit(f"error: {error}")
