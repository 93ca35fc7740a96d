"""Which parameters of a test every run takes, and which only the long proofs."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def tiered(values: Iterable[Any], always: Collection[Any]) -> list[Any]:
    """All of these as parameters, those that are not in `always` marked as exhaustive."""
    return [pytest.param(value, marks=() if value in always else pytest.mark.exhaustive) for value in values]
