"""What pydantic-ai gets from a server: run in its own environment, prints one JSON object."""

import asyncio
import json
import sys

from pydantic import BaseModel, Field
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

RESULT = json.dumps({"city": "Paris", "temperature": 21, "unit": "celsius", "condition": "sunny"})
SETTINGS = {"temperature": 0, "max_tokens": 200}
model = OpenAIChatModel("demo", provider=OpenAIProvider(base_url=f"{sys.argv[1]}/v1", api_key="none"))


class Capital(BaseModel):
    """The capital of a country."""

    city: str = Field(max_length=20)
    sure: bool


agent = Agent(model, model_settings=SETTINGS)
asked = []
helper = Agent(model, model_settings=SETTINGS)


@helper.tool_plain
def get_weather(city: str) -> str:
    """Get the current weather of a city"""
    asked.append(city)
    return RESULT


async def streamed():
    async with agent.run_stream("What is the capital of France?") as run:
        return [text async for text in run.stream_text(delta=True)]


whole = agent.run_sync("What is the capital of France?").output
pieces = asyncio.run(streamed())
used = helper.run_sync("What is the weather in Paris?")
held = {
    name: Agent(model, output_type=form(Capital), model_settings=SETTINGS)
    .run_sync("What is the capital of France?")
    .output.model_dump()
    for name, form in (("schema", NativeOutput), ("tool", ToolOutput))
}

print(json.dumps({"whole": whole, "streamed": "".join(pieces), "asked": asked, "used": used.output, "held": held}))
