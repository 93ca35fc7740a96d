"""Models of several parts of which one is a language model that has an entry: it alone is read, texts alone are served."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import CheckpointError
from .hf import DAMAGED, SOURCE


@dataclass(frozen=True, kw_only=True)
class Composite:
    """model_types: the values of the whole configuration's `model_type`. text: the language model's, where its own configuration does
    not say. tied: whether its head is its embedding where config.json is silent. prefixes: what the names of its tensors begin with in
    such a checkpoint, and in a checkpoint of its own; all other tensors are of other parts.
    """

    model_types: tuple[str, ...]
    text: str
    tied: bool
    prefixes: Mapping[str, str]

    def text_settings(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The language model's config.json."""
        text = values.get("text_config")
        if not isinstance(text, dict):
            raise CheckpointError(f"{SOURCE}: text_config is {text!r}; it must be an object", hint=DAMAGED)
        own = {"model_type": self.text, "tie_word_embeddings": self.tied} | text
        return own | {name: values[name] for name in _OF_THE_WHOLE if values.get(name) is not None}


# What the whole configuration says of all parts.
_OF_THE_WHOLE = ("tie_word_embeddings", "dtype", "torch_dtype", "quantization_config", "compression_config")
_INSIDE = {"language_model.": "", "model.language_model.": "model.", "lm_head.": "lm_head."}
_COMPOSITES = (
    Composite(model_types=("gemma3",), text="gemma3_text", tied=True, prefixes=_INSIDE),
    Composite(model_types=("gemma4",), text="gemma4_text", tied=True, prefixes=_INSIDE),
    Composite(model_types=("gemma4_unified",), text="gemma4_unified_text", tied=True, prefixes=_INSIDE),
    Composite(model_types=("llama4",), text="llama4_text", tied=False, prefixes=_INSIDE),
    Composite(model_types=("mistral3",), text="mistral", tied=True, prefixes=_INSIDE),
    Composite(model_types=("got_ocr2",), text="qwen2", tied=True, prefixes=_INSIDE),
    Composite(model_types=("fuyu",), text="persimmon", tied=False, prefixes=_INSIDE),
    Composite(model_types=("moss_transcribe_diarize",), text="qwen3", tied=True, prefixes=_INSIDE),
    Composite(model_types=("apertus1p5",), text="apertus1p5_text", tied=False, prefixes=_INSIDE),
    Composite(model_types=("emu3",), text="emu3_text_model", tied=False, prefixes=_INSIDE | {"text_model.": ""}),
)
COMPOSITES = {name: composite for composite in _COMPOSITES for name in composite.model_types}
