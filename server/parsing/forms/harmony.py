"""Channels of gpt-oss: `<|channel|>analysis<|message|>...<|end|><|start|>assistant<|channel|>final<|message|>...`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..findings import Findings
from ..lark import FREE, Lark
from ..source import NotACall, Scan, Source
from .form import Where

_RECIPIENT = re.compile(r"to=(?:functions\.)?([\w.\-]+)")
_ENDS = ("<|end|>", "<|call|>", "<|return|>")


@dataclass(frozen=True)
class Harmony:
    """A message with a recipient is a call, one of the analysis channel reasoning, any other content."""

    openers: tuple[str, ...] = ("<|channel|>", "<|start|>")
    where: Where = "anywhere"

    @property
    def markers(self) -> tuple[str, ...]:
        return (*self.openers, *_ENDS, "<|message|>", "<|constrain|>")

    def read(self, opener: str, source: Source, found: Findings) -> Scan[None]:
        header = yield from source.until("<|message|>")
        if "<|end|>" in header:
            raise NotACall
        channel = header.rpartition("<|channel|>")[2]
        if recipient := _RECIPIENT.search(header):
            yield from self._call(recipient[1], source, found)
        elif channel.strip().startswith("analysis"):
            found.in_reasoning = True
            yield from source.flow(_ENDS, found.reasoning)
            found.in_reasoning = False
        else:
            yield from source.flow(_ENDS, found.content)

    def _call(self, name: str, source: Source, found: Findings) -> Scan[None]:
        found.call(name)
        before = found.count
        yield from source.space()
        ended = yield from source.flow(_ENDS, found.arguments)
        if ended and found.count == before:
            found.arguments("{}")

    def grammar(self, lark: Lark, functions: Mapping[str, Any], *, several: bool, opened: bool) -> str:
        """One call, behind any analysis: the token that ends a call ends the answer."""
        heads = (f"commentary to=functions.{name} <|constrain|>json<|message|>" for name in functions)
        calls = " | ".join(f"({lark.text(head)} {lark.json(schema)})" for head, schema in zip(heads, functions.values(), strict=True))
        opening = "" if opened else lark.text("<|channel|>") + " "
        return f"{opening}{self._analysis(lark)} ({calls})"

    def before_content(self, lark: Lark, *, inside: bool, most_tokens: int | None) -> str:
        return f"{lark.text('<|channel|>')} {self._analysis(lark)} {lark.text('final<|message|>')}"

    def _analysis(self, lark: Lark) -> str:
        """Any number of messages of this channel, between the mark of a channel and the next one."""
        next_message = lark.text("<|end|><|start|>assistant<|channel|>")
        return f"({lark.text('analysis<|message|>')} {FREE} {next_message})*"
