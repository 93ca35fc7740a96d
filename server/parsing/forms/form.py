"""The ways in which models write what is not plain text."""

from typing import Literal, Protocol

from ..findings import Findings
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
