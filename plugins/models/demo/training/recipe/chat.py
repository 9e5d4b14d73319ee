"""Whole chats: the mixture that is trained on, and how a chat becomes text.

`render` writes the same text as the packaged Jinja template (a test compares them); it also says which pieces are
the assistant's, and with which weight each piece counts in the loss.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from random import Random
from typing import Any

from recipe import facts, retrieval, simple, talk, tools
from recipe.talk import Turn
from recipe.words import NOUNS, Lists, sentence

Message = dict[str, Any]
Segment = tuple[str, int]

USER_WEIGHT = 1  # of the text that others wrote; the assistant's ordinary text has 10

TOOLS_HEAD = "# Tools\nYou can call these tools:\n<tools>\n"
TOOLS_TAIL = "\n</tools>\nA call is a JSON object with name and arguments inside tool_call tags."

_SYSTEMS = (
    "You are a helpful assistant.", "You are core demo.", "You are a helpful, friendly assistant.", "Answer briefly.",
    "You are core demo, a small language model.", "You are a helpful AI assistant. Answer in English.", "Be polite.",
    "You are a friendly chatbot.", "You are an assistant that answers questions.", "Be concise and correct.",
)  # fmt: skip


@dataclass
class Chat:
    """messages: as for a chat template, the last one is the assistant's. reasoning: of the last one, used if
    `thinking`. weights: one a message. check: how evaluation judges the last message."""

    messages: list[Message] = field(default_factory=list)
    weights: list[int] = field(default_factory=list)
    tools: list[tools.Tool] = field(default_factory=list)
    thinking: bool = False
    reasoning: str = ""
    check: tuple[str, Any] = ("any", "")

    def add(self, role: str, content: str, weight: int = USER_WEIGHT, **more: Any) -> None:
        """Append a message."""
        self.messages.append({"role": role, "content": content, **more})
        self.weights.append(weight)

    def add_turn(self, turn: Turn) -> None:
        """Append a question and its answer."""
        long_text = len(turn.user) > 600
        self.add("user", turn.user, 0 if long_text else USER_WEIGHT)
        self.add("assistant", turn.answer, turn.weight)
        self.reasoning, self.check = turn.think, turn.check

    def add_tool_exchange(self, exchange: tools.ToolExchange, *, answered: bool = True) -> None:
        """Append a request and its calls; with `answered` also the tools' responses and the answer made of them."""
        self.add("user", exchange.user)
        calls = [{"type": "function", "function": call} for call in exchange.calls]
        self.add("assistant", "", 15, tool_calls=calls)
        self.reasoning, self.check = exchange.think, ("tool_calls", exchange.calls)
        if answered:
            for response in exchange.responses:
                self.add("tool", response)
            self.add("assistant", exchange.answer, 15)
            self.reasoning, self.check = "The tool has answered.", ("equals", exchange.answer)


def call_text(call: dict[str, Any]) -> str:
    """One tool call as the assistant writes it."""
    body = json.dumps({"name": call["name"], "arguments": call["arguments"]}, ensure_ascii=False)
    return f"<tool_call>\n{body}\n</tool_call>"


def answer_text(message: Message) -> str:
    """An assistant message as text, without reasoning."""
    pieces = [message["content"]] if message["content"] else []
    pieces += [call_text(call["function"]) for call in message.get("tool_calls", ())]
    return "\n".join(pieces)


def render(chat: Chat) -> list[Segment]:
    """Text pieces with loss weights. Pieces are cut where tokens never merge: at markers and behind line ends."""
    out: list[Segment] = []
    messages, weights = list(chat.messages), list(chat.weights)
    if chat.tools:
        head = ""
        if messages and messages[0]["role"] == "system":
            head = messages.pop(0)["content"] + "\n\n"
            weights.pop(0)
        lines = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in chat.tools)
        out.append((f"<|im_start|>system\n{head}{TOOLS_HEAD}{lines}{TOOLS_TAIL}<|im_end|>\n", 0))
    for index, (message, weight) in enumerate(zip(messages, weights, strict=True)):
        role = message["role"]
        if role == "tool":
            if messages[index - 1]["role"] != "tool":
                out.append(("<|im_start|>user", 0))
            out.append((f"\n<tool_response>\n{message['content']}\n</tool_response>", 0))
            if index + 1 == len(messages) or messages[index + 1]["role"] != "tool":
                out.append(("<|im_end|>\n", 0))
            continue
        out.append((f"<|im_start|>{role}\n", 0))
        if role != "assistant":
            out.append((f"{message['content']}", weight))
            out.append(("<|im_end|>\n", 0))
            continue
        text = answer_text(message) + "<|im_end|>"
        if chat.thinking and index == len(messages) - 1:
            out.append(("<think>\n", 0))
            text = f"{chat.reasoning}\n</think>\n\n{text}"
        out += [(text, weight), ("\n", 0)]
    return out


_PREFIXES = (
    "Please: ", "Hey, ", "OK. ", "Question: ", "Now: ", "And ", "So, ", "Next question: ", "Well, ", "Hi! ", "Thanks. ",
)  # fmt: skip


def _noise(rng: Random, turn: Turn, split: str) -> Turn:
    """Careless typing, polite words; never in evaluation."""
    if split != "train" or rng.random() < 0.55:
        return turn
    text = turn.user
    kind = rng.random()
    if kind < 0.3:
        text = text.lower()
    elif kind < 0.55:
        text = text.rstrip("?.!")
    elif kind < 0.65:
        text = text.lower().rstrip("?.!")
    elif kind < 0.85:
        prefix = rng.choice(_PREFIXES)
        text = prefix + (text if prefix[-2] in ":.!" else text[0].lower() + text[1:])
    elif kind < 0.93:
        text = text.rstrip("?.!") + rng.choice((" please", " please?", ", please.", "??", " ?", "...", "!"))
    elif len(text) > 12:
        at = rng.randrange(2, len(text) - 2)
        if text[at].isalpha():
            text = text[:at] + text[at + 1 :]
    return Turn(text, turn.answer, turn.think, turn.check, turn.weight)


class Memory:
    """What the user has told in this chat."""

    def __init__(self) -> None:
        self.told: dict[str, str] = {}

    def turn(self, rng: Random, lists: Lists) -> Turn:
        """Tell something new (or anew), or ask for it."""
        if self.told and rng.random() < 0.55:
            key = rng.choice(list(self.told))
            attribute = next(a for a in talk.ATTRIBUTES if a.key == key)
            return talk.recall(rng, attribute, self.told[key], lists.split)
        attribute = talk.ATTRIBUTES[0] if rng.random() < 0.35 else rng.choice(talk.ATTRIBUTES)
        if attribute.key not in self.told and rng.random() < 0.12:
            return talk.recall(rng, attribute, None, lists.split)
        told = talk.value(rng, attribute.key, lists)
        if lists.split == "train" and rng.random() < 0.12:
            told = told.lower()
        self.told[attribute.key] = told
        return talk.tell(rng, attribute, told, lists.split)


def _fact(rng: Random, lists: Lists) -> Turn:
    if rng.random() < 0.07 and lists.split == "train":
        question, answer = facts.yes_or_no(rng)
        return Turn(question, answer, "I look into my table of facts.", ("equals", answer), weight=12)
    question, answer, value = facts.known(rng, lists.split)
    return Turn(question, answer, "I look into my table of facts.", ("contains_word", value), weight=12)


def _unknown(rng: Random, lists: Lists) -> Turn:
    question, answer = facts.unknown(rng, lists)
    return Turn(question, answer, "This is not in my table of facts.", ("equals", answer))


def _no_tool(rng: Random, lists: Lists) -> Turn:
    """What would need a tool, asked when there is none."""
    city = lists.city(rng)
    kind = rng.randrange(4)
    if kind < 2:
        question, answer = rng.choice(tools.WEATHER[:-1]).format(c=city), talk.INTENTS["weather"][1][0]
    elif kind == 2:
        question, answer = rng.choice(tools.SEARCH[:-1]).format(q=f"{rng.choice(NOUNS)}s in {city}"), _NO_SEARCH
    else:
        question = rng.choice(("What time is it in {c}?", "Time in {c}?")).format(c=city)
        answer = talk.INTENTS["time"][1][0]
    return Turn(question, answer, "I would need a tool for this.", ("equals", answer))


def any_turn(rng: Random, lists: Lists, memory: Memory) -> Turn:
    """One exchange of a random skill."""
    kind = rng.random()
    if kind < 0.16:
        return _noise(rng, talk.intent(rng, lists.split), lists.split)
    if kind < 0.22:
        return _noise(rng, talk.off_world(rng, lists), lists.split)
    if kind < 0.235:
        return talk.statement(rng, lists)
    if kind < 0.255:
        return _noise(rng, _no_tool(rng, lists), lists.split)
    if kind < 0.40:
        return memory.turn(rng, lists)
    if kind < 0.58:
        return _noise(rng, _fact(rng, lists), lists.split)
    if kind < 0.65:
        return _unknown(rng, lists)
    if kind < 0.77:
        return _noise(rng, simple.arithmetic(rng, lists.split), lists.split)
    if kind < 0.80:
        return simple.other_arithmetic(rng)
    if kind < 0.88:
        return simple.json_object(rng, lists)
    if kind < 0.89:
        return simple.json_list(rng, lists)
    if kind < 0.92:
        return _noise(rng, simple.counting(rng), lists.split)
    if kind < 0.94:
        return simple.story(rng, lists)
    return simple.copy(rng, lists, rng.choice((1, 2, 3, 5, 8, 12, 20)))


_NO_SEARCH = "I cannot search, because I have no tool for it here."


def _system(rng: Random, lists: Lists, chat: Chat, memory: Memory) -> None:
    kind = rng.random()
    if kind < 0.6:
        return
    if kind < 0.9:
        chat.add("system", rng.choice(_SYSTEMS))
    elif kind < 0.95:
        name = lists.name(rng)
        memory.told["name"] = name
        text = f"{rng.choice(_SYSTEMS)} {rng.choice(('The name of the user is', 'The user is called'))} {name}."
        chat.add("system", text)
    else:
        chat.add("system", f"{rng.choice(_SYSTEMS)} {sentence(rng, lists)}")


def _remember(rng: Random, lists: Lists, chat: Chat, memory: Memory) -> None:
    """Several things told, with other turns between, then asked for in any order."""
    if rng.random() < 0.3:
        first, second = (a.key for a in rng.sample(talk.ATTRIBUTES, 2))
        values = (talk.value(rng, first, lists), talk.value(rng, second, lists))
        memory.told |= {first: values[0], second: values[1]}
        chat.add_turn(talk.tell_two(rng, first, second, values))
    for attribute in rng.sample(talk.ATTRIBUTES, rng.randrange(0 if memory.told else 1, 6)):
        told = talk.value(rng, attribute.key, lists)
        memory.told[attribute.key] = told
        chat.add_turn(talk.tell(rng, attribute, told, lists.split))
        for _ in range(rng.choice((0, 0, 1, 2))):
            other = any_turn(rng, lists, Memory())
            if other.think.startswith(("The user tells me:", "Earlier", "The ")):
                continue
            chat.add_turn(other)
    for _ in range(rng.randrange(1, 5)):
        key = rng.choice(list(memory.told))
        attribute = next(a for a in talk.ATTRIBUTES if a.key == key)
        chat.add_turn(talk.recall(rng, attribute, memory.told[key], lists.split))


def mixed_chat(rng: Random, lists: Lists) -> Chat:
    """Several short exchanges."""
    chat, memory = Chat(), Memory()
    _system(rng, lists, chat, memory)
    if rng.random() < 0.16:
        _remember(rng, lists, chat, memory)
    for _ in range(rng.choice((1, 1, 2, 3, 4, 5, 6, 8))):
        if rng.random() < 0.06:
            for question, answer, value in facts.series(rng):
                check = ("contains_word", value)
                chat.add_turn(Turn(question, answer, "I look into my table of facts.", check, weight=12))
        chat.add_turn(any_turn(rng, lists, memory))
    if rng.random() < 0.18:
        chat.thinking = True
        if rng.random() < 0.5:
            chat.add_turn(_noise(rng, simple.arithmetic(rng, lists.split), lists.split))
    return chat


def tool_chat(rng: Random, lists: Lists) -> Chat:
    """Exchanges with tools declared; a part of them needs no tool."""
    chat, memory = Chat(), Memory()
    _system(rng, lists, chat, memory)
    names = [name for name in tools.MAKERS if rng.random() < 0.75] or ["get_weather"]
    make = {"get_weather": tools.weather_tool, "calculator": tools.calculator_tool, "search": tools.search_tool}
    chat.tools = [make[name](rng) for name in names]
    extra = rng.random() < 0.25
    if extra:
        chat.tools += rng.sample(tools.other_tools(rng), rng.randrange(1, 4))
    rng.shuffle(chat.tools)
    declared = {tool["function"]["name"] for tool in chat.tools}
    count = rng.choice((1, 1, 2, 3, 4))
    for index in range(count):
        if rng.random() < 0.3:
            turn = any_turn(rng, lists, memory)
            arithmetic = turn.check[0] == "number" or turn.think.startswith("This is beyond")
            if not (arithmetic and "calculator" in declared) and turn.answer not in _NO_TOOL_ANSWERS:
                chat.add_turn(turn)
                continue
        maker = tools.MAKERS[rng.choice(names)]
        exchange = maker(rng, lists)
        if extra and rng.random() < 0.3:
            candidate = tools.other(rng, lists)
            exchange = candidate if candidate.calls[0]["name"] in declared else exchange
        chat.add_tool_exchange(exchange, answered=index + 1 < count or rng.random() < 0.6)
    chat.thinking = rng.random() < 0.2
    if lists.split == "train" and rng.random() < 0.35:
        calls = [call["function"] for message in chat.messages for call in message.get("tool_calls", ())]
        tools.rename(rng, chat.tools, calls)
    return chat


_NO_TOOL_ANSWERS = {talk.INTENTS["weather"][1][0], talk.INTENTS["time"][1][0], _NO_SEARCH}


def long_chat(rng: Random, lists: Lists, max_tokens: int) -> Chat:
    """A long text with several questions, now and then with small exchanges before and after."""
    chat, memory = Chat(), Memory()
    _system(rng, lists, chat, memory)
    kind = rng.choices(retrieval.LONG_KINDS, weights=(5, 4, 3, 3.5, 1.5, 4))[0]
    low = 20 if kind != "copy" else 30
    top = max_tokens - 600 if kind != "copy" else (max_tokens - 500) // 2
    top = max(top, 2 * low)
    num_tokens = int(low * (top / low) ** rng.random()) if rng.random() < 0.5 else rng.randrange(low, top)
    if rng.random() < 0.25:
        chat.add_turn(any_turn(rng, lists, memory))
    for turn in retrieval.long_turns(rng, lists, kind, num_tokens, rng.choice((1, 3, 5, 8, 12))):
        chat.add_turn(turn)
    for _ in range(rng.choice((0, 0, 0, 1, 2))):
        chat.add_turn(any_turn(rng, lists, memory))
    chat.thinking = rng.random() < 0.08
    return chat


SHARES = {"mixed": 0.72, "tool": 0.15, "long": 0.13}  # of chats, not of tokens


def training_chat(seed: int, index: int, max_tokens: int) -> Chat:
    """Chat number `index` of the training stream of `seed`; the same on every machine."""
    rng = Random(f"{seed}/{index}")
    lists = _TRAIN
    kind = rng.choices(tuple(SHARES), weights=tuple(SHARES.values()))[0]
    if kind == "mixed":
        return mixed_chat(rng, lists)
    if kind == "tool":
        return tool_chat(rng, lists)
    return long_chat(rng, lists, max_tokens)


_TRAIN = Lists("train")
