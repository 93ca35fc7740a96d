"""OpenAI's own client: chat completions and responses, a tool each, structured text."""

import json
import sys
from typing import Any

import openai
from pydantic import BaseModel


class Place(BaseModel):
    city: str


SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": False}
url, model, say, arguments = sys.argv[1:]
client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)

pieces = []
with client.chat.completions.stream(model=model, messages=[{"role": "user", "content": say}], temperature=0) as stream:
    pieces = [event.delta for event in stream if event.type == "content.delta"]

tools: Any = [{"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}]
messages: list[Any] = [{"role": "user", "content": arguments}]
message = client.chat.completions.create(model=model, messages=messages, tools=tools, temperature=0).choices[0].message
(call,) = message.tool_calls or []
messages += [message, {"role": "tool", "tool_call_id": call.id, "content": "sun"}]
after = client.chat.completions.create(model=model, messages=messages, tools=tools, temperature=0).choices[0].message.content

parsed = client.chat.completions.parse(
    model=model, messages=[{"role": "user", "content": arguments}], response_format=Place, temperature=0
).choices[0]

response_tools: Any = [{"type": "function", "name": "weather", "parameters": SCHEMA, "strict": False}]
response = client.responses.create(model=model, input=arguments, tools=response_tools, temperature=0)
(item,) = [item for item in response.output if item.type == "function_call"]
output: Any = [{"type": "function_call_output", "call_id": item.call_id, "output": "sun"}]
going_on = client.responses.create(model=model, previous_response_id=response.id, input=output, tools=response_tools, temperature=0)
text = client.responses.parse(model=model, input=arguments, text_format=Place, temperature=0)
print(
    json.dumps(
        {
            "streamed": "".join(pieces),
            "called": [call.function.name, json.loads(call.function.arguments)],
            "after": after,
            "structured": parsed.message.parsed and parsed.message.parsed.model_dump(),
            "responses": {
                "called": [item.name, json.loads(item.arguments)],
                "after": going_on.output_text,
                "structured": text.output_parsed and text.output_parsed.model_dump(),
            },
        }
    )
)
