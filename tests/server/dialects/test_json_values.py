"""Values of a body are counted as a decoder would find them."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import RequestError
from engine.server.dialects import json_values
from engine.server.dialects.json_values import MAX_ITEMS, MAX_OBJECTS, check_values

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.sampled_from('a",[{\\\n')),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.sampled_from('b",[{\\')), inner),
    max_leaves=30,
)


def objects_in(value: Any) -> int:
    """Texts, keys, lists and objects."""
    match value:
        case list():
            return 1 + sum(map(objects_in, value))
        case dict():
            return 1 + sum(1 + objects_in(each) for each in value.values())
    return isinstance(value, str)


@given(JSON)
def test_what_is_within_texts_does_not_count(value: Any) -> None:
    count, body = objects_in(value), json.dumps(value).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_values, "MAX_OBJECTS", count)
        check_values(body)
        patch.setattr(json_values, "MAX_OBJECTS", count - 1)
        if count:
            with pytest.raises(RequestError):
                check_values(body)


@pytest.mark.parametrize(
    "value",
    [
        ["a"] * (MAX_OBJECTS + 1),
        [{}] * (MAX_OBJECTS + 1),
        [[]] * (MAX_OBJECTS + 1),
        [1] * (MAX_ITEMS + 1),
        {str(i): 1 for i in range(MAX_OBJECTS)},
    ],
    ids=["texts", "objects", "lists", "numbers", "keys"],
)
def test_too_many(value: Any) -> None:
    with pytest.raises(RequestError) as caught:
        check_values(json.dumps({"metadata": value}).encode())
    assert caught.value.code == "too_many_values"


def test_marks_in_one_long_text_are_none() -> None:
    check_values(json.dumps({"prompt": '{"a": [1, 2]}, ' * MAX_OBJECTS}).encode())
