"""pydantic-ai: a stream, an agent with a tool, output by a tool and by a schema."""

import asyncio
import json
import sys

from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider


class Place(BaseModel):
    city: str


url, name, say, arguments = sys.argv[1:]
model = OpenAIChatModel(name, provider=OpenAIProvider(base_url=f"{url}/v1", api_key="none"), settings={"temperature": 0})
called: list[object] = []
agent = Agent(model)


@agent.tool_plain
def weather(city: str) -> str:
    called.extend(["weather", {"city": city}])
    return "sun"


async def converse() -> dict[str, object]:
    async with Agent(model).run_stream(say) as result:
        pieces = [piece async for piece in result.stream_text(delta=True, debounce_by=None)]
    after = await agent.run(arguments)
    by_tool = await Agent(model, output_type=Place).run(arguments)
    structured = await Agent(model, output_type=NativeOutput(Place)).run(arguments)
    return {
        "streamed": "".join(pieces),
        "called": called,
        "after": after.output,
        "structured": structured.output.model_dump(),
        "by_tool": by_tool.output.model_dump(),
    }


print(json.dumps(asyncio.run(converse())))
