"""Checkpoints whose matrices are of several formats: each is kept as it is, and computed with as it is."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from compressed_tensors.quantization import QuantizationConfig, QuantizationStatus, apply_quantization_config
from families import write_tiny_checkpoint
from gguf_files import write_gguf
from held_formats import held_formats
from quantized_checkpoints import TOKEN_ACTIVATIONS, TOKEN_WEIGHTS, Scheme, awq, compressed, gptq, write_mxfp4_experts, write_quantized
from random_checkpoints import VOCAB_SIZE, write_random_checkpoint
from weight_blocks import GGUF_TYPES

from engine.artifacts import load_manifest
from engine.cli import main
from engine.compiler.build import build
from engine.compiler.options import BuildOptions
from engine.compiler.run_artifact import artifact_logits
from engine.compiler.weight_formats import choose_formats, widened
from engine.kernels.linear.bands import is_mixed
from engine.kernels.linear.packed import Layout
from engine.models.open import open_checkpoint

SIZES: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}


def as_q4_k_m(tensor: str) -> str:
    """What llama.cpp mixes under this name, of a model of two layers."""
    return "Q6_K" if tensor == "token_embd.weight" or tensor.endswith(("0.attn_v.weight", "0.ffn_down.weight")) else "Q4_K"


def one_after_another(tensor: str) -> str:
    """Every matrix of a type of its own."""
    names = [
        f"blk.{layer}.{matrix}.weight" for layer in (0, 1) for matrix in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up")
    ]
    types = sorted(type.name for type in GGUF_TYPES.values())
    return types[names.index(tensor) % len(types)] if tensor in names else "Q2_K" if "down" in tensor else "IQ4_XS"


def write(tmp_path: Path, quantization: Any) -> Path:
    checkpoint = write_random_checkpoint("qwen3", tmp_path / "checkpoint", num_hidden_layers=2, tie_word_embeddings=True, **SIZES)
    return write_gguf(checkpoint, tmp_path / "model.gguf", quantization=quantization)


@pytest.mark.parametrize("quantization", [as_q4_k_m, pytest.param(one_after_another, marks=pytest.mark.exhaustive)])
def test_a_file_of_many_types_is_served_as_it_is(
    quantization: Any, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, artifact = write(tmp_path, quantization), tmp_path / "artifact"
    summary = build(BuildOptions(model=str(model), output=artifact, store=store))
    checkpoint = open_checkpoint(str(model))
    held = held_formats(load_manifest(artifact))
    for name, info in checkpoint.parameters.items():
        (tensor,) = checkpoint.tensors_of(name)
        if len(info.shape) == 2:
            assert held[name] == info.format == quantization(tensor).lower()
    assert summary.widened == ""
    generator = torch.Generator().manual_seed(3)
    prompts = [torch.randint(0, VOCAB_SIZE, (length,), generator=generator).tolist() for length in (70, 33, 2)]
    decoded, prefilled = (artifact_logits(artifact, prompts, last_only=last_only) for last_only in (False, True))
    for steps, last in zip(decoded, prefilled, strict=True):
        assert torch.equal(steps[-1], last[0])
    apart = tmp_path / "apart"
    build(BuildOptions(model=str(model), output=apart, store=store, disable_pass=["merge_sibling_linears"]))
    assert any(is_mixed(weight.format) for weight in load_manifest(artifact).weights.values())
    assert not any(len(weight.sources) > 1 for weight in load_manifest(apart).weights.values())
    assert all(map(torch.equal, artifact_logits(apart, prompts, last_only=False), decoded))
    # Activations are rounded to 8 bits; of a wrong scale or a swapped half the distance would be thousands of times that.
    assert main(["verify", str(artifact), "--against", str(model), "--max-kl", "0.001"]) == 0
    assert "KL divergence" in capsys.readouterr().out


@pytest.mark.parametrize(
    "scheme",
    [
        gptq(act_order="shared"),
        *(pytest.param(gptq(act_order=order), marks=pytest.mark.exhaustive) for order in ("", "own")),
        *(
            pytest.param(scheme, marks=pytest.mark.exhaustive)
            for scheme in (
                compressed("nvfp4-pack-quantized", num_bits=4, type="float", strategy="tensor_group", group_size=16),
                awq(group=32),
                gptq(bits=8),
            )
        ),
    ],
)
def test_published_schemes_are_served_as_they_are(scheme: Scheme, store: Path, tmp_path: Path) -> None:
    plain = write_random_checkpoint("llama", tmp_path / "plain", num_hidden_layers=2, **SIZES)
    write_quantized(plain, tmp_path / "model", scheme)
    model, artifact = str(tmp_path / "model"), tmp_path / "artifact"
    summary = build(BuildOptions(model=model, output=artifact, store=store))
    assert summary.widened == ""
    assert any(weight.format.startswith(("w", "nvfp4")) for weight in load_manifest(artifact).weights.values())
    assert main(["verify", str(artifact), "--against", model, "--max-kl", "0.001"]) == 0


@pytest.mark.exhaustive
def test_gpt_oss_is_served_as_it_is_published(store: Path, tmp_path: Path) -> None:
    plain = write_tiny_checkpoint("gpt_oss", tmp_path / "plain")
    write_mxfp4_experts(plain, tmp_path / "model")
    model, artifact = str(tmp_path / "model"), tmp_path / "artifact"
    summary = build(BuildOptions(model=model, output=artifact, store=store))
    assert summary.widened == ""
    assert "mxfp4" in set(held_formats(load_manifest(artifact)).values())
    assert main(["verify", str(artifact), "--against", model, "--max-kl", "0.001"]) == 0


def test_w8a8_is_served_with_its_own_arithmetic(store: Path, tmp_path: Path) -> None:
    """Beside transformers with compressed-tensors' own forward, in float32. Biases, merged siblings and residuals included.

    A number that lies between two codes may be rounded to the other one, after which nothing in the text is the same: so most
    texts of one token are compared, not all.
    """
    plain = write_random_checkpoint("qwen2", tmp_path / "plain", num_hidden_layers=2, **SIZES)
    scheme = compressed("int-quantized", inputs=TOKEN_ACTIVATIONS, **TOKEN_WEIGHTS)
    weights = write_quantized(plain, tmp_path / "model", scheme)
    model = transformers.AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32)
    model.load_state_dict(weights, strict=False)
    texts = torch.arange(33)[:, None]
    with torch.no_grad():
        unrounded = model(texts).logits[:, 0]
        apply_quantization_config(model, QuantizationConfig.model_validate(scheme.config))
        for module in model.modules():
            if hasattr(module, "quantization_status"):
                module.quantization_status = QuantizationStatus.COMPRESSED  # weights are rounded already
        expected = model(texts).logits[:, 0]
    artifact = tmp_path / "artifact"
    build(BuildOptions(model=str(tmp_path / "model"), output=artifact, store=store, kv_dtype="float32"))
    held = {source: weight.format for weight in load_manifest(artifact).weights.values() for source in weight.sources}
    assert {held[name] for name in held if name.endswith(("q.weight", "o.weight", "gate.weight", "down.weight"))} == {"w8a8"}
    assert held["head.weight"] != "w8a8"
    logits = torch.cat(artifact_logits(artifact, texts.tolist(), last_only=True))
    off = (logits - expected).norm(dim=1) / (expected - unrounded).norm(dim=1)
    assert off.median() < 1e-3
    assert off.max() < 2
    long = [torch.randint(0, VOCAB_SIZE, (70,), generator=torch.Generator().manual_seed(3)).tolist()]
    (decoded,), (prefilled,) = (artifact_logits(artifact, long, last_only=last_only) for last_only in (False, True))
    assert torch.equal(decoded[-1], prefilled[0])


def test_only_what_has_more_bits_is_quantized_further(tmp_path: Path) -> None:
    model = write(tmp_path, as_q4_k_m)
    checkpoint = open_checkpoint(str(model))
    formats = choose_formats(checkpoint, "int4")
    for name, info in checkpoint.parameters.items():
        if len(info.shape) == 2:
            table, kept = name == "embed.weight", info.format == "q4_k"
            sensitive = name.endswith(("attention.v.weight", "attention.o.weight", "mlp.down.weight"))
            assert formats[name] == ("q6_k" if table else "q4_k" if kept else "i5_g32" if sensitive else "i4_g32"), name
    assert {"f32", "q6_k", "q4_k"} < set(formats.values())


@pytest.mark.parametrize("layout", ["panels", "rows"])
def test_what_is_sensitive_is_kept_wider(layout: Layout, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(write(tmp_path, lambda tensor: "F16")))
    chosen = {quantize: choose_formats(checkpoint, quantize, layout) for quantize in ("int8", "int6", "int5", "int4")}
    by_name = {name: [formats[name] for formats in chosen.values()] for name, info in checkpoint.parameters.items() if len(info.shape) == 2}
    for name, formats in by_name.items():
        if name == "embed.weight":
            assert formats == ["q8_0", "q8_0", "i6_g32", "i6_g32"]
        elif name.endswith(("attention.v.weight", "attention.o.weight", "mlp.down.weight")):
            assert formats == ["q8_0", "i6_g32", "i6_g32", "i5_g32"]
        else:
            assert formats == ["q8_0", "i6_g32", "i5_g32", "i4_g32"]


def test_our_own_formats_are_served(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Decoded and prefilled to the same bits, and near what the checkpoint says."""
    model, artifact = write(tmp_path, lambda tensor: "F16"), tmp_path / "artifact"
    build(BuildOptions(model=str(model), output=artifact, store=store, quantize="int4"))
    manifest = load_manifest(artifact)
    assert {"i4_g32", "i5_g32", "i6_g32"} < set(held_formats(manifest).values())
    assert manifest.weights["layers.0.attention.q+k+v.weight"].format == "i4_g32:256+i4_g32:128+i5_g32:128"
    assert manifest.model.calibration == "random tokens"
    prompts = [torch.randint(0, VOCAB_SIZE, (length,), generator=torch.Generator().manual_seed(3)).tolist() for length in (40, 2)]
    decoded, prefilled = (artifact_logits(artifact, prompts, last_only=last_only) for last_only in (False, True))
    for steps, last in zip(decoded, prefilled, strict=True):
        assert torch.equal(steps[-1], last[0])
    assert main(["verify", str(artifact), "--against", str(model), "--max-kl", "0.05"]) == 0
    assert "KL divergence" in capsys.readouterr().out


def test_types_that_become_numbers_are_counted(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(write(tmp_path, lambda tensor: "TQ2_0" if "ffn" in tensor else "Q4_K")))
    megabytes = 2 * 3 * 256 * 512 * 4 / 1e6
    assert widened(checkpoint, choose_formats(checkpoint, "none")).startswith(f"6 of TQ2_0 to f32, {megabytes:.0f} MB (exact")
    assert widened(checkpoint, choose_formats(checkpoint, "int4")) == ""
    # What NVIDIA's kernels read is the same, and what they do not becomes bfloat16.
    assert widened(checkpoint, choose_formats(checkpoint, "none", "rows")).startswith(f"6 of TQ2_0 to bf16, {megabytes / 2:.0f} MB (exact")
