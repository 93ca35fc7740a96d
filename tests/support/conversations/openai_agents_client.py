"""openai-agents over both of its APIs: a stream, an agent with a tool, structured output."""

import asyncio
import json
import sys

import openai
from agents import Agent, ModelSettings, OpenAIChatCompletionsModel, OpenAIResponsesModel, Runner, function_tool, set_tracing_disabled
from pydantic import BaseModel

set_tracing_disabled(True)
url, name, say, arguments = sys.argv[1:]
client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
called: list[object] = []


class Place(BaseModel):
    city: str


@function_tool
def weather(city: str) -> str:
    """The weather of a city."""
    called.extend(["weather", {"city": city}])
    return "sun"


async def converse(kind: type) -> dict[str, object]:
    called.clear()
    common = {"name": "Agent", "model": kind(model=name, openai_client=client), "model_settings": ModelSettings(temperature=0)}
    stream = Runner.run_streamed(Agent(**common), say)
    pieces = []
    async for event in stream.stream_events():
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
            pieces.append(event.data.delta)
    after = await Runner.run(Agent(**common, tools=[weather]), arguments)
    structured = await Runner.run(Agent(**common, output_type=Place), arguments)
    return {
        "streamed": "".join(pieces),
        "called": [*called],
        "after": after.final_output,
        "structured": structured.final_output.model_dump(),
    }


async def both() -> dict[str, object]:
    return {**await converse(OpenAIChatCompletionsModel), "responses": await converse(OpenAIResponsesModel)}


print(json.dumps(asyncio.run(both())))
