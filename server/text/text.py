"""An artifact's tokenizer directory: text to tokens, tokens to text, messages to prompt."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from tokenizers import Tokenizer

from ...errors import ArtifactError, RequestError
from .chat_template import ChatTemplate
from .plain_content import PlainContent, cut
from .token_bound import TokenBound
from .token_bytes import TokenBytes
from .whole_texts import Tokens, encode_pairs, encode_texts


class TextSpec(msgspec.Struct, frozen=True, kw_only=True):
    """`text.json`: what the tokenizer file itself does not say. special_tokens: the texts of those that templates may name."""

    special_tokens: dict[str, str]
    bos_token_id: int | None
    eos_token_ids: list[int]
    add_bos: bool


class Text:
    """The tokenizer and chat template of one artifact. `Text.load` reads them.

    special_in_messages: their texts become special tokens there as well; by default they are plain text.
    """

    def __init__(self, tokenizer: Tokenizer, spec: TextSpec, template: ChatTemplate | None, *, special_in_messages: bool = False) -> None:
        # A tokenizer file may carry the truncation of its training run, which would shorten prompts silently.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.spec = spec
        self.template = template
        self.token_bytes = TokenBytes(tokenizer)
        self.bound = TokenBound(tokenizer)
        self.vocab_size = tokenizer.get_vocab_size(with_added_tokens=True)
        self._tokenizer = tokenizer
        self._content = PlainContent(() if special_in_messages else self.token_bytes.special_texts.values())

    @classmethod
    def load(cls, directory: Path, *, special_in_messages: bool = False) -> "Text":
        """Reads tokenizer.json, text.json and, if it is there, chat_template.jinja. Raises ArtifactError."""
        try:
            spec = msgspec.json.decode((directory / "text.json").read_bytes(), type=TextSpec)
            tokenizer = Tokenizer.from_buffer((directory / "tokenizer.json").read_bytes())
            template_file = directory / "chat_template.jinja"
            source = template_file.read_text(encoding="utf-8") if template_file.exists() else None
        except Exception as error:  # tokenizers raises bare Exception for a file it cannot read
            raise ArtifactError(f"the tokenizer in {directory} cannot be read: {error}", hint="rebuild the artifact") from error
        template = None if source is None else ChatTemplate(source, spec.special_tokens)
        return cls(tokenizer, spec, template, special_in_messages=special_in_messages)

    def encode(self, text: str) -> list[int]:
        """Tokens of a prompt, with exactly one beginning-of-sequence token if the model wants one."""
        return self.encode_all([text])[0]

    def encode_all(self, texts: Sequence[str], *, add_special_tokens: bool = True, one_bos: bool = True) -> list[list[int]]:
        """Of several prompts. Other threads run meanwhile, which they could not while `Tokenizer.encode` does.

        add_special_tokens: those that the tokenizer puts around a text. one_bos: see to the beginning-of-sequence token.
        Raises RequestError for lone surrogates, which stand for no character.
        """
        try:
            encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
        except TypeError:
            raise _no_text(texts) from None
        return [self._with_bos(each.ids) if one_bos else each.ids for each in encoded]

    def encode_texts(
        self, texts: Sequence[str], *, limit: int | None = None, most: int | None = None, keeps_end: bool = False
    ) -> list[Tokens]:
        """Of texts that are computed whole. limit: tokens of each, to which longer ones are cut, at their beginning if keeps_end.

        most: the same, without special tokens.
        """
        try:
            return encode_texts(self._tokenizer, texts, limit, most=most, keeps_end=keeps_end)
        except TypeError:
            raise _no_text(texts) from None

    def encode_pairs(
        self, pairs: Sequence[tuple[str, str]], *, limit: int | None = None, most_of_second: int | None = None
    ) -> list[Tokens]:
        """Of pairs of texts, likewise."""
        try:
            return encode_pairs(self._tokenizer, pairs, limit, most_of_second=most_of_second)
        except TypeError:
            raise _no_text([text for pair in pairs for text in pair]) from None

    def encode_chat(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True, extra: Mapping[str, Any] | None = None
    ) -> list[int]:
        """Tokens of a conversation; the template, not the tokenizer, says which special tokens it has."""
        return self.encode_parts(self.render_parts(messages, add_generation_prompt=add_generation_prompt, extra=extra))

    def encode_parts(self, parts: Sequence[str], *, add_special_tokens: bool = False) -> list[int]:
        """Tokens of a conversation that was rendered in parts."""
        if len(parts) == 1:
            return self.encode_all(parts, add_special_tokens=add_special_tokens)[0]
        encoded = self.encode_all(parts, add_special_tokens=False, one_bos=False)
        return self._with_bos([token for part in encoded for token in part])

    def render_chat(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
        """The conversation as the model reads it; see `render_parts`."""
        return "".join(self.render_parts(messages, **options))

    def render_parts(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] = (),
        continue_final_message: bool = False,
        extra: Mapping[str, Any] | None = None,
    ) -> list[str]:
        """The conversation as the model reads it, all or up to its last message's end, cut where special tokens must not come about.

        Raises RequestError if it cannot be written so.
        """
        if self.template is None:
            raise RequestError(
                "this model has no chat template", param="messages", code="no_chat_template", hint="use /v1/completions with a prompt"
            )
        if not messages:
            raise RequestError("messages must not be empty", param="messages", hint="give at least a user's message")
        marked = [self._content.marked(message) for message in messages]
        if continue_final_message:
            return cut(self.template.render_open(marked, tools=tools, extra=extra))
        return cut(self.template.render(marked, add_generation_prompt=add_generation_prompt, tools=tools, extra=extra))

    def special_tokens(self, texts: Collection[str]) -> dict[int, str]:
        """Those of these texts that are special tokens, by their ids."""
        ids = {self._tokenizer.token_to_id(text): text for text in texts}
        return {id: text for id, text in ids.items() if id in self.token_bytes.special}

    def added_tokens(self) -> dict[str, int]:
        """Texts and ids of tokens beside the vocabulary, special or not: only their own texts are tokenized to them."""
        return {token.content: id for id, token in self._tokenizer.get_added_tokens_decoder().items()}

    def word_tokens(self, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """The tokens of each of these words, at the beginning of a text and after a space."""
        texts = [text for word in words for text in (word.lstrip(), f" {word.lstrip()}")]
        return tuple({tuple(tokens): None for tokens in self.encode_all(texts, add_special_tokens=False, one_bos=False) if tokens})

    def names(self, tokens: Sequence[int]) -> list[str]:
        """Tokens as the vocabulary spells them."""
        return [self._tokenizer.id_to_token(token) or "" for token in tokens]

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """The text that a stream of these tokens would show; a character that is incomplete at the end is U+FFFD."""
        hidden = self.token_bytes.special if skip_special_tokens else frozenset()
        text = b"".join(self.token_bytes[token] for token in tokens if token not in hidden).decode(errors="replace")
        return text.removeprefix(" ") if self.token_bytes.leading_space else text

    def _with_bos(self, ids: list[int]) -> list[int]:
        bos = self.spec.bos_token_id
        if bos is None:
            return ids
        if self.spec.add_bos and ids[:1] != [bos]:
            return [bos, *ids]
        return ids[1:] if ids[:2] == [bos, bos] else ids


def _no_text(texts: Sequence[str]) -> RequestError:
    """Of texts that are no text: what they have instead."""
    surrogates = (f"U+{ord(char):04X} at character {i}" for text in texts for i, char in enumerate(text) if "\ud800" <= char <= "\udfff")
    return RequestError(f"the text is not UTF-8: it has a lone surrogate, {next(surrogates)}", hint="send text encoded in UTF-8")
