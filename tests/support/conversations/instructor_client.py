"""instructor: structured text by a tool, by JSON and by a schema, also as it comes."""

import json
import sys

import instructor
import openai
from pydantic import BaseModel


class Place(BaseModel):
    city: str


url, model, say, arguments = sys.argv[1:]
plain = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
asked = {"model": model, "messages": [{"role": "user", "content": arguments}], "response_model": Place, "temperature": 0, "max_retries": 0}


def place(mode: instructor.Mode) -> object:
    return instructor.from_openai(plain, mode=mode).chat.completions.create(**asked).model_dump()


partial = list(instructor.from_openai(plain, mode=instructor.Mode.TOOLS).chat.completions.create_partial(**asked))
print(
    json.dumps(
        {
            "structured": place(instructor.Mode.JSON_SCHEMA),
            "by_tool": place(instructor.Mode.TOOLS),
            "partial": partial[-1].model_dump(),
        }
    )
)
