"""FP8 checkpoints with static scales of activations: what is read, what is refused, and that the graph computes with those scales."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import transformers
from fp8_checkpoints import BLOCK_CONFIG, SHAPE, edit, write_fp8, write_static_fp8
from random_checkpoints import write_random_checkpoint
from safetensors.torch import load_file
from torch import fx

from engine.compiler.caches import manifest_groups
from engine.compiler.interpret import GraphInterpreter, run_prompt
from engine.compiler.nvidia.references import reference_operators
from engine.compiler.recipes import make
from engine.compiler.trace import trace
from engine.compiler.weight_formats import choose_formats
from engine.compiler.weights_plan import PackedWeight, plan_weights
from engine.errors import CheckpointError, UnsupportedModelError
from engine.models.architectures.llama import SOURCES
from engine.models.checkpoint import Checkpoint
from engine.models.open import open_checkpoint
from engine.models.stored_values import dequantize
from engine.passes import pipeline

LAYERS = 2
PUBLISHERS = ["compressed-tensors", "fp8", "transformers"]
SCALES = {"q": 2**-8, "k": 2**-9, "v": 1.5 * 2**-9, "gate": 2**-9, "up": 2**-8, "o": 2**-9, "down": 2**-8}
"""Of what each linear reads; so small that much saturates, and every other scale gives something else."""
UP = "model.layers.1.mlp.up_proj"


def input_scale(name: str) -> float:
    return SCALES[name.rpartition(".")[2].removesuffix("_proj")]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint("llama", tmp_path_factory.mktemp("fp8") / "plain", **SHAPE, num_hidden_layers=LAYERS)


@pytest.mark.parametrize("publisher", PUBLISHERS)
def test_every_number_and_scale_is_kept(plain: Path, publisher: str, tmp_path: Path) -> None:
    directory = write_static_fp8(plain, tmp_path / "model", input_scale, publisher=publisher)
    stored, checkpoint = load_file(directory / "model.safetensors"), open_checkpoint(str(directory))
    assert checkpoint.parameters["layers.1.mlp.up.weight"].format == "fp8_tensor"
    assert checkpoint.parameters["head.weight"].format == "bf16"
    loaded = checkpoint.read("layers.1.mlp.up.weight")
    scales = stored[f"{UP}.weight_scale" + ("_inv" if publisher == "transformers" else "")]
    assert torch.equal(dequantize(loaded.format, loaded.data), stored[f"{UP}.weight"].float() * scales.float())
    scale = checkpoint.read("layers.1.mlp.up.input_scale")
    assert (scale.format, scale.data.tolist(), scale.data.dtype) == ("f32", [SCALES["up"]], torch.float32)


@dataclass(frozen=True)
class Planned:
    """A checkpoint with its fused graph, the weights that this reads, and what each pass matched."""

    checkpoint: Checkpoint
    module: fx.GraphModule
    weights: dict[str, PackedWeight]
    matches: dict[str, int]


def plan(checkpoint: Checkpoint, quantize: str) -> Planned:
    formats = choose_formats(checkpoint, quantize, "rows")
    module = trace(checkpoint.spec, block_size=32, kv_dtype="bfloat16")
    results = pipeline.run(module.graph, pipeline.pipeline(formats, layout="rows"))
    stored = {name: parameter.format for name, parameter in checkpoint.parameters.items()}
    weights = {weight.name: weight for weight in plan_weights(module.graph, stored)}
    return Planned(checkpoint, module, weights, {result.name: result.matches for result in results})


@pytest.fixture(scope="module")
def static(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Planned:
    return plan(open_checkpoint(str(write_static_fp8(plain, tmp_path_factory.mktemp("static") / "model", input_scale))), "none")


def test_linears_that_read_the_same_share_the_largest_of_their_scales(static: Planned) -> None:
    shared = static.weights["layers.1.attention.q+k+v.input_scale"]
    assert shared.recipe == ("max",)
    assert shared.sources == tuple(f"layers.1.attention.{name}.input_scale" for name in "qkv")
    made = {name: make(weight, static.checkpoint).tolist() for name, weight in static.weights.items() if name.endswith("input_scale")}
    wanted = {"attention.q+k+v": SCALES["q"], "attention.o": SCALES["o"], "mlp.gate+up": SCALES["up"], "mlp.down": SCALES["down"]}
    assert made == {f"layers.{layer}.{name}.input_scale": [scale] for layer in range(LAYERS) for name, scale in wanted.items()}


def test_merged_weights_are_those_of_the_checkpoint(static: Planned) -> None:
    merged = static.weights["layers.1.mlp.gate+up.weight"]
    assert (merged.format, merged.recipe) == ("fp8_tensor", ("concat",))
    parts = [static.checkpoint.read(f"layers.1.mlp.{name}.weight").data for name in ("gate", "up")]
    assert torch.equal(make(merged, static.checkpoint), torch.cat(parts))


def test_fp8_on_request_scales_activations_as_they_come_and_keeps_the_weights(static: Planned) -> None:
    dynamic = plan(static.checkpoint, "fp8")
    assert dynamic.matches == static.matches
    assert static.matches["fuse_quantize"] == 3 * LAYERS
    assert not [name for name in dynamic.weights if name.endswith("input_scale")]
    for name in ("layers.0.mlp.down.weight", "layers.1.attention.q+k+v.weight"):
        assert dynamic.weights[name].format == "fp8_channel"
        assert dynamic.weights[name].recipe == static.weights[name].recipe


def test_what_becomes_of_it_on_cpus(static: Planned) -> None:
    assert choose_formats(static.checkpoint, "none", "panels")["layers.0.mlp.down.weight"] == "f32"
    assert choose_formats(static.checkpoint, "int8", "panels")["layers.0.mlp.down.weight"] == "q8_0"


def simulated(plain: Path, checkpoint: Checkpoint, tokens: list[int], scales: dict[str, float]) -> torch.Tensor:
    """Logits of transformers, in float32 with the checkpoint's weights, where what a linear reads is rounded by its scale."""
    model = transformers.AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(_value(checkpoint, name))
        for name, module in model.named_modules():
            if (scale := scales.get(name.rpartition(".")[2].removesuffix("_proj"))) is not None:
                module.register_forward_pre_hook(lambda _, inputs, scale=scale: (rounded(inputs[0], scale),))
        logits: torch.Tensor = model(torch.tensor([tokens])).logits[0, -1]
    return logits


def rounded(x: torch.Tensor, scale: float) -> torch.Tensor:
    return (x / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale


def _value(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    layer = "".join(re.findall(r"(?<=layers\.)\d+", name))
    (parameter,) = (ours for ours, theirs in SOURCES.items() if str(theirs).format(layer) == name)
    loaded = checkpoint.read(parameter.format(layer))
    return dequantize(loaded.format, loaded.data)


def test_the_graph_computes_with_the_scales_of_the_checkpoint(plain: Path, static: Planned) -> None:
    """The largest where they are shared: with each linear's own, or with none, the logits are far away."""
    checkpoint = static.checkpoint
    tokens = torch.randint(3, 300, (12,), generator=torch.Generator().manual_seed(1)).tolist()
    interpreter = GraphInterpreter(static.module, list(static.weights.values()), checkpoint, reference_operators())
    computed = run_prompt(interpreter, tokens, manifest_groups(checkpoint.spec, block_size=32, kv_dtype="bfloat16"))
    shared = SCALES | {"k": SCALES["q"], "v": SCALES["q"], "gate": SCALES["up"]}
    errors = []
    for scales in (shared, SCALES, {}):
        expected = simulated(plain, checkpoint, tokens, scales)
        errors.append(float((computed - expected).norm() / expected.norm()))
    assert errors[0] < 0.1  # activations in bfloat16 round to other FP8 numbers here and there
    assert min(errors[1:]) > 4 * errors[0]


def refused(directory: Path, change: Callable[[dict[str, torch.Tensor]], object], message: str) -> None:
    edit(directory, change)
    with pytest.raises(CheckpointError, match=message) as error:
        open_checkpoint(str(directory))
    assert "dynamic scales" in (error.value.hint or "")


def test_a_linear_without_its_scale(plain: Path, tmp_path: Path) -> None:
    directory = write_static_fp8(plain, tmp_path / "model", input_scale)
    refused(directory, lambda tensors: tensors.pop(f"{UP}.input_scale"), r"up_proj\.weight has 0 of them")


def test_a_linear_with_two(plain: Path, tmp_path: Path) -> None:
    directory = write_static_fp8(plain, tmp_path / "model", input_scale)
    refused(directory, lambda tensors: tensors.update({f"{UP}.activation_scale": torch.ones(1)}), r"up_proj\.weight has 2 of them")


@pytest.mark.parametrize(
    ("scale", "shown"),
    [
        (torch.ones(128), r"F32 \[128\]"),
        (torch.ones(0), r"F32 \[0\]"),
        (torch.ones(1, dtype=torch.int32), r"I32 \[1\]"),
        (torch.tensor([0.0]), "0;"),
        (torch.tensor(-0.5), "-0.5;"),
        (torch.tensor([torch.inf]), "inf;"),
        (torch.tensor([torch.nan], dtype=torch.bfloat16), "nan;"),
        (torch.tensor([1e-40]), r"9\.99\d*e-41;"),
    ],
)
def test_a_scale_that_is_no_positive_number(plain: Path, scale: torch.Tensor, shown: str, tmp_path: Path) -> None:
    directory = write_static_fp8(plain, tmp_path / "model", input_scale)
    refused(directory, lambda tensors: tensors.update({f"{UP}.input_scale": scale}), rf"up_proj\.input_scale is {shown}")


def test_a_scheme_that_nobody_knows(plain: Path, tmp_path: Path) -> None:
    directory = write_fp8(plain, tmp_path / "model", "block", quantization_config=BLOCK_CONFIG | {"activation_scheme": "static"})
    with pytest.raises(UnsupportedModelError, match="quantization_config") as error:
        open_checkpoint(str(directory))
    assert "static per tensor" in (error.value.hint or "")
