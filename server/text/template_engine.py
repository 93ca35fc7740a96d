"""Jinja as chat templates are written for: sandboxed, with what transformers gives them."""

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ...errors import ArtifactError

__all__ = ["Template", "TemplateError", "compile_template", "variables_of"]

_GENERATION = {"generation"}


class _GenerationBlock(Extension):
    """`{% generation %}...{% endgeneration %}` marks trainable text; for inference it is just its body."""

    tags = _GENERATION

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def compile_template(source: str) -> Template:
    """Raises ArtifactError if it does not parse."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols])
    environment.filters["tojson"] = _tojson
    globals: dict[str, Callable[..., Any]] = {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
    environment.globals.update(globals)
    try:
        return environment.from_string(source)
    except TemplateError as error:
        raise ArtifactError(f"the chat template does not parse: {error}", hint="rebuild the artifact") from error


def variables_of(template: Template, source: str) -> set[str]:
    """What a template reads that it does not set itself."""
    return meta.find_undeclared_variables(template.environment.parse(source))
