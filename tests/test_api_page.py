"""docs/api.md says what the types of requests say."""

import importlib.util
from types import ModuleType

import pytest
from checkout import ROOT

from engine.server.dialects.field_docs import field_docs
from engine.server.dialects.schemas import WITHOUT_EFFECT, ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("api_tables", ROOT / "tools" / "api_tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_as_the_tool_writes_it(tool: ModuleType) -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    assert page == tool.written(page), "make docs"
    for name in tool._tables():
        assert f"<!-- {name}: made by make docs -->" in page


def test_every_field_that_has_an_effect_is_explained(tool: ModuleType) -> None:
    for kind in (ChatRequest, CompletionRequest, TokenizeRequest, DetokenizeRequest):
        unexplained = set(kind.__struct_fields__) - set(field_docs(kind)) - set(WITHOUT_EFFECT) - set(tool._unsupported())
        assert unexplained == set(), f"write a text below each of these in {kind.__name__}, then run make docs"
