"""OLMo 1 (LayerNorm that learns nothing), 2 and 3 (norms of results, and of queries and keys as a whole); EXAONE 3 and 4, their kin."""

from typing import Any

from ..names import NameTable
from ..parts.attention import QKNormSpec
from ..parts.norm import NormSpec
from ..settings import Settings
from ..spec import ModelSpec
from . import gguf
from .architecture import GGUFEntry, GGUFSource, HFEntry
from .hf import after, attention, before, dense, mlp, rms, rope, window_size, windows_by_type
from .llama import COMMON, IGNORED, LAYER, NAMES, SOURCES, read_llama, renamed

AFTER_NAMES = NameTable(
    sources=SOURCES
    | {
        "layers.{}.attention_post_norm.weight": LAYER + "post_attention_layernorm.weight",
        "layers.{}.mlp_post_norm.weight": LAYER + "post_feedforward_layernorm.weight",
    },
    ignored=IGNORED,
)


def _olmo(settings: Settings) -> ModelSpec:
    norm, bias = NormSpec(kind="layer", eps=1e-5, weight=False), settings.flag("attention_bias", False)
    mixers = attention(settings, qkv_bias=bias, output_bias=bias, clip=settings.number("clip_qkv", 0.0))
    return dense(settings, mixers=mixers, channel=mlp(settings), norms=before(norm), final=norm)


def _olmo2(settings: Settings) -> ModelSpec:
    return _normed_after(settings, QKNormSpec(norm=rms(settings), over="width"))


def _olmo3(settings: Settings) -> ModelSpec:
    """Layers with a window rotate by the plain table, the others by the scaled one."""
    windows = windows_by_type(settings, window_size(settings), lambda index: (index + 1) % 4 != 0)
    full, local = rope(settings, "full_attention"), rope(settings, "sliding_attention", scaled=False)
    ropes = [local if window else full for window in windows]
    return _normed_after(settings, QKNormSpec(norm=rms(settings), over="width"), windows=windows, ropes=ropes)


def _exaone4(settings: Settings) -> ModelSpec:
    """With windows, the layers that see everything have no positions."""
    window, pattern = window_size(settings), settings.raw("sliding_window_pattern")
    period = len(pattern) if isinstance(pattern, str) else settings.integer("sliding_window_pattern", 4)
    windows = windows_by_type(settings, window, lambda index: (index + 1) % period != 0)
    table = rope(settings)
    ropes = [table if size or not window else None for size in windows]
    return _normed_after(settings, QKNormSpec(norm=rms(settings)), windows=windows, ropes=ropes)


def _normed_after(settings: Settings, qk_norm: QKNormSpec, **layers: Any) -> ModelSpec:
    bias, norm = settings.flag("attention_bias", False), rms(settings)
    mixers = attention(settings, qkv_bias=bias, output_bias=bias, qk_norm=qk_norm, **layers)
    return dense(settings, mixers=mixers, channel=mlp(settings), norms=after(norm), final=norm)


_EXAONE = "transformer.h.{}."
_EXAONE_NAMES = NameTable(
    sources=SOURCES
    | {"embed.weight": "transformer.wte.weight"}
    | renamed(
        {
            "norm": "transformer.ln_f",
            "layers.{}.attention_norm": _EXAONE + "ln_1",
            "layers.{}.mlp_norm": _EXAONE + "ln_2",
            "layers.{}.mlp.gate": _EXAONE + "mlp.c_fc_0",
            "layers.{}.mlp.up": _EXAONE + "mlp.c_fc_1",
            "layers.{}.mlp.down": _EXAONE + "mlp.c_proj",
            "layers.{}.attention.o": _EXAONE + "attn.attention.out_proj",
        }
        | {f"layers.{{}}.attention.{part}": f"{_EXAONE}attn.attention.{part}_proj" for part in "qkv"}
    ),
    ignored=(_EXAONE + "attn.rotary.inv_freq", "transformer.rotary.inv_freq"),
)


_OLMO3 = COMMON | {"rms_norm_eps": 1e-5, "rope_theta": 500000.0, "max_position_embeddings": 2048, "sliding_window": 4096}
HF = (
    HFEntry(model_types=("olmo",), defaults=COMMON | {"max_position_embeddings": 2048}, read=_olmo, names=NAMES),
    HFEntry(
        model_types=("olmo2",), defaults=COMMON | {"rms_norm_eps": 1e-5, "max_position_embeddings": 2048}, read=_olmo2, names=AFTER_NAMES
    ),
    HFEntry(model_types=("olmo3",), defaults=_OLMO3, read=_olmo3, names=AFTER_NAMES),
    HFEntry(
        model_types=("exaone",),
        defaults=COMMON | {"max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 500000.0},
        aliases={"num_layers": "num_hidden_layers", "layer_norm_epsilon": "rms_norm_eps", "activation_function": "hidden_act"},
        read=read_llama,
        names=_EXAONE_NAMES,
    ),
    HFEntry(
        model_types=("exaone4",),
        defaults=COMMON | {"max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "sliding_window": 4096},
        read=_exaone4,
        names=AFTER_NAMES,
    ),
)


def _olmo_of_gguf(settings: Settings, found: GGUFSource) -> dict[str, Any]:
    return gguf.common(settings, found) | {"model_type": "olmo", "clip_qkv": settings.number("attention.clamp_kqv", 0.0)}


def _olmo2_of_gguf(settings: Settings, found: GGUFSource) -> dict[str, Any]:
    """OLMo 2, and with a window OLMo 3, which GGUF stores under one name."""
    values = gguf.common(settings, found)
    if window := gguf.window(settings):
        more = gguf.layer_types(settings, 4) | gguf.ropes_by_type(settings, values)
        return values | {"model_type": "olmo3", "sliding_window": window} | more
    return values | {"model_type": "olmo2"}


def _exaone_of_gguf(settings: Settings, found: GGUFSource) -> dict[str, Any]:
    return gguf.common(settings, found) | {"model_type": "exaone"}


def _exaone4_of_gguf(settings: Settings, found: GGUFSource) -> dict[str, Any]:
    values = gguf.common(settings, found) | {"model_type": "exaone4", "sliding_window": gguf.window(settings) or None}
    return values | (gguf.layer_types(settings, 4) if values["sliding_window"] else {})


GGUF = (
    GGUFEntry(architectures=("olmo",), settings=_olmo_of_gguf, names=gguf.INTERLEAVED_NAMES),
    GGUFEntry(architectures=("olmo2",), settings=_olmo2_of_gguf, names=gguf.NAMES),
    GGUFEntry(architectures=("exaone",), settings=_exaone_of_gguf, names=gguf.NAMES),
    GGUFEntry(architectures=("exaone4",), settings=_exaone4_of_gguf, names=gguf.NAMES),
)
