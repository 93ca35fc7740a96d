"""Stored responses are found until they are too old, too many or too large."""

import pytest

from engine.errors import RequestError
from engine.server.dialects.responses_api.store import ResponseStore, Stored


def stored(size: int = 10) -> Stored:
    return Stored(b"{}", b"x" * (size - 2))


def has(store: ResponseStore, id: str) -> bool:
    try:
        store.get(id)
    except RequestError as error:
        return error.code != "response_not_found"
    return True


def test_what_was_stored_is_found_until_it_is_deleted() -> None:
    store = ResponseStore()
    store.put("a", stored())
    assert store.get("a") == stored()
    store.delete("a")
    for use in (store.get, store.delete):
        with pytest.raises(RequestError) as refused:
            use("a")
        assert (refused.value.status, refused.value.code) == (404, "response_not_found")


def test_the_oldest_goes_first() -> None:
    store = ResponseStore(most=2)
    for id in "abc":
        store.put(id, stored())
    assert [has(store, id) for id in "abc"] == [False, True, True]


def test_bytes_are_bounded() -> None:
    store = ResponseStore(most_bytes=25)
    for id in "ab":
        store.put(id, stored())
    store.delete("a")
    store.put("c", stored(15))
    assert [has(store, id) for id in "abc"] == [False, True, True]
    store.put("d", stored(26))
    assert [has(store, id) for id in "bcd"] == [False, False, False], "larger than all there may be"
    store.put("e", stored(25))
    assert has(store, "e"), "what was forgotten counts no more"


def test_age_is_bounded() -> None:
    now = 0.0
    store = ResponseStore(most_seconds=10, clock=lambda: now)
    store.put("a", stored())
    now = 6.0
    store.put("b", stored())
    now = 11.0
    assert [has(store, id) for id in "ab"] == [False, True]


def test_a_conversation_goes_on_from_its_output() -> None:
    entry = Stored(b'{"output": [{"id": "b"}]}', b'[{"id": "a"}]')
    assert entry.conversation() == [{"id": "a"}, {"id": "b"}]
