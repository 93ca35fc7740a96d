"""Tiny random checkpoints of every family that `transformers` lists as a causal language model.

A family's configuration takes what it can of `GENERIC`, then its own `OVERRIDES`; four layers, so that each kind of layer
is there. Settings that are neutral by default (multipliers of 1, caps far above every logit, contexts longer than a test)
get values that change the result. `VARIANTS` are further checkpoints of families whose settings exclude each other.
"""

import dataclasses
from pathlib import Path
from typing import Any

import torch
import transformers
from random_checkpoints import BOS, EOS, VOCAB_SIZE, save_tokenizer, train_tokenizer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

GENERIC: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "sliding_window": 7,
    "swa_head_dim": 32,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "pad_token_id": 0,
    # Encoders, decoders beside encoders, images.
    "encoder_layers": 2,
    "decoder_layers": 4,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 160,
    "decoder_ffn_dim": 160,
    "num_encoder_layers": 2,
    "num_decoder_layers": 4,
    "ffn_dim": 160,
    "image_size": 32,
    # Mixtures of experts.
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "expert_ffn_hidden_size": 64,
    "shared_expert_intermediate_size": 64,
    "n_shared_experts": 1,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "num_dense_layers": 1,
    # Latent attention and its indexer.
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 24,
    "index_n_heads": 2,
    "index_head_dim": 32,
    "index_topk": 8,
    # State layers.
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_head_dim": 16,
    "linear_num_heads": 4,
    "mamba_n_heads": 4,
    "mamba_d_head": 48,
    "mamba_num_heads": 4,
    "mamba_head_dim": 48,
    "mamba_d_state": 16,
    "mamba_expand": 2,
}

ROPE_THETA = 7000.0
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": ROPE_THETA,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_YARN = {"rope_type": "yarn", "rope_theta": ROPE_THETA, "factor": 4.0, "original_max_position_embeddings": 32}
_ALTERNATING = ["sliding_attention", "full_attention"] * 2
_TWO_ROPES = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 3000.0},
    "full_attention": {"rope_type": "linear", "rope_theta": ROPE_THETA, "factor": 8.0},
}
_GEMMA4 = {
    "final_logit_softcapping": 2.0,
    "global_head_dim": 48,
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 3000.0},
        "full_attention": {"rope_type": "proportional", "rope_theta": ROPE_THETA, "partial_rotary_factor": 0.4},
    },
}
_GEMMA4_KV = {"attention_k_eq_v": True, "num_global_key_value_heads": 1}
_GRANITE = {"embedding_multiplier": 3.0, "attention_multiplier": 0.3, "residual_multiplier": 0.4, "logits_scaling": 2.5}
_GRANITE4 = _GRANITE | {
    "num_local_experts": 0,
    "num_experts_per_tok": 0,
    "shared_intermediate_size": 160,
    "layer_types": ["full_attention"] * 4,
}
# Their latent keys and values serve as many heads as there are queries.
_LATENT: tuple[str, ...] = (
    "axk1",
    "axk2",
    "bailing_hybrid",
    "deepseek_v2",
    "deepseek_v3",
    "deepseek_v32",
    "glm4_moe_lite",
    "glm_moe_dsa",
    "kimi_linear",
    "longcat_flash",
    "minicpm3",
    "sarvam_mla",
)
_HEADS = {"num_key_value_heads": 4, "v_head_dim": 48}
OVERRIDES: dict[str, dict[str, Any]] = dict.fromkeys((*_LATENT, "mistral4"), _HEADS) | {
    "apertus": {"rope_parameters": _LLAMA3},
    "apertus1p5_text": {"rope_parameters": _LLAMA3},
    "codegen": {"rotary_dim": 16},
    "cohere_compass_text": {
        "layer_types": _ALTERNATING,
        "rope_parameters": {
            "full_attention": None,
            "sliding_attention": {"rope_type": "default", "rope_theta": ROPE_THETA, "mrope_section": [4, 4, 4]},
        },
    },
    "cpmant": {"dim_head": 32, "dim_ff": 160},
    "ctrl": {"dff": 160},
    "cwm": {"rope_parameters": _LLAMA3},
    # The class of attention reads a base of its own, which the hub's configuration has; the table is made of the other one.
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 0.8, "rope_theta": ROPE_THETA},
        "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v4": {"o_groups": 2, "o_lora_rank": 32},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1},
    "dory": {"n_input_layers": 1, "n_recurrent_layers": 2, "n_output_layers": 1, "rope_parameters": None},
    "exaone": {"rope_parameters": _LLAMA3},
    "exaone4": {"rope_parameters": _LLAMA3},
    "falcon_h1": {"mamba_d_ssm": 192},
    "gemma2": {"query_pre_attn_scalar": 40, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 2.0},
    # The class with images does not cap its logits.
    "gemma3": {"text_config": {"final_logit_softcapping": None}},
    "gemma3_text": {"query_pre_attn_scalar": 40, "final_logit_softcapping": 2.0, "rope_parameters": _TWO_ROPES},
    "gemma3n_text": {
        "num_kv_shared_layers": 2,
        "vocab_size_per_layer_input": VOCAB_SIZE,
        "hidden_size_per_layer_input": 32,
        "laurel_rank": 16,
    },
    "gemma4_text": _GEMMA4 | {"hidden_size_per_layer_input": 0},
    "gemma4_unified_text": _GEMMA4,
    "granitemoe": _GRANITE,
    "granitemoeshared": _GRANITE | {"shared_intermediate_size": 64},
    "hunyuan_v1_moe": {"num_experts": 4, "moe_topk": 2},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": 7},
    "gptj": {"rotary_dim": 16},
    "granite": _GRANITE,
    "granite_swa": _GRANITE,
    "helium": {"head_dim": 24},
    "hunyuan_v1_dense": {"rope_parameters": {"rope_type": "dynamic", "rope_theta": ROPE_THETA, "alpha": 1000.0, "factor": 1.0}},
    "hyperclovax": {"embedding_multiplier": 3.0, "attention_multiplier": 0.3, "residual_multiplier": 0.4, "logits_scaling": 0.5},
    "inkling2_loop_text": {"unpadded_vocab_size": VOCAB_SIZE},
    "inkling2_text": {"unpadded_vocab_size": VOCAB_SIZE},
    "inkling_text": {"unpadded_vocab_size": VOCAB_SIZE},
    "laguna": {
        "layer_types": _ALTERNATING,
        "num_attention_heads_per_layer": [4, 2, 4, 6],
        "moe_routed_scaling_factor": 2.5,
        "moe_router_logit_softcapping": 0.7,
    },
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "llama4_text": {
        "num_experts_per_tok": 1,
        "interleave_moe_layer_step": 2,
        "intermediate_size_mlp": 176,
        "attention_chunk_size": 7,
        "floor_scale": 8,
        "attn_scale": 0.5,
        "no_rope_layer_interval": 3,
        "rope_parameters": _LLAMA3,
    },
    "longcat_flash": {"num_layers": 2, "num_key_value_heads": 4, "v_head_dim": 48, "zero_expert_num": 2, "head_dim": 16},
    "mamba2": {"num_heads": 6, "n_groups": 2},
    "minimax_m3_vl_text": {"dense_intermediate_size": 160, "shared_intermediate_size": 64, "rotary_dim": 16},
    "ministral": {"layer_types": _ALTERNATING},
    "ministral3": {
        "sliding_window": None,
        "rope_parameters": _YARN | {"mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1},
    },
    "modernbert-decoder": {"local_attention": 14},
    "nanochat": {"final_logit_softcapping": 2.0},
    "nemotron_h": {"layers_block_type": ["mamba", "attention", "moe", "mlp"], "n_groups": 2, "ssm_state_size": 16},
    "olmo3": {"rope_parameters": {"sliding_attention": {"rope_type": "default", "rope_theta": ROPE_THETA}, "full_attention": _YARN}},
    "phi3": {"original_max_position_embeddings": 256},
    "qwen2": {"use_sliding_window": True, "layer_types": _ALTERNATING},
    "qwen3": {"use_sliding_window": True, "layer_types": _ALTERNATING},
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 32,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
    },
    "reformer": {
        "is_decoder": True,
        "attn_layers": ["local", "lsh"] * 2,
        "axial_pos_embds_dim": [32, 64],
        "axial_pos_shape": [16, 16],
    },
    "roc_bert": {"shape_vocab_size": VOCAB_SIZE, "pronunciation_vocab_size": VOCAB_SIZE},
    "vaultgemma": {"query_pre_attn_scalar": 40, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 2.0},
    "xmod": {"default_language": "en_XX"},
    # Where the head is tied to it, `from_pretrained` draws the embedding anew.
    "youtu": _HEADS | {"tie_word_embeddings": False},
    "zaya": {"num_experts_per_tok": 1},
}
# Name: family and its settings.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "cohere-qk-norm": ("cohere", {"use_qk_norm": True}),
    "exaone4-full": ("exaone4", {"sliding_window": None, "layer_types": ["full_attention"] * 4}),
    "falcon-grouped": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": True}),
    "falcon-grouped-one-norm": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1}),
    "falcon-serial": ("falcon", {"multi_query": False, "parallel_attn": False, "bias": True}),
    "gpt_neox-serial": ("gpt_neox", {"use_parallel_residual": False}),
    "gemma4-experts": ("gemma4_text", _GEMMA4_KV | {"enable_moe_block": True, "top_k_experts": 2}),
    "gemma4-layer-inputs": (
        "gemma4_text",
        {
            "vocab_size_per_layer_input": VOCAB_SIZE,
            "hidden_size_per_layer_input": 24,
            "num_kv_shared_layers": 2,
            "use_double_wide_mlp": True,
        },
    ),
    "gemma4-values-are-keys": ("gemma4_unified_text", _GEMMA4_KV | {"attention_bias": True}),
    "granite-tied": ("granite", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "granite4": ("granitemoehybrid", _GRANITE4 | {"position_embedding_type": "rope"}),
    "granite4-experts": ("granitemoehybrid", _GRANITE4 | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "granite4-nope": ("granitemoehybrid", _GRANITE4 | {"position_embedding_type": "nope"}),
    "laguna-elements": ("laguna", {"gating": "per-element"}),
    "llama4-plain": (
        "llama4_text",
        {
            "num_experts_per_tok": 2,
            "moe_layers": [0, 1, 3],
            "use_qk_norm": False,
            "attn_temperature_tuning": False,
            "attention_chunk_size": None,
            "layer_types": ["full_attention"] * 4,
            "attention_bias": True,
            "rope_parameters": _YARN,
        },
    ),
    "olmo-clipped": ("olmo", {"clip_qkv": 0.8}),
    "phi-qk-norm": ("phi", {"qk_layernorm": True}),
    "phi3-full": ("phi3", {"sliding_window": None}),
    "phi3-longrope": (
        "phi3",
        {
            "sliding_window": None,
            "tie_word_embeddings": True,
            "original_max_position_embeddings": 32,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": ROPE_THETA,
                "partial_rotary_factor": 0.75,
                "short_factor": [1.0 + 0.1 * index for index in range(9)],
                "long_factor": [1.0 + 0.7 * index for index in range(9)],
            },
        },
    ),
    "stablelm-parallel": ("stablelm", {"use_parallel_residual": True, "use_qkv_bias": True, "qk_layernorm": True}),
    "deepseek_v2-yarn": (
        "deepseek_v2",
        {
            "q_lora_rank": None,
            "topk_method": "group_limited_greedy",
            "rope_parameters": _YARN | {"mscale": 0.707, "mscale_all_dim": 0.707, "beta_fast": 32, "beta_slow": 1},
        },
    ),
    "mistral4-growing": (
        "mistral4",
        _HEADS | {"rope_parameters": _YARN | {"mscale": 1.0, "mscale_all_dim": 0.7, "llama_4_scaling_beta": 0.1}},
    ),
    "starcoder2-full": ("starcoder2", {"sliding_window": None}),
}
# Causal models that `transformers` does not list as such: their classes.
UNLISTED = {"mistral4": "Mistral4ForCausalLM"}
# Families whose model in `transformers` 5.24 does not run alone from its configuration, in float32 and float64 on a CPU.
NO_REFERENCE: dict[str, str] = {
    "blt": "four models in one; their sizes depend on each other and on the patches",
    "dots3_note": "sizes of its layers are not settings of its configuration",
    "dots3_note_text": "sizes of its layers are not settings of its configuration",
    "gemma3n": "its images need timm",
    "gemma4_assistant": "a draft model: its forward needs the target's keys and values",
    "gemma4_unified_assistant": "a draft model: its forward needs the target's keys and values",
    "musicgen": "the causal class is the decoder alone and does not take this configuration",
    "musicgen_melody": "the causal class is the decoder alone and does not take this configuration",
    "inkling2_loop_text": "mixes float32 into float64",
    "inkling2_text": "mixes float32 into float64",
    "xglm": "its masks overflow in float64",
}


def causal_families() -> list[str]:
    """Every model type of `transformers`' causal language models, in its order."""
    return list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def write_tiny_checkpoint(name: str, directory: Path, *, seed: int = 0, **overrides: Any) -> Path:
    """Writes config, weights (safetensors, float32) and tokenizer of a random model into `directory`, which is made; returns it.

    name: a family (`causal_families`) or one of VARIANTS. overrides: settings of the family's configuration class.
    """
    config = tiny_config(name, **overrides)
    tokenizer = train_tokenizer()
    config.bos_token_id, config.eos_token_id, config.pad_token_id = tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS), 0
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        kind = getattr(transformers, UNLISTED.get(config.model_type, "AutoModelForCausalLM"))
        make = getattr(kind, "from_config", None) or kind._from_config
        model = make(config, dtype=torch.float32, attn_implementation="eager")
    randomize(model, seed)
    model.save_pretrained(directory)
    save_tokenizer(tokenizer, directory)
    return directory


def tiny_config(name: str, **overrides: Any) -> transformers.PreTrainedConfig:
    """The configuration of `name`, a family or one of VARIANTS."""
    family, settings = VARIANTS.get(name, (name, {}))
    return _tiny_config(CONFIG_MAPPING[family], settings | overrides)


@torch.no_grad()
def reference_logits(directory: Path, tokens: list[int]) -> tuple[torch.Tensor, float]:
    """`transformers`' float32 logits [T, V] of `tokens`, and how far any of them is from those of the same model in float64."""
    config = transformers.AutoConfig.from_pretrained(directory)
    options: dict[str, Any] = {"attn_implementation": "eager", "dtype": torch.float32}
    # The grouped products of experts know no float64.
    model = getattr(transformers, config.architectures[0]).from_pretrained(directory, experts_implementation="eager", **options)
    logits = model(torch.tensor([tokens]), use_cache=False).logits[0]
    exact = model.double()(torch.tensor([tokens]), use_cache=False).logits[0]
    return logits, float((logits - exact).abs().max())


def randomize(model: torch.nn.Module, seed: int) -> None:
    """Every parameter random: matrices at a scale that keeps activations near 1, the others around their initial value.

    Norms, biases, sinks and multipliers start at what leaves the result as it is, so each of them matters afterwards.
    Of the buffers in the checkpoint those are changed that training changes too.
    """
    generator = torch.Generator().manual_seed(seed)
    trained = ("layer_scalar", "correction_bias", "expert_bias", "balancing_biases")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2 and parameter.min() != parameter.max():
                parameter.normal_(0, parameter.shape[-1] ** -0.5, generator=generator)
            else:
                parameter.add_(torch.empty_like(parameter).normal_(0, 0.1, generator=generator))
        for name, buffer in model.named_buffers():
            if name.endswith(trained):
                buffer.add_(torch.empty_like(buffer).normal_(0, 0.1, generator=generator))


def _tiny_config(kind: type[transformers.PreTrainedConfig], overrides: dict[str, Any]) -> transformers.PreTrainedConfig:
    fields = {field.name for field in dataclasses.fields(kind)}
    renamed = getattr(kind, "attribute_map", {})
    settings: dict[str, Any] = {}
    for name, value in GENERIC.items():
        settings |= {each: value for each in (name, renamed.get(name)) if each in fields}
    settings |= OVERRIDES.get(kind.model_type, {}) | overrides
    if "rope_parameters" in fields and "rope_parameters" not in settings:
        settings.setdefault("rope_theta", ROPE_THETA)
    default = kind()
    for name in getattr(kind, "sub_configs", {}) or getattr(kind, "sub_configs_defaults", {}):
        part = getattr(default, name, None)
        if part is not None:
            settings[name] = _tiny_config(type(part), settings.pop(name, {}))
    for name in ("layer_types", "mlp_layer_types", "layers_block_type"):
        if name in fields and name not in settings and getattr(default, name, None):
            settings[name] = _one_of_each(getattr(default, name), settings["num_hidden_layers"])
    return kind(**settings)


def _one_of_each(layer_types: list[str], count: int) -> list[str]:
    kinds = list(dict.fromkeys(layer_types))
    return [kinds[index % len(kinds)] for index in range(count)]
