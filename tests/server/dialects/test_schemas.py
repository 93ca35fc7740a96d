"""Fields of OpenAI's API: each does something, is refused by name, or is on the list of those without effect."""

from typing import Any, get_type_hints

import msgspec
import pytest

from engine.errors import RequestError
from engine.server.dialects.decoding import decode_request
from engine.server.dialects.schemas import WITHOUT_EFFECT, ChatRequest, CompletionRequest, StreamOptions

LEAST: dict[type, dict[str, Any]] = {ChatRequest: {"messages": []}, CompletionRequest: {"prompt": "Hi"}}
UNREAD = [(kind, name) for kind in LEAST for name, type_ in get_type_hints(kind).items() if type_ is Any]
"""Fields whose values no schema looks at."""


def request(kind: type, **fields: Any) -> Any:
    return decode_request(msgspec.json.encode(LEAST[kind] | fields), kind)


@pytest.mark.parametrize(("kind", "name"), UNREAD)
def test_what_is_not_read_is_refused_or_on_the_list(kind: type, name: str) -> None:
    asked = request(kind, **{name: {"odd": 1}})
    if name in WITHOUT_EFFECT:
        asked.check()
    else:
        with pytest.raises(RequestError, match=f"^{name} is not supported") as refused:
            asked.check()
        assert refused.value.param == name


def test_the_list_is_of_fields_there_are() -> None:
    assert {name for _, name in UNREAD} | set(StreamOptions.__struct_fields__) >= set(WITHOUT_EFFECT)
