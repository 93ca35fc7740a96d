"""How the answers to one request are read: the model's forms, as far as the request has use for them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from .findings import Findings
from .forms.form import CallForm, Form, ReasoningForm
from .forms.json_calls import JsonCalls
from .forms.think import Think
from .lark import FREE, Lark
from .names import NONE, FormNames
from .pieces import CallId, OutputParser
from .reader import Reader
from .table import BARE_JSON, REASONING_FORMS, TOOL_FORMS

_SPECIAL_TOKEN = re.compile(r"<[^<>\s]+>|\[/?[A-Z_]+\]|◁/?\w+▷|｜\w+｜")


@dataclass(frozen=True)
class FormsParsing:
    """A `Parsing`. tools: the schema of the parameters of each function that was offered. prompt: what the model reads.

    shows_reasoning: whether answers have their reasoning.
    """

    forms: tuple[Form, ...]
    tools: Mapping[str, Any]
    prompt: str
    most_calls: int | None = None
    shows_reasoning: bool = True

    @property
    def markers(self) -> frozenset[str]:
        """Every text of the forms that may be a special token, though only a part of what they look for."""
        texts = chain.from_iterable(form.markers for form in self.forms)
        return frozenset(token for text in texts for token in (text, *_SPECIAL_TOKEN.findall(text)))

    def begin(self, call_id: CallId) -> OutputParser:
        return Reader(self.forms, Findings(call_id, self.tools, self.most_calls, shows_reasoning=self.shows_reasoning), self._inside())

    def grammar(
        self,
        added: Mapping[str, int],
        whitespace: str,
        *,
        must_call: bool = False,
        strict: bool = False,
        answer: bool = False,
        budget: int | None = None,
    ) -> str | None:
        """What an answer must follow, in Lark; None for no rules.

        must_call: one function at least is called. strict: calls follow the functions' schemas. answer: content follows another
        grammar, `@answer`. Reasoning may stand before all of it, up to `budget` tokens if that `is_bounded`.
        added: ids of the added tokens among `markers`. whitespace: a pattern of what may stand inside JSON.
        A call without an opening mark is held to its schema from the function's name on, if that comes before the arguments.
        """
        lark = Lark(added, whitespace)
        form = next((form for form in self.forms if isinstance(form, CallForm)), None) if self.tools else None
        before = self._before_content(lark, budget)
        own_before = "" if _reasons(form) else before
        several = self.most_calls != 1
        calls = form.grammar(lark, self.tools, several=several, opened=False) if form and (must_call or answer) else ""
        if must_call and calls:
            return lark.written(f"{own_before} {calls}")
        if answer and (calls or before):
            return lark.written(f"({own_before} {calls}) | ({before} @answer)" if calls else f"{before} @answer")
        if strict and isinstance(form, JsonCalls) and form.bare:
            markers = {opener for other in self.forms if isinstance(other, CallForm) for opener in other.openers if opener in added}
            return lark.written(f"{own_before} {form.among_text(lark, self.tools, sorted(markers))}")
        if strict and form is not None and form.where == "anywhere":
            calls = form.grammar(lark, self.tools, several=several, opened=True)
            return lark.written(f"{own_before} ({lark.free(form.openers[0])} {calls})? {lark.rule(FREE)}")
        if budget is not None and self._inside():
            return lark.written(f"{before} <[*]>*")
        if budget is not None:
            openers = next((form.openers for form in self.forms if isinstance(form, Think)), ())
            return lark.written(f"({before.removesuffix('?')} <[*]>*) | {lark.anything_but(*openers)}")
        return None

    def is_bounded(self, added: Mapping[str, int]) -> bool:
        """Whether reasoning can be ended after some number of tokens: its marks must be tokens of their own."""
        thinks = [form for form in self.forms if isinstance(form, Think)]
        return bool(thinks) and all(mark in added for form in thinks for mark in (*form.openers, *form.ends))

    def _before_content(self, lark: Lark, budget: int | None) -> str:
        inside = self._inside() is not None
        form = next((form for form in self.forms if isinstance(form, ReasoningForm)), None)
        return form.before_content(lark, inside=inside, most_tokens=budget) if form is not None else ""

    def _inside(self) -> tuple[Form, str] | None:
        """What the prompt's end has begun."""
        prompt = self.prompt.rstrip()
        for form in self.forms:
            if isinstance(form, Think):
                begun = next((opener for opener in form.openers if prompt.endswith(opener)), None)
                if begun or (form.implied and not prompt.endswith(form.ends)):
                    return form, begun or form.openers[0]
        return None


def _reasons(form: Form | None) -> bool:
    """Whether a form of calls has reasoning of its own."""
    return isinstance(form, ReasoningForm)


def parsing_of(
    names: FormNames, tools: Mapping[str, Any], prompt: str, *, most_calls: int | None = None, shows_reasoning: bool = True
) -> FormsParsing | None:
    """None if there is nothing to look for. Calls are looked for where functions were offered, bare ones with every model."""
    reasoning = REASONING_FORMS.get(names.reasoning or NONE, ())
    calls = (*TOOL_FORMS.get(names.tools or NONE, ()), BARE_JSON) if tools and names.tools != NONE else ()
    forms = tuple(dict.fromkeys((*reasoning, *calls)))
    return FormsParsing(forms, tools, prompt, most_calls, shows_reasoning) if forms else None
