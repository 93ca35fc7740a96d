"""Every architecture, and the way from a checkpoint's own metadata to its spec."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from ...errors import CheckpointError, UnsupportedModelError
from ..parts.pooling import PoolingSpec
from ..pooled import Pooled
from ..settings import Settings, brief
from ..spec import ModelSpec
from . import (
    bert,
    cohere,
    deepseek,
    gemma,
    gemma4,
    glm,
    glm_moe,
    gpt2,
    granite,
    llama,
    llama4,
    mixtral,
    modernbert,
    nemotron,
    neox,
    olmo,
    others,
    phi,
    sigmoid_moe,
    stacked_experts,
    uneven_heads,
)
from .architecture import GGUFEntry, GGUFSource, HFEntry
from .composites import COMPOSITES
from .hf import DAMAGED, SOURCE

_FAMILIES = (
    llama,
    gemma,
    gemma4,
    granite,
    cohere,
    glm,
    phi,
    olmo,
    nemotron,
    neox,
    gpt2,
    others,
    mixtral,
    llama4,
    glm_moe,
    sigmoid_moe,
    uneven_heads,
    stacked_experts,
    deepseek,
    bert,
    modernbert,
)
HF: dict[str, HFEntry] = {name: entry for family in _FAMILIES for entry in family.HF for name in entry.model_types}
GGUF: dict[str, GGUFEntry] = {name: entry for family in _FAMILIES for entry in getattr(family, "GGUF", ()) for name in entry.architectures}

# Of any configuration: what belongs to training, to texts, to other software, or to how a model is run.
HARMLESS = frozenset(
    {
        "_attn_implementation",
        "_attn_implementation_autoset",
        "_commit_hash",
        "_model_name_or_path",
        "_name_or_path",
        "architectures",
        "auto_map",
        "chunk_size_feed_forward",
        "dtype",
        "id2label",
        "initializer_range",
        "is_llama_config",
        "keys_to_ignore_at_inference",
        "label2id",
        "model_type",
        "output_attentions",
        "output_hidden_states",
        "pretraining_tp",
        "problem_type",
        "return_dict",
        "sbert_ce_default_activation_function",
        "sentence_transformers",
        "task_specific_params",
        "tokenizer_class",
        "torch_dtype",
        "transformers.js_config",
        "transformers_version",
        "unsloth_fixed",
        "unsloth_version",
        "use_cache",
    }
)
# How text is chosen, which earlier versions of transformers wrote into config.json too.
HARMLESS |= {
    "begin_suppress_tokens",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "length_penalty",
    "max_length",
    "max_new_tokens",
    "min_length",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "prefix",
    "repetition_penalty",
    "suppress_tokens",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
}
_HARMLESS_ENDINGS = ("dropout", "dropout_prob", "pdrop", "_token_id")
_GENERATES_TEXT = ("ForCausalLM", "LMHeadModel")
_ENCODES_TEXT = ("Model", "ForMaskedLM", "ForPreTraining", "ForSequenceClassification")
_NEUTRAL: tuple[Any, ...] = (None, False, 0, "", [], {})
_NEUTRAL_FACTORS = frozenset(
    {"embedding_multiplier", "residual_multiplier", "logits_scaling", "logit_scale", "partial_rotary_factor", "scale_emb"}
)

_QUANTIZED_HINT = (
    "GPTQ, AWQ, compressed-tensors (pack-, int-, mxfp4-pack-, nvfp4-pack- and float-quantized) and ModelOpt (FP8 and NVFP4) are "
    "supported. FP8 is supported as these and Hugging Face (fp8) publish it: weights with scales per tensor, per output channel or, with "
    "dynamic scales of activations, per 128 x 128; activations with dynamic scales, or static per tensor. "
    "Otherwise give the unquantized checkpoint (and `engine build --quantize int8` or `int4`), or a GGUF file"
)
_HINTS = {"quantization_config": _QUANTIZED_HINT, "compression_config": _QUANTIZED_HINT}


def spec_from_hf(values: Mapping[str, Any], *, ignored: Collection[str] = (), pooled: Pooled | None = None) -> tuple[ModelSpec, HFEntry]:
    """Resolves the contents of a config.json. ignored: settings of which the user says that they change nothing. pooled: what the
    checkpoint's other files say of vectors or scores; where they say nothing, an encoder gives the mean of its rows.

    Raises UnsupportedModelError for an architecture or a setting that is not implemented, CheckpointError for settings that are
    missing, of the wrong type or contradictory.
    """
    composite = COMPOSITES.get(str(values.get("model_type")))
    if composite is not None:
        values = composite.text_settings(values)
    model_type = values.get("model_type")
    entry = HF.get(model_type) if isinstance(model_type, str) else None
    if entry is None:
        raise unsupported_architecture(str(model_type))
    if composite is None:
        _refuse_other_heads(values, entry, pooled)
    else:
        entry = dataclasses.replace(entry, prefixes=composite.prefixes)
    settings = entry.settings(values, SOURCE)
    settings.ignore(*HARMLESS, *ignored)
    spec = _with_pooling(_read(entry, settings), entry, settings, pooled)
    _refuse_unknown(settings, str(model_type))
    return spec, entry


def _with_pooling(spec: ModelSpec, entry: HFEntry, settings: Settings, pooled: Pooled | None) -> ModelSpec:
    if pooled is None:
        return dataclasses.replace(spec, pooling=PoolingSpec(kind="mean")) if spec.is_encoder else spec
    pooling = entry.score.read(settings) if pooled.pooling is None else pooled.pooling
    return dataclasses.replace(spec, pooling=pooling, max_context=min(spec.max_context, pooled.max_length or spec.max_context))


def _read(entry: HFEntry, settings: Settings) -> ModelSpec:
    try:
        return entry.read(settings)
    except (ArithmeticError, ValueError) as error:  # what readers compute with settings divides by them, takes roots and logarithms
        raise CheckpointError(f"{settings.source} has numbers that no model can have: {error}", hint=DAMAGED) from error


def unsupported_architecture(name: str) -> UnsupportedModelError:
    """The error for a checkpoint of an architecture that has no entry here."""
    return UnsupportedModelError(
        f"the architecture {name!r} is not supported", hint=f"supported architectures: {', '.join(sorted(HF | COMPOSITES))}"
    )


def _refuse_unknown(settings: Settings, model_type: str) -> None:
    for name, value in sorted(settings.unknown().items()):
        if value in _NEUTRAL or name.endswith(_HARMLESS_ENDINGS) or (name in _NEUTRAL_FACTORS and value == 1):
            continue
        raise UnsupportedModelError(
            f"{SOURCE}: {name} = {brief(value)} is not known of models of type {model_type!r}, and may change what they compute",
            hint=_HINTS.get(name, f"if it changes nothing, say so: --ignore-config {name}"),
        )


def _refuse_other_heads(values: Mapping[str, Any], entry: HFEntry, pooled: Pooled | None) -> None:
    architectures = values.get("architectures")
    if not isinstance(architectures, list) or not architectures:
        return
    endings = _ENCODES_TEXT if entry.encodes else _GENERATES_TEXT if pooled is None else (*_GENERATES_TEXT, *_ENCODES_TEXT)
    generates = entry.encodes and (values.get("is_decoder") or any(str(name).endswith(_GENERATES_TEXT) for name in architectures))
    if generates or not any(str(name).endswith(endings) for name in architectures):
        what = "generates text" if endings is _GENERATES_TEXT else "makes vectors of texts"
        raise UnsupportedModelError(
            f"{SOURCE}: {', '.join(map(str, architectures))} is not a model that {what}",
            hint=f"only models whose architecture ends in {' or '.join(endings)} are supported",
        )


def spec_from_gguf(
    metadata: Mapping[str, Any], found: GGUFSource, source: str, *, ignored: Collection[str] = ()
) -> tuple[ModelSpec, GGUFEntry]:
    """Resolves the metadata of a GGUF file. source: its name. ignored and errors: as `spec_from_hf`."""
    architecture = Settings(metadata, source).text("general.architecture")
    entry = GGUF.get(architecture)
    if entry is None:
        raise UnsupportedModelError(
            f"{source}: the GGUF architecture {architecture!r} is not supported",
            hint=f"supported GGUF architectures: {', '.join(sorted(GGUF))}",
        )
    prefix = f"{architecture}."
    own = {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}
    tokens = metadata.get("tokenizer.ggml.tokens")
    settings = Settings(own, source, {"vocab_size": len(tokens) if isinstance(tokens, list) else None})
    settings.ignore(*ignored)
    values = entry.settings(settings, found)
    family = HF[values["model_type"]]
    spec = _read(family, family.settings(values, source))
    unknown = {name: value for name, value in settings.unknown().items() if value not in _NEUTRAL}
    if unknown:
        raise UnsupportedModelError(
            f"{source}: the settings {', '.join(prefix + name for name in sorted(unknown))} are not supported",
            hint=f"if they change nothing, say so: --ignore-config {','.join(sorted(unknown))}",
        )
    return spec, entry
