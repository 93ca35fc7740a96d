"""The tokenizer as an artifact carries it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ...errors import CheckpointError


@dataclass(frozen=True, kw_only=True)
class TokenizerFiles:
    """tokenizer_json: the tokenizer in the format of Hugging Face `tokenizers`. chat_template: Jinja, or None.

    size: tokens of its vocabulary, without those that were added to it. special_tokens: their texts by the names that
    templates use: `bos_token`, `eos_token`, `pad_token` and so on.
    add_bos: whether text needs bos_token in front that the tokenizer does not put there by itself.
    """

    tokenizer_json: str
    chat_template: str | None
    size: int
    special_tokens: Mapping[str, str]
    bos_id: int | None
    eos_ids: tuple[int, ...]
    add_bos: bool

    def check_size(self, vocab_size: int, source: str) -> None:
        """Raises CheckpointError if a model of `vocab_size` rows cannot know all of the vocabulary. source: the checkpoint.

        Added tokens may be beyond: many a checkpoint declares one to pad with that the model never saw.
        """
        if self.size > vocab_size:
            raise CheckpointError(
                f"{source}: the tokenizer has {self.size} tokens, the model a vocabulary of {vocab_size}",
                hint="the tokenizer belongs to another model; fetch the checkpoint again",
            )

    def write(self, directory: Path) -> None:
        """Writes tokenizer.json, text.json and, if there is one, chat_template.jinja."""
        (directory / "tokenizer.json").write_text(self.tokenizer_json, encoding="utf-8")
        if self.chat_template is not None:
            # Bytes, because text mode would turn a template's line ends into the platform's.
            (directory / "chat_template.jinja").write_bytes(self.chat_template.encode())
        text = {
            "special_tokens": dict(self.special_tokens),
            "bos_token_id": self.bos_id,
            "eos_token_ids": list(self.eos_ids),
            "add_bos": self.add_bos,
        }
        (directory / "text.json").write_text(json.dumps(text, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
