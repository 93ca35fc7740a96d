"""What a causal family of `transformers` has beside dense attention and MLPs, in a few words for a table."""

import dataclasses

from transformers.models.auto.configuration_auto import CONFIG_MAPPING

_STATE = ("mamba", "ssm", "state_size", "lru", "conv_kernel")
_KINDS_OF_STATE = {"linear_attention", "conv", "mamba", "hybrid"}
# Where no setting's name tells.
_OTHERS = {
    "bloom": "ALiBi positions",
    "blt": "patches of bytes",
    "cpmant": "position biases",
    "ctrl": "sinusoidal positions",
    "diffllama": "differential attention",
    "dory": "layers that run more than once",
    "dots3_note": "experts, latent attention",
    "dots3_note_text": "experts, latent attention",
    "gemma3n_text": "several residual streams",
    "gemma4_assistant": "keys and values of another model",
    "gemma4_unified_assistant": "keys and values of another model",
    "hrm_text": "layers that run more than once",
    "lfm2": "state layers",
    "modernbert-decoder": "a head of two layers",
    "moshi": "sound",
    "mpt": "ALiBi positions",
    "musicgen": "sound",
    "musicgen_melody": "sound",
    "rwkv": "state layers",
    "xglm": "sinusoidal positions",
    "xlm": "an encoder's layers",
    "xlnet": "two streams of attention",
    "xlstm": "state layers",
}


def needs(family: str) -> str:
    """Parts that `family` has by default; empty for a dense decoder of rotary attention."""
    if family in _OTHERS:
        return _OTHERS[family]
    config = CONFIG_MAPPING[family]()
    composite = any(getattr(config, f"{kind}_config", None) is not None for kind in ("vision", "audio"))
    encoder = getattr(config, "is_encoder_decoder", False)
    text = config if encoder else config.get_text_config()
    settings = {field.name for field in dataclasses.fields(text)}
    kinds = set(getattr(text, "layer_types", None) or []) | set(getattr(text, "layers_block_type", None) or [])
    found = {
        "an encoder's layers": encoder or "is_decoder" in settings,
        "experts": any("expert" in name or name.startswith("moe_") for name in settings),
        "latent attention": "kv_lora_rank" in settings,
        "an index of tokens to attend to": any(name.startswith("index") for name in settings),
        "state layers": bool(kinds & _KINDS_OF_STATE) or any(part in name for name in settings for part in _STATE),
        "images or sound": composite,
    }
    return ", ".join(part for part, has in found.items() if has)
