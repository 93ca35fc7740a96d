"""The ways in which models write what is not plain text."""

from collections.abc import Mapping
from typing import Any, Literal, Protocol, runtime_checkable

from ..findings import Findings
from ..lark import Lark
from ..source import Scan, Source

Where = Literal["anywhere", "line", "start"]
"""Where a form may begin: anywhere, or where only space stands before it in its line or in all of the content."""


class Form(Protocol):
    """One wire form. It begins with one of `openers`; `markers` are all texts that may be special tokens."""

    @property
    def openers(self) -> tuple[str, ...]: ...

    @property
    def markers(self) -> tuple[str, ...]: ...

    @property
    def where(self) -> Where: ...

    def read(self, opener: str, source: Source, found: Findings) -> Scan[None]:
        """Read on behind the opener. Raises NotACall if it is none, before or after something was found."""


@runtime_checkable
class CallForm(Form, Protocol):
    """One of calls, which a grammar can ask for."""

    def grammar(self, lark: Lark, functions: Mapping[str, Any], *, several: bool, opened: bool) -> str:
        """One call of one of these functions, by the schemas of their parameters, or more. opened: behind the first opener."""


@runtime_checkable
class ReasoningForm(Form, Protocol):
    """One of reasoning, which a grammar lets a model do before it is held to anything."""

    def before_content(self, lark: Lark, *, inside: bool, most_tokens: int | None) -> str:
        """What may stand before an answer. inside: the prompt has begun it. most_tokens: of reasoning."""
