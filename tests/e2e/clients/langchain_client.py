"""What langchain-openai gets from a server: run in its own environment, prints one JSON object."""

import asyncio
import json
import sys

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, ConfigDict, Field

RESULT = json.dumps({"city": "Paris", "temperature": 21, "unit": "celsius", "condition": "sunny"})


class Capital(BaseModel):
    """The capital of a country."""

    model_config = ConfigDict(extra="forbid")  # so small a model would go on with fields of its own
    city: str = Field(max_length=20)
    sure: bool


@tool
def get_weather(city: str) -> str:
    """Get the current weather of a city"""
    return RESULT


model = ChatOpenAI(
    model="demo", base_url=f"{sys.argv[1]}/v1", api_key="none", temperature=0, max_tokens=200, max_retries=0
)
capital = "What is the capital of France?"
whole = model.invoke(capital)
parts = list(model.stream(capital, stream_usage=True))
awaited = asyncio.run(model.ainvoke("What is 12 plus 30?"))

messages = [HumanMessage("What is the weather in Paris?")]
with_tools = model.bind_tools([get_weather])
called = with_tools.invoke(messages)
(call,) = called.tool_calls
joined = None
for part in with_tools.stream(messages):
    joined = part if joined is None else joined + part
messages += [called, ToolMessage(get_weather.invoke(call["args"]), tool_call_id=call["id"])]
used = with_tools.invoke(messages)
held = {
    method: model.with_structured_output(Capital, method=method).invoke(capital).model_dump()
    for method in ("json_schema", "function_calling")
}

print(
    json.dumps(
        {
            "whole": whole.content,
            "streamed": "".join(part.content for part in parts),
            "tokens": [
                whole.usage_metadata["output_tokens"],
                sum(part.usage_metadata["output_tokens"] for part in parts if part.usage_metadata),
            ],
            "awaited": awaited.content,
            "finish_reason": called.response_metadata["finish_reason"],
            "call": [call["name"], call["args"]],
            "streamed_call": [joined.tool_calls[0]["name"], joined.tool_calls[0]["args"]],
            "used": used.content,
            "held": held,
        }
    )
)
