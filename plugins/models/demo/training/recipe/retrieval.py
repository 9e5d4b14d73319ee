# ruff: noqa: E501 - tables of words and phrasings, easier to read and extend as long lines
"""Long-context skills: needles in filler, key-value lists, numbered lines, people, long copies."""

from __future__ import annotations

from random import Random

from recipe.simple import copy
from recipe.talk import Turn
from recipe.words import (
    ADJECTIVES,
    COLOURS,
    HOBBIES,
    JOBS,
    NOUNS,
    PETS,
    Lists,
    code,
    invented,
    politely,
    sentence,
    with_article,
)

_NEEDLES = (
    "The code of the {k} is {v}.", "The code for the {k} is {v}.", "The {k} has the code {v}.", "Remember: the code of the {k} is {v}.",
    "Note that the {k} has the code {v}.", "Its code is known: the {k} has {v}.",
)  # fmt: skip
_ASK = (
    "What is the code of the {k}?", "What is the code for the {k}?", "What's the code of the {k}?", "Which code does the {k} have?",
    "Tell me the code of the {k}.", "Find the code of the {k}.", "code of the {k}?", "According to the text, what is the code of the {k}?",
    "Give me the code of the {k}.", "Do you remember the code of the {k}?", "Which code belongs to the {k}?",
    "Please find the code of the {k}.", "Look up the code of the {k}.", "The {k} has which code?", "Please look up the code for the {k}.",
    "What code belongs to the {k}?", "Find out which code the {k} has.", "Say which code belongs to the {k}.", "I need the code of the {k}.",
    "Please look up which code belongs to the {k}.",
)  # fmt: skip
_ANSWER_WEIGHT = 30


def _ask_code(rng: Random, key: str, split: str) -> str:
    template = _ASK[-1] if split == "heldout" else rng.choice(_ASK[:-1])
    question = _upper(template.replace("the {k}", "{k}").replace("The {k}", "{k}").format(k=key))
    return politely(rng, question, split)


def _answer_turn(question: str, answer: str, value: str) -> Turn:
    return Turn(question, answer, "I look it up in the text.", ("contains_word", value), weight=_ANSWER_WEIGHT)


def _with_document(rng: Random, document: str, turns: list[Turn]) -> list[Turn]:
    """Puts the document into the first question, before or behind it."""
    first = turns[0]
    intro = rng.choice(("Here is a text:\n\n", "Read this text.\n\n", "", "Text:\n", "Read the following and answer.\n\n"))
    if rng.random() < 0.8:
        joined = f"{intro}{document}\n\n{rng.choice(('', '', 'Question: '))}{first.user}"
    else:
        joined = f"{first.user}\n\n{document}"
    return [Turn(joined, first.answer, first.think, first.check, first.weight), *turns[1:]]


def _key(rng: Random, lists: Lists) -> str:
    """What a code belongs to: mostly "the red lamp", also names, letters and made-up words."""
    kind = rng.random()
    if kind < 0.7 or lists.split == "heldout":
        return f"the {lists.thing(rng)}"
    if kind < 0.78:
        return f"the {rng.choice(NOUNS)}"
    if kind < 0.86:
        return lists.name(rng)
    if kind < 0.94:
        return invented(rng).capitalize() if rng.random() < 0.5 else invented(rng)
    return rng.choice("ABCDEFGHKLMNPQRSTUVWXYZ") + rng.choice(("", "", str(rng.randrange(1, 100))))


def needles(rng: Random, lists: Lists, num_words: int, num_questions: int) -> list[Turn]:
    """Codes of things, hidden among filler sentences."""
    count = max(1, rng.choice((1, 2, 3, 4, 6, 8, 12, max(1, num_words // 60))))
    keys = list(dict.fromkeys(_key(rng, lists) for _ in range(count)))
    what = "code" if lists.split == "heldout" or rng.random() < 0.75 else rng.choice(("password", "number", "value", "PIN", "colour"))
    make = (lambda: rng.choice(COLOURS)) if what == "colour" else (lambda: code(rng))
    values = {key: make() for key in keys}
    parts: list[str] = []
    total = 0
    while total < num_words:
        text = sentence(rng, lists)
        if rng.random() < 0.02:  # a thing that is mentioned without a code
            text = _upper(f"{rng.choice(keys)} was {rng.choice(('lost', 'sold', 'found', 'repaired'))}.")
        parts.append(text)
        total += len(text.split())
    for key in keys:
        text = rng.choice(_NEEDLES).replace("the {k}", "{k}").replace("The {k}", "{k}").replace("code", what)
        parts.insert(rng.randrange(len(parts) + 1), _upper(text.format(k=key, v=values[key])))
    document = rng.choice((" ", " ", "\n")).join(parts)
    turns = []
    for _ in range(num_questions):
        key, absent = rng.choice(keys), _key(rng, lists)
        if rng.random() < 0.06 and absent not in values:
            answer, value = f"The text gives no {what} for {absent}.", "no"
            question = _ask_code(rng, absent, lists.split)
        else:
            answer, value = f"The {what} of {key} is {values[key]}.", values[key]
            question = _ask_code(rng, key, lists.split)
        question = question.replace("code", what) if what != "code" else question
        turns.append(_answer_turn(question, answer, value))
    return _with_document(rng, document, turns)


def _upper(text: str) -> str:
    return text[0].upper() + text[1:]


def key_values(rng: Random, lists: Lists, num_entries: int, num_questions: int) -> list[Turn]:
    """A list of keys and values, asked by key and sometimes by value."""
    style = rng.randrange(4)
    table: dict[str, str] = {}
    while len(table) < num_entries:
        if style == 0:
            key = lists.thing(rng)
        elif style == 1:
            key = rng.choice((rng.choice(NOUNS), invented(rng)))
        elif style == 2:
            key = f"{rng.choice(NOUNS)}{rng.randrange(1, 100)}"
        else:
            key = invented(rng) + rng.choice(("", f"_{rng.choice(NOUNS)}"))
        table[key] = code(rng) if rng.random() < 0.8 else rng.choice((rng.choice(COLOURS), invented(rng)))
    separator = rng.choice((": ", " = ", " -> ", ", "))
    lines = [f"{key}{separator}{value}" for key, value in table.items()]
    document = ("; " if rng.random() < 0.15 else "\n").join(lines)
    if rng.random() < 0.15:
        document = "{" + ", ".join(f'"{key}": "{value}"' for key, value in table.items()) + "}"
    unique = {value: key for key, value in table.items()}
    turns = []
    for _ in range(num_questions):
        key = rng.choice(list(table))
        value = table[key]
        if rng.random() < 0.12 and unique[value] == key and lists.split == "train":
            question = rng.choice(("Which key has the value {v}?", "What has the value {v}?", "Whose value is {v}?")).format(v=value)
            turns.append(_answer_turn(question, f"{key} has the value {value}.", key))
            continue
        templates = (
            "What is the value of {k}?", "Which value does {k} have?", "Value of {k}?", "What does {k} have?", "Look up {k}.",
            "Tell me the value of {k}.", "{k}?", "Give me the value of {k}.", "What's the value for {k}?", "Find {k} in the list.",
            "Please read the entry of {k}.", "Read the value of {k} from the list.", "Please look up the value of {k}.", "{k} has which value?",
            "Look in the list: what is the value of {k}?",
            "Please read the value of {k} from the list.",
        )  # fmt: skip
        question = (templates[-1] if lists.split == "heldout" else rng.choice(templates[:-1])).format(k=key)
        question = question if question.startswith(key) else politely(rng, question, lists.split)
        turns.append(_answer_turn(question, f"The value of {key} is {value}.", value))
    return _with_document(rng, document, turns)


def numbered_lines(rng: Random, lists: Lists, num_lines: int, num_questions: int) -> list[Turn]:
    """Numbered lines, to be repeated by number, or continued."""
    lines = [sentence(rng, lists) for _ in range(num_lines)]
    style = rng.choice(("Line {n}: {t}", "{n}. {t}", "[{n}] {t}"))
    document = "\n".join(style.format(n=n, t=text) for n, text in enumerate(lines, 1))
    turns = []
    for _ in range(num_questions):
        number = rng.randrange(1, num_lines + 1)
        text = lines[number - 1]
        if rng.random() < 0.75:
            question = rng.choice(("Repeat line {n}.", "What does line {n} say?", "Read line {n}.", "Copy line {n} exactly."))
            question = question.format(n=number)
        else:
            start = " ".join(text.split()[: rng.choice((4, 5))])
            question = f'Repeat the sentence that begins with "{start}".'
            text = next(t for t in lines if t.startswith(start))
        turns.append(Turn(question, text, "I look for the line.", ("equals", text), weight=20))
    return _with_document(rng, document, turns)


def people(rng: Random, lists: Lists, num_people: int, num_questions: int) -> list[Turn]:
    """Several people and what is said of each."""
    names = list(dict.fromkeys(lists.name(rng) for _ in range(num_people)))
    facts = {name: {"city": lists.city(rng), "job": with_article(rng.choice(JOBS)), "hobby": rng.choice(HOBBIES), "pet": rng.choice(PETS)} for name in names}
    tell = {"city": "{n} lives in {v}.", "job": "{n} works as {v}.", "hobby": "{n} likes {v}.", "pet": "{n} has a {v}."}
    ask = {
        "city": ("Where does {n} live?", "Which city does {n} live in?", "In which city does {n} live?", "Where is {n} at home?",
                 "Where is {n}'s home?", "What city does {n} live in?", "What is the city of {n}?", "In which city is the home of {n}?",
                 "Tell me where {n} lives.", "Tell me which city {n} lives in.", "Say where {n} lives.", "Do you know where {n} lives?",
                 "In which city is {n}'s home?"),
        "job": ("What is the job of {n}?", "What does {n} work as?", "What is {n}'s job?", "What does {n} do?", "Which job does {n} have?",
                "As what does {n} work?", "What does {n} do as a job?", "Tell me the job of {n}.", "What work does {n} do?",
                "Tell me what {n} does for work.", "Say what {n} works as.", "Do you know what {n} works as?", "Tell me which job {n} has.",
                "Tell me what {n} works as."),
        "hobby": ("What does {n} like?", "What is the hobby of {n}?", "What is {n}'s hobby?", "What hobby does {n} have?", "Which hobby has {n}?",
                  "Tell me the hobby of {n}.", "What does {n} like to do?", "Tell me what {n} likes.", "What does {n} enjoy?",
                  "Say what {n} likes.", "Tell me which hobby {n} has.", "What hobby has {n}?", "Do you know which hobby {n} has?",
                  "Which hobby does {n} have?"),
        "pet": ("Which pet does {n} have?", "What pet does {n} have?", "What is {n}'s pet?", "Which animal does {n} have?", "Tell me the pet of {n}.",
                "What is the pet of {n}?", "What kind of pet does {n} have?", "Which pet lives with {n}?", "What kind of animal does {n} have?",
                "Tell me which pet {n} has.", "Say which animal {n} has.", "Do you know what pet {n} has?", "What animal lives with {n}?",
                "What animal does {n} have?"),
    }
    said = [(name, kind) for name in names for kind in tell if rng.random() < 0.7] or [(names[0], "city")]
    rng.shuffle(said)
    parts = [tell[kind].format(n=name, v=facts[name][kind]) for name, kind in said]
    filler = rng.choice((0.0, 0.0, 1.0, 2.0))
    parts = [text for part in parts for text in (part, *(sentence(rng, lists) for _ in range(int(filler * rng.random() * 2))))]
    turns = []
    for _ in range(num_questions):
        name, kind = rng.choice(said)
        value = facts[name][kind]
        if rng.random() < 0.2 and kind == "city" and sum(facts[n]["city"] == value and (n, "city") in said for n in names) == 1:
            turns.append(_answer_turn(f"Who lives in {value}?", f"{name} lives in {value}.", name))
            continue
        question = (ask[kind][-1] if lists.split == "heldout" else rng.choice(ask[kind][:-1])).format(n=name)
        question = politely(rng, question, lists.split)
        turns.append(_answer_turn(question, tell[kind].format(n=name, v=value), value.split()[-1]))
    return _with_document(rng, " ".join(parts), turns)


def notes(rng: Random, lists: Lists, num_notes: int, num_questions: int) -> list[Turn]:
    """Codes told one message at a time, asked for later."""
    keys = list(dict.fromkeys(_key(rng, lists) for _ in range(num_notes)))
    values = {key: code(rng) for key in keys}
    turns = []
    for key in keys:
        told = rng.choice((*_NEEDLES[:3], "Remember that the code of the {k} is {v}."))
        told = _upper(told.replace("the {k}", "{k}").replace("The {k}", "{k}").format(k=key, v=values[key]))
        turns.append(Turn(told, rng.choice(("Noted.", "I will remember it.")), "I keep this in mind.", ("any", "")))
    for _ in range(num_questions):
        key = rng.choice(keys)
        turns.append(_answer_turn(_ask_code(rng, key, lists.split), f"The code of {key} is {values[key]}.", values[key]))
    return turns


def long_turns(rng: Random, lists: Lists, kind: str, num_tokens: int, num_questions: int) -> list[Turn]:
    """A long-context exchange of `kind` whose context is about `num_tokens` long (measured: tokens a unit)."""
    if kind == "needle":
        return needles(rng, lists, max(0, int((num_tokens - 30) / 1.45)), num_questions)
    if kind == "list":
        return key_values(rng, lists, max(3, num_tokens // 10), num_questions)
    if kind == "lines":
        return numbered_lines(rng, lists, max(3, num_tokens // 17), min(num_questions, 6))
    if kind == "people":
        return people(rng, lists, max(2, num_tokens // 40), num_questions)
    if kind == "notes":
        return notes(rng, lists, max(2, min(60, num_tokens // 32)), num_questions)
    return [copy(rng, lists, max(3, num_tokens // 5))]


LONG_KINDS = ("needle", "list", "lines", "people", "notes", "copy")
__all__ = ["ADJECTIVES", "LONG_KINDS", "long_turns"]
