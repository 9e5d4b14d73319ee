"""Held-out evaluation items, one list a skill, and how an answer is judged."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from random import Random
from typing import Any

from recipe import facts, retrieval, simple, talk, tools
from recipe.chat import Chat, Memory
from recipe.talk import Turn
from recipe.words import Lists

HELDOUT = Lists("heldout")
Maker = Callable[[Random], Chat]


def _one(turn: Turn, thinking: bool = False) -> Chat:
    chat = Chat(thinking=thinking)
    chat.add_turn(turn)
    return chat


def _memory(rng: Random) -> Chat:
    """Something told, then other turns, then asked."""
    chat, told = Chat(), {}
    for attribute in rng.sample(talk.ATTRIBUTES, rng.randrange(1, 4)):
        told[attribute.key] = talk.value(rng, attribute.key, HELDOUT)
        chat.add_turn(talk.tell(rng, attribute, told[attribute.key], "heldout"))
        if rng.random() < 0.7:
            chat.add_turn(simple.arithmetic(rng, "heldout"))
        if rng.random() < 0.5:
            chat.add_turn(talk.intent(rng, "heldout"))
    key = rng.choice(list(told))
    attribute = next(a for a in talk.ATTRIBUTES if a.key == key)
    chat.add_turn(talk.recall(rng, attribute, told[key], "heldout"))
    chat.check = ("contains_word", told[key])
    return chat


def _not_told(rng: Random) -> Chat:
    return _one(talk.recall(rng, rng.choice(talk.ATTRIBUTES), None, "heldout"))


def _fact(rng: Random) -> Chat:
    question, answer, value = facts.known(rng, "heldout")
    return _one(Turn(question, answer, "", ("contains_word", value)))


def _unknown(rng: Random) -> Chat:
    question, answer = facts.unknown(rng, HELDOUT)
    return _one(Turn(question, answer, "", ("contains", "do not know")))


def _long(kind: str) -> Maker:
    def make(rng: Random) -> Chat:
        chat = Chat()
        turns = retrieval.long_turns(rng, HELDOUT, kind, rng.randrange(2400, 3300), 1)
        for turn in turns:
            chat.add_turn(turn)
        return chat

    return make


def _copy(num_words: tuple[int, int]) -> Maker:
    return lambda rng: _one(simple.copy(rng, HELDOUT, rng.randrange(*num_words)))


def _with_tools(rng: Random) -> Chat:
    declared = [dict(tool) for tool in tools.EXAMPLE_TOOLS]
    rng.shuffle(declared)
    return Chat(tools=declared)


def _call(name: str) -> Maker:
    def make(rng: Random) -> Chat:
        chat = _with_tools(rng)
        chat.add_tool_exchange(tools.MAKERS[name](rng, HELDOUT), answered=False)
        return chat

    return make


def _use_response(rng: Random) -> Chat:
    chat = _with_tools(rng)
    chat.add_tool_exchange(rng.choice(list(tools.MAKERS.values()))(rng, HELDOUT))
    return chat


def _no_call(rng: Random) -> Chat:
    """Tools are there, but small talk and facts need none."""
    chat = _with_tools(rng)
    while True:
        turn = talk.intent(rng, "heldout") if rng.random() < 0.5 else _turn_of_fact(rng)
        if turn.user not in (talk.INTENTS["weather"][0][-1], talk.INTENTS["time"][0][-1]):
            break
    chat.add_turn(turn)
    return chat


def _turn_of_fact(rng: Random) -> Turn:
    question, answer, value = facts.known(rng, "heldout")
    return Turn(question, answer, "", ("contains_word", value))


def _several(rng: Random) -> Chat:
    """A longer chat of mixed skills that ends in a sum."""
    chat, memory = Chat(), Memory()
    for _ in range(rng.randrange(2, 6)):
        chat.add_turn(rng.choice((memory.turn(rng, HELDOUT), talk.intent(rng, "heldout"), _turn_of_fact(rng))))
    chat.add_turn(simple.arithmetic(rng, "heldout", "+"))
    return chat


# skill -> (how an item is made, items, most new tokens)
SKILLS: dict[str, tuple[Maker, int, int]] = {
    "small talk, unseen phrasings": (lambda rng: _one(talk.intent(rng, "heldout")), 200, 64),
    "memory of what the user told": (_memory, 200, 32),
    "memory: was never told": (_not_told, 50, 32),
    "facts, unseen phrasings": (_fact, 400, 32),
    "facts outside the table": (_unknown, 200, 32),
    "outside the small world": (lambda rng: _one(talk.off_world(rng, HELDOUT)), 50, 64),
    "addition, unseen pairs": (lambda rng: _one(simple.arithmetic(rng, "heldout", "+")), 400, 24),
    "addition, unseen pairs, in a chat": (_several, 200, 24),
    "addition, unseen pairs, thinking": (lambda rng: _one(simple.arithmetic(rng, "heldout", "+"), True), 200, 96),
    "subtraction, unseen pairs": (lambda rng: _one(simple.arithmetic(rng, "heldout", "-")), 200, 24),
    "JSON objects": (lambda rng: _one(simple.json_object(rng, HELDOUT)), 200, 96),
    "copy, 10 to 40 words": (_copy((10, 40)), 100, 400),
    "copy, 150 to 250 words": (_copy((150, 250)), 24, 1600),
    "needle in 2,000 to 3,700 tokens": (_long("needle"), 100, 32),
    "list entry in 2,000 to 3,700 tokens": (_long("list"), 100, 32),
    "line in 2,000 to 3,300 tokens": (_long("lines"), 60, 48),
    "people in 500 to 2,000 tokens": (_long("people"), 60, 32),
    "tool call: get_weather": (_call("get_weather"), 150, 96),
    "tool call: calculator": (_call("calculator"), 150, 96),
    "tool call: search": (_call("search"), 150, 96),
    "answer made of a tool's response": (_use_response, 150, 96),
    "no call when none is needed": (_no_call, 150, 64),
}


def items(skill: str, seed: int = 7) -> list[Chat]:
    """The items of a skill: chats whose last message is the right answer."""
    maker, count, _ = SKILLS[skill]
    return [maker(Random(f"{seed}/{skill}/{index}")) for index in range(count)]


def parse_calls(text: str) -> list[dict[str, Any]] | None:
    """The tool calls of an answer that is nothing but calls, or None."""
    bodies = re.findall(r"<tool_call>\n(.*?)\n</tool_call>", text, flags=re.DOTALL)
    if re.sub(r"<tool_call>\n.*?\n</tool_call>", "", text, flags=re.DOTALL).strip():
        return None
    try:
        return [json.loads(body) for body in bodies]
    except json.JSONDecodeError:
        return None


def right(chat: Chat, text: str) -> bool:
    """Whether `text` (the assistant's, without end marker) answers the chat's last question."""
    if chat.thinking:
        _, closed, text = text.partition("</think>")
        if not closed:
            return False
    text = text.strip()
    kind, expected = chat.check
    if kind != "tool_calls" and "<tool_call>" in text:
        return False
    if kind == "equals":
        return text == expected.strip()
    if kind == "one_of":
        return text in expected
    if kind == "contains":
        return expected.lower() in text.lower()
    if kind == "contains_word":
        return re.search(rf"(?<!\w){re.escape(expected)}(?!\w)", text, flags=re.IGNORECASE) is not None
    if kind == "number":
        numbers = re.findall(r"-?\d+", text.split("=")[-1])
        return bool(numbers) and int(numbers[0]) == expected
    if kind == "json":
        try:
            return json.loads(text) == json.loads(expected)
        except json.JSONDecodeError:
            return False
    if kind == "tool_calls":
        return parse_calls(text) == expected
    raise ValueError(f"check: {kind!r} is not known")
