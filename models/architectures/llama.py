"""Llama and its closest kin: norms before, a gated channel, all names alike."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ...errors import CheckpointError, UnsupportedModelError
from ..names import Entry, NameTable, RowsOf, Source, fused_qkv_by_group
from ..parts.attention import QKNormSpec
from ..settings import Settings
from ..spec import ModelSpec
from . import gguf
from .architecture import GGUFEntry, GGUFSource, HFEntry
from .hf import DAMAGED, attention, before, dense, mlp, num_layers, rms, rope, temperature, window_size, windows_by_type

LAYER = "model.layers.{}."
LINEAR = ("weight", "bias")
QKV, GATE_UP = "layers.{}.attention.q,k,v", "layers.{}.mlp.gate,up"


def renamed(modules: Mapping[str, str]) -> dict[str, Entry]:
    """Weight and bias of each of our modules, by the name of theirs."""
    return {f"{ours}.{kind}": f"{theirs}.{kind}" for ours, theirs in modules.items() for kind in LINEAR}


def parted(modules: str, tensor: str, rows: Callable[[str], RowsOf], kinds: Iterable[str] = LINEAR, **fields: Any) -> dict[str, Entry]:
    """Parameters that are rows of one tensor: `modules` is our name, whose last part is one letter or word for each of them, by commas.

    fields: of `Source`, beyond tensor and rows.
    """
    before, _, parts = modules.rpartition(".")
    return {
        f"{before}.{part}.{kind}": Source(tensor=f"{tensor}.{kind}", rows=rows(part), **fields)
        for part in parts.split(",")
        for kind in kinds
    }


def either(first: Mapping[str, Entry], second: Mapping[str, Entry]) -> dict[str, Entry]:
    """Both tables; where both have a parameter, that counts whose tensor is there."""

    def several(entry: Entry) -> tuple[Source | str, ...]:
        return entry if isinstance(entry, tuple) else (entry,)

    return {**first, **{name: (*several(first.get(name, ())), *several(entry)) for name, entry in second.items()}}


SOURCES: dict[str, Entry] = {
    "embed.weight": "model.embed_tokens.weight",
    "head.weight": "lm_head.weight",
    "layers.{}.attention.sinks": LAYER + "self_attn.sinks",
    **renamed(
        {
            "norm": "model.norm",
            "layers.{}.attention_norm": LAYER + "input_layernorm",
            "layers.{}.attention.q_norm": LAYER + "self_attn.q_norm",
            "layers.{}.attention.k_norm": LAYER + "self_attn.k_norm",
            "layers.{}.mlp_norm": LAYER + "post_attention_layernorm",
        }
    ),
    **{f"layers.{{}}.attention.{part}.{kind}": f"{LAYER}self_attn.{part}_proj.{kind}" for part in "qkvo" for kind in LINEAR},
    **{f"layers.{{}}.mlp.{part}.{kind}": f"{LAYER}mlp.{part}_proj.{kind}" for part in ("gate", "up", "down") for kind in LINEAR},
}
# Saved by old versions of transformers; the configuration says the same.
IGNORED = (LAYER + "self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq")
NAMES = NameTable(sources=SOURCES, ignored=IGNORED)
INTERLEAVED = NameTable(sources=SOURCES, ignored=IGNORED, interleaved=True)

_MTP = tuple(
    f"model.mtp_layers.{{}}.{name}.weight"
    for name in (
        *(f"{norm}_layernorm" for norm in ("input", "token", "hidden", "post_attention", "final")),
        "input_proj",
        *(f"self_attn.{part}_proj" for part in "qkvo"),
        *(f"mlp.{part}_proj" for part in ("gate", "up", "down")),
    )
) + tuple(f"model.mtp_layers.{{}}.self_attn.{part}_proj.bias" for part in "qkv")

_INTERNLM2 = NameTable(
    sources={"embed.weight": "model.tok_embeddings.weight", "head.weight": "output.weight"}
    | renamed(
        {
            "norm": "model.norm",
            "layers.{}.attention_norm": LAYER + "attention_norm",
            "layers.{}.attention.o": LAYER + "attention.wo",
            "layers.{}.mlp_norm": LAYER + "ffn_norm",
            "layers.{}.mlp.gate": LAYER + "feed_forward.w1",
            "layers.{}.mlp.up": LAYER + "feed_forward.w3",
            "layers.{}.mlp.down": LAYER + "feed_forward.w2",
        }
    )
    | parted(QKV, LAYER + "attention.wqkv", fused_qkv_by_group),
    ignored=IGNORED,
)

COMMON = {"rms_norm_eps": 1e-6, "hidden_act": "silu", "rope_theta": 10000.0, "tie_word_embeddings": False}
_QWEN = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28, "max_position_embeddings": 32768}


def read_llama(settings: Settings) -> ModelSpec:
    if "sliding_window" in settings or "sliding_attention" in (settings.raw("layer_types") or ()):
        raise UnsupportedModelError(
            f"{settings.source}: sliding windows are set, which models of type 'llama' do not have", hint="those of type 'mistral' do"
        )
    bias = settings.flag("attention_bias", False)
    return dense(
        settings,
        mixers=attention(settings, qkv_bias=bias, output_bias=settings.flag("output_bias", bias)),
        channel=mlp(settings, bias=settings.flag("mlp_bias", False)),
        norms=before(rms(settings)),
        final=rms(settings),
    )


def read_biased(*flags: str) -> Callable[[Settings], ModelSpec]:
    """Llama with biases where settings of these names say so: of q, k and v; of the output; of the channel."""

    def read(settings: Settings) -> ModelSpec:
        qkv, output, channel = (bool(flag) and settings.flag(flag, False) for flag in flags)
        mixers = attention(settings, qkv_bias=qkv, output_bias=output)
        return dense(settings, mixers=mixers, channel=mlp(settings, bias=channel), norms=before(rms(settings)), final=rms(settings))

    return read


def _ministral(settings: Settings) -> ModelSpec:
    windows = windows_by_type(settings, window_size(settings), lambda index: bool(window_size(settings)))
    return dense(
        settings, mixers=attention(settings, windows=windows), channel=mlp(settings), norms=before(rms(settings)), final=rms(settings)
    )


def _ministral3(settings: Settings) -> ModelSpec:
    """Queries grow with the logarithm of their position, by a number that stands among those of the rotary embedding."""
    windows = (window_size(settings),) * num_layers(settings)
    mixers = attention(settings, windows=windows, temperature=temperature(settings))
    return dense(settings, mixers=mixers, channel=mlp(settings), norms=before(rms(settings)), final=rms(settings))


def _internlm3(settings: Settings) -> ModelSpec:
    """`qkv_bias` is of the output too."""
    bias = settings.flag("qkv_bias", False)
    return dense(
        settings,
        mixers=attention(settings, qkv_bias=bias, output_bias=bias),
        channel=mlp(settings, bias=settings.flag("bias", False)),
        norms=before(rms(settings)),
        final=rms(settings),
    )


def _mimo(settings: Settings) -> ModelSpec:
    """Qwen 2 with layers that predict further tokens, of which nothing here makes use."""
    settings.ignore("num_nextn_predict_layers", "sliding_window", "max_window_layers", "use_sliding_window", "use_mrope")
    bias = settings.flag("attention_bias", True)
    mixers = attention(settings, qkv_bias=bias)
    return dense(settings, mixers=mixers, channel=mlp(settings), norms=before(rms(settings)), final=rms(settings))


def _cwm(settings: Settings) -> ModelSpec:
    windows = windows_by_type(settings, window_size(settings), lambda index: index % 4 != 0)
    return dense(
        settings, mixers=attention(settings, windows=windows), channel=mlp(settings), norms=before(rms(settings)), final=rms(settings)
    )


def _mistral(settings: Settings) -> ModelSpec:
    """One window for every layer, `layer_types` only as far as it says the same."""
    window = window_size(settings)
    kinds = set(settings.items("layer_types")) if "layer_types" in settings else set()
    if kinds - {"sliding_attention" if window else "full_attention"}:
        raise UnsupportedModelError(
            f"{settings.source}: layer_types differ from layer to layer, which models of type 'mistral' do not have",
            hint="those of type 'ministral' do",
        )
    return dense(
        settings,
        mixers=attention(settings, windows=(window,) * num_layers(settings)),
        channel=mlp(settings),
        norms=before(rms(settings)),
        final=rms(settings),
    )


def _later_windows(settings: Settings) -> tuple[int, ...]:
    """Qwen: if windows are in use at all, layers from `max_window_layers` on have one."""
    window = window_size(settings) if settings.flag("use_sliding_window", False) else 0
    first = settings.integer("max_window_layers")
    settings.ignore("sliding_window")
    return windows_by_type(settings, window, lambda index: index >= first)


def _qwen2(settings: Settings) -> ModelSpec:
    return dense(
        settings,
        mixers=attention(settings, windows=_later_windows(settings), qkv_bias=True),
        channel=mlp(settings),
        norms=before(rms(settings)),
        final=rms(settings),
    )


def _qwen3(settings: Settings) -> ModelSpec:
    bias, norm = settings.flag("attention_bias", False), rms(settings)
    mixers = attention(settings, windows=_later_windows(settings), qkv_bias=bias, output_bias=bias, qk_norm=QKNormSpec(norm=norm))
    return dense(settings, mixers=mixers, channel=mlp(settings), norms=before(norm), final=norm)


def _smollm3(settings: Settings) -> ModelSpec:
    """Some layers without rotary embedding, and a window, if any, on those only."""
    count, table = num_layers(settings), rope(settings)
    interval = settings.integer("no_rope_layer_interval")
    if interval <= 0:
        raise CheckpointError(f"{settings.source}: no_rope_layer_interval is {interval}; it must be positive", hint=DAMAGED)
    rotates = [(index + 1) % interval != 0 for index in range(count)]
    if "no_rope_layers" in settings:
        rotates = [bool(flag) for flag in settings.items("no_rope_layers")[:count]]
    if len(rotates) < count:
        raise CheckpointError(f"{settings.source}: no_rope_layers has {len(rotates)} entries for {count} layers", hint=DAMAGED)
    window = window_size(settings) if settings.flag("use_sliding_window", False) else 0
    settings.ignore("sliding_window")
    windows = windows_by_type(settings, window, lambda index: not rotates[index])
    bias = settings.flag("attention_bias", False)
    ropes = [table if each else None for each in rotates]
    return dense(
        settings,
        mixers=attention(settings, ropes=ropes, windows=windows, qkv_bias=bias, output_bias=bias),
        channel=mlp(settings, bias=settings.flag("mlp_bias", False)),
        norms=before(rms(settings)),
        final=rms(settings),
    )


HF = (
    HFEntry(model_types=("llama",), defaults=COMMON | {"max_position_embeddings": 2048}, read=read_llama, names=NAMES),
    HFEntry(
        model_types=("mistral",),
        defaults=COMMON | {"max_position_embeddings": 131072, "sliding_window": 4096, "num_key_value_heads": 8},
        read=_mistral,
        names=NAMES,
    ),
    HFEntry(model_types=("qwen2",), defaults=COMMON | _QWEN | {"num_key_value_heads": 32}, read=_qwen2, names=NAMES),
    HFEntry(model_types=("qwen3",), defaults=COMMON | _QWEN | {"num_key_value_heads": 32, "head_dim": 128}, read=_qwen3, names=NAMES),
    HFEntry(
        model_types=("smollm3",),
        defaults=COMMON
        | {
            "max_position_embeddings": 32768,
            "rope_theta": 2000000.0,
            "tie_word_embeddings": True,
            "num_key_value_heads": 4,
            "use_sliding_window": False,
            "no_rope_layer_interval": 4,
        },
        read=_smollm3,
        names=NAMES,
    ),
    HFEntry(
        model_types=("ministral",),
        defaults=COMMON | {"max_position_embeddings": 131072, "sliding_window": 4096, "num_key_value_heads": 8},
        read=_ministral,
        names=NAMES,
    ),
    HFEntry(
        model_types=("ministral3",),
        defaults=COMMON | {"rms_norm_eps": 1e-5, "max_position_embeddings": 262144, "num_key_value_heads": 8, "head_dim": 128},
        read=_ministral3,
        names=NAMES,
    ),
    HFEntry(
        model_types=("cwm",),
        defaults=COMMON
        | {
            "rms_norm_eps": 1e-5,
            "rope_theta": 1000000.0,
            "max_position_embeddings": 131072,
            "sliding_window": 8192,
            "head_dim": 128,
        },
        read=_cwm,
        names=NAMES,
    ),
    HFEntry(
        model_types=("seed_oss",),
        defaults=COMMON | {"max_position_embeddings": 524288, "head_dim": 128, "attention_bias": True, "attention_out_bias": False},
        read=read_biased("attention_bias", "attention_out_bias", "mlp_bias"),
        names=NAMES,
    ),
    HFEntry(
        model_types=("ernie4_5",),
        defaults=COMMON
        | {"rms_norm_eps": 1e-5, "max_position_embeddings": 131072, "rope_theta": 500000.0, "head_dim": 128, "tie_word_embeddings": True},
        read=read_biased("use_bias", "use_bias", "use_bias"),
        names=INTERLEAVED,
    ),
    HFEntry(
        model_types=("helium",),
        defaults=COMMON | {"rms_norm_eps": 1e-8, "max_position_embeddings": 4096, "rope_theta": 100000.0, "head_dim": 128},
        read=read_biased("attention_bias", "", "mlp_bias"),
        names=INTERLEAVED,
    ),
    HFEntry(
        model_types=("internlm3",),
        defaults=COMMON | {"rms_norm_eps": 1e-5, "max_position_embeddings": 32768, "num_key_value_heads": 2, "head_dim": 128},
        read=_internlm3,
        names=NAMES,
    ),
    HFEntry(
        model_types=("internlm",),
        defaults=COMMON | {"max_position_embeddings": 2048, "bias": True},
        read=read_biased("bias", "bias", ""),
        names=NAMES,
    ),
    HFEntry(
        model_types=("internlm2",),
        defaults=COMMON | {"max_position_embeddings": 2048, "bias": False},
        read=read_biased("bias", "bias", ""),
        names=_INTERNLM2,
    ),
    HFEntry(
        model_types=("iquestcoder",),
        defaults=COMMON | {"rms_norm_eps": 1e-5, "max_position_embeddings": 131072, "head_dim": 128},
        read=read_biased("attention_bias", "attention_bias", "mlp_bias"),
        names=NAMES,
    ),
    HFEntry(
        model_types=("emu3_text_model",),
        defaults=COMMON | {"rms_norm_eps": 1e-5, "max_position_embeddings": 9216, "num_key_value_heads": 8, "rope_theta": 1000000.0},
        read=read_biased("attention_bias", "attention_bias", "mlp_bias"),
        names=NAMES,
    ),
    HFEntry(
        model_types=("mimo",),
        defaults=COMMON | {"max_position_embeddings": 32768},
        read=_mimo,
        names=NameTable(sources=SOURCES, ignored=(*IGNORED, *_MTP)),
    ),
    HFEntry(
        model_types=("telechat3",),
        defaults=COMMON | {"rms_norm_eps": 1e-5, "max_position_embeddings": 32768},
        read=read_biased("attention_bias", "attention_bias", "mlp_bias"),
        names=NAMES,
    ),
)


def _llama_of_gguf(settings: Settings, found: GGUFSource) -> dict[str, Any]:
    """Llama, Mistral and Mixtral, which GGUF stores under one name."""
    if settings.integer("expert_count", 0):
        experts = gguf.experts(settings, count="num_local_experts")
        window = gguf.window(settings) or None
        return gguf.common(settings, found) | experts | {"model_type": "mixtral", "sliding_window": window}
    if window := gguf.window(settings):
        return gguf.common(settings, found) | {"model_type": "mistral", "sliding_window": window}
    biases = {"attention_bias": "attn_q", "output_bias": "attn_output", "mlp_bias": "ffn_gate"}
    return gguf.common(settings, found) | {"model_type": "llama"} | {name: gguf.has_bias(found, tensor) for name, tensor in biases.items()}


def _qwen_of_gguf(model_type: str) -> Callable[[Settings, GGUFSource], dict[str, Any]]:
    def read(settings: Settings, found: GGUFSource) -> dict[str, Any]:
        gguf.no_window(settings)
        return gguf.common(settings, found) | {"model_type": model_type}

    return read


def _ernie_of_gguf(settings: Settings, found: GGUFSource) -> dict[str, Any]:
    return gguf.common(settings, found) | {"model_type": "ernie4_5", "use_bias": gguf.has_bias(found, "attn_q")}


def _seed_oss_of_gguf(settings: Settings, found: GGUFSource) -> dict[str, Any]:
    biases = {"attention_bias": "attn_q", "attention_out_bias": "attn_output", "mlp_bias": "ffn_gate"}
    return gguf.common(settings, found) | {"model_type": "seed_oss"} | {name: gguf.has_bias(found, part) for name, part in biases.items()}


def _mistral3_of_gguf(settings: Settings, found: GGUFSource) -> dict[str, Any]:
    values = gguf.common(settings, found) | {"model_type": "ministral3", "sliding_window": gguf.window(settings) or None}
    beta = settings.number("attention.temperature_scale", 0.0)
    return values | ({"rope_scaling": values["rope_scaling"] | {"llama_4_scaling_beta": beta}} if beta else {})


def _internlm2_of_gguf(settings: Settings, found: GGUFSource) -> dict[str, Any]:
    return gguf.common(settings, found) | {"model_type": "internlm2", "bias": gguf.has_bias(found, "attn_q")}


def _smollm3_of_gguf(settings: Settings, found: GGUFSource) -> dict[str, Any]:
    """Every fourth layer has no rotary embedding; GGUF has no key for it."""
    gguf.no_window(settings)
    return gguf.common(settings, found) | {"model_type": "smollm3"}


GGUF = (
    GGUFEntry(architectures=("llama",), settings=_llama_of_gguf, names=gguf.INTERLEAVED_NAMES),
    GGUFEntry(architectures=("qwen2",), settings=_qwen_of_gguf("qwen2"), names=gguf.NAMES),
    GGUFEntry(architectures=("qwen3",), settings=_qwen_of_gguf("qwen3"), names=gguf.NAMES),
    GGUFEntry(architectures=("smollm3",), settings=_smollm3_of_gguf, names=gguf.INTERLEAVED_NAMES),
    GGUFEntry(architectures=("ernie4_5",), settings=_ernie_of_gguf, names=gguf.INTERLEAVED_NAMES),
    GGUFEntry(architectures=("mistral3",), settings=_mistral3_of_gguf, names=gguf.INTERLEAVED_NAMES),
    GGUFEntry(architectures=("internlm2",), settings=_internlm2_of_gguf, names=gguf.INTERLEAVED_NAMES),
    GGUFEntry(
        architectures=("seed_oss",),
        settings=_seed_oss_of_gguf,
        names=gguf.NAMES_WITH_POST_ATTENTION_NORM,
    ),
)
