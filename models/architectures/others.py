"""Families that are like no other here: Hunyuan, nanochat, BitNet."""

from typing import Any

from ..names import Entry, NameTable, Source, swapped_halves
from ..parts.attention import QKNormSpec
from ..parts.norm import NormSpec
from ..settings import Settings
from ..spec import EmbedSpec, HeadSpec, ModelSpec
from . import gguf
from .architecture import GGUFEntry, GGUFSource, HFEntry
from .hf import attention, before, dense, mlp, rms, rope
from .llama import COMMON, IGNORED, LAYER, SOURCES, renamed

_HUNYUAN_NORMS = {
    "layers.{}.attention.q_norm": LAYER + "self_attn.query_layernorm",
    "layers.{}.attention.k_norm": LAYER + "self_attn.key_layernorm",
}


def _hunyuan(settings: Settings) -> ModelSpec:
    """Queries and keys are normalized after they were rotated."""
    norm, bias = rms(settings), settings.flag("attention_bias", False)
    settings.ignore("cla_share_factor", "eod_token_id", "sep_token_id", "org_vocab_size", "add_classification_head", "mask_init_id")
    qk_norm = QKNormSpec(norm=norm, after_rope=True) if settings.flag("use_qk_norm", True) else None
    mixers = attention(settings, qkv_bias=bias, output_bias=bias, qk_norm=qk_norm)
    return dense(settings, mixers=mixers, channel=mlp(settings), norms=before(norm), final=norm)


def _nanochat(settings: Settings) -> ModelSpec:
    """Norms that learn nothing, one of them on embeddings; heads turn the other way."""
    norm, bias = NormSpec(eps=settings.number("rms_norm_eps"), weight=False), settings.flag("attention_bias", False)
    # Of queries and keys after the rotation. Where that only turns them, a norm without a weight is the same before it.
    qk_norm = QKNormSpec(norm=norm, after_rope=rope(settings).attention_factor != 1.0)
    return dense(
        settings,
        mixers=attention(settings, qkv_bias=bias, output_bias=bias, qk_norm=qk_norm),
        channel=mlp(settings, gated=False),
        norms=before(norm),
        final=norm,
        embed=EmbedSpec(norm=norm),
        head=HeadSpec(softcap=settings.number("final_logit_softcapping", 0.0)),
    )


def _bitnet(settings: Settings) -> ModelSpec:
    """A norm before each of the two projections into the residual stream."""
    norm, bias = rms(settings), settings.flag("attention_bias", False)
    mixers = attention(settings, qkv_bias=bias, output_bias=bias, output_norm=norm)
    return dense(settings, mixers=mixers, channel=mlp(settings, inner_norm=norm), norms=before(norm), final=norm)


_NANOCHAT = renamed({"layers.{}.mlp.up": LAYER + "mlp.fc1", "layers.{}.mlp.down": LAYER + "mlp.fc2"}) | {
    f"layers.{{}}.attention.{part}.{kind}": Source(tensor=f"{LAYER}self_attn.{part}_proj.{kind}", rows=swapped_halves(part))
    for part in "qk"
    for kind in ("weight", "bias")
}
_BITNET: dict[str, Entry] = {
    "layers.{}.attention.output_norm.weight": LAYER + "self_attn.attn_sub_norm.weight",
    "layers.{}.mlp.inner_norm.weight": LAYER + "mlp.ffn_sub_norm.weight",
}
HF = (
    HFEntry(
        model_types=("hunyuan_v1_dense",),
        defaults=COMMON | {"rms_norm_eps": 1e-5, "max_position_embeddings": 2048},
        read=_hunyuan,
        names=NameTable(sources=SOURCES | renamed(_HUNYUAN_NORMS), ignored=IGNORED),
    ),
    HFEntry(
        model_types=("nanochat",),
        defaults=COMMON | {"hidden_act": "relu2", "max_position_embeddings": 2048, "final_logit_softcapping": 15.0},
        read=_nanochat,
        names=NameTable(sources=SOURCES | _NANOCHAT, ignored=IGNORED),
    ),
    HFEntry(
        model_types=("bitnet",),
        defaults=COMMON | {"rms_norm_eps": 1e-5, "hidden_act": "relu2", "max_position_embeddings": 2048, "rope_theta": 500000.0},
        read=_bitnet,
        names=NameTable(sources=SOURCES | _BITNET, ignored=IGNORED),
    ),
)


def _hunyuan_of_gguf(settings: Settings, found: GGUFSource) -> dict[str, Any]:
    return gguf.common(settings, found) | {"model_type": "hunyuan_v1_dense"}


GGUF = (GGUFEntry(architectures=("hunyuan-dense",), settings=_hunyuan_of_gguf, names=gguf.NAMES),)
