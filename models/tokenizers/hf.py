"""The tokenizer of a Hugging Face directory: tokenizer.json as it is, or converted from an older layout by `transformers`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers

from ...errors import CheckpointError, UnsupportedModelError
from ..storage.json_file import read_json_if_there
from .declared import CONFIG, DeclaredTokens
from .files import TokenizerFiles

_CONVERTIBLE = ("tokenizer.model", "vocab.json")


def tokenizer_from_hf(directory: Path, config: Mapping[str, Any]) -> TokenizerFiles:
    """Reads the tokenizer, its special tokens and its chat template; `config` is the contents of config.json.

    A text ends at any token that the generation settings, the model's configuration or the tokenizer call its end.
    Raises CheckpointError for files that are missing or damaged.
    """
    settings = read_json_if_there(directory / CONFIG)
    declared = DeclaredTokens.read(directory, settings)
    tokenizer = _load(directory, declared)
    special = {name: token.content for name, token in declared.named.items()}
    bos_id, eos_id = (None if token is None else tokenizer.token_to_id(token) for token in map(special.get, ("bos_token", "eos_token")))
    generation = read_json_if_there(directory / "generation_config.json")
    eos_ids = _ids(generation.get("eos_token_id")) or _ids(config.get("eos_token_id"))
    if eos_id is not None:
        eos_ids = tuple(dict.fromkeys((*eos_ids, eos_id)))
    return TokenizerFiles(
        tokenizer_json=tokenizer.to_str(),
        chat_template=_chat_template(directory, settings),
        size=tokenizer.get_vocab_size(with_added_tokens=False),
        special_tokens=special,
        bos_id=bos_id,
        eos_ids=eos_ids,
        # As in transformers, the post-processor of tokenizer.json alone decides what is put around a text.
        add_bos=False,
    )


def _load(directory: Path, declared: DeclaredTokens) -> tokenizers.Tokenizer:
    path = directory / "tokenizer.json"
    if path.exists():
        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing more specific
            raise CheckpointError(f"{path} is not a tokenizer: {error}", hint="the file is damaged; fetch it again") from error
        # Settings of whoever saved the file, not of the tokenizer.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        declared.add_to(tokenizer)
        return tokenizer
    if not any((directory / name).exists() for name in _CONVERTIBLE):
        raise CheckpointError(f"{directory} has no tokenizer.json", hint="fetch the checkpoint again, tokenizer files included")
    return _convert(directory)


def _convert(directory: Path) -> tokenizers.Tokenizer:
    import transformers

    try:
        converted = transformers.AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
        backend = converted.backend_tokenizer
    except Exception as error:  # whatever a converter of one of many layouts happens to raise
        raise CheckpointError(
            f"{directory} has no tokenizer.json, and its older tokenizer files could not be converted: {error}",
            hint="save the tokenizer with `AutoTokenizer.from_pretrained(...).save_pretrained(directory)`",
        ) from error
    if not isinstance(backend, tokenizers.Tokenizer):
        raise CheckpointError(
            f"{directory} has no tokenizer.json, and no tokenizer that can be converted to one",
            hint="save the tokenizer as a fast one, which has a tokenizer.json",
        )
    return backend


def _ids(value: object) -> tuple[int, ...]:
    values = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(each, int) and not isinstance(each, bool) for each in values):
        raise CheckpointError(
            f"eos_token_id is {value!r}; it must be an integer or a list of integers",
            hint="look into generation_config.json and config.json",
        )
    return tuple(values)


def _chat_template(directory: Path, settings: Mapping[str, Any]) -> str | None:
    path = directory / "chat_template.jinja"
    if path.exists():
        try:
            return path.read_bytes().decode()
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{path} is not UTF-8 text: {error}", hint="the file is damaged; fetch it again") from error
    template = read_json_if_there(directory / "chat_template.json").get("chat_template", settings.get("chat_template"))
    if template is None or isinstance(template, str):
        return template
    try:
        named = {str(entry["name"]): str(entry["template"]) for entry in template}
    except (TypeError, KeyError) as error:
        raise CheckpointError(
            "tokenizer_config.json has a chat_template that is neither text nor a list of named texts",
            hint="put the one to use into chat_template.jinja in the checkpoint's directory",
        ) from error
    if "default" in named or len(named) == 1:
        return named.get("default", next(iter(named.values())))
    raise UnsupportedModelError(
        f"the tokenizer has several chat templates and none called default: {', '.join(named)}",
        hint="put the one to use into chat_template.jinja in the checkpoint's directory",
    )
