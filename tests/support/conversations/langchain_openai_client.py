"""langchain-openai: a stream, a tool and its result, structured text."""

import json
import sys

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel


class Place(BaseModel):
    """Where it is."""

    city: str


@tool
def weather(city: str) -> str:
    """The weather of a city."""
    return "sun"


url, model, say, arguments = sys.argv[1:]
chat = ChatOpenAI(model=model, base_url=f"{url}/v1", api_key="none", temperature=0, max_retries=0)
streamed = "".join(chunk.text for chunk in chat.stream(say))
with_tools = chat.bind_tools([weather])
question = HumanMessage(arguments)
answer = with_tools.invoke([question])
(call,) = answer.tool_calls
after = with_tools.invoke([question, answer, ToolMessage(weather.invoke(call["args"]), tool_call_id=call["id"])])
structured = {
    method: chat.with_structured_output(Place, method=method).invoke(arguments).model_dump()
    for method in ("json_schema", "function_calling")
}
print(
    json.dumps(
        {
            "streamed": streamed,
            "called": [call["name"], call["args"]],
            "after": after.text,
            "structured": structured["json_schema"],
            "by_tool": structured["function_calling"],
        }
    )
)
