"""What each `--quantize` costs in accuracy, at how many bits a weight, and what each `--kv-dtype` does.

    python benchmarks/quality.py CHECKPOINT [--text FILE] [--calibrate FILE] [--settings int8,int6,...] [--kv-dtypes float16,...]
        [--gguf-types Q4_1,...] [--llama-quantize PROGRAM --types Q4_K_M,...] [--json FILE] [--plot FILE.svg]

Weights alone are rounded, by the recipes of a build, or the KV cache alone, and the model runs in float32: mean KL divergence of the next
token from that of the checkpoint's own weights, how often the likeliest token is the same, and perplexity, on the first --tokens tokens
of a text.

The weights of a GGUF file lie on the grid of its types, and to round them to that grid again costs nothing. So hidden, MLP and value
dimensions are put in a random order first: that leaves the function what it is, and mixes the groups that share a scale.
--llama-quantize has llama.cpp's program quantize the same weights to its types, without an importance matrix.
"""

import argparse
import itertools
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
from torch import Tensor, nn

from engine.artifacts.step_arrays import step_arrays, whole_prompts
from engine.artifacts.store.store import Store, chosen_store
from engine.bench.provenance import provenance
from engine.compiler.calibrate import Calibration, importance, mean_squares, read_calibration
from engine.compiler.quantizer import best_fit
from engine.compiler.reference import block_sizes, read
from engine.compiler.tokens_of_text import whole_texts_tokenizer
from engine.compiler.verify import compare_logits
from engine.compiler.weight_formats import choose_formats
from engine.kernels.attention.options import AttentionOptions
from engine.kernels.attention.reference import SCALE_BYTES, attention, causal_attention
from engine.kernels.linear.blocks import FORMATS
from engine.kernels.linear.quantize import Fit, quantize
from engine.models.checkpoint import Checkpoint, LoadedTensor, ParameterInfo
from engine.models.decoder import Decoder, Layer, constants
from engine.models.names import Located
from engine.models.open import open_checkpoint
from engine.models.step import Step
from engine.models.stored_values import dequantize

TEXT = Path(__file__).parent.parent / "README.md"
LENGTH = 512
SETTINGS = ("int8", "int6", "int5", "int4")
TABLES = frozenset({"embed.weight", "head.weight"})
Weights = dict[str, Tensor]


class InMemory(Checkpoint):
    """A checkpoint's model with these float32 weights."""

    def __init__(self, checkpoint: Checkpoint, weights: Weights) -> None:
        self.name, self.spec, self.generation = checkpoint.name, checkpoint.spec, checkpoint.generation
        self.parameters = {name: ParameterInfo(shape=tuple(weight.shape), format="f32") for name, weight in weights.items()}
        self._located = {name: Located(tensors=(name,), shape=tuple(weight.shape)) for name, weight in weights.items()}
        self._weights, self._checkpoint = weights, checkpoint

    def _load(self, tensor: str) -> LoadedTensor:
        return LoadedTensor(format="f32", data=self._weights[tensor])

    def write_tokenizer(self, directory: Path) -> None:
        self._checkpoint.write_tokenizer(directory)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """name: of the setting. bits: of a weight of a matrix or table, with scales. calibration: empty if there was none."""

    name: str
    bits: float
    kl_mean: float
    kl_p99: float
    top1: float
    perplexity: float
    calibration: str = ""


class Texts:
    """Sequences of a text, and what a model makes of them."""

    def __init__(self, checkpoint: Checkpoint, text: str, tokens: int) -> None:
        ids = whole_texts_tokenizer(checkpoint).encode(text).ids[:tokens]
        self.sequences = [ids[start : start + LENGTH] for start in range(0, len(ids), LENGTH)]
        self._spec = checkpoint.spec
        with torch.device("meta"):
            self._model = Decoder(checkpoint.spec).eval()

    @torch.no_grad()
    def logits(self, weights: Weights, attend: Callable[..., Tensor] = causal_attention) -> Tensor:
        """[T, V] float32, after every token."""
        for layer in self._model.layers:
            assert isinstance(layer, Layer)
            layer.attention.attend = attend
        self._model.load_state_dict(weights | constants(self._spec), assign=True, strict=False)
        return torch.cat([self._of(tokens) for tokens in self.sequences])

    def _of(self, tokens: list[int]) -> Tensor:
        sizes = block_sizes(self._spec)
        pieces = [piece._replace(wanted=range(len(tokens))) for piece in whole_prompts([tokens], sizes)]
        step = Step.of({name: torch.from_numpy(array) for name, array in step_arrays(pieces, sizes).items()})
        rows: Tensor = self._model(step, [None] * len(self._model.layers))
        return rows

    def perplexity(self, logits: Tensor) -> float:
        parts = logits.split([len(tokens) for tokens in self.sequences])
        losses = [
            nn.functional.cross_entropy(rows[:-1], torch.tensor(tokens[1:]), reduction="none")
            for rows, tokens in zip(parts, self.sequences, strict=True)
        ]
        return torch.cat(losses).mean().exp().item()


def through_cache(dtype: torch.dtype) -> Callable[..., Tensor]:
    """`causal_attention` of one text over a cache of that dtype, multiplied as the kernels do."""

    def attend(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, options: AttentionOptions, *, sinks: Tensor | None) -> Tensor:
        length, heads, size = k.shape
        block = length + length % 2
        k_cache, v_cache = (torch.zeros(1, heads, block, size + SCALE_BYTES * (dtype == torch.int8), dtype=dtype) for _ in range(2))
        table, slots = torch.zeros(1, 1, dtype=torch.int32), torch.arange(length, dtype=torch.int32)
        return attention(q, k, v, k_cache, v_cache, cu_seqlens, cu_seqlens[1:], table, slots, options, sinks=sinks)

    return attend


def in_another_order(checkpoint: Checkpoint) -> Weights:
    """All weights in float32, with dimensions in a random order that leaves the function what it is.

    The residual stream's, those inside each MLP, and in each layer the key-value heads and the elements of their values.
    """
    generator = torch.Generator().manual_seed(1)
    weights = {name: read(checkpoint, name) for name in checkpoint.parameters}

    def order(size: int) -> Tensor:
        return torch.randperm(size, generator=generator)

    hidden = order(checkpoint.spec.hidden_size)
    for name, weight in weights.items():
        if name.endswith(("attention.o.weight", "mlp.down.weight", "attention.o.bias", "mlp.down.bias")):
            weights[name] = weight[hidden]
        elif weight.shape[-1] == len(hidden) and not name.endswith(("q_norm.weight", "k_norm.weight", ".bias")):
            weights[name] = weight[..., hidden]
    for index, layer in enumerate(checkpoint.spec.layers):
        mixer, place = layer.mixer, f"layers.{index}."
        _take(weights, place, ("mlp.gate", "mlp.up"), "mlp.down", order(layer.channel.size))
        heads, size, sharing = order(mixer.num_kv_heads), mixer.head_dim, mixer.num_heads // mixer.num_kv_heads
        within = torch.stack([order(size) for _ in heads])
        _rows(weights, place + "attention.k", (heads[:, None] * size + torch.arange(size)).flatten())
        queries = (heads[:, None] * sharing + torch.arange(sharing)).flatten()
        _rows(weights, place + "attention.q", (queries[:, None] * size + torch.arange(size)).flatten())
        _rows(weights, place + "attention.v", (heads[:, None] * size + within).flatten())
        inputs = queries[:, None] * size + within.repeat_interleave(sharing, dim=0)
        weights[place + "attention.o.weight"] = weights[place + "attention.o.weight"][:, inputs.flatten()]
    return weights


def _rows(weights: Weights, linear: str, order: Tensor) -> None:
    for name in (f"{linear}.weight", f"{linear}.bias"):
        if name in weights:
            weights[name] = weights[name][order]


def _take(weights: Weights, place: str, makers: tuple[str, ...], taker: str, order: Tensor) -> None:
    for maker in makers:
        _rows(weights, place + maker, order)
    weights[f"{place}{taker}.weight"] = weights[f"{place}{taker}.weight"][:, order]


def rounded(checkpoint: InMemory, weights: Weights, setting: str, fit: Fit, weighing: Mapping[str, Tensor]) -> tuple[Weights, float]:
    """What a build with --quantize makes of the weights, and its bits per weight."""
    made, bits, count = dict(weights), 0.0, 0
    for name, format in choose_formats(checkpoint, setting).items():
        weight = weights[name]
        if format in FORMATS:
            made[name] = dequantize(format, quantize(format, weight, weighing.get(name), fit))[:, : weight.shape[1]]
            bits += FORMATS[format].bits_per_weight * weight.numel()
            count += weight.numel()
    return made, bits / count


def by_gguf(types: list[str], weights: Weights, tables: frozenset[str]) -> Iterator[tuple[str, Weights, float]]:
    """All matrices in one type of the gguf package, tables in Q8_0."""
    import gguf

    for type in types:
        made, bits, count = dict(weights), 0.0, 0
        for name, weight in weights.items():
            if weight.ndim == 2:
                kind = gguf.GGMLQuantizationType["Q8_0" if name in tables else type]
                made[name] = torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(weight.contiguous().numpy(), kind), kind))
                size, block_bytes = gguf.GGML_QUANT_SIZES[kind]
                bits += 8 * block_bytes / size * weight.numel()
                count += weight.numel()
        yield type, made, bits / count


def by_llama_cpp(options: argparse.Namespace, weights: Weights) -> Iterator[tuple[str, Weights, float]]:
    """`weights` by llama.cpp's program, in each type: what they become, and bits a weight."""
    import gguf

    if options.llama_quantize is None:
        return
    with tempfile.TemporaryDirectory(prefix="quality-") as scratch:
        whole, file = Path(scratch) / "whole.gguf", Path(scratch) / "quantized.gguf"
        write_gguf(Path(options.checkpoint), weights, whole)
        for type in options.types.split(","):
            subprocess.run([str(options.llama_quantize), str(whole), str(file), type], check=True, capture_output=True)
            matrices = [tensor for tensor in gguf.GGUFReader(file).tensors if len(tensor.shape) == 2]
            bits = 8 * sum(int(each.n_bytes) for each in matrices) / sum(int(each.n_elements) for each in matrices)
            made = open_checkpoint(str(file))
            yield type, {name: read(made, name) for name in weights}, bits


def write_gguf(source: Path, weights: Weights, file: Path) -> None:
    """The GGUF file `source` with other values, in float32."""
    import gguf

    reader, checkpoint = gguf.GGUFReader(source), open_checkpoint(str(source))
    writer = gguf.GGUFWriter(file, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            writer.add_key_value(name, field.contents(), field.types[0], field.types[-1] if len(field.types) > 1 else None)
    for parameter, values in weights.items():
        located = checkpoint._located[parameter]
        if located.rows is not None:
            values = torch.empty_like(values).index_copy_(0, located.rows, values)
        writer.add_tensor(located.tensors[0], values.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def measured(name: str, bits: float, expected: Tensor, logits: Tensor, texts: Texts, calibration: str = "") -> Measured:
    compared = compare_logits(expected, logits)
    return Measured(
        name=name,
        bits=bits,
        kl_mean=compared.kl_mean,
        kl_p99=compared.kl_p99,
        top1=compared.top1,
        perplexity=texts.perplexity(logits),
        calibration=calibration,
    )


def measure(options: argparse.Namespace) -> Iterator[Measured]:
    source = open_checkpoint(options.checkpoint)
    weights = in_another_order(source)
    checkpoint = InMemory(source, weights)
    texts = Texts(source, options.text.read_text(), options.tokens)
    expected = texts.logits(weights)
    yield measured("float32", 32, expected, expected, texts)
    for dtype in _listed(options.kv_dtypes):
        yield measured(f"kv {dtype}", 32, expected, texts.logits(weights, through_cache(getattr(torch, dtype))), texts)
    settings = _listed(options.settings)
    fit, _ = best_fit(Store(chosen_store(None)))
    calibrations = [Calibration(), *([read_calibration(options.calibrate)] if options.calibrate else [])]
    for calibration in calibrations if settings else []:
        weighing = importance(checkpoint, mean_squares(checkpoint, calibration, lambda: None))
        for setting in settings:
            if setting != "int8" or calibration is calibrations[0]:
                made, bits = rounded(checkpoint, weights, setting, fit, weighing)
                yield measured(setting, bits, expected, texts.logits(made), texts, "" if setting == "int8" else calibration.name)
    others = itertools.chain(by_gguf(_listed(options.gguf_types), weights, TABLES), by_llama_cpp(options, weights))
    yield from (measured(type, bits, expected, texts.logits(made), texts) for type, made, bits in others)


def _listed(names: str) -> list[str]:
    return [name for name in names.split(",") if name]


def plot(rows: list[Measured], title: str, file: Path) -> None:
    """Divergence over bits, a point for each setting and a line for each way to calibrate."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for calibration in dict.fromkeys(row.calibration for row in rows):
        points = sorted((row.bits, row.kl_mean, row.name) for row in rows if row.calibration == calibration and row.kl_mean > 0)
        if points:
            label = f"Engine, {calibration.partition(' sha256')[0]}" if calibration else "without calibration"
            axes.plot([bits for bits, _, _ in points], [kl for _, kl, _ in points], marker="o", label=label)
        for bits, kl, name in points:
            axes.annotate(name, (bits, kl), xytext=(4, 4), textcoords="offset points", fontsize=8)
    axes.set(xlabel="bits a weight", ylabel="mean KL divergence from float32, nats", yscale="log", title=title)
    axes.legend()
    figure.savefig(file)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--text", type=Path, default=TEXT)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--calibrate", type=Path, help="a text to calibrate with, beside random tokens; not the one that is measured on")
    parser.add_argument("--settings", default=",".join(SETTINGS))
    parser.add_argument("--kv-dtypes", default="", help="dtypes of keys and values, such as float16,bfloat16,int8")
    parser.add_argument("--gguf-types", default="", help="types that the gguf package quantizes to, such as Q8_0,Q5_1,Q4_1")
    parser.add_argument("--llama-quantize", type=Path, help="llama.cpp's program of that name; the checkpoint must be a GGUF file")
    parser.add_argument("--types", default="Q6_K,Q5_K_M,Q4_K_M")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Print a line for each setting, and write what was asked for."""
    options = parse(arguments)
    facts = provenance(packages=("engine-llm", "torch", "numpy", "gguf"))
    rows: list[Measured] = []
    for row in measure(options):
        rows.append(row)
        shown = f"{row.bits:6.3f} bits  KL {row.kl_mean:.3g}  top-1 {row.top1:.3f}  perplexity {row.perplexity:.2f}"
        print(f"{row.name:10} {shown}  {row.calibration[:24]}", flush=True)
    model = open_checkpoint(options.checkpoint).name
    if options.json:
        content = {"provenance": facts, "model": model, "text": options.text.name, "tokens": options.tokens, "rows": rows}
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=1) + b"\n")
    if options.plot:
        plot(rows, f"{model}, {options.tokens} tokens", options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
