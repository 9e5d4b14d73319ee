# ruff: noqa: E501, SIM905 - tables of words and phrasings, easier to read and extend as long lines
"""Skills that need one exchange: arithmetic, JSON objects, lists, counting, stories, short copies."""

from __future__ import annotations

import json
from random import Random
from typing import Any

from recipe.talk import Turn
from recipe.words import (
    ADJECTIVES,
    COLOURS,
    FOODS,
    NOUNS,
    PETS,
    PLACES,
    Lists,
    code,
    held_out,
    invented,
    sentence,
    with_article,
    world_phrases,
    world_words,
)

ADD = (
    "What is {a} + {b}?", "{a} + {b}", "{a}+{b}", "{a} + {b} =", "What is {a} plus {b}?", "Add {a} and {b}.", "Calculate {a} + {b}.",
    "How much is {a} plus {b}?", "What's {a}+{b}?", "Compute {a} plus {b}.", "Please add {a} to {b}.", "What is the sum of {a} and {b}?",
    "{a} plus {b}", "{a}+{b}=?", "Tell me {a} + {b}.", "How much do {a} and {b} make?",
)  # fmt: skip
SUB = (
    "What is {a} - {b}?", "{a} - {b}", "{a}-{b}", "{a} - {b} =", "What is {a} minus {b}?", "Calculate {a} - {b}.", "How much is {a} minus {b}?",
    "What's {a}-{b}?", "Compute {a} minus {b}.", "Subtract {b} from {a}.", "{a} minus {b}", "{a}-{b}=?", "Tell me {a} - {b}.",
    "What is left of {a} after taking away {b}?",
)  # fmt: skip


def pair_held_out(a: int, b: int) -> bool:
    """Whether the unordered pair is kept for evaluation (a fifth of all pairs of numbers below 100)."""
    return a < 100 and b < 100 and held_out("sum", f"{min(a, b)}+{max(a, b)}", 0.2)


def operands(rng: Random, split: str) -> tuple[int, int]:
    """Two numbers that `split` may add or subtract; in training now and then up to three digits."""
    while True:
        if split == "heldout":
            a, b = rng.randrange(10, 100), rng.randrange(10, 100)
        else:
            top = rng.choice((100, 100, 100, 100, 20, 1000))
            a, b = rng.randrange(top), rng.randrange(top)
        if pair_held_out(a, b) == (split == "heldout"):
            return a, b


def _think_add(a: int, b: int) -> str:
    """Column addition in words."""
    steps, carry, place = [], 0, ("ones", "tens", "hundreds")
    for index in range(max(len(str(a)), len(str(b)))):
        x, y = a // 10**index % 10, b // 10**index % 10
        total = x + y + carry
        with_carry = f" + {carry}" if carry else ""
        steps.append(f"{place[index]}: {x} + {y}{with_carry} = {total}, write {total % 10}" + (", carry 1" if total > 9 else ""))
        carry = total // 10
    return "; ".join(steps) + f". So {a} + {b} = {a + b}."


def arithmetic(rng: Random, split: str, operation: str | None = None) -> Turn:
    """Addition or subtraction."""
    a, b = operands(rng, split)
    operation = operation or ("+" if rng.random() < 0.6 else "-")
    if operation == "+":
        kind = rng.random()
        if kind < 0.1 and split == "train":
            noun = rng.choice(NOUNS)
            owner = rng.choice(("I have {a} {n}s and get {b} more.", "Tom has {a} {n}s and Mia has {b}.", "There are {a} {n}s and {b} more."))
            user = owner.format(a=a, b=b, n=noun) + rng.choice((f" How many {noun}s are there?", " How many is that?"))
            answer = f"{a} + {b} = {a + b}, so there are {a + b} {noun}s."
        else:
            user, answer = rng.choice(ADD).format(a=a, b=b), f"{a} + {b} = {a + b}."
        return Turn(user, answer, _think_add(a, b), ("number", a + b), weight=20)
    user = rng.choice(SUB).format(a=a, b=b)
    think = f"{b} is larger than {a}, so it is negative. " if b > a else ""
    think += f"{max(a, b)} - {min(a, b)} = {abs(a - b)}, so {a} - {b} = {a - b}."
    return Turn(user, f"{a} - {b} = {a - b}.", think, ("number", a - b), weight=20)


def other_arithmetic(rng: Random) -> Turn:
    """The small multiplication table, and what is beyond the model, said plainly."""
    kind = rng.random()
    if kind < 0.6:
        a, b = rng.randrange(1, 13), rng.randrange(1, 13)
        user = rng.choice(("What is {a} times {b}?", "{a} * {b}", "What is {a} * {b}?", "{a} x {b}", "Multiply {a} by {b}.", "{a} times {b}",
                           "How much is {a} times {b}?", "Calculate {a} * {b}.", "{a}*{b}"))  # fmt: skip
        return Turn(user.format(a=a, b=b), f"{a} * {b} = {a * b}.", "This is in the multiplication table.", ("number", a * b), weight=20)
    if kind < 0.75:
        a, b = rng.randrange(13, 5000), rng.randrange(2, 5000)
        user = rng.choice(("What is {a} times {b}?", "{a} * {b}", "Calculate {a} * {b}.", "Multiply {a} by {b}."))
        answer = "I cannot multiply numbers that large."
    elif kind < 0.9:
        a, b = rng.randrange(1, 500), rng.randrange(1, 100)
        user = rng.choice(("What is {a} divided by {b}?", "{a} / {b}", "Divide {a} by {b}.", "Calculate {a} / {b}."))
        answer = "I cannot divide."
    else:
        a, b = rng.randrange(1000, 10**6), rng.randrange(10**6)
        user = rng.choice(("What is {a} + {b}?", "{a} + {b}", "{a} - {b}", "What is {a} plus {b}?", "What is {a} - {b}?"))
        answer = "I only add and subtract numbers below 1000."
    if rng.random() < 0.2:
        numbers = [rng.randrange(1, rng.choice((10, 100, 1000))) for _ in range(rng.choice((3, 3, 4)))]
        text = str(numbers[0]) + "".join(f" {rng.choice('+-*')} {n}" for n in numbers[1:])
        user = rng.choice(("What is {e}?", "{e}", "Calculate {e}.", "How much is {e}?")).format(e=text)
        answer, a, b = "I only calculate with two numbers at a time.", 0, 0
    return Turn(user.format(a=a, b=b), answer, "This is beyond what I can calculate.", ("equals", answer))


def _field(rng: Random, key: str, lists: Lists) -> tuple[Any, str]:
    """(value, how a user would write it)."""
    if key in ("name", "author", "owner"):
        value: Any = lists.name(rng)
    elif key == "city":
        value = lists.city(rng)
    elif key in ("population", "size", "height", "area", "age", "price", "quantity", "year", "score", "floor", "weight", "count", "id"):
        value = rng.randrange(1, 100) if key in ("age", "floor") else rng.randrange(1, rng.choice((10, 100, 2030, 10**5, 10**7)))
    elif key in ("active", "available", "done"):
        value = rng.random() < 0.5
        return value, rng.choice(("yes", "true")) if value else rng.choice(("no", "false"))
    else:
        options = {"colour": COLOURS, "color": COLOURS, "food": FOODS, "pet": PETS}.get(key, NOUNS)
        value = rng.choice((invented(rng), invented(rng), rng.choice(world_words()))) if rng.random() < 0.3 else rng.choice(options)
    return value, str(value)


_KEYS = (
    "name age city colour color food pet price quantity year score floor weight count id active available done "
    "title item product author owner kind tool material"
).split()
_MORE_KEYS = "population size height area country animal language capital job hobby".split()
_JSON = (
    "Give me a JSON with {keys} for {values}.", "Give me a JSON object with {keys} for {values}.", "Write a JSON with {keys}: {values}.",
    "JSON with {keys} for {values}", "Make a JSON object with the fields {keys} from: {values}.", "Return JSON with {keys} for {values}.",
    "Create a JSON with {keys} for {values}.", "Please write a short JSON object with {keys}. Values: {values}.",
    "I need a JSON with {keys} for {values}.", "Put this into JSON with the keys {keys}: {values}.",
    "Turn this into a JSON object with {keys}: {values}.",
)  # fmt: skip


def _and(items: list[str]) -> str:
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]


def json_object(rng: Random, lists: Lists) -> Turn:
    """A short JSON object on request, from bare values or from key = value pairs."""
    while True:
        keys = rng.sample(_KEYS, rng.choice((1, 2, 2, 2, 3, 3, 4)))
        if lists.split == "train":
            keys = [key if rng.random() < 0.75 else rng.choice((*_MORE_KEYS, rng.choice(world_words()).lower(), invented(rng))) for key in keys]
            if len(set(keys)) < len(keys):
                continue
        if lists.allows("json", " ".join(sorted(keys[:2])), 0.15):
            break
    fields = {key: _field(rng, key, lists) for key in keys}
    asked = [f"{rng.choice(('a', 'the', 'its'))} {key}" for key in keys] if rng.random() < 0.08 else keys
    answer = json.dumps({key: value for key, (value, _) in fields.items()})
    style = rng.random()
    texts = [text for _, text in fields.values()]
    if style < 0.7:
        template = _JSON[-1] if lists.split == "heldout" else rng.choice(_JSON[:-1])
        joined = rng.choice((", ".join(texts), _and(texts)))
        user = template.format(keys=_and(asked) if rng.random() < 0.7 else ", ".join(asked), values=joined)
    elif style < 0.85:
        pairs = ", ".join(f"{key} = {text}" for key, (_, text) in fields.items())
        user = rng.choice(("Write this as JSON: {p}", "As JSON: {p}", "Convert to JSON: {p}")).format(p=pairs)
    else:
        lines = "\n".join(f"{key}: {text}" for key, (_, text) in fields.items())
        user = rng.choice(("Convert these lines to JSON:\n{p}", "Make a JSON object from:\n{p}")).format(p=lines)
    return Turn(user, answer, f"The keys are {_and(keys)}.", ("json", answer), weight=15)


def json_list(rng: Random, lists: Lists) -> Turn:
    """A JSON array of the given words."""
    words = [rng.choice(NOUNS) for _ in range(rng.randrange(2, 7))]
    user = rng.choice(("Give me a JSON list of {w}.", "Write {w} as a JSON array.", "Make a JSON list with {w}.")).format(w=_and(words))
    answer = json.dumps(words)
    return Turn(user, answer, "I write the words as an array.", ("json", answer), weight=15)


def counting(rng: Random) -> Turn:
    """Counting up or down, or naming some things."""
    kind = rng.random()
    if kind < 0.5:
        start = rng.randrange(0, 60)
        end = start + rng.randrange(3, 25)
        user = rng.choice(("Count from {a} to {b}.", "count from {a} to {b}", "Please count from {a} up to {b}.")).format(a=start, b=end)
        if rng.random() < 0.3:
            start, end = 1, rng.randrange(3, 31)
            spelled = {3: "three", 4: "four", 5: "five", 6: "six", 7: "seven", 8: "eight", 9: "nine", 10: "ten", 12: "twelve", 20: "twenty"}
            user = rng.choice(("Count to {b}.", "count to {b}", "Please count to {b}.", "Count up to {b}."))
            user = user.format(b=spelled.get(end, end) if rng.random() < 0.6 else end)
        answer = ", ".join(map(str, range(start, end + 1)))
    elif kind < 0.75:
        end = rng.randrange(0, 30)
        start = end + rng.randrange(3, 15)
        user = rng.choice(("Count down from {a} to {b}.", "Count backwards from {a} to {b}.")).format(a=start, b=end)
        answer = ", ".join(map(str, range(start, end - 1, -1)))
    else:
        group, items = rng.choice((
            ("colours", ["red", "blue", "green", "yellow", "purple", "white", "black"]),
            ("animals", ["dog", "cat", "horse", "lion", "owl", "frog", "whale"]),
            ("fruits", ["apple", "banana", "cherry", "grape", "lemon", "mango", "pear"]),
            ("countries", ["France", "Japan", "Brazil", "Kenya", "Canada", "India", "Norway"]),
            ("planets", ["Mercury", "Venus", "Earth", "Mars", "Jupiter", "Saturn", "Uranus"]),
        ))  # fmt: skip
        number = rng.randrange(2, 8)
        word = ("two", "three", "four", "five", "six", "seven")[number - 2]
        asked = rng.choice((word, str(number)))
        group = rng.choice(("colours", "colors")) if group == "colours" else group
        user = rng.choice(("Name {n} {g}.", "List {n} {g}.", "Tell me {n} {g}.", "Give me {n} {g}.")).format(n=asked, g=group)
        answer = "\n".join(f"- {item}" for item in items[:number])
    return Turn(user, answer, "I go step by step.", ("equals", answer))


def story(rng: Random, lists: Lists) -> Turn:
    """A short story about what the user asks for; the rest is drawn."""
    creature = rng.choice((rng.choice(PETS), rng.choice(NOUNS), rng.choice(("fox", "owl", "bear", "dragon", "robot", "king", "witch"))))
    hero = rng.choice((f"a {rng.choice(ADJECTIVES)} {creature}", with_article(creature), lists.name(rng)))
    thing, place = lists.thing(rng), rng.choice(PLACES)
    friend, colour = rng.choice(lists.names), rng.choice(COLOURS)
    subject = "the " + hero.split(" ")[-1] if hero.startswith(("a ", "an ")) else hero
    title = _cap(subject)
    user = rng.choice((
        "Tell me a story about {h}.", "Tell me a short story about {h}.", "Write a story about {h}.", "A story about {h}, please.",
        "Can you tell a story about {h}?", "I want a story about {h}.",
    )).format(h=hero)  # fmt: skip
    answer = " ".join((
        f"Once upon a time there was {hero}." if hero.startswith(("a ", "an ")) else f"Once upon a time there was somebody called {hero}.",
        rng.choice((f"One day {subject} found {with_article(thing)} {place}.", f"One morning {subject} saw {with_article(thing)} {place}.")),
        rng.choice((f"It was {colour} and very beautiful.", f"It shone in {with_article(colour)} light.", "Nobody knew where it came from.")),
        rng.choice((f"{title} took it home and showed it to {friend}.", f"{title} asked {friend} what it was.")),
        rng.choice((f'"What a wonderful {thing.split(" ")[-1]}!" said {friend}.', f'"Keep it safe," said {friend}.')),
        rng.choice((f"From that day on, {subject} and {friend} were the best of friends.", f"And so {subject} and {friend} went on a long journey.")),
        rng.choice(("They lived happily ever after.", "And if nothing has changed, they are still there today.", "The end.")),
    ))  # fmt: skip
    return Turn(user, answer, "I invent a short story.", ("contains", subject.split(" ")[-1]), weight=4)


def _cap(text: str) -> str:
    return text[0].upper() + text[1:]


def random_text(rng: Random, lists: Lists, num_words: int) -> str:
    """Text to copy: sentences, phrases of the world, words, invented words, codes, signs; often with repetitions."""
    kind = rng.random()
    if kind < 0.3:
        parts: list[str] = []
        while sum(len(p.split()) for p in parts) < num_words:
            parts.append(sentence(rng, lists) if rng.random() < 0.6 else rng.choice(world_phrases()))
        return rng.choice((" ", " ", "\n")).join(parts)
    if kind < 0.36:
        return rng.choice((" ", ", ")).join(code(rng) for _ in range(num_words))
    if kind < 0.46:
        return " ".join("".join(rng.choice(_SIGNS) for _ in range(rng.randrange(1, 7))) for _ in range(num_words))

    def word() -> str:
        which = rng.randrange(7)
        if which == 0:
            return rng.choice((rng.choice(NOUNS), rng.choice(ADJECTIVES)))
        if which == 1:
            return rng.choice((code(rng), str(rng.randrange(1000)), "-"))
        if which == 2:
            return lists.name(rng)
        if which < 5:
            return rng.choice(world_words()) if rng.random() < 0.92 else "".join(rng.choice(_FOREIGN) for _ in range(rng.randrange(1, 6)))
        return invented(rng) if rng.random() < 0.7 else invented(rng).capitalize()

    if kind < 0.75:
        return " ".join(word() for _ in range(num_words))
    pool = [word() for _ in range(max(3, num_words // rng.choice((2, 3, 5))))]
    return " ".join(rng.choice(pool) for _ in range(num_words))


_FOREIGN = "äöüÄÖÜßéèêàâçñóíúåøæłżšč€£°–“”…’🎉😀👍日本語中文привет"
_SIGNS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,;:!?-_+*/=()[]{}'\"#%&@$"
COPY = (
    "Repeat exactly: {t}", "Repeat this text: {t}", "Say: {t}", "Copy this: {t}", "Repeat after me: {t}", "Write this again: {t}",
    "Repeat the following text exactly.\n\n{t}", "Copy the text below.\n\n{t}", "Please copy exactly: {t}",
)  # fmt: skip


def copy(rng: Random, lists: Lists, num_words: int) -> Turn:
    """Repeat a text word for word."""
    text = random_text(rng, lists, num_words)
    return Turn(rng.choice(COPY).format(t=text), text, "I repeat the text.", ("equals", text))
