# ruff: noqa: E501 - tables of words and phrasings, easier to read and extend as long lines
"""Tool calling: three example tools and a few more for variety, when to call them and how to use the answer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from random import Random
from typing import Any

from recipe.simple import operands
from recipe.words import ADJECTIVES, NOUNS, Lists, invented, world_words

Tool = dict[str, Any]


def _tool(name: str, description: str, properties: dict[str, Any], required: list[str]) -> Tool:
    parameters = {"type": "object", "properties": properties, "required": required}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def _text(description: str) -> dict[str, Any]:
    return {"type": "string", "description": description} if description else {"type": "string"}


def weather_tool(rng: Random | None = None) -> Tool:
    """get_weather(city, unit)."""
    descriptions = ("Get the current weather of a city", "Get the weather in a city.", "Current weather", "Returns the weather for a city.")
    unit = {"type": "string", "enum": ["celsius", "fahrenheit"]}
    pick = rng.choice if rng else lambda options: options[0]
    return _tool("get_weather", pick(descriptions), {"city": _text(pick(("Name of the city", "", "The city"))), "unit": unit},
                 pick((["city"], ["city"], ["city", "unit"])))  # fmt: skip


def calculator_tool(rng: Random | None = None) -> Tool:
    """calculator(expression)."""
    pick = rng.choice if rng else lambda options: options[0]
    return _tool("calculator", pick(("Evaluate an arithmetic expression", "Calculate an expression.", "A calculator", "Does arithmetic.")),
                 {"expression": _text(pick(("The expression", "", "Such as 2 * 3")))}, ["expression"])  # fmt: skip


def search_tool(rng: Random | None = None) -> Tool:
    """search(query)."""
    pick = rng.choice if rng else lambda options: options[0]
    return _tool("search", pick(("Search the web", "Search for information.", "Look up something", "Web search")),
                 {"query": _text(pick(("What to search for", "", "The query")))}, ["query"])  # fmt: skip


def other_tools(rng: Random) -> list[Tool]:
    """Tools that are declared for variety."""
    return [
        _tool("get_time", "Get the current time in a city", {"city": _text("")}, ["city"]),
        _tool("set_timer", "Start a timer", {"minutes": {"type": "integer"}}, ["minutes"]),
        _tool("send_message", "Send a message to a person", {"to": _text(""), "text": _text("")}, ["to", "text"]),
        _tool(f"{invented(rng)}_{rng.choice(NOUNS)}", "Does something else", {invented(rng): _text("")}, []),
    ]


EXAMPLE_TOOLS = (weather_tool(), calculator_tool(), search_tool())


@dataclass
class ToolExchange:
    """A request, the calls it needs, what the tools return, and the answer made of it."""

    user: str
    calls: list[dict[str, Any]]
    responses: list[str]
    answer: str
    think: str


WEATHER = (
    "What is the weather in {c}?", "What's the weather like in {c}?", "How is the weather in {c}?", "Weather in {c}?", "Tell me the weather in {c}.",
    "Is it warm in {c}?", "Is it raining in {c}?", "How warm is it in {c}?", "What is the temperature in {c}?", "weather {c}",
    "Do I need an umbrella in {c}?", "Check the weather in {c}, please.", "What is the weather like in {c} today?", "Get the weather for {c}.",
    "I am travelling to {c}. How is the weather there?",
    "Can you find out the weather in {c}?", "Could you check how the weather is in {c}?", "Please find out how warm it is in {c}.",
    "How is the weather over in {c}?", "I want to know the weather in {c}.", "Could you tell me the weather in {c}?",
    "Could you find out how the weather is in {c}?",
)  # fmt: skip
_UNITS = (
    ("", None), ("", None), (" in celsius", "celsius"), (" in fahrenheit", "fahrenheit"), (" Use fahrenheit.", "fahrenheit"),
    (" Use celsius.", "celsius"), (" Answer in degrees celsius.", "celsius"), (" Give it in fahrenheit.", "fahrenheit"),
)  # fmt: skip
CALCULATE = (
    "What is {e}?", "Calculate {e}.", "Compute {e}", "{e}", "How much is {e}?", "What's {e}?", "Work out {e}.", "Evaluate {e}.", "{e} = ?",
    "Use the calculator for {e}.", "Please calculate {e}.", "Tell me the result of {e}.", "I would like to know {e}.", "What is the value of {e}?", "I want to know the result of {e}.", "Give me the value of {e}.",
    "I would like to know the value of {e}.",
)  # fmt: skip
SEARCH = (
    "Search for {q}.", "Search the web for {q}.", "Look up {q}.", "Find information about {q}.", "Please search for {q}.", "search {q}",
    "Can you look up {q}?", "Find something about {q}.", "Look for {q} on the web.", "I want to find out about {q}. Search for it.",
    "Do a search for {q}.", "Could you search for {q}?", "Please look up {q}.", "Could you look for {q}?", "Do a web search for {q}.",
    "Could you do a search for {q}?",
)  # fmt: skip
_TOPICS = (
    "history of {c}", "best {n} in {c}", "{a} {n}", "how to repair a {n}", "price of a {a} {n}", "population of {c}", "museums in {c}",
    "{n} and {n2}", "news about {c}", "the {a} {n} of {c}", "hotels in {c}", "{w} {n}", "train from {c} to {c2}", "{n} recipes", "{w}",
    "{w} {w2}", "{p} {p2}", "{p} {n} {p2}", "the {p} of {w}", "{p} {w} {p2} {n2}",
)  # fmt: skip


def _pick(rng: Random, options: tuple[str, ...], split: str) -> str:
    return options[-1] if split == "heldout" else rng.choice(options[:-1])


def _call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"name": name, "arguments": arguments}


def weather(rng: Random, lists: Lists) -> ToolExchange:
    """One city, or two at once (two calls)."""
    cities = [lists.city(rng)]
    if rng.random() < 0.15:
        cities.append(lists.city(rng))
    tail, unit = rng.choice(_UNITS)
    question = _pick(rng, WEATHER, lists.split).format(c=" and ".join(cities))
    if tail.startswith(" in "):
        question = question[:-1] + tail + question[-1] if question[-1] in "?." else question + tail
    else:
        question += tail if question[-1] in "?." else "." + tail if tail else ""
    extra = {"unit": unit} if unit else {}
    calls = [_call("get_weather", city=city, **extra) for city in cities]
    responses, answers = [], []
    for city in cities:
        degrees, sky = rng.randrange(-15, 41), rng.choice(("sunny", "cloudy", "rainy", "windy", "foggy", "snowy", "clear", "stormy"))
        scale = unit or "celsius"
        degrees = degrees * 9 // 5 + 32 if scale == "fahrenheit" else degrees
        full: dict[str, Any] = {"city": city, "temperature": degrees, "unit": scale, "condition": sky}
        drop = rng.random()
        if drop < 0.3:
            full.pop("city")
        answers.append(f"It is {degrees} degrees {scale.capitalize()} and {sky} in {city}.")
        keys = list(full)
        rng.shuffle(keys)
        if drop > 0.85:
            responses.append(f"{degrees} degrees {scale}, {sky}")
        else:
            responses.append(json.dumps({key: full[key] for key in (keys if drop > 0.4 else full)}))
    return ToolExchange(question, calls, responses, " ".join(answers), f"I need the weather in {' and '.join(cities)}.")


def calculate(rng: Random, lists: Lists) -> ToolExchange:
    """An arithmetic expression."""
    kind = rng.random()
    if kind < 0.25:
        a, b = operands(rng, lists.split)
        terms: list[Any] = [a, rng.choice("+-"), b]
    else:
        numbers = [rng.randrange(rng.choice((10, 100, 1000, 10000))) for _ in range(rng.choice((2, 2, 2, 3)))]
        terms = [numbers[0]]
        for number in numbers[1:]:
            terms += [rng.choice("*/+-" if numbers[0] > 99 or len(numbers) > 2 else "*/"), number]
    expression = " ".join(map(str, terms))
    if len(terms) == 5 and rng.random() < 0.4:
        expression = f"({terms[0]} {terms[1]} {terms[2]}) {terms[3]} {terms[4]}"
    if rng.random() < 0.1:
        expression = f"{rng.randrange(100)}.{rng.randrange(10)} * {rng.randrange(100)}"
    asked = expression
    if rng.random() < 0.3 and lists.split == "train":
        asked = expression.replace("*", "times").replace("+", "plus").replace("-", "minus").replace("/", "divided by")
    result: Any = rng.randrange(100000) if rng.random() < 0.7 else round(rng.random() * 1000, 2)
    if len(terms) == 3 and terms[1] in "+-" and expression == " ".join(map(str, terms)):
        result = terms[0] + terms[2] if terms[1] == "+" else terms[0] - terms[2]
    style = rng.random()
    response = json.dumps({"result": result}) if style < 0.6 else str(result) if style < 0.8 else json.dumps({"value": result})
    return ToolExchange(_pick(rng, CALCULATE, lists.split).format(e=asked), [_call("calculator", expression=expression)], [response],
                        f"The result is {result}.", f"I calculate {expression} with the tool.")  # fmt: skip


def search(rng: Random, lists: Lists) -> ToolExchange:
    """A query and a snippet to report."""
    query = rng.choice(_TOPICS).format(
        c=lists.city(rng), c2=lists.city(rng), n=rng.choice(NOUNS), n2=rng.choice(NOUNS), a=rng.choice(ADJECTIVES), w=invented(rng),
        w2=invented(rng), p=rng.choice(world_words()), p2=rng.choice(world_words()),
    )
    snippet = rng.choice((
        f"The {rng.choice(ADJECTIVES)} {rng.choice(NOUNS)} is {rng.randrange(2, 900)} years old.",
        f"{lists.city(rng)} has {rng.randrange(2, 90)} {rng.choice(NOUNS)}s.",
        f"{lists.name(rng)} opened a {rng.choice(NOUNS)} in {lists.city(rng)}.",
        f"A good {rng.choice(NOUNS)} costs {rng.randrange(2, 900)} euros.",
    ))  # fmt: skip
    style = rng.random()
    if style < 0.4:
        response = json.dumps({"results": [{"title": query, "snippet": snippet}]})
    elif style < 0.7:
        response = json.dumps({"result": snippet})
    else:
        response = snippet
    return ToolExchange(_pick(rng, SEARCH, lists.split).format(q=query), [_call("search", query=query)], [response],
                        f"I found this: {snippet}", f"I search for {query}.")  # fmt: skip


def other(rng: Random, lists: Lists) -> ToolExchange:
    """One of the tools declared for variety."""
    kind = rng.randrange(3)
    if kind == 0:
        city, clock = lists.city(rng), f"{rng.randrange(24):02d}:{rng.randrange(60):02d}"
        user = rng.choice(("What time is it in {c}?", "Time in {c}?", "Tell me the time in {c}.")).format(c=city)
        return ToolExchange(user, [_call("get_time", city=city)], [json.dumps({"time": clock})], f"It is {clock} in {city}.",
                            f"I need the time in {city}.")  # fmt: skip
    if kind == 1:
        minutes = rng.randrange(1, 120)
        user = rng.choice(("Set a timer for {m} minutes.", "Start a timer of {m} minutes.", "Timer for {m} minutes, please.")).format(m=minutes)
        return ToolExchange(user, [_call("set_timer", minutes=minutes)], ['{"status": "ok"}'], f"The timer runs for {minutes} minutes.",
                            f"I set a timer for {minutes} minutes.")  # fmt: skip
    name = lists.name(rng)
    text = rng.choice(("I am late", "see you soon", "happy birthday", f"the {rng.choice(NOUNS)} is here", f"bring the {rng.choice(NOUNS)}"))
    user = rng.choice(("Send a message to {n}: {t}", "Tell {n} by message: {t}", "Message {n}: {t}")).format(n=name, t=text)
    return ToolExchange(user, [_call("send_message", to=name, text=text)], ['{"status": "sent"}'], f"I sent the message to {name}.",
                        f"I send a message to {name}.")  # fmt: skip


MAKERS = {"get_weather": weather, "calculator": calculate, "search": search}


_OTHER_NAMES = {
    "get_weather": ("weather", "get_current_weather", "current_weather", "weather_report"),
    "calculator": ("calculate", "calc", "evaluate", "math"),
    "search": ("lookup", "web_search", "search_web", "find"),
}
_OTHER_PARAMETERS = {
    "get_weather": ("city", ("location", "place", "town", "city_name")),
    "calculator": ("expression", ("expr", "formula", "input", "text")),
    "search": ("query", ("q", "term", "text", "topic")),
}


def rename(rng: Random, declared: list[Tool], calls: list[dict[str, Any]]) -> None:
    """Gives tools other names and parameters in place, in declarations and calls, so that schemas are read."""
    for tool in declared:
        function = tool["function"]
        name = function["name"]
        if name not in _OTHER_NAMES or rng.random() < 0.4:
            continue
        mine = [call for call in calls if call["name"] == name]
        if rng.random() < 0.6:
            function["name"] = rng.choice(_OTHER_NAMES[name])
            for call in mine:
                call["name"] = function["name"]
        if rng.random() < 0.5:
            old, options = _OTHER_PARAMETERS[name]
            new = rng.choice(options)
            parameters = function["parameters"]
            parameters["properties"] = {new if k == old else k: v for k, v in parameters["properties"].items()}
            parameters["required"] = [new if k == old else k for k in parameters["required"]]
            for call in mine:
                call["arguments"] = {new if k == old else k: v for k, v in call["arguments"].items()}
        extra = rng.random()
        if extra < 0.15:
            parameters = function["parameters"]
            parameters["additionalProperties"] = False
        elif extra < 0.3:
            function["strict"] = rng.random() < 0.5
        elif extra < 0.4:
            function.pop("description")
