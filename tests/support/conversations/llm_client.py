"""`llm`, the command line's library: a stream, a tool in a chain, structured text."""

import json
import sys

import llm
from llm.default_plugins.openai_models import Chat

url, name, say, arguments = sys.argv[1:]
model = Chat(name, model_name=name, api_base=f"{url}/v1", supports_schema=True, supports_tools=True)
called: list[object] = []


def weather(city: str) -> str:
    """The weather of a city."""
    called.extend(["weather", {"city": city}])
    return "sun"


schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
streamed = "".join(model.prompt(say, key="none", temperature=0))
after = model.chain(arguments, tools=[llm.Tool.function(weather)], key="none", options={"temperature": 0}).text()
structured = model.prompt(arguments, schema=schema, key="none", temperature=0).text()
print(json.dumps({"streamed": streamed, "called": called, "after": after, "structured": json.loads(structured)}))
