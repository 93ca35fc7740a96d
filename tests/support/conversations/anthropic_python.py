"""Anthropic's client: a stream, a tool and its result, structured text."""

import json
import sys
from typing import Any

import anthropic

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": False}
url, model, say, arguments = sys.argv[1:]
client = anthropic.Anthropic(base_url=url, api_key="none", max_retries=0)
common: Any = {"model": model, "max_tokens": 200, "extra_body": {"temperature": 0}}

with client.messages.stream(**common, messages=[{"role": "user", "content": say}]) as stream:
    streamed = "".join(stream.text_stream)

tools = [{"name": "weather", "input_schema": SCHEMA}]
messages: list[Any] = [{"role": "user", "content": arguments}]
message = client.messages.create(**common, messages=messages, tools=tools)
(call,) = [block for block in message.content if block.type == "tool_use"]
result = {"type": "tool_result", "tool_use_id": call.id, "content": "sun"}
messages += [{"role": "assistant", "content": message.content}, {"role": "user", "content": [result]}]
after = client.messages.create(**common, messages=messages, tools=tools)

format = {"type": "json_schema", "schema": SCHEMA}
structured = client.messages.create(**common, messages=[{"role": "user", "content": arguments}], output_config={"format": format})
print(
    json.dumps(
        {
            "streamed": streamed,
            "called": [call.name, call.input],
            "after": after.content[0].text,
            "structured": json.loads(structured.content[0].text),
        }
    )
)
