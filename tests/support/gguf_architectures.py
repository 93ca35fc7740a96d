"""How llama.cpp's converter writes each family: what the tables of the `gguf` package, which name keys and tensors, do not say.

Most architectures are the common keys and the tensors as they are. Where a file cannot say what a family's configuration
can, `settings` are those under which it says everything.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Config = dict[str, Any]
Weights = dict[str, np.ndarray]
Transform = Callable[[Weights, Config], Weights]


@dataclass(frozen=True, kw_only=True)
class GgufArchitecture:
    """One architecture of GGUF: keys besides the common ones (None removes one), transforms of the weights, in order. like: one that has
    the same tensors, where the `gguf` package does not know this one."""

    name: str
    like: str = ""
    keys: Callable[[Config, Weights], dict[str, Any]] = lambda config, weights: {}
    transforms: tuple[Transform, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)


def first(config: Config, *names: str, default: Any = None) -> Any:
    """The first of the settings `names` that the configuration has and that is not null."""
    return next((config[name] for name in names if config.get(name) is not None), default)


def heads(config: Config) -> int:
    return int(first(config, "num_attention_heads", "n_head", "n_heads"))


def kv_heads(config: Config) -> int:
    if config["model_type"] == "falcon":
        grouped = config["new_decoder_architecture"] or not config["multi_query"]
        return int(config["num_kv_heads"]) if grouped else 1
    if config["model_type"] == "gpt_bigcode":
        return 1 if config["multi_query"] else heads(config)
    return int(first(config, "num_key_value_heads", default=heads(config)))


def hidden_size(config: Config) -> int:
    return int(first(config, "hidden_size", "n_embd", "d_model"))


def head_dim(config: Config) -> int:
    return int(first(config, "head_dim", default=hidden_size(config) // heads(config)))


def rope(config: Config) -> dict[str, Any]:
    """Rope of the layers that see everything."""
    parameters: dict[str, Any] = config.get("rope_parameters") or {}
    of_full: dict[str, Any] = parameters.get("full_attention", parameters)
    return of_full


def rotary_width(config: Config) -> int:
    return int(head_dim(config) * rope(config).get("partial_rotary_factor", 1.0))


def slides(config: Config) -> list[bool]:
    return [kind == "sliding_attention" for kind in config["layer_types"]]


def common_keys(config: Config) -> dict[str, Any]:
    """What the converter writes for every architecture that does not say otherwise, without the architecture's prefix."""
    keys = {
        "context_length": first(config, "max_position_embeddings", "n_positions"),
        "embedding_length": hidden_size(config),
        "block_count": first(config, "num_hidden_layers", "n_layer"),
        "feed_forward_length": first(config, "intermediate_size", "n_inner", "ffn_hidden_size", default=4 * hidden_size(config)),
        "attention.head_count": heads(config),
        "attention.head_count_kv": kv_heads(config),
        "attention.layer_norm_rms_epsilon": config.get("rms_norm_eps"),
        "attention.layer_norm_epsilon": first(config, "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"),
        "attention.key_length": config.get("head_dim"),
        "attention.value_length": config.get("head_dim"),
        "rope.freq_base": rope(config).get("rope_theta"),
        "rope.freq_base_swa": (config.get("rope_parameters") or {}).get("sliding_attention", {}).get("rope_theta"),
    }
    return keys | _scaling_keys(rope(config))


def _scaling_keys(parameters: dict[str, Any]) -> dict[str, Any]:
    match parameters.get("rope_type"):
        case "linear":
            return {"rope.scaling.type": "linear", "rope.scaling.factor": float(parameters["factor"])}
        case "yarn":
            yarn = {f"rope.scaling.yarn_{name}": parameters.get(name) for name in ("beta_fast", "beta_slow")}
            return yarn | {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": float(parameters["factor"]),
                "rope.scaling.original_context_length": parameters["original_max_position_embeddings"],
            }
        case "longrope":
            return {"rope.scaling.type": "longrope"}
        case _:
            return {}


def _renamed(pattern: str) -> Callable[[Callable[[np.ndarray, str, Config], np.ndarray]], Transform]:
    """A transform of the tensors whose whole name matches `pattern`."""

    def decorate(change: Callable[[np.ndarray, str, Config], np.ndarray]) -> Transform:
        def transform(weights: Weights, config: Config) -> Weights:
            return {name: change(weight, name, config) if re.fullmatch(pattern, name) else weight for name, weight in weights.items()}

        return transform

    return decorate


def split_latents(weights: Weights, config: Config) -> Weights:
    """The matrix that makes keys and values of latents: one for each, those of keys transposed."""
    found: Weights = {}
    for name, weight in weights.items():
        if name.endswith("kv_b_proj.weight"):
            by_head = weight.reshape(heads(config), -1, weight.shape[1])
            keys, values = np.split(by_head, [config["qk_nope_head_dim"]], axis=1)
            found[name.replace("kv_b_proj", "k_b_proj")] = keys.transpose(0, 2, 1)
            found[name.replace("kv_b_proj", "v_b_proj")] = values
        else:
            found[name] = weight
    return found


@_renamed(r".*\.[qk]_proj\.(weight|bias)")
def interleave(weight: np.ndarray, name: str, config: Config) -> np.ndarray:
    """The rows of each head's two halves, in turns."""
    count = heads(config) if ".q_proj." in name else kv_heads(config)
    halves = weight.reshape(count, 2, weight.shape[0] // count // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


@_renamed(r".*norm\.weight")
def add_one(weight: np.ndarray, name: str, config: Config) -> np.ndarray:
    return weight + np.float32(1)


@_renamed(r".*\.query_key_value\.(weight|bias)")
def regroup(weight: np.ndarray, name: str, config: Config) -> np.ndarray:
    """Per group of heads its queries, its key, its value -> all queries, all keys, all values."""
    groups = kv_heads(config)
    rows = weight.reshape(groups, heads(config) // groups + 2, -1, *weight.shape[1:])
    parts = rows[:, :-2], rows[:, -2:-1], rows[:, -1:]
    return np.concatenate([part.reshape(-1, *weight.shape[1:]) for part in parts])


@_renamed(r".*\.(c_attn|c_proj|c_fc)\.weight")
def transpose(weight: np.ndarray, name: str, config: Config) -> np.ndarray:
    return weight.T


def stack_head_norms(weights: Weights, config: Config) -> Weights:
    """One norm of queries or keys per head -> one tensor [heads, head_dim] per layer."""
    stacked: dict[str, list[np.ndarray]] = {}
    others: Weights = {}
    for name, weight in weights.items():
        found = re.fullmatch(r"(.*\.[qk])_layernorm\.norms\.\d+(\.weight)", name)
        if found:
            stacked.setdefault(f"{found[1]}_norm{found[2]}", []).append(weight)
        else:
            others[name] = weight
    return others | {name: np.stack(norms) for name, norms in stacked.items()}


def llama3_divisors(weights: Weights, config: Config) -> Weights:
    """Adds what each frequency of Llama 3's scaling is divided by, in float64 until the end."""
    parameters = rope(config)
    if parameters.get("rope_type") != "llama3":
        return weights
    width = rotary_width(config)
    divisors = []
    for index in range(0, width, 2):
        turns = parameters["original_max_position_embeddings"] / (2 * math.pi * parameters["rope_theta"] ** (index / width))
        smooth = (turns - parameters["low_freq_factor"]) / (parameters["high_freq_factor"] - parameters["low_freq_factor"])
        smooth = min(max(smooth, 0.0), 1.0)
        divisors.append(1 / ((1 - smooth) / parameters["factor"] + smooth))
    return weights | {"rope_freqs.weight": np.array(divisors, dtype=np.float32)}


def longrope_factors(weights: Weights, config: Config) -> Weights:
    lengths = ("long", "short") if rope(config).get("rope_type") == "longrope" else ()
    return weights | {f"rope_factors_{name}.weight": np.array(rope(config)[f"{name}_factor"], dtype=np.float32) for name in lengths}


def merge_experts(weights: Weights, config: Config) -> Weights:
    """Those of a layer in one tensor for gate, up and down each, [E, rows, columns]."""
    by_name: dict[str, dict[int, np.ndarray]] = {}
    others: Weights = {}
    for name, weight in weights.items():
        if found := re.fullmatch(r"(model\.layers\.\d+)\.(?:mlp|block_sparse_moe)\.experts\.(\d+)\.(\w+)\.weight", name):
            part = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}.get(found[3], found[3])
            by_name.setdefault(f"{found[1]}.mlp.experts.{part}.weight", {})[int(found[2])] = weight
        elif found := re.fullmatch(r"(model\.layers\.\d+)\.(mlp|block_sparse_moe)\.(.*)", name):
            others |= _parts_of_experts(found[1], found[3], weight, config)
        else:
            others[name] = weight
    return others | {name: np.stack([each[index] for index in range(len(each))]) for name, each in by_name.items()}


def _parts_of_experts(layer: str, name: str, weight: np.ndarray, config: Config) -> Weights:
    """What is all in one tensor in the checkpoint, or has another name there."""
    experts = f"{layer}.mlp.experts."
    alternating = config["model_type"] == "gpt_oss"
    if name in ("experts.gate_up_proj", "input_linear.weight"):
        rows = weight.swapaxes(1, 2) if alternating else weight
        half = rows.shape[1] // 2
        parts = (rows[:, ::2], rows[:, 1::2]) if alternating else (rows[:, :half], rows[:, half:])
        return {f"{experts}{part}_proj.weight": rows for part, rows in zip(("gate", "up"), parts, strict=True)}
    if name in ("experts.down_proj", "output_linear.weight"):
        return {f"{experts}down_proj.weight": weight.swapaxes(1, 2) if alternating else weight}
    if name == "experts.gate_up_proj_bias":
        return {f"{experts}gate_proj.bias": weight[:, ::2], f"{experts}up_proj.bias": weight[:, 1::2]}
    if name == "experts.down_proj_bias":
        return {f"{experts}down_proj.bias": weight}
    renamed = {
        "router.layer.weight": "gate.weight",
        "router.weight": "gate.weight",
        "router.bias": "gate.bias",
        "e_score_correction_bias": "gate.e_score_correction.bias",
        "gate.e_score_correction_bias": "gate.e_score_correction.bias",
        "moe_statics.e_score_correction_bias": "gate.e_score_correction.bias",
        "expert_bias": "expert_bias.bias",
    }
    return {f"{layer}.mlp.{renamed.get(name, name)}": weight.squeeze() if "correction" in name or "shared_expert_gate" in name else weight}


def turn_experts(weights: Weights, config: Config) -> Weights:
    """Experts whose matrices are transposed in the checkpoint, gate and up in one."""
    found: Weights = {}
    for name, weight in weights.items():
        experts = name.removesuffix("gate_up_proj").removesuffix("down_proj")
        if name.endswith("experts.gate_up_proj"):
            for part, rows in zip(("gate", "up"), np.split(weight.swapaxes(1, 2), 2, axis=1), strict=True):
                found[f"{experts}{part}_proj.weight"] = rows
        elif name.endswith("experts.down_proj"):
            found[f"{name}.weight"] = weight.swapaxes(1, 2)
        else:
            found[name] = weight
    return found


def suffix_sinks(weights: Weights, config: Config) -> Weights:
    return {f"{name}.weight" if name.endswith((".sinks", "_sink_bias")) else name: weight for name, weight in weights.items()}


def split_shared(weights: Weights, config: Config) -> Weights:
    """Gate and up of the MLP beside experts, which lie in one tensor."""
    found: Weights = {}
    for name, weight in weights.items():
        if name.endswith(".shared_mlp.input_linear.weight"):
            layer = name.removesuffix(".shared_mlp.input_linear.weight")
            for part, rows in zip(("gate", "up"), np.split(weight, 2), strict=True):
                found[f"{layer}.mlp.shared_experts.{part}_proj.weight"] = rows
        else:
            found[name.replace(".shared_mlp.output_linear.", ".mlp.shared_experts.down_proj.")] = weight
    return found


def drop_xielu(weights: Weights, config: Config) -> Weights:
    return {name: weight for name, weight in weights.items() if ".act_fn." not in name}


def _granite_keys(config: Config, weights: Weights) -> dict[str, Any]:
    return {
        "attention.scale": config["attention_multiplier"],
        "embedding_scale": config["embedding_multiplier"],
        "residual_scale": config["residual_multiplier"],
        "logit_scale": config["logits_scaling"],
        "vocab_size": config["vocab_size"],
        "rope.dimension_count": head_dim(config),
    }


def _llama_keys(config: Config, weights: Weights) -> dict[str, Any]:
    keys = {"vocab_size": config["vocab_size"], "rope.dimension_count": head_dim(config)}
    window = config.get("sliding_window") if config["model_type"] == "mistral" else None
    return keys | {"attention.sliding_window": window}


def _gemma_keys(config: Config, weights: Weights) -> dict[str, Any]:
    window = {"attention.sliding_window": config.get("sliding_window")}
    caps = {f"{name}_logit_softcapping": config.get(f"{name}_logit_softcapping") for name in ("attn", "final")}
    return window | caps | ({} if config["model_type"] == "gemma3_text" else {"rope.freq_base": None})


def _gemma4_keys(config: Config, weights: Weights) -> dict[str, Any]:
    own: dict[str, dict[str, int]] = config["per_layer_config"]
    (full,) = {tuple(sorted(each.items())) for each in own.values()}
    layers, shared, size = config["num_hidden_layers"], config["num_kv_shared_layers"], config["intermediate_size"]
    heads_by_layer = [own.get(str(index), {}).get("num_key_value_heads", kv_heads(config)) for index in range(layers)]
    keys = {
        "attention.sliding_window_pattern": slides(config),
        "attention.shared_kv_layers": shared,
        "attention.head_count_kv": heads_by_layer if "num_key_value_heads" in dict(full) else kv_heads(config),
        "feed_forward_length": [size] * (layers - shared) + [2 * size] * shared if config["use_double_wide_mlp"] else size,
        "embedding_length_per_layer_input": config.get("hidden_size_per_layer_input", 0),
        "final_logit_softcapping": config["final_logit_softcapping"],
        "attention.sliding_window": config["sliding_window"],
    }
    experts = {"expert_used_count": config.get("top_k_experts"), "expert_feed_forward_length": config.get("moe_intermediate_size")}
    for kind, dim in (("", dict(full)["head_dim"]), ("_swa", head_dim(config))):
        keys |= {f"attention.{part}_length{kind}": dim for part in ("key", "value")} | {f"rope.dimension_count{kind}": dim}
    return keys | experts | {"expert_count": config.get("num_experts")}


def _gemma4_names(weights: Weights, config: Config) -> Weights:
    """The names that the converter gives what has none in the tables; and what it divides frequencies by."""
    patterns = {
        r"model\.layers\.(\d+)\.router\.scale": r"blk.\1.ffn_gate_inp.scale",
        r"model\.layers\.(\d+)\.router\.per_expert_scale": r"blk.\1.ffn_down_exps.scale",
        r"(.*\.(?:layer_scalar|gate_up_proj|experts\.down_proj))": r"\1.weight",
    }
    found: Weights = {}
    for name, weight in weights.items():
        (renamed,) = {re.sub(pattern, to, name) for pattern, to in patterns.items() if re.fullmatch(pattern, name)} or {name}
        found[renamed] = weight
    dim = next(iter(config["per_layer_config"].values()))["head_dim"]
    turning = int(dim * rope(config)["partial_rotary_factor"] / 2)
    return found | {"rope_freqs.weight": np.array([1.0] * turning + [1e30] * (dim // 2 - turning), dtype=np.float32)}


def _window_keys(config: Config, weights: Weights) -> dict[str, Any]:
    if config.get("sliding_window") is None:
        return {}
    return {"attention.sliding_window": config["sliding_window"], "attention.sliding_window_pattern": slides(config)}


def _phi3_keys(config: Config, weights: Weights) -> dict[str, Any]:
    keys: dict[str, Any] = {
        "rope.dimension_count": rotary_width(config),
        "rope.scaling.original_context_length": config["original_max_position_embeddings"],
        "attention.sliding_window": config["sliding_window"] or 0,
    }
    scale = config["max_position_embeddings"] / config["original_max_position_embeddings"]
    if rope(config)["rope_type"] == "longrope":
        keys["rope.scaling.attn_factor"] = math.sqrt(1 + math.log(scale) / math.log(config["original_max_position_embeddings"]))
    return keys


def _hunyuan_keys(config: Config, weights: Weights) -> dict[str, Any]:
    width, parameters = head_dim(config), rope(config)
    theta = parameters["rope_theta"] * parameters["alpha"] ** (width / (width - 2))
    return {"rope.freq_base": theta, "rope.scaling.type": "none", "rope.scaling.factor": 1.0}


def _mistral3_keys(config: Config, weights: Weights) -> dict[str, Any]:
    temperature = {
        "rope.scaling.yarn_log_multiplier": rope(config)["mscale_all_dim"],
        "attention.temperature_scale": rope(config)["llama_4_scaling_beta"],
    }
    return _llama_keys(config, weights) | temperature


def expert_keys(config: Config, weights: Weights) -> dict[str, Any]:
    return {
        "expert_count": first(config, "num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"),
        "expert_used_count": first(config, "num_experts_per_tok", "moe_k", "moe_topk"),
        "expert_feed_forward_length": config.get("moe_intermediate_size"),
        "expert_shared_feed_forward_length": config.get("shared_expert_intermediate_size"),
    }


def _mixtral_keys(config: Config, weights: Weights) -> dict[str, Any]:
    return _llama_keys(config, weights) | expert_keys(config, weights) | {"attention.sliding_window": config.get("sliding_window")}


def _granite_moe_keys(config: Config, weights: Weights) -> dict[str, Any]:
    shared = {"expert_shared_feed_forward_length": config.get("shared_intermediate_size")}
    return _granite_keys(config, weights) | expert_keys(config, weights) | shared


def _gpt_oss_keys(config: Config, weights: Weights) -> dict[str, Any]:
    own = {"expert_feed_forward_length": config["intermediate_size"], "attention.sliding_window": config["sliding_window"]}
    return expert_keys(config, weights) | own


def _sigmoid_keys(config: Config, weights: Weights) -> dict[str, Any]:
    return expert_keys(config, weights) | {
        "expert_gating_func": 2,
        "expert_shared_count": config.get("n_shared_experts"),
        "expert_weights_scale": config.get("routed_scaling_factor"),
        "expert_weights_norm": config.get("norm_topk_prob"),
        "leading_dense_block_count": _leading_dense(config),
        "rope.dimension_count": rotary_width(config),
    }


def _leading_dense(config: Config) -> int | None:
    """How many layers without experts come first."""
    types: list[str] | None = config.get("mlp_layer_types")
    return config.get("first_k_dense_replace") if types is None else [*types, "sparse"].index("sparse")


def _hunyuan_moe_keys(config: Config, weights: Weights) -> dict[str, Any]:
    """Numbers that may be given for each layer are written once; the base of positions as it is once stretched."""
    size = config["intermediate_size"]
    sizes = {"expert_feed_forward_length": size, "expert_shared_feed_forward_length": size}
    counts = {"expert_used_count": config["moe_topk"], "expert_shared_count": 1}
    return expert_keys(config, weights) | sizes | counts | _hunyuan_keys(config, weights)


def _exaone_moe_keys(config: Config, weights: Weights) -> dict[str, Any]:
    shared = config["num_shared_experts"]
    counts = {"expert_shared_count": shared, "expert_shared_feed_forward_length": config["moe_intermediate_size"] * shared}
    return _sigmoid_keys(config, weights) | _window_keys(config, weights) | counts | {"vocab_size": config["vocab_size"]}


def _afmoe_keys(config: Config, weights: Weights) -> dict[str, Any]:
    own = {"expert_shared_count": config["num_shared_experts"], "leading_dense_block_count": config["num_dense_layers"]}
    weighted = {"expert_weights_norm": True, "expert_weights_scale": config["route_scale"]}
    return (
        _sigmoid_keys(config, weights)
        | _llama_keys(config, weights)
        | own
        | weighted
        | {"attention.sliding_window": config["sliding_window"]}
    )


def _hy_v3_keys(config: Config, weights: Weights) -> dict[str, Any]:
    shared = config["moe_intermediate_size"] * config["num_shared_experts"]
    return _sigmoid_keys(config, weights) | {
        "expert_shared_count": None,
        "expert_shared_feed_forward_length": shared,
        "expert_weights_norm": True,
        "expert_weights_scale": config["router_scaling_factor"],
        "leading_dense_block_count": None,
    }


def _cohere2_moe_keys(config: Config, weights: Weights) -> dict[str, Any]:
    size, shared = config["intermediate_size"], config["num_shared_experts"]
    return _sigmoid_keys(config, weights) | {
        "logit_scale": config["logit_scale"],
        "attention.sliding_window": config["sliding_window"],
        "attention.sliding_window_pattern": slides(config),
        "vocab_size": config["vocab_size"],
        "feed_forward_length": config["prefix_dense_intermediate_size"] or size,
        "expert_feed_forward_length": size,
        "expert_shared_count": shared,
        "expert_shared_feed_forward_length": size * shared,
        "expert_weights_scale": None,
        "rope.scaling.type": "none",
    }


def _latent_keys(config: Config, weights: Weights) -> dict[str, Any]:
    """Keys and values are one latent for all heads; what is made of it has sizes of its own."""
    rank, turned = config["kv_lora_rank"], config["qk_rope_head_dim"]
    experts = (
        _sigmoid_keys(config, weights) if config.get("n_routed_experts") else {"leading_dense_block_count": config["num_hidden_layers"]}
    )
    softmax = {"expert_gating_func": 1} if config["model_type"] in ("deepseek_v2", "mistral4") else {}
    magnitude = rope(config).get("mscale_all_dim")
    return (
        experts
        | softmax
        | {
            "attention.head_count_kv": 1,
            "attention.kv_lora_rank": rank,
            "attention.q_lora_rank": config["q_lora_rank"],
            "attention.key_length": rank + turned,
            "attention.value_length": rank,
            "attention.key_length_mla": config["qk_nope_head_dim"] + turned,
            "attention.value_length_mla": config["v_head_dim"],
            "expert_group_count": config.get("n_group"),
            "expert_group_used_count": config.get("topk_group"),
            "rope.dimension_count": turned,
            "rope.scaling.yarn_log_multiplier": None if magnitude is None else 0.1 * magnitude,
            "vocab_size": config["vocab_size"],
        }
    )


def _llama4_keys(config: Config, weights: Weights) -> dict[str, Any]:
    return (
        _llama_keys(config, weights)
        | expert_keys(config, weights)
        | {
            "feed_forward_length": config["intermediate_size_mlp"],
            "expert_feed_forward_length": config["intermediate_size"],
            "interleave_moe_layer_step": config["interleave_moe_layer_step"],
        }
    )


def _dbrx_keys(config: Config, weights: Weights) -> dict[str, Any]:
    attends, expert = config["attn_config"], config["ffn_config"]
    return {
        "context_length": config["max_seq_len"],
        "embedding_length": config["d_model"],
        "block_count": config["n_layers"],
        "feed_forward_length": expert["ffn_hidden_size"],
        "attention.head_count": config["n_heads"],
        "attention.head_count_kv": attends["kv_n_heads"],
        "attention.clamp_kqv": attends["clip_qkv"],
        "attention.layer_norm_epsilon": 1e-5,
        "expert_count": expert["moe_num_experts"],
        "expert_used_count": expert["moe_top_k"],
    }


def split_dbrx(weights: Weights, config: Config) -> Weights:
    """The matrices of experts, one after another, as elements of a first axis."""
    found: Weights = {}
    for name, weight in weights.items():
        if ".experts.mlp." in name:
            each = weight.reshape(config["ffn_config"]["moe_num_experts"], -1, weight.shape[1])
            found[f"{name}.weight"] = each.swapaxes(1, 2) if name.endswith("w2") else each
        else:
            found[name] = weight
    return found


def _mimo_keys(config: Config, weights: Weights) -> dict[str, Any]:
    """Key-value heads by layer; nothing says which layers have experts."""
    return _sigmoid_keys(config, weights) | {
        "attention.head_count_kv": [kv_heads(config) * (2 if each else 1) for each in slides(config)],
        "attention.sliding_window": config["sliding_window"],
        "attention.sliding_window_pattern": slides(config),
        "attention.value_length": config["v_head_dim"],
        "attention.value_scale": config["attention_value_scale"],
        "leading_dense_block_count": None,
        "expert_weights_norm": None,
        "expert_weights_scale": None,
        "expert_group_count": config["n_group"],
        "expert_group_used_count": config["topk_group"],
    }


def _ernie_moe_keys(config: Config, weights: Weights) -> dict[str, Any]:
    return expert_keys(config, weights) | {
        "expert_shared_count": config["moe_num_shared_experts"],
        "leading_dense_block_count": config["moe_layer_start_index"],
        "interleave_moe_layer_step": config["moe_layer_interval"],
    }


def _xielu_keys(config: Config, weights: Weights) -> dict[str, Any]:
    parameters = {}
    for name in ("alpha_n", "alpha_p", "beta", "eps"):
        layers = range(config["num_hidden_layers"])
        parameters[f"xielu.{name}"] = [weights[f"model.layers.{layer}.mlp.act_fn.{name}"].item() for layer in layers]
    return _llama_keys(config, weights) | parameters


def _rotary_keys(config: Config, weights: Weights) -> dict[str, Any]:
    return {"rope.dimension_count": rotary_width(config)}


def _parallel_keys(config: Config, weights: Weights) -> dict[str, Any]:
    return _rotary_keys(config, weights) | {"use_parallel_residual": config["use_parallel_residual"]}


_STRETCHED = {
    "rope_type": "yarn",
    "rope_theta": 7000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "mscale": 0.7,
    "mscale_all_dim": 0.7,
}
_LLAMA = GgufArchitecture(name="llama", keys=_llama_keys, transforms=(interleave, llama3_divisors))
ARCHITECTURES: dict[str, GgufArchitecture] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "internlm3": _LLAMA,
    "iquestcoder": _LLAMA,
    **{
        family: GgufArchitecture(name="gemma4", keys=_gemma4_keys, transforms=(_gemma4_names,))
        for family in ("gemma4_text", "gemma4_unified_text")
    },
    "qwen2": GgufArchitecture(name="qwen2", settings={"use_sliding_window": False, "layer_types": None}),
    "qwen3": GgufArchitecture(name="qwen3", settings={"use_sliding_window": False, "layer_types": None}),
    "smollm3": GgufArchitecture(name="smollm3", keys=_llama_keys, transforms=(interleave,)),
    "gemma": GgufArchitecture(name="gemma", keys=_gemma_keys, transforms=(add_one,), settings={"rope_theta": 10000.0}),
    "gemma2": GgufArchitecture(
        name="gemma2", keys=_gemma_keys, transforms=(add_one,), settings={"rope_theta": 10000.0, "query_pre_attn_scalar": 32}
    ),
    "gemma3_text": GgufArchitecture(
        name="gemma3",
        keys=_gemma_keys,
        transforms=(add_one,),
        settings={
            "query_pre_attn_scalar": 32,
            "num_hidden_layers": 7,
            "layer_types": [*["sliding_attention"] * 5, "full_attention", "sliding_attention"],
        },
    ),
    "granite": GgufArchitecture(name="granite", keys=_granite_keys, transforms=(interleave,)),
    "cohere": GgufArchitecture(
        name="command-r", keys=lambda config, weights: {"logit_scale": config["logit_scale"], "rope.scaling.type": "none"}
    ),
    "cohere2": GgufArchitecture(
        name="cohere2",
        keys=lambda config, weights: {
            "logit_scale": config["logit_scale"],
            "attention.sliding_window": config["sliding_window"],
            "vocab_size": config["vocab_size"],
            "rope.dimension_count": head_dim(config),
            "rope.scaling.type": "none",
        },
        settings={"layer_types": [*["sliding_attention"] * 3, "full_attention"]},
    ),
    "glm": GgufArchitecture(
        name="chatglm",
        keys=lambda config, weights: {
            "rope.dimension_count": rotary_width(config),
            "attention.key_length": None,
            "attention.value_length": None,
        },
        settings={"head_dim": 24, "rms_norm_eps": 1e-5},
    ),
    "glm4": GgufArchitecture(name="glm4", keys=_rotary_keys),
    "phi": GgufArchitecture(
        name="phi2",
        keys=lambda config, weights: {"rope.dimension_count": rotary_width(config), "rope.freq_base": None},
        settings={"rope_theta": 10000.0, "intermediate_size": 384, "num_key_value_heads": 4},
    ),
    "phi3": GgufArchitecture(name="phi3", keys=_phi3_keys, transforms=(longrope_factors,), settings={"sliding_window": None}),
    "olmo": GgufArchitecture(
        name="olmo",
        keys=lambda config, weights: {"attention.layer_norm_epsilon": 1e-5, "attention.clamp_kqv": config["clip_qkv"]},
        transforms=(interleave,),
    ),
    "olmo2": GgufArchitecture(name="olmo2"),
    "olmo3": GgufArchitecture(name="olmo2", keys=_window_keys),
    "exaone": GgufArchitecture(name="exaone", keys=_rotary_keys, transforms=(llama3_divisors,)),
    "exaone4": GgufArchitecture(name="exaone4", keys=_window_keys, transforms=(llama3_divisors,)),
    "hunyuan_v1_dense": GgufArchitecture(name="hunyuan-dense", keys=_hunyuan_keys),
    "seed_oss": GgufArchitecture(name="seed_oss"),
    "ernie4_5": GgufArchitecture(name="ernie4_5"),
    "ministral3": GgufArchitecture(name="mistral3", keys=_mistral3_keys, transforms=(interleave,)),
    "nemotron": GgufArchitecture(
        name="nemotron",
        keys=lambda config, weights: {
            "vocab_size": config["vocab_size"],
            "rope.dimension_count": rotary_width(config),
            "rope.scaling.type": "none",
        },
        transforms=(add_one,),
        settings={"head_dim": 24},
    ),
    "arcee": GgufArchitecture(name="arcee", keys=_llama_keys, transforms=(interleave,)),
    "apertus": GgufArchitecture(name="apertus", keys=_xielu_keys, transforms=(drop_xielu, llama3_divisors)),
    "starcoder2": GgufArchitecture(name="starcoder2", settings={"sliding_window": None}),
    "stablelm": GgufArchitecture(name="stablelm", keys=_parallel_keys, transforms=(stack_head_norms,)),
    "gpt_neox": GgufArchitecture(
        name="gptneox",
        keys=lambda config, weights: _parallel_keys(config, weights) | {"rope.freq_base": None, "attention.head_count_kv": None},
        transforms=(regroup,),
        settings={"rope_theta": 10000.0},
    ),
    "falcon": GgufArchitecture(
        name="falcon",
        keys=lambda config, weights: {"context_length": 2048, "tensor_data_layout": "jploski", "rope.freq_base": None},
        transforms=(regroup,),
        settings={"rope_theta": 10000.0, "max_position_embeddings": 2048},
    ),
    "jais2": GgufArchitecture(name="jais2", keys=_rotary_keys),
    "gpt2": GgufArchitecture(name="gpt2", transforms=(transpose,)),
    "gpt_bigcode": GgufArchitecture(name="starcoder"),
    "mixtral": GgufArchitecture(name="llama", keys=_mixtral_keys, transforms=(merge_experts, interleave)),
    "qwen2_moe": GgufArchitecture(
        name="qwen2moe",
        keys=expert_keys,
        transforms=(merge_experts,),
        settings={"use_sliding_window": False, "layer_types": None, "norm_topk_prob": False, "mlp_only_layers": None},
    ),
    "qwen3_moe": GgufArchitecture(
        name="qwen3moe",
        keys=expert_keys,
        transforms=(merge_experts,),
        settings={"use_sliding_window": False, "norm_topk_prob": True, "mlp_only_layers": None},
    ),
    "olmoe": GgufArchitecture(
        name="olmoe", keys=expert_keys, transforms=(merge_experts,), settings={"norm_topk_prob": False, "rms_norm_eps": 1e-5}
    ),
    "granitemoe": GgufArchitecture(name="granitemoe", keys=_granite_moe_keys, transforms=(merge_experts, interleave)),
    "granitemoeshared": GgufArchitecture(name="granitemoe", keys=_granite_moe_keys, transforms=(split_shared, merge_experts, interleave)),
    "gpt_oss": GgufArchitecture(
        name="gpt-oss",
        keys=_gpt_oss_keys,
        transforms=(merge_experts, suffix_sinks),
        settings={"rope_parameters": {"rope_type": "yarn", "rope_theta": 7000.0, "factor": 4.0, "original_max_position_embeddings": 32}},
    ),
    "glm4_moe": GgufArchitecture(
        name="glm4moe", keys=_sigmoid_keys, transforms=(merge_experts,), settings={"n_group": 1, "topk_group": 1, "use_qk_norm": True}
    ),
    **{
        family: GgufArchitecture(name=name, keys=_latent_keys, transforms=(split_latents, merge_experts), settings=settings)
        for family, name, settings in (
            ("deepseek_v2", "deepseek2", {"norm_topk_prob": False, "topk_method": "group_limited_greedy"}),
            ("deepseek_v3", "deepseek2", {"rope_parameters": _STRETCHED}),
            ("glm4_moe_lite", "deepseek2", {"mlp_layer_types": ["dense", *["sparse"] * 3], "rms_norm_eps": 1e-6}),
            ("mistral4", "mistral4", {"num_key_value_heads": 4, "v_head_dim": 48, "rope_parameters": _STRETCHED}),
        )
    },
    "youtu": GgufArchitecture(name="deepseek2", keys=_latent_keys, transforms=(split_latents,)),
    "dots1": GgufArchitecture(
        name="dots1",
        keys=_sigmoid_keys,
        transforms=(merge_experts,),
        settings={"n_group": 1, "topk_group": 1, "sliding_window": None, "layer_types": None, "norm_topk_prob": True},
    ),
    "minimax_m2": GgufArchitecture(
        name="minimax-m2",
        keys=lambda config, weights: _sigmoid_keys(config, weights) | {"expert_feed_forward_length": config["intermediate_size"]},
        transforms=(merge_experts,),
    ),
    # What a file does not say has the values of released models.
    "llama4_text": GgufArchitecture(
        name="llama4",
        keys=_llama4_keys,
        transforms=(turn_experts, llama3_divisors),
        settings={"attention_chunk_size": 8192, "floor_scale": 8192, "attn_scale": 0.1, "no_rope_layer_interval": 4, "layer_types": None},
    ),
    "dbrx": GgufArchitecture(name="dbrx", keys=_dbrx_keys, transforms=(split_dbrx,)),
    "hunyuan_v1_moe": GgufArchitecture(
        name="hunyuan-moe",
        keys=_hunyuan_moe_keys,
        transforms=(merge_experts,),
        settings={"rope_parameters": {"rope_type": "dynamic", "rope_theta": 7000.0, "alpha": 1000.0, "factor": 1.0}},
    ),
    "exaone_moe": GgufArchitecture(
        name="exaone-moe",
        keys=_exaone_moe_keys,
        transforms=(merge_experts,),
        settings={"n_group": 1, "topk_group": 1, "mlp_layer_types": ["dense", *["sparse"] * 3]},
    ),
    "afmoe": GgufArchitecture(
        name="afmoe",
        keys=_afmoe_keys,
        transforms=(merge_experts,),
        # Files do not say that embeddings are scaled: llama.cpp always does.
        settings={"mup_enabled": True, "global_attn_every_n_layers": 4, "layer_types": None},
    ),
    "hy_v3": GgufArchitecture(name="hy-v3", like="exaone-moe", keys=_hy_v3_keys, transforms=(merge_experts,)),
    "cohere2_moe": GgufArchitecture(
        name="cohere2moe",
        like="dots1",
        keys=_cohere2_moe_keys,
        transforms=(merge_experts,),
        settings={
            "expert_selection_fn": "sigmoid",
            "num_shared_experts": 2,
            "mlp_layer_types": ["dense", *["sparse"] * 3],
            "prefix_dense_intermediate_size": 192,
        },
    ),
    "mimo_v2_flash": GgufArchitecture(name="mimo2", keys=_mimo_keys, transforms=(merge_experts, suffix_sinks)),
    "ernie4_5_moe": GgufArchitecture(
        name="ernie4_5-moe", keys=_ernie_moe_keys, transforms=(merge_experts,), settings={"mlp_layer_types": None}
    ),
    # Granite's maths, and Llama's, under other names.
    "minicpm": GgufArchitecture(
        name="minicpm",
        keys=lambda config, weights: _granite_keys(config, weights) | {"attention.scale": None},
        transforms=(interleave,),
        settings={"attention_multiplier": 24**-0.5, "logits_scaling": 3.0},
    ),
    "internlm2": GgufArchitecture(name="internlm2", transforms=(interleave,), settings={"head_dim": 24}),
}
