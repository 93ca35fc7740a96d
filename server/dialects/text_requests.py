"""The requests of /v1/embeddings, /v1/rerank and /v1/score. As in schemas.py, fields that are not declared are refused by name."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from ...errors import RequestError
from .params import Int64
from .schemas import MAX_PROMPTS, prompt_list

Positive = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Texts = Annotated[list[str], Meta(min_length=1, max_length=MAX_PROMPTS)]


class TextRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What requests about texts have in common. truncate_prompt_tokens: to how many a longer text is cut; -1 to what the model takes.
    use_activation: false for vectors that are not scaled to length 1, and for a cross-encoder's scores before its sigmoid."""

    model: str | None = None
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    use_activation: bool | None = None
    user: Any = None


class EmbeddingRequest(TextRequest, kw_only=True):
    """dimensions: leading numbers of every vector, for models that were trained for that. prompt_name: the text that the model wants in
    front, by its name in the checkpoint."""

    input: str | list[str | Int64 | list[Int64]]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Positive | None = None
    prompt_name: str | None = None

    def inputs(self) -> list[str] | list[list[int]]:
        """Texts, or token lists."""
        return prompt_list(self.input, "input")


class Document(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    text: str


class RerankRequest(TextRequest, kw_only=True):
    """top_n: of the results, the best; all by default. return_documents: whether results have the texts. max_tokens_per_doc: to how
    many tokens a longer document is cut; 0 for none."""

    query: str
    documents: Annotated[list[str | Document], Meta(min_length=1, max_length=MAX_PROMPTS)]
    top_n: Positive | None = None
    return_documents: bool = True
    max_tokens_per_doc: Int64 | None = None

    def texts(self) -> list[str]:
        return [document if isinstance(document, str) else document.text for document in self.documents]

    def most_of_a_document(self) -> int | None:
        """Tokens. Raises RequestError."""
        if self.max_tokens_per_doc is not None and self.max_tokens_per_doc < 0:
            raise RequestError(
                f"max_tokens_per_doc must be a non-negative integer, not {self.max_tokens_per_doc}",
                param="max_tokens_per_doc",
                hint="leave it out to cut no document",
            )
        return self.max_tokens_per_doc or None


_SIDES = (("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2"))


class ScoreRequest(TextRequest, kw_only=True):
    """One text with each of several, or as many with as many, pair by pair. Clients have several names for the two sides."""

    text_1: str | Texts | None = None
    text_2: str | Texts | None = None
    queries: str | Texts | None = None
    documents: str | Texts | None = None
    items: str | Texts | None = None
    data_1: str | Texts | None = None
    data_2: str | Texts | None = None

    def pairs(self) -> list[tuple[str, str]]:
        """Raises RequestError if there are not two sides that go together."""
        given = {name for names in _SIDES for name in names if getattr(self, name) is not None}
        names = next((names for names in _SIDES if given == set(names)), None)
        if names is None:
            hint = "take one of " + ", ".join(" with ".join(names) for names in _SIDES)
            raise RequestError("two sides are needed, each of them once", param="text_1", code="missing_field", hint=hint)
        sides: list[str | list[str]] = [getattr(self, name) for name in names]
        first, second = ([side] if isinstance(side, str) else side for side in sides)
        if len(first) == 1:
            first = first * len(second)
        if len(first) != len(second):
            raise RequestError(
                f"{names[0]} has {len(first)} texts and {names[1]} {len(second)}",
                param=names[1],
                hint=f"give one text in {names[0]}, or as many as {names[1]} has",
            )
        return list(zip(first, second, strict=True))
