"""What instructor gets from a server: run in its own environment, prints one JSON object."""

import json
import sys

import instructor
from openai import OpenAI
from pydantic import BaseModel, ConfigDict, Field


class Capital(BaseModel):
    """The capital of a country."""

    model_config = ConfigDict(extra="forbid")  # so small a model would go on with fields of its own
    city: str = Field(max_length=20)
    sure: bool


MODES = {"tools": instructor.Mode.TOOLS, "schema": instructor.Mode.JSON_SCHEMA}
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
held, streamed = {}, {}
for name, mode in MODES.items():
    client = instructor.from_openai(OpenAI(base_url=f"{sys.argv[1]}/v1", api_key="none", max_retries=0), mode=mode)
    common = {"model": "demo", "messages": QUESTION, "max_tokens": 200, "temperature": 0, "max_retries": 0}
    held[name] = client.chat.completions.create(response_model=Capital, **common).model_dump()
    *_, last = client.chat.completions.create_partial(response_model=Capital, **common)
    streamed[name] = last.model_dump()

print(json.dumps({"held": held, "streamed": streamed}))
