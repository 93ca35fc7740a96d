"""What a checkpoint makes of a text in place of tokens, by the files that sentence-transformers puts beside its weights.

modules.json lists what follows the model: Pooling, Dense, Normalize. config_sentence_transformers.json has texts to put in front of
others. A cross-encoder has none of them: its configuration names a classification head, and what its score goes through.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..errors import CheckpointError, UnsupportedModelError
from .parts.pooling import DenseActivation, DenseSpec, PoolingKind, PoolingSpec
from .settings import Settings
from .storage.json_file import read_json, read_json_if_there

MODULES = "modules.json"
_HINT = "fetch the checkpoint again, with the folders that modules.json names"
_DENSE_ACTIVATIONS: dict[str, DenseActivation] = {"Identity": "none", "Tanh": "tanh", "GELU": "gelu", "ReLU": "relu", "SiLU": "silu"}
_MODES: dict[str, PoolingKind] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
}
_KINDS: dict[str, PoolingKind] = {"cls": "cls", "mean": "mean", "lasttoken": "last"}


@dataclass(frozen=True, kw_only=True)
class Pooled:
    """task: a vector of a text, or a score of a pair of texts. pooling: None where the architecture's own head says it.

    normalize: whether vectors are scaled to length 1. activation: what a score goes through. prompts: texts to put in front of
    others, by name; default_prompt: the one that is put there if none is asked for, "" for none. max_length: of the longest text in
    tokens; None for what the model takes. dense: folders of the layers behind pooling, by the names of ours.
    """

    task: Literal["embed", "score"]
    pooling: PoolingSpec | None = None
    normalize: bool = False
    activation: Literal["none", "sigmoid"] = "none"
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str = ""
    max_length: int | None = None
    dense: Mapping[str, Path] = field(default_factory=dict)


def read_pooled(directory: Path, config: Mapping[str, Any]) -> Pooled | None:
    """None for a checkpoint that generates text, as far as its files say; config: the contents of config.json.

    Raises UnsupportedModelError for what is not implemented, CheckpointError for files that are missing or damaged.
    """
    if any(str(name).endswith("ForSequenceClassification") for name in config.get("architectures") or ()):
        return _cross_encoder(config)
    if not (directory / MODULES).exists():
        return None
    modules = _modules(directory)
    kinds = [kind for kind, _ in modules]
    tail = kinds[2 + kinds.count("Dense") :]
    if kinds[:2] != ["Transformer", "Pooling"] or set(kinds[2:]) - {"Dense", "Normalize"} or tail not in ([], ["Normalize"]):
        raise UnsupportedModelError(
            f"{MODULES} lists {', '.join(kinds)}",
            hint="Transformer, Pooling, any number of Dense, and Normalize are supported, in this order",
        )
    folders = [directory / path for kind, path in modules if kind == "Dense"]
    texts = Settings(read_json_if_there(directory / "config_sentence_transformers.json"), "config_sentence_transformers.json")
    transformer = Settings(read_json_if_there(directory / "sentence_bert_config.json"), "sentence_bert_config.json")
    if transformer.flag("do_lower_case", False):
        raise UnsupportedModelError(f"{transformer.source}: do_lower_case is set", hint="let the tokenizer's normalizer do it")
    prompts = _prompts(texts)
    return Pooled(
        task="embed",
        pooling=PoolingSpec(kind=_pooling(directory / modules[1][1], bool(any(prompts.values()))), dense=tuple(map(_dense, folders))),
        normalize=bool(tail),
        prompts=prompts,
        default_prompt=_default_prompt(texts, prompts),
        max_length=transformer.integer("max_seq_length") if "max_seq_length" in transformer else None,
        dense={f"dense{index}": folder for index, folder in enumerate(folders)},
    )


def _modules(directory: Path) -> list[tuple[str, str]]:
    """The kind of each module, the last part of its class's name, and its folder."""
    import json

    try:
        listed = json.loads((directory / MODULES).read_bytes())
        return [(str(each["type"]).rpartition(".")[2], _folder(str(each["path"]))) for each in listed]
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"{directory / MODULES} is no list of modules: {error}", hint="the file is damaged; fetch it again"
        ) from error


def _folder(path: str) -> str:
    if path and (Path(path).name != path or path in (".", "..")):
        raise ValueError(f"{path!r} is no folder of the checkpoint")
    return path


def _pooling(folder: Path, has_prompts: bool) -> PoolingKind:
    settings = Settings(read_json(folder / "config.json", hint=_HINT), f"{folder.name}/config.json")
    if has_prompts and not settings.flag("include_prompt", True):
        raise UnsupportedModelError(
            f"{settings.source}: include_prompt is false", hint="models that leave their prompts out of pooling are not supported"
        )
    if "pooling_mode" in settings:
        modes = [settings.text("pooling_mode")]
        found = [_KINDS[mode] for mode in modes if mode in _KINDS]
    else:
        values = read_json(folder / "config.json", hint=_HINT)
        modes = [name for name, value in values.items() if name.startswith("pooling_mode_") and value]
        found = [_MODES[name] for name in modes if name in _MODES]
    if len(found) != 1 or len(modes) != 1:
        raise UnsupportedModelError(
            f"{settings.source}: {' and '.join(modes) or 'no pooling mode'}", hint=f"one of {', '.join(_MODES)} is supported"
        )
    return found[0]


def _dense(folder: Path) -> DenseSpec:
    settings = Settings(read_json(folder / "config.json", hint=_HINT), f"{folder.name}/config.json")
    given = settings.text("activation_function", "Tanh").rpartition(".")[2]
    if given not in _DENSE_ACTIVATIONS:
        raise UnsupportedModelError(
            f"{settings.source}: the activation {given!r} is not supported", hint=f"supported: {', '.join(_DENSE_ACTIVATIONS)}"
        )
    return DenseSpec(size=settings.integer("out_features"), bias=settings.flag("bias", True), activation=_DENSE_ACTIVATIONS[given])


def _prompts(settings: Settings) -> dict[str, str]:
    given = settings.raw("prompts") or {}
    if not isinstance(given, dict) or not all(isinstance(text, str) for text in given.values()):
        raise CheckpointError(f"{settings.source}: prompts are {given!r}; they must be texts by name", hint=_HINT)
    return {str(name): text for name, text in given.items()}


def _default_prompt(settings: Settings, prompts: Mapping[str, str]) -> str:
    name = settings.text("default_prompt_name", "")
    if name and name not in prompts:
        raise CheckpointError(f"{settings.source}: default_prompt_name {name!r} is none of its prompts", hint=_HINT)
    return name


def _cross_encoder(config: Mapping[str, Any]) -> Pooled:
    labels = config.get("id2label")
    count = config.get("num_labels", 2) if labels is None else len(labels)
    if count != 1:
        raise UnsupportedModelError(
            f"config.json: the head tells {count} labels apart", hint="of models with such a head, those with one score are supported"
        )
    own = config.get("sentence_transformers")
    given = (own if isinstance(own, dict) else {}).get("activation_fn") or config.get("sbert_ce_default_activation_function") or "Sigmoid"
    name = str(given).rpartition(".")[2]
    if name not in ("Sigmoid", "Identity"):
        raise UnsupportedModelError(f"config.json: scores go through {name}", hint="Sigmoid and Identity are supported")
    return Pooled(task="score", activation="sigmoid" if name == "Sigmoid" else "none")
