"""What litellm gets from a server: run in litellm's environment, prints one JSON object."""

import asyncio
import json
import os
import sys

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # nothing is fetched from elsewhere

import litellm

COMMON = {
    "model": "openai/demo", "api_base": f"{sys.argv[1]}/v1", "api_key": "none", "temperature": 0, "max_tokens": 200,
    "num_retries": 0,
}  # fmt: skip
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Name of the city"}},
            "required": ["city"],
        },
    },
}
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "sure": {"type": "boolean"}},
    "required": ["city", "sure"],
    "additionalProperties": False,
}
RESULT = json.dumps({"city": "Paris", "temperature": 21, "unit": "celsius", "condition": "sunny"})


def asks(text):
    return [{"role": "user", "content": text}]


capital = asks("What is the capital of France?")
whole = litellm.completion(messages=capital, **COMMON)
chunks = list(litellm.completion(messages=capital, stream=True, stream_options={"include_usage": True}, **COMMON))
counted = [chunk.usage for chunk in chunks if getattr(chunk, "usage", None)]
awaited = asyncio.run(litellm.acompletion(messages=asks("What is 12 plus 30?"), **COMMON))

messages = asks("What is the weather in Paris?")
called = litellm.completion(messages=messages, tools=[WEATHER], **COMMON).choices[0]
call = called.message.tool_calls[0]
messages += [called.message.model_dump(), {"role": "tool", "tool_call_id": call.id, "content": RESULT}]
used = litellm.completion(messages=messages, tools=[WEATHER], **COMMON)

form = {"type": "json_schema", "json_schema": {"name": "capital", "schema": SCHEMA, "strict": True}}
held = litellm.completion(messages=capital, response_format=form, **COMMON)
try:
    litellm.completion(messages=capital, **{**COMMON, "model": "openai/other"})
    refused = "nothing"
except litellm.NotFoundError:
    refused = "NotFoundError"

print(
    json.dumps(
        {
            "whole": whole.choices[0].message.content,
            "streamed": "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices),
            "tokens": [whole.usage.completion_tokens, counted[-1].completion_tokens],
            "awaited": awaited.choices[0].message.content,
            "finish_reason": called.finish_reason,
            "call": [call.function.name, json.loads(call.function.arguments)],
            "used": used.choices[0].message.content,
            "held": json.loads(held.choices[0].message.content),
            "refused": refused,
        }
    )
)
