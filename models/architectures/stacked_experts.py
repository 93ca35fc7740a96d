"""Mixtures of experts whose experts lie in one matrix, some transposed: Aria's language model, DBRX."""

from typing import Any

from ...errors import UnsupportedModelError
from ..names import Entry, NameTable, Source, experts_of, fused_qkv
from ..parts.moe import MoESpec
from ..parts.norm import NormSpec
from ..settings import Settings, brief
from ..spec import ModelSpec
from . import gguf
from .architecture import GGUFEntry, GGUFSource, HFEntry
from .experts import all_experts, router, shared, shared_mlp
from .hf import activation, attention, before, dense, mlp, rms
from .llama import COMMON, IGNORED, LAYER, QKV, SOURCES, either, parted, renamed

_MLP = LAYER + "mlp."
_ARIA_NAMES = NameTable(
    sources=SOURCES
    | {"layers.{}.mlp.router.weight": _MLP + "router.weight"}
    | either(
        all_experts(_MLP + "experts.gate_up_proj", _MLP + "experts.down_proj", transposed=True),
        all_experts(_MLP + "experts.fc1.weight", _MLP + "experts.fc2.weight", transposed=True),
    )
    | shared(_MLP + "shared_experts")
    | {f"layers.{{}}.mlp.shared.{part}.bias": f"{_MLP}shared_experts.{part}_proj.bias" for part in ("gate", "up", "down")},
    ignored=IGNORED,
)


def _aria(settings: Settings) -> ModelSpec:
    """Softmax over the chosen. What is beside the experts has the configuration's activation; they are always gated by silu."""
    bias, size, norm = settings.flag("attention_bias", False), settings.integer("intermediate_size"), rms(settings)
    channel = MoESpec(
        router=router(settings, "moe_num_experts", "moe_topk", score="identity", weighting="softmax"),
        experts=mlp(settings, activation="silu"),
        shared=shared_mlp(settings, settings.integer("moe_num_shared_experts"), size, bias=settings.flag("mlp_bias", False)),
    )
    return dense(settings, mixers=attention(settings, qkv_bias=bias, output_bias=bias), channel=channel, norms=before(norm), final=norm)


_BLOCK = "transformer.blocks.{}."
_DBRX_EXPERTS = _BLOCK + "ffn.experts.mlp."
_DBRX_SOURCES: dict[str, Entry] = {
    "embed.weight": "transformer.wte.weight",
    "head.weight": "lm_head.weight",
    **renamed(
        {
            "norm": "transformer.norm_f",
            "layers.{}.attention_norm": _BLOCK + "norm_attn_norm.norm_1",
            "layers.{}.attention.o": _BLOCK + "norm_attn_norm.attn.out_proj",
            "layers.{}.mlp_norm": _BLOCK + "norm_attn_norm.norm_2",
            "layers.{}.mlp.router": _BLOCK + "ffn.router.layer",
        }
    ),
    **parted(QKV, _BLOCK + "norm_attn_norm.attn.Wqkv", fused_qkv, ["weight"]),
    "layers.{}.mlp.experts.gate.weight": _DBRX_EXPERTS + "w1",
    "layers.{}.mlp.experts.up.weight": _DBRX_EXPERTS + "v1",
    "layers.{}.mlp.experts.down.weight": Source(tensor=_DBRX_EXPERTS + "w2", turned=experts_of),
}


def _dbrx(settings: Settings) -> ModelSpec:
    """Norms without a bias. Raises UnsupportedModelError where weights are divided by anything but their sum."""
    given, degree = settings.raw("ffn_act_fn") or {"name": "silu"}, settings.number("moe_normalize_expert_weights", 0.0)
    if degree not in (0.0, 1.0):
        raise UnsupportedModelError(
            f"{settings.source}: moe_normalize_expert_weights = {degree} is not supported", hint="1, which is their sum, or null is"
        )
    if not isinstance(given, dict) or set(given) != {"name"}:
        raise UnsupportedModelError(f"{settings.source}: ffn_act_fn = {brief(given)} is not supported", hint="one with a name alone is")
    settings.ignore("moe_jitter_eps", "moe_loss_weight")
    norm = NormSpec(kind="layer", eps=1e-5)
    channel = MoESpec(
        router=router(settings, "moe_num_experts", "moe_top_k", normalized=degree == 1.0),
        experts=mlp(settings, activation=activation(Settings(given, f"{settings.source}, ffn_act_fn"), "name")),
    )
    mixers = attention(settings, clip=settings.number("clip_qkv", 0.0))
    return dense(settings, mixers=mixers, channel=channel, norms=before(norm), final=norm)


HF = (
    HFEntry(
        model_types=("aria_text",),
        defaults=COMMON
        | {
            "max_position_embeddings": 2048,
            "moe_num_experts": 8,
            "moe_topk": 2,
            "moe_num_shared_experts": 2,
        },
        read=_aria,
        names=_ARIA_NAMES,
    ),
    HFEntry(
        model_types=("dbrx",),
        defaults=COMMON
        | {
            "max_position_embeddings": 2048,
            "num_key_value_heads": 1,
            "intermediate_size": 3584,
            "moe_num_experts": 4,
            "moe_top_k": 1,
            "moe_normalize_expert_weights": 1.0,
        },
        read=_dbrx,
        names=NameTable(sources=_DBRX_SOURCES),
        parts=("attn_config", "ffn_config"),
        aliases={
            "d_model": "hidden_size",
            "n_layers": "num_hidden_layers",
            "n_heads": "num_attention_heads",
            "max_seq_len": "max_position_embeddings",
            "kv_n_heads": "num_key_value_heads",
            "ffn_hidden_size": "intermediate_size",
        },
        base="transformer.",
    ),
)


def _dbrx_of_gguf(settings: Settings, found: GGUFSource) -> dict[str, Any]:
    values = gguf.common(settings, found) | gguf.experts(settings, count="moe_num_experts")
    own = {"moe_top_k": values["num_experts_per_tok"], "clip_qkv": settings.number("attention.clamp_kqv", 0.0)}
    return values | own | {"model_type": "dbrx"}


_GGUF_NAMES = NameTable(
    sources=gguf.SOURCES
    | parted(QKV, gguf.LAYER + "attn_qkv", fused_qkv, ["weight"])
    | {"layers.{}.mlp_norm.weight": gguf.LAYER + "attn_output_norm.weight"},
    ignored=gguf.VECTORS,
)
GGUF = (GGUFEntry(architectures=("dbrx",), settings=_dbrx_of_gguf, names=_GGUF_NAMES),)
