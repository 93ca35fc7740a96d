"""Gemma 4, the language model: layers with and without a window have heads of their own sizes, and some read other layers' keys and values.

Small ones have an input for every layer beside the residual stream; the mixture has experts beside a dense MLP.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ...errors import CheckpointError, UnsupportedModelError
from ..names import Entry, NameTable, Source
from ..parts.attention import AttentionSpec, QKNormSpec
from ..parts.layer_inputs import LayerInputsSpec
from ..parts.mlp import MLPSpec
from ..parts.moe import BranchNorms, MoESpec
from ..parts.norm import NormSpec
from ..settings import Settings, brief
from ..spec import Channel, EmbedSpec, HeadSpec, ModelSpec
from . import gguf
from .architecture import GGUFEntry, GGUFSource, HFEntry
from .experts import PARTS, all_experts, checked_router, each_expert
from .hf import DAMAGED, activation, around, attention, dense, mlp, rms, rope, rounded, window_size, windows_by_type
from .llama import IGNORED, LAYER, SOURCES, either, renamed

_FULL, _SLIDING = "full_attention", "sliding_attention"
_PERIOD = 6
_NO_TURN = 1e30
"""What files divide frequencies by that are to be zero."""
_DEFAULTS = {
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "global_head_dim": 512,
    "tie_word_embeddings": True,
}
_TABLES = {
    _SLIDING: {"rope_type": "default", "rope_theta": 10000.0},
    _FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1000000.0},
}
_OWN = {"max_position_embeddings": 131072, "sliding_window": 512, "hidden_size_per_layer_input": 256, "vocab_size_per_layer_input": 262144}


def _gemma4(settings: Settings) -> ModelSpec:
    """Attention to what follows is of images ("vision"), or of an encoder ("all"). The last layer has no window, whatever is said."""
    if (both_ways := settings.raw("use_bidirectional_attention")) not in (None, False, "vision"):
        raise UnsupportedModelError(
            f"{settings.source}: use_bidirectional_attention = {brief(both_ways)} is not supported: tokens would see those that follow",
            hint="models whose layers are causal for text are",
        )
    norm = rms(settings)
    sparse = settings.has_default("enable_moe_block") and settings.flag("enable_moe_block", False)
    norms = around(norm)
    sources = _sources(settings, windows := _windows(settings))
    return dense(
        settings,
        mixers=_mixers(settings, windows, sources),
        channel=_channels(settings, sources, norm, sparse),
        max_context=settings.integer("max_position_embeddings"),
        norms=replace(norms, before_channel=None) if sparse else norms,
        final=norm,
        embed=EmbedSpec(multiplier=rounded(math.sqrt(settings.integer("hidden_size")), settings)),
        head=HeadSpec(softcap=settings.number("final_logit_softcapping", 0.0)),
        scaled=True,
        layer_inputs=_layer_inputs(settings, norm),
    )


def _windows(settings: Settings) -> tuple[int, ...]:
    """Of every layer; 0 for none."""
    if (size := window_size(settings)) <= 0 and "layer_types" not in settings:
        raise CheckpointError(f"{settings.source}: sliding_window is {size}; it must be positive", hint=DAMAGED)
    windows = windows_by_type(settings, size, lambda index: (index + 1) % _PERIOD != 0)
    return (*windows[:-1], 0)


def _sources(settings: Settings, windows: Sequence[int]) -> tuple[int | None, ...]:
    """Which layer's keys and values each of the last ones reads: the last of its kind of those that have their own."""
    shared, count = settings.integer("num_kv_shared_layers", 0), len(windows)
    own = range(count - shared)
    if not 0 <= shared < count or {bool(windows[index]) for index in own} != set(map(bool, windows)):
        raise CheckpointError(
            f"{settings.source}: {shared} of {count} layers are to read keys and values of others (num_kv_shared_layers);"
            " one with a window and one without must have their own",
            hint=DAMAGED,
        )
    last = {bool(windows[index]): index for index in own}
    return tuple(None if index in own else last[bool(windows[index])] for index in range(count))


def _mixers(settings: Settings, windows: Sequence[int], sources: Sequence[int | None]) -> tuple[AttentionSpec, ...]:
    bias, norm = settings.flag("attention_bias", False), rms(settings)
    values_are_keys = settings.flag("attention_k_eq_v", False)
    plain = attention(
        settings,
        ropes=[None] * len(windows),
        windows=windows,
        scale=1.0,
        qkv_bias=bias,
        output_bias=bias,
        qk_norm=QKNormSpec(norm=norm),
        value_norm=replace(norm, weight=False),
    )
    sizes = _sizes(settings, windows)
    tables = {kind: _table(settings, kind) for kind in {_SLIDING if window else _FULL for window in windows}}
    return tuple(
        replace(
            spec,
            **size,
            rope=rope(settings, given=tables[_SLIDING if spec.window else _FULL], head_dim=size.get("head_dim", spec.head_dim)),
            values_are_keys=values_are_keys and not spec.window,
            source=source,
        )
        for spec, size, source in zip(plain, sizes, sources, strict=True)
    )


def _table(settings: Settings, kind: str) -> dict[str, Any]:
    """How the rotary embedding of layers of one type is described."""
    given = settings.raw("rope_parameters")
    tables = _TABLES if given is None else given
    table = tables.get(kind) if isinstance(tables, dict) else None
    if not isinstance(table, dict):
        raise CheckpointError(f"{settings.source}: rope_parameters has no table for layers of type {kind}", hint=DAMAGED)
    return table


def _sizes(settings: Settings, windows: Sequence[int]) -> list[dict[str, Any]]:
    """What every layer has instead of the common sizes of heads: as `per_layer_config` says, or the settings of all layers without a
    window, whose number of heads counts where values are keys."""
    given = settings.raw("per_layer_config")
    full = {"head_dim": settings.integer("global_head_dim")}
    if settings.flag("attention_k_eq_v", False) and "num_global_key_value_heads" in settings:
        full["num_kv_heads"] = settings.integer("num_global_key_value_heads")
    settings.ignore("num_global_key_value_heads")
    if given is None:
        return [{} if window else full for window in windows]
    if not isinstance(given, dict) or not all(isinstance(each, dict) for each in given.values()):
        raise CheckpointError(f"{settings.source}: per_layer_config is {brief(given)}; it must be an object of objects", hint=DAMAGED)
    return [_own_sizes(given.get(str(index), {}), f"{settings.source}, per_layer_config.{index}") for index in range(len(windows))]


def _own_sizes(given: dict[str, Any], source: str) -> dict[str, Any]:
    own = Settings(given, source)
    names = {"head_dim": "head_dim", "num_key_value_heads": "num_kv_heads"}
    sizes = {ours: own.integer(theirs) for theirs, ours in names.items() if theirs in own}
    if unknown := sorted(own.unknown()):
        raise UnsupportedModelError(
            f"{source}: {', '.join(unknown)} of a single layer is not supported", hint=f"{' and '.join(names)} may differ by layer"
        )
    return sizes


def _channels(settings: Settings, sources: Sequence[int | None], norm: NormSpec, sparse: bool) -> tuple[Channel, ...]:
    """Those of layers that read others' keys and values may be twice as wide."""
    wide = settings.flag("use_double_wide_mlp", False)
    plain = mlp(settings, activation_name="hidden_activation")
    denses = [replace(plain, size=2 * plain.size) if wide and source is not None else plain for source in sources]
    if not sparse:
        settings.ignore("num_experts", "top_k_experts", "moe_intermediate_size")
        return tuple(denses)
    experts = mlp(settings, activation_name="hidden_activation", size=settings.integer("moe_intermediate_size"))
    return tuple(_beside_experts(settings, dense, experts, norm) for dense in denses)


def _beside_experts(settings: Settings, shared: MLPSpec, experts: MLPSpec, norm: NormSpec) -> MoESpec:
    router = checked_router(
        settings, settings.integer("num_experts"), settings.integer("top_k_experts"), normalized=True, expert_scale=True, norm=norm
    )
    norms = BranchNorms(before_experts=norm, after_experts=norm, before_shared=norm, after_shared=norm)
    return MoESpec(router=router, experts=experts, shared=shared, norms=norms)


def _layer_inputs(settings: Settings, norm: NormSpec) -> LayerInputsSpec | None:
    """Embedding and projection, added, are multiplied with the root of 1/2: here the one is, and the weight of the other's norm."""
    size = settings.integer("hidden_size_per_layer_input", 0) if settings.has_default("hidden_size_per_layer_input") else 0
    if not size:
        settings.ignore("vocab_size_per_layer_input")
        return None
    if (vocab_size := settings.integer("vocab_size_per_layer_input")) != settings.integer("vocab_size"):
        raise UnsupportedModelError(
            f"{settings.source}: vocab_size_per_layer_input = {vocab_size}, and vocab_size = {settings.integer('vocab_size')}",
            hint="only models with inputs of layers for every token are supported",
        )
    return LayerInputsSpec(
        size=size,
        activation=activation(settings, "hidden_activation"),
        norm=norm,
        post_norm=norm,
        embed_multiplier=rounded(math.sqrt(size), settings) * math.sqrt(0.5),
        multiplier=settings.integer("hidden_size") ** -0.5,
    )


_AROUND = renamed(
    {
        "layers.{}.attention_post_norm": LAYER + "post_attention_layernorm",
        "layers.{}.mlp_norm": LAYER + "pre_feedforward_layernorm",
        "layers.{}.mlp_post_norm": LAYER + "post_feedforward_layernorm",
        "layers.{}.input.gate": LAYER + "per_layer_input_gate",
        "layers.{}.input.down": LAYER + "per_layer_projection",
        "layers.{}.input.post_norm": LAYER + "post_per_layer_input_norm",
        "layer_inputs.embed": "model.embed_tokens_per_layer",
        "layer_inputs.projection": "model.per_layer_model_projection",
    }
)
_BRANCHES = renamed(
    {
        **{f"layers.{{}}.mlp.shared.{part}": f"{LAYER}mlp.{part}_proj" for part in PARTS},
        "layers.{}.mlp.shared_norm": LAYER + "pre_feedforward_layernorm",
        "layers.{}.mlp.shared_post_norm": LAYER + "post_feedforward_layernorm_1",
        "layers.{}.mlp.experts_norm": LAYER + "pre_feedforward_layernorm_2",
        "layers.{}.mlp.experts_post_norm": LAYER + "post_feedforward_layernorm_2",
        "layers.{}.mlp.router": LAYER + "router.proj",
    }
)
_EXPERTS = either(each_expert(LAYER + "experts"), all_experts(LAYER + "experts.gate_up_proj", LAYER + "experts.down_proj"))


def _names(spec: ModelSpec) -> NameTable:
    """Layers that read others' keys and values may carry matrices for their own, which nothing reads."""
    own: dict[str, Entry] = {
        "layers.{}.scale": LAYER + "layer_scalar",
        "layers.{}.mlp.router.expert_scale": LAYER + "router.per_expert_scale",
        **_scaled(spec, router=LAYER + "router.scale", inputs="model.per_layer_projection_norm.weight"),
    }
    unread = [f"{LAYER}self_attn.{part}.weight" for part in ("k_proj", "v_proj", "k_norm")] if _shares(spec) else []
    return NameTable(sources=SOURCES | _AROUND | _BRANCHES | _EXPERTS | own, ignored=(*IGNORED, *unread))


def _scaled(spec: ModelSpec, *, router: str, inputs: str) -> dict[str, Entry]:
    """Weights of norms whose results are multiplied with a number."""
    return {
        "layers.{}.mlp.router.norm.weight": Source(tensor=router, times=spec.hidden_size**-0.5),
        "layer_inputs.norm.weight": Source(tensor=inputs, times=math.sqrt(0.5)),
    }


def _shares(spec: ModelSpec) -> bool:
    return any(layer.mixer.source is not None for layer in spec.layers)


HF = (
    HFEntry(
        model_types=("gemma4_text",),
        defaults=_DEFAULTS | _OWN | {"enable_moe_block": False},
        read=_gemma4,
        names=_names,
    ),
    HFEntry(
        model_types=("gemma4_unified_text",),
        defaults=_DEFAULTS | {"max_position_embeddings": 262144, "sliding_window": 1024},
        read=_gemma4,
        names=_names,
    ),
)


def _of_gguf(settings: Settings, found: GGUFSource) -> dict[str, Any]:
    """Heads of keys and values, and channels, may be counted layer by layer. Layers without a window have heads of `key_length`, whose
    frequencies the file says the parts of that turn; where they have no matrix for values, these are keys."""
    count, shared = settings.integer("block_count"), settings.integer("attention.shared_kv_layers", 0)
    sizes, kv_heads = _by_layer(settings, "feed_forward_length", count), _by_layer(settings, "attention.head_count_kv", count)
    head_dim, full_dim = _head_dim(settings, "_swa"), _head_dim(settings, "")
    types = gguf.layer_types(settings)
    full = [index for index, each in enumerate(types["layer_types"]) if each == _FULL] if types else []
    if not full or full[-1] != count - 1:
        raise UnsupportedModelError(
            f"{settings.source}: the last layer has a window (attention.sliding_window_pattern)", hint="that of this architecture has none"
        )
    first, own = sizes[0], count - shared
    wide = sizes == [first] * own + [2 * first] * shared and shared > 0
    if not wide and sizes != [first] * count:
        raise UnsupportedModelError(
            f"{settings.source}: feed_forward_length is {brief(sizes)}",
            hint="layers that read others' keys and values may be twice as wide as the others, and no layer may differ otherwise",
        )
    values = gguf.common(settings, found, head_dim=head_dim, kv_heads=kv_heads[0], intermediate_size=first)
    theta, divisors = values["rope_theta"], values["rope_scaling"]
    return {
        **{name: value for name, value in values.items() if name not in ("rope_dimension_count", "rope_scaling")},
        **types,
        "model_type": "gemma4_text",
        "hidden_activation": "gelu_pytorch_tanh",
        "rope_parameters": {
            _SLIDING: {"rope_type": "default", "rope_theta": settings.number("rope.freq_base_swa", 10000.0)},
            _FULL: {**_proportional(divisors, full_dim), "rope_theta": theta},
        },
        "per_layer_config": {
            str(index): {"head_dim": full_dim if index in full else head_dim, "num_key_value_heads": heads}
            for index, heads in enumerate(kv_heads)
        },
        "sliding_window": settings.integer("attention.sliding_window"),
        "final_logit_softcapping": settings.number("final_logit_softcapping", 0.0),
        "attention_k_eq_v": all(f"blk.{index}.attn_v.weight" not in found.tensors for index in full if index < own),
        "num_kv_shared_layers": shared,
        "use_double_wide_mlp": wide,
        "hidden_size_per_layer_input": settings.integer("embedding_length_per_layer_input", 0),
        "vocab_size_per_layer_input": values["vocab_size"],
        **_experts_of_gguf(settings, found),
    }


def _by_layer(settings: Settings, name: str, count: int) -> list[int]:
    """A number for all layers, or one for each."""
    given = settings.raw(name)
    if not isinstance(given, list):
        return [settings.integer(name)] * count
    if len(given) != count:
        raise CheckpointError(f"{settings.source}: {name} has {len(given)} entries for {count} layers", hint=DAMAGED)
    return [Settings({name: each}, settings.source).integer(name) for each in given]


def _head_dim(settings: Settings, kind: str) -> int:
    """Of layers with a window ("_swa"), or of the others: that of keys and values, all of which is rotated."""
    keys = settings.integer(f"attention.key_length{kind}")
    for name in (f"attention.value_length{kind}", f"rope.dimension_count{kind}"):
        if (size := settings.integer(name, keys)) != keys:
            raise UnsupportedModelError(
                f"{settings.source}: {name} is {size}, and keys have {keys} elements", hint="in this architecture they are the same"
            )
    return keys


def _proportional(scaling: dict[str, Any], head_dim: int) -> dict[str, Any]:
    """Pairs that do not turn, as config.json has it: their frequencies are divided by a number that leaves nothing of them."""
    divisors: list[float] = scaling.get("divisors", [])
    turning = sum(divisor < _NO_TURN for divisor in divisors)
    if divisors != [1.0] * turning + divisors[turning:] or any(divisor < _NO_TURN for divisor in divisors[turning:]) or not divisors:
        return {"rope_type": "default", **scaling}
    return {"rope_type": "proportional", "partial_rotary_factor": (2 * turning + 1) / head_dim}  # rounded down to whole pairs


def _experts_of_gguf(settings: Settings, found: GGUFSource) -> dict[str, Any]:
    """Files of models without experts may count them all the same."""
    if "blk.0.ffn_gate_inp.weight" not in found.tensors:
        settings.ignore("expert_count", "expert_used_count", "expert_feed_forward_length")
        return {}
    values = gguf.experts(settings)
    return {
        "enable_moe_block": True,
        "top_k_experts": values["num_experts_per_tok"],
        **{name: values[name] for name in ("num_experts", "moe_intermediate_size")},
    }


_GGUF_BRANCHES: dict[str, Entry] = {
    **{f"layers.{{}}.mlp.shared.{part}.weight": f"{gguf.LAYER}ffn_{part}.weight" for part in PARTS},
    "layers.{}.mlp.shared_norm.weight": gguf.LAYER + "ffn_norm.weight",
    "layers.{}.mlp.shared_post_norm.weight": gguf.LAYER + "post_ffw_norm_1.weight",
    "layers.{}.mlp.experts_norm.weight": gguf.LAYER + "pre_ffw_norm_2.weight",
    "layers.{}.mlp.experts_post_norm.weight": gguf.LAYER + "post_ffw_norm_2.weight",
    "layers.{}.mlp.router.expert_scale": gguf.LAYER + "ffn_down_exps.scale",
}
_GGUF_OWN: dict[str, Entry] = {
    "layers.{}.scale": gguf.LAYER + "layer_output_scale.weight",
    "layers.{}.input.gate.weight": gguf.LAYER + "inp_gate.weight",
    "layers.{}.input.down.weight": gguf.LAYER + "proj.weight",
    "layers.{}.input.post_norm.weight": gguf.LAYER + "post_norm.weight",
    "layer_inputs.embed.weight": "per_layer_token_embd.weight",
    "layer_inputs.projection.weight": "per_layer_model_proj.weight",
}


def _gguf_names(spec: ModelSpec) -> NameTable:
    scaled = _scaled(spec, router=gguf.LAYER + "ffn_gate_inp.scale", inputs="per_layer_proj_norm.weight")
    unread = [f"{gguf.LAYER}attn_{part}.weight" for part in ("k", "v", "k_norm")] if _shares(spec) else []
    return NameTable(sources=gguf.SOURCES | _GGUF_BRANCHES | _GGUF_OWN | scaled, ignored=(*gguf.VECTORS, *unread))


GGUF = (GGUFEntry(architectures=("gemma4",), settings=_of_gguf, names=_gguf_names),)
