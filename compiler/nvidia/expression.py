"""sympy's expressions to those of a launch plan."""

from functools import reduce
from typing import Any

import sympy

from ...artifacts.launch_plan import Expression, Guard
from ...errors import BuildError


def expression(size: Any) -> Expression:
    """An integer expression in symbols as plain data. Raises BuildError for what a plan cannot say."""
    if isinstance(size, int):
        return size
    size = sympy.sympify(size)
    match size:
        case sympy.Integer():
            return int(size)
        case sympy.Symbol():
            return str(size.name)
        case sympy.Add() if _is_integer_sum(size):
            return _chain("+", size.args)
        case sympy.Mul() if _is_integer_sum(size):
            return _chain("*", size.args)
        case sympy.floor():
            numerator, denominator = sympy.fraction(sympy.together(size.args[0]))
            return ["//", expression(numerator), expression(denominator)]
        case sympy.Mod():
            return ["%", expression(size.args[0]), expression(size.args[1])]
    name = type(size).__name__
    if name in ("FloorDiv", "CleanDiv", "IntTrueDiv"):
        return ["//", expression(size.args[0]), expression(size.args[1])]
    if name in ("Min", "Max"):
        return _chain(name.lower(), size.args)
    if name in ("Mod", "PythonMod"):
        return ["%", expression(size.args[0]), expression(size.args[1])]
    raise BuildError(f"a launch plan has no way to say {size}")


def as_guard(relation: Any) -> Guard | None:
    """A relation between sizes as a guard of a plan; None where the code holds without it. Raises BuildError for one that is no range.

    That a size is not 0 or 1, or at least 2, is only asked to leave out code for broadcasting, or, of strides, to name an order of
    axes: what is right for every other size of a dimension is right for these.
    """
    if isinstance(relation, sympy.core.relational.Relational):
        relation = _without_common_factor(relation.reversed if relation.lhs.is_number else relation)
    difference: Any = relation.lhs - relation.rhs if isinstance(relation, sympy.core.relational.Relational) else None
    match relation:
        case sympy.Ne() if relation.rhs in (0, 1):
            return None
        case sympy.Ge() if relation.rhs == 2:
            return None
        case sympy.Gt() if relation.rhs == 1:
            return None
        case sympy.Eq():
            return Guard(value=expression(difference), minimum=0, maximum=0)
        case sympy.Ge() | sympy.Gt():
            return Guard(value=expression(difference), minimum=int(isinstance(relation, sympy.Gt)), maximum=None)
        case sympy.Le() | sympy.Lt():
            return Guard(value=expression(-difference), minimum=int(isinstance(relation, sympy.Lt)), maximum=None)
    raise BuildError(f"the code of a segment holds only where {relation}, which a launch plan cannot say")


def _without_common_factor(relation: Any) -> Any:
    """24 * T > 24 as T > 1."""
    coefficients = [each for side in relation.args for each in sympy.sympify(side).as_coefficients_dict().values()]
    factor = sympy.gcd(coefficients) if all(each.is_Integer for each in coefficients) else 1
    return relation.func(relation.lhs / factor, relation.rhs / factor) if factor > 1 else relation


def _is_integer_sum(size: Any) -> bool:
    return not any(arg.is_Rational and not arg.is_Integer for arg in size.args)


def _chain(operator: str, args: Any) -> Expression:
    ordered = sorted(args, key=sympy.default_sort_key)
    return reduce(lambda left, right: [operator, left, right], [expression(arg) for arg in ordered])
