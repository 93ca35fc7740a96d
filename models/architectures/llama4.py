"""Llama 4: experts whose weights multiply what they read, chunks, and layers without positions whose queries grow with theirs."""

from dataclasses import replace
from typing import Any

from ...errors import CheckpointError, UnsupportedModelError
from ..names import NameTable
from ..parts.attention import AttentionSpec, QKNormSpec, TemperatureSpec
from ..parts.moe import MoESpec
from ..parts.norm import NormSpec
from ..settings import Settings
from ..spec import Channel, ModelSpec
from . import gguf
from .architecture import GGUFEntry, GGUFSource, HFEntry
from .experts import all_experts, router, shared
from .hf import DAMAGED, attention, before, dense, mlp, num_layers, rms, rope
from .llama import COMMON, IGNORED, LAYER, SOURCES

_MLP = LAYER + "feed_forward."
_NAMES = NameTable(
    sources=SOURCES
    | {"layers.{}.mlp.router.weight": _MLP + "router.weight"}
    | {f"layers.{{}}.mlp.{part}.weight": f"{_MLP}{part}_proj.weight" for part in ("gate", "up", "down")}
    | all_experts(_MLP + "experts.gate_up_proj", _MLP + "experts.down_proj", transposed=True)
    | shared(_MLP + "shared_expert"),
    ignored=IGNORED,
    interleaved=True,
)


def _llama4(settings: Settings) -> ModelSpec:
    settings.ignore("cache_implementation", "for_llm_compressor")
    return dense(settings, mixers=_mixers(settings), channel=_channels(settings), norms=before(rms(settings)), final=rms(settings))


def _mixers(settings: Settings) -> tuple[AttentionSpec, ...]:
    """Layers that rotate see a chunk and normalize queries and keys; in the others queries grow with their position."""
    rotates, table, bias = _rotating(settings), rope(settings), settings.flag("attention_bias", False)
    # After the rotation. Where that only turns them, a norm without a weight is the same before it.
    norm = QKNormSpec(norm=NormSpec(eps=settings.number("rms_norm_eps"), weight=False), after_rope=table.attention_factor != 1.0)
    growth = TemperatureSpec(beta=settings.number("attn_scale"), length=settings.integer("floor_scale"), offset=1)
    qk_norm = norm if settings.flag("use_qk_norm") else None
    temperature = growth if settings.flag("attn_temperature_tuning") else None
    ropes = [table if each else None for each in rotates]
    chunks = _chunks(settings, rotates)
    return tuple(
        replace(mixer, chunk=chunk, qk_norm=qk_norm) if mixer.rope is not None else replace(mixer, chunk=chunk, temperature=temperature)
        for mixer, chunk in zip(attention(settings, ropes=ropes, qkv_bias=bias, output_bias=bias), chunks, strict=True)
    )


def _rotating(settings: Settings) -> list[bool]:
    count, interval = num_layers(settings), settings.integer("no_rope_layer_interval")
    if not (given := settings.raw("no_rope_layers")):
        return [interval <= 0 or (index + 1) % interval != 0 for index in range(count)]
    if not isinstance(given, list) or len(given) < count:
        raise CheckpointError(f"{settings.source}: no_rope_layers says nothing of some of {count} layers", hint=DAMAGED)
    return [bool(each) for each in given[:count]]


def _chunks(settings: Settings, rotates: list[bool]) -> list[int]:
    """The chunk of every layer: as `layer_types` says, or of those that rotate."""
    size = settings.integer("attention_chunk_size", 0)
    if "layer_types" not in settings:
        return [size if each else 0 for each in rotates]
    types = settings.items("layer_types")
    if len(types) != len(rotates):
        raise CheckpointError(f"{settings.source}: layer_types has {len(types)} entries for {len(rotates)} layers", hint=DAMAGED)
    for unknown in sorted({str(each) for each in types} - {"full_attention", "chunked_attention"}):
        raise UnsupportedModelError(
            f"{settings.source}: layer type {unknown!r} is not supported", hint="full_attention and chunked_attention are"
        )
    if "chunked_attention" in types and size <= 0:
        raise CheckpointError(
            f"{settings.source}: layer_types has chunked_attention layers, but there is no attention_chunk_size", hint=DAMAGED
        )
    return [size if each == "chunked_attention" else 0 for each in types]


def _channels(settings: Settings) -> tuple[Channel, ...]:
    """Experts in the layers that `moe_layers` names, or in every so manieth; what is beside them has their size, and the other layers have
    another one."""
    step, count = settings.integer("interleave_moe_layer_step"), num_layers(settings)
    every = range(step - 1, count, step) if step > 0 else ()
    with_experts = set(settings.items("moe_layers") if "moe_layers" in settings else every)
    if not with_experts <= set(range(count)):
        raise CheckpointError(f"{settings.source}: moe_layers names others than the {count} layers", hint=DAMAGED)
    plain = mlp(settings, size=settings.integer("intermediate_size_mlp"))
    if not with_experts:
        settings.ignore("num_local_experts", "num_experts_per_tok", "intermediate_size", "output_router_logits", "router_aux_loss_coef")
        return (plain,) * count
    sparse = MoESpec(
        router=router(settings, "num_local_experts", score="identity", weighting="sigmoid"),
        experts=mlp(settings),
        weighs_input=True,
        shared=mlp(settings),
    )
    return tuple(sparse if index in with_experts else plain for index in range(count))


HF = (
    HFEntry(
        model_types=("llama4_text",),
        defaults=COMMON
        | {
            "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0,
            "max_position_embeddings": 131072,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "intermediate_size_mlp": 16384,
            "num_local_experts": 16,
            "num_experts_per_tok": 1,
            "interleave_moe_layer_step": 1,
            "no_rope_layer_interval": 4,
            "use_qk_norm": True,
            "attention_chunk_size": 8192,
            "attn_temperature_tuning": True,
            "floor_scale": 8192,
            "attn_scale": 0.1,
        },
        read=_llama4,
        names=_NAMES,
        aliases={"num_experts": "num_local_experts"},
    ),
)


def _of_gguf(settings: Settings, found: GGUFSource) -> dict[str, Any]:
    """Chunks, growth and which layers rotate are no settings: llama.cpp knows them, and by the number of experts whether queries and keys
    are normalized."""
    if not settings.integer("attention.sliding_window", 8192):
        raise UnsupportedModelError(
            f"{settings.source}: Llama 4 without chunks is not supported as GGUF", hint="give the model as a Hugging Face directory"
        )
    values = gguf.common(settings, found) | gguf.experts(settings, count="num_local_experts", gating=2)
    return values | {
        "model_type": "llama4_text",
        "intermediate_size": values["moe_intermediate_size"],
        "intermediate_size_mlp": values["intermediate_size"],
        "interleave_moe_layer_step": settings.integer("interleave_moe_layer_step"),
        "use_qk_norm": values["num_local_experts"] != 128,
    }


GGUF = (GGUFEntry(architectures=("llama4",), settings=_of_gguf, names=gguf.INTERLEAVED_NAMES),)
