"""A real small model under nested schemas: whatever it would like to say, every answer is an instance."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from real_models import QWEN25_CODER_05B, fetched

from engine.compiler.build import build
from engine.compiler.options import BuildOptions
from engine.server.dialects.structured import StructuredOutputs
from engine.server.llm import LLM, Params

pytestmark = [pytest.mark.exhaustive, pytest.mark.timeout(3600)]

SEEDS = 50
SHORT = {"type": "string", "maxLength": 24}
ORDER = {
    "type": "object",
    "properties": {
        "id": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}$"},
        "date": {"type": "string", "format": "date"},
        "lines": {
            "type": "array",
            "minItems": 1,
            "maxItems": 3,
            "items": {
                "type": "object",
                "properties": {"article": SHORT, "count": {"type": "integer", "minimum": 1, "maximum": 99}},
                "required": ["article", "count"],
                "additionalProperties": False,
            },
        },
    },
    "required": ["id", "date", "lines"],
    "additionalProperties": False,
}
TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"name": {"type": "string", "maxLength": 8}, "child": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/leaf"}]}},
            "required": ["name", "child"],
            "additionalProperties": False,
        },
        "leaf": {
            "type": "object",
            "properties": {"value": {"type": "integer", "minimum": -5, "maximum": 5}},
            "required": ["value"],
            "additionalProperties": False,
        },
    },
    "type": "array",
    "items": {"$ref": "#/$defs/node"},
    "minItems": 2,
    "maxItems": 3,
}
EVENTS: dict[str, dict[str, Any]] = {
    "move": {"to": {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "integer"}], "items": False, "minItems": 2}},
    "say": {"text": SHORT, "loud": {"type": "boolean"}},
    "wait": {"seconds": {"type": "number", "minimum": 0, "maximum": 10}},
}
EVENT = {
    "oneOf": [
        {
            "type": "object",
            "properties": {"kind": {"const": kind}, **fields},
            "required": ["kind", *fields],
            "additionalProperties": False,
        }
        for kind, fields in EVENTS.items()
    ]
}
PERSON = {
    "type": "object",
    "properties": {"email": {"type": "string", "format": "email", "maxLength": 30}},
    "required": ["email"],
    "additionalProperties": False,
}
PEOPLE = {
    "type": "object",
    "properties": {
        "people": {
            "type": "object",
            "patternProperties": {"^[a-z]{3,8}$": PERSON},
            "additionalProperties": False,
            "minProperties": 1,
            "maxProperties": 2,
        },
        "total": {"enum": [1, 2, None]},
    },
    "required": ["people", "total"],
    "additionalProperties": False,
}
ANSWERS = {
    "type": "object",
    "properties": {
        f"question_{index}": {"type": "object", "properties": {"choice": {"enum": ["A", "B", "C"]}, "why": SHORT}, "required": ["choice"]}
        | {"additionalProperties": False}
        for index in range(3)
    },
    "required": [f"question_{index}" for index in range(3)],
    "additionalProperties": False,
}
SCHEMAS: dict[str, Any] = {"order": ORDER, "tree": TREE, "event": EVENT, "people": PEOPLE, "answers": ANSWERS}


@pytest.fixture(scope="module")
def llm(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    artifact = tmp_path_factory.mktemp("qwen") / "artifact"
    build(BuildOptions(model=str(fetched(QWEN25_CODER_05B)), output=artifact, store=store))
    with LLM(artifact, kv_memory=2**30, max_num_seqs=32) as llm:
        yield llm


@pytest.mark.parametrize("disable_any_whitespace", [False, True])
@pytest.mark.parametrize("name", SCHEMAS)
def test_every_answer_is_an_instance(llm: LLM, name: str, disable_any_whitespace: bool) -> None:
    outputs = StructuredOutputs(json=SCHEMAS[name], disable_any_whitespace=disable_any_whitespace)
    prompts = [[{"role": "user", "content": f"Write example number {seed} of {name}, as JSON."}] for seed in range(SEEDS)]
    params = Params(max_tokens=400, temperature=1.0, structured_outputs=outputs, seed=7)
    for completion in llm.generate(prompts, params):
        assert completion.finish_reason == "stop"
        jsonschema.validate(json.loads(completion.text), SCHEMAS[name], format_checker=jsonschema.FormatChecker())
