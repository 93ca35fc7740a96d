"""What is said about the fields of a struct: the text below each of them in the source of its class."""

import ast
import inspect
import textwrap
from itertools import pairwise

import msgspec


def field_docs(kind: type[msgspec.Struct]) -> dict[str, str]:
    """By field, in one line each; fields of classes that it extends too."""
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        if each is msgspec.Struct or not issubclass(each, msgspec.Struct):
            continue
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(each))).body
        assert isinstance(definition, ast.ClassDef)
        for field, below in pairwise(definition.body):
            match field, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    found[name] = " ".join(text.split())
    return found
