"""A grammar in llguidance's Lark, rule by rule. Forms write how calls look with it, so that a model can be held to them."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

FREE = "/(?s:.*)/"
LINE = '"\\n"?'
SPACE = r"/\s*/"
_SYNTAX = re.compile(r"[\\.+*?()|\[\]{}^$#&~/-]")


class Lark:
    """added: ids of added tokens by their texts: for llguidance these are no text. whitespace: a pattern of what may stand inside JSON."""

    def __init__(self, added: Mapping[str, int], whitespace: str) -> None:
        self._added = added
        self._whitespace = whitespace
        self._rules: list[str] = []
        texts = sorted(added, key=len, reverse=True)
        self._split = re.compile("(" + "|".join(map(re.escape, texts)) + ")") if texts else None

    def written(self, start: str) -> str:
        """The whole grammar of this expression."""
        return "\n".join([f"start: {start}", *self._rules])

    def rule(self, body: str, options: str = "") -> str:
        """The name of a rule of its own."""
        name = f"r{len(self._rules)}"
        self._rules.append(f"{name}{options}: {body}")
        return name

    def text(self, text: str) -> str:
        """Exactly this text."""
        parts = self._split.split(text) if self._split else [text]
        return " ".join(self._token(part) if part in self._added else json.dumps(part, ensure_ascii=False) for part in parts if part)

    def json(self, schema: Any, root: Any = None) -> str:
        """JSON that follows the schema. root: whose definitions it may refer to."""
        shared = {name: root[name] for name in ("$defs", "definitions") if isinstance(root, Mapping) and name in root}
        found = schema if isinstance(schema, Mapping) else {}
        whole = {**shared, **found, "x-guidance": {"whitespace_pattern": self._whitespace}}
        return self.rule(f"%json {json.dumps(whole, ensure_ascii=False)}")

    def free(self, *ends: str, most_tokens: int | None = None) -> str:
        """Any text up to the first of these, which are read as well. most_tokens: where an end comes at last, if it is an added token."""
        if any(end in self._added for end in ends):
            tokens = " | ".join(self._token(end) for end in ends if end in self._added)
            text = FREE if most_tokens is None else self.rule(FREE, f"[max_tokens={most_tokens}]") if most_tokens else ""
            return f"{text} ({tokens})"
        if len(ends) == 1 and ends[0]:
            return self.rule(FREE, f"[suffix={json.dumps(ends[0], ensure_ascii=False)}]")
        return self.free_until("|".join(map(exactly, ends)))

    def free_until(self, pattern: str) -> str:
        """Any text up to the first match of a regular expression, which is read as well."""
        return self.rule(FREE, f"[suffix=/{pattern}/]")

    def repeated(self, one: str, *, between: str, several: bool) -> str:
        return f"{one} ({between} {one})*" if several else one

    def sequence(self, items: Sequence[tuple[str, bool]], separator: str) -> str:
        """(expression, whether it must be there) in this order, with `separator` between them."""
        rest = ""
        may_be_empty = True
        for expression, required in reversed(items):
            following = f"({separator} {rest})" + ("?" if may_be_empty else "") if rest else ""
            with_this = f"{expression} {following}"
            rest = self.rule(with_this if required or not rest else f"{with_this} | {rest}")
            may_be_empty = may_be_empty and not required
        return f"({rest})?" if rest and may_be_empty else rest

    def anything_but(self, *texts: str) -> str:
        """Any tokens, of which the first is none of these added ones."""
        ids = ",".join(str(self._added[text]) for text in texts if text in self._added)
        return f"(<[^{ids}]> <[*]>*)?" if ids else "<[*]>*"

    def _token(self, text: str) -> str:
        return f"<[{self._added[text]}]>"


def exactly(text: str) -> str:
    """The regular expression of this text. `re.escape` escapes more than llguidance reads."""
    return _SYNTAX.sub(r"\\\g<0>", text)
