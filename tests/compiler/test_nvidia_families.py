"""The parts of models that came after Llama's, compiled for `sm90`: each in an artifact of its own, replayed by Triton's interpreter."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bfloat16_loss import logits_and_loss
from families import GENERIC, write_tiny_checkpoint
from gguf_twins import write_twins
from gpu_artifacts import build
from interpreted_gpu import logits
from tiers import tiered

from engine.artifacts import CacheGroup, load_manifest
from engine.artifacts.step_arrays import Piece, step_arrays

# One layer of each kind.
_WINDOW_AND_FULL: dict[str, Any] = {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}
_WHOLE_BLOCKS = {"hidden_size": 256, "moe_intermediate_size": 128, "num_attention_heads": 8, "head_dim": 32}
# Family or variant (families.py): what is new in it, and its settings here.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma2": ("soft caps of scores and logits, norms around mixer and channel, gelu_tanh, window and full layers", _WINDOW_AND_FULL),
    "gemma3_text": ("two thetas, one of them scaled, norms of queries and keys", _WINDOW_AND_FULL),
    "glm4_moe": (
        "a mixture by sigmoids in groups, with a bias of the choice and a shared expert, after a dense layer",
        {"num_hidden_layers": 2},
    ),
    "gpt_oss": ("a mixture by a softmax of the chosen, with biases and clamps, sinks", _WINDOW_AND_FULL),
    "qwen2_moe": ("a mixture by softmax, with a shared expert behind a gate", {}),
    "glm4": ("half of a head rotated, in neighbouring pairs, norms around mixer and channel", {}),
    "apertus": ("xielu, llama3 scaling", {}),
    "bitnet": ("norms before the last products of mixer and channel", {}),
    "cohere": ("layer norms without bias, parallel layers, a multiplier of logits", {}),
    "cohere2": ("layers without positions beside layers with windows", _WINDOW_AND_FULL),
    "deepseek_v3": (
        "latent attention, a mixture by sigmoids in groups with a bias of the choice and a shared expert, after a dense layer",
        {"num_hidden_layers": 2, "qk_nope_head_dim": 16, "v_head_dim": 32},
    ),
    "falcon": ("one key-value head, parallel layers that share a norm", {}),
    "gpt2": ("learned positions, a tied head", {}),
    "gpt_neox": ("a quarter of a head rotated, gelu, parallel layers with two norms", {}),
    "gptj": ("a part of a head rotated, in neighbouring pairs, a bias of logits", {}),
    "granite": ("multipliers of embeddings, scores, sums and logits", {}),
    "ministral3": ("yarn, queries that grow with their position", {}),
    "nanochat": ("norms without weights, relu2", {}),
    "nemotron": ("layer norms of 1 + weight, relu2 without a gate", {}),
    "olmo-clipped": ("clipped queries, keys and values, layer norms without weights", {}),
    "olmo2": ("norms after mixer and channel alone, norms over all heads", {}),
    "openai-gpt": ("norms of sums", {}),
    "opt": ("learned positions with an offset, relu", {}),
    "phi-qk-norm": ("half of a head rotated, layer norms, of heads too, a bias of logits", {"num_hidden_layers": 2}),
    "phi3-longrope": ("longrope", {}),
    "stablelm-parallel": ("a quarter of a head rotated, norms with a weight for each head", {}),
    "starcoder2": ("layer norms, gelu_tanh without a gate, windows", {}),
}
# What every run of the tests replays: soft caps, norms around mixer and channel, gelu, windows beside full layers, experts, and latents.
_ALWAYS = ("gemma2", "deepseek_v3")
_GENERATOR = torch.Generator().manual_seed(1)
LONG, SHORT = (torch.randint(3, GENERIC["vocab_size"], (count,), generator=_GENERATOR).tolist() for count in (66, 36))
# Of each step, for each of its sequences: which, how many of its tokens are computed before it, and after it.
STEPS = [
    [(LONG, 0, 40)],
    [(LONG, 40, 64), (SHORT, 0, 21)],
    [(SHORT, 21, 34), (LONG, 64, 65)],
    [(LONG, 65, 66), (SHORT, 34, 35)],
    [(SHORT, 35, 36)],
]


@pytest.mark.slow
@pytest.mark.parametrize("name", tiered(FAMILIES, _ALWAYS))
def test_a_replayed_artifact_equals_transformers(name: str, tmp_path: Path) -> None:
    """A long prompt in two pieces, the second beside another prompt, then both sequences token by token, alone and beside a prompt."""
    _, settings = FAMILIES[name]
    checkpoint = write_tiny_checkpoint(name, tmp_path / "model", **{"num_hidden_layers": 1, **settings})
    built = build(checkpoint, tmp_path)
    groups = load_manifest(built.artifact).caches
    assert len(groups) == len(settings.get("layer_types", ["full_attention"]))
    sizes = {group.name: group.block_size for group in groups}
    steps = [[piece(groups, *part) for part in step] for step in STEPS]
    arrays = [{key: array.tolist() for key, array in step_arrays(pieces, sizes).items()} for pieces in steps]
    rows = np.concatenate(logits(built.artifact, built.dump, arrays, tmp_path / "logits.npz"))
    (long, short), lost = logits_and_loss(checkpoint, [LONG, SHORT])
    wanted = np.stack([(long if tokens is LONG else short)[end - 1] for step in STEPS for tokens, _, end in step])
    assert np.abs(rows - wanted).max() <= 4 * lost


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", ["mxfp4", "fp8-block", "int4"])
def test_quantized_experts_compute_their_reference(kind: str, tmp_path: Path) -> None:
    """Loading replays the golden probe, which the operators' references recorded; decode is compared with prefill. mxfp4: a file whose
    experts are, with biases."""
    if kind == "mxfp4":
        _, model = write_twins("gpt_oss", tmp_path / "twins", quantization=lambda tensor: "MXFP4" if "_exps" in tensor else "F32")
        built = build(model, tmp_path)
    else:
        model = write_tiny_checkpoint("qwen3_moe", tmp_path / "model", num_hidden_layers=2, **_WHOLE_BLOCKS)
        built = build(model, tmp_path, "--quantize", kind)
    manifest = load_manifest(built.artifact)
    held = {info.format for name, info in manifest.weights.items() if ".experts." in name and len(info.shape) == 2}
    assert held == {"mxfp4": {"mxfp4"}, "fp8-block": {"fp8_block"}, "int4": {"i4_g32", "i5_g32"}}[kind]
    sizes = {group.name: group.block_size for group in manifest.caches}
    parts = [[(SHORT, 0, 8)], [(SHORT, 8, 9)], [(SHORT, 0, 9)]]
    steps = [step_arrays([piece(manifest.caches, *part) for part in step], sizes) for step in parts]
    arrays = [{key: array.tolist() for key, array in step.items()} for step in steps]
    _, decoded, prefilled = logits(built.artifact, built.dump, arrays, tmp_path / "logits.npz")
    assert np.abs(decoded - prefilled).max() <= 0.03 * np.abs(prefilled).max()


def piece(groups: list[CacheGroup], tokens: list[int], start: int, end: int) -> Piece:
    """Tokens start..end - 1, in scattered blocks. A block that a window has left is used again by the same sequence, and its place is any
    number."""
    blocks = {}
    for group in groups:
        held = ([5, 2, 5 if group.window else 4] if tokens is LONG else [1, 3])[: -(-end // group.block_size)]
        left = max(0, start - group.window + 1) // group.block_size if group.window else 0
        blocks[group.name] = [7] * left + held[left:]
    return Piece(tokens[:end], start, blocks)
