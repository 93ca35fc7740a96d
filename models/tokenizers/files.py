"""The tokenizer as an artifact carries it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class TokenizerFiles:
    """tokenizer_json: the tokenizer in the format of Hugging Face `tokenizers`. chat_template: Jinja, or None.

    special_tokens: their texts by the names that templates use: `bos_token`, `eos_token`, `pad_token` and so on.
    add_bos: whether text needs bos_token in front that the tokenizer does not put there by itself.
    """

    tokenizer_json: str
    chat_template: str | None
    special_tokens: Mapping[str, str]
    bos_id: int | None
    eos_ids: tuple[int, ...]
    add_bos: bool

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
