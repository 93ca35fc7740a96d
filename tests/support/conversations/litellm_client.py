"""litellm: a stream, a tool and its result, structured text."""

import json
import sys

import litellm
from pydantic import BaseModel


class Place(BaseModel):
    city: str


url, model, say, arguments = sys.argv[1:]
common = {"model": f"hosted_vllm/{model}", "api_base": f"{url}/v1", "api_key": "none", "temperature": 0}
stream = litellm.completion(**common, messages=[{"role": "user", "content": say}], stream=True)
streamed = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
tools = [{"type": "function", "function": {"name": "weather", "parameters": parameters}}]
messages = [{"role": "user", "content": arguments}]
message = litellm.completion(**common, messages=messages, tools=tools).choices[0].message
(call,) = message.tool_calls
messages += [message.model_dump(), {"role": "tool", "tool_call_id": call.id, "content": "sun"}]
after = litellm.completion(**common, messages=messages, tools=tools).choices[0].message.content
structured = litellm.completion(**common, messages=[{"role": "user", "content": arguments}], response_format=Place)
print(
    json.dumps(
        {
            "streamed": streamed,
            "called": [call.function.name, json.loads(call.function.arguments)],
            "after": after,
            "structured": json.loads(structured.choices[0].message.content),
        }
    )
)
