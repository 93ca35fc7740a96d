"""How the answers to one request are read: the model's forms, as far as the request has use for them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from .findings import Findings
from .forms.form import Form
from .forms.think import Think
from .pieces import CallId, OutputParser
from .reader import Reader
from .table import BARE_JSON, REASONING_FORMS, TOOL_FORMS

_SPECIAL_TOKEN = re.compile(r"<[^<>\s]+>|\[/?[A-Z_]+\]|◁/?\w+▷|｜\w+｜")


@dataclass(frozen=True)
class FormsParsing:
    """A `Parsing`. tools: the schema of the parameters of each function that was offered. prompt: what the model reads."""

    forms: tuple[Form, ...]
    tools: Mapping[str, Any]
    prompt: str
    most_calls: int | None = None

    @property
    def markers(self) -> frozenset[str]:
        """Every text of the forms that may be a special token, though only a part of what they look for."""
        texts = chain.from_iterable(form.markers for form in self.forms)
        return frozenset(token for text in texts for token in (text, *_SPECIAL_TOKEN.findall(text)))

    def begin(self, call_id: CallId) -> OutputParser:
        return Reader(self.forms, Findings(call_id, self.tools, self.most_calls), self._inside())

    def _inside(self) -> tuple[Form, str] | None:
        """What the prompt's end has begun."""
        prompt = self.prompt.rstrip()
        for form in self.forms:
            if isinstance(form, Think):
                begun = next((opener for opener in form.openers if prompt.endswith(opener)), None)
                if begun or (form.implied and not prompt.endswith(form.ends)):
                    return form, begun or form.openers[0]
        return None


def parsing_of(
    tool_form: str | None, reasoning_form: str | None, *, tools: Mapping[str, Any], prompt: str, most_calls: int | None = None
) -> FormsParsing | None:
    """By the names in the tables; None if there is nothing to look for. Calls are looked for where functions were offered."""
    reasoning = REASONING_FORMS[reasoning_form] if reasoning_form else ()
    calls = (*TOOL_FORMS[tool_form], BARE_JSON) if tool_form and tools else ()
    forms = tuple(dict.fromkeys((*reasoning, *calls)))
    return FormsParsing(forms, tools, prompt, most_calls) if forms else None
