"""Messages to prompt, by the Jinja template that came with the model, in a sandbox."""

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ...errors import RequestError
from .messages import Habits, content_text, normalize

if TYPE_CHECKING:
    from .template_engine import Template

_AS_TRAINED = "send roles in the order in which the model was trained to see them"
_END = "\ue000the end\ue000"
"""Marks where a message ends, in what a template makes of it."""
_THINKING = re.compile(r"""\.thinking\b|\[["']thinking["']\]""")
_NEEDLE = "needle"
_ARGUMENTS = f'{{"{_NEEDLE}": "x"}}'


class ChatTemplate:
    """One model's chat template, compiled when it is first used."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self.source = source
        self._special_tokens = dict(special_tokens)

    @cached_property
    def compiled(self) -> "Template":
        """Raises ArtifactError if it does not parse."""
        from .template_engine import compile_template

        return compile_template(self.source)

    @cached_property
    def reads_tools(self) -> bool:
        """Whether the template has a place for definitions of tools."""
        from .template_engine import variables_of

        return "tools" in variables_of(self.compiled, self.source)

    @cached_property
    def habits(self) -> Habits:
        """What the template reads, found by rendering small conversations."""
        text, parts = (self._shows(_NEEDLE, _user(content)) for content in (_NEEDLE, [{"type": "text", "text": _NEEDLE}]))
        call = {"id": "abcdefghi", "type": "function", "function": {"name": "f", "arguments": {_NEEDLE: "x"}}}
        calling = [_user("?"), {"role": "assistant", "tool_calls": [call]}]
        with_text = [_user("?"), {"role": "assistant", "tool_calls": [{**call, "function": {"name": "f", "arguments": _ARGUMENTS}}]}]
        absent = self._tries(calling) is not None
        if not absent:
            for conversation in (calling, with_text):
                conversation[1]["content"] = ""
        rendered = self._tries(calling)
        return Habits(
            text=text or not parts,
            parts=parts,
            developer="developer" in self.source,
            absent_content=absent,
            thinking=_THINKING.search(self.source) is not None,
            argument_text=(rendered is None or f"{{'{_NEEDLE}'" in rendered) and _ARGUMENTS in (self._tries(with_text) or ""),
        )

    def _shows(self, text: str, *messages: dict[str, Any]) -> bool:
        """Whether it appears as text, and not as Python writes a list."""
        rendered = self._tries(list(messages))
        return rendered is not None and text in rendered and "{'type'" not in rendered

    def _tries(self, messages: list[dict[str, Any]]) -> str | None:
        template = self.compiled
        try:
            return template.render(**self._special_tokens, messages=messages, add_generation_prompt=True, tools=None, documents=None)
        except Exception:  # it is a program
            return None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] = (),
        extra: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt for these messages; `extra` are variables of this template, such as `enable_thinking`.

        Raises RequestError if a message is malformed or the template refuses the conversation, or does not read tools.
        """
        if tools and not self.reads_tools:
            raise RequestError(
                "this model's chat template has no place for tools",
                param="tools",
                code="unsupported_parameter",
                hint="describe them in a message, or choose a model that was trained to call tools",
            )
        from .template_engine import TemplateError

        normal = normalize(messages, self.habits)
        context = {**(extra or {}), **self._special_tokens, "messages": normal, "add_generation_prompt": add_generation_prompt}
        try:
            return self.compiled.render(tools=list(tools) or None, documents=None, **context)
        except TemplateError as error:
            raise RequestError(f"the chat template refuses these messages: {error}", param="messages", hint=_AS_TRAINED) from error
        except Exception as error:
            # The template is a program that ran on the user's input: whatever it raises, the input did it.
            raise RequestError(
                f"the chat template failed on these messages: {type(error).__name__}: {error}", param="messages", hint=_AS_TRAINED
            ) from error

    def render_open(
        self, messages: Sequence[Mapping[str, Any]], *, tools: Sequence[Mapping[str, Any]] = (), extra: Mapping[str, Any] | None = None
    ) -> str:
        """The prompt for these messages up to the end of the last one's content, which the model goes on with."""
        *before, last = messages
        text = content_text(last.get("content"), f"messages[{len(before)}].content")
        rendered = self.render([*before, {**last, "content": text + _END}], add_generation_prompt=False, tools=tools, extra=extra)
        if _END not in rendered:
            raise RequestError(
                "the chat template does not write the last message out, so it cannot be continued",
                param="continue_final_message",
                hint="leave it out, or make the last message one of the assistant's",
            )
        return rendered[: rendered.rindex(_END)]


def _user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}
