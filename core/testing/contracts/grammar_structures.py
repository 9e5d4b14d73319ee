"""A structure of every kind (core.interfaces.grammar.Structure) with texts, for GrammarContract."""

from __future__ import annotations

from typing import Any

Tree = dict[str, Any]


def const(value: str) -> Tree:
    return {"type": "const_string", "value": value}


def schema(value: Any) -> Tree:
    return {"type": "json_schema", "json_schema": value}


def sequence(*elements: Tree) -> Tree:
    return {"type": "sequence", "elements": list(elements)}


def either(*elements: Tree) -> Tree:
    return {"type": "or", "elements": list(elements)}


def tag(begin: str, content: Tree, end: str) -> Tree:
    return {"type": "tag", "begin": begin, "content": content, "end": end}


def triggered(triggers: list[str], *tags: Tree, **flags: bool) -> Tree:
    return {"type": "triggered_tags", "triggers": triggers, "tags": list(tags), **flags}


def separated(separator: str, *tags: Tree, **flags: bool) -> Tree:
    return {"type": "tags_with_separator", "tags": list(tags), "separator": separator, **flags}


ANY: Tree = {"type": "any_text"}
NUMBER = schema({"type": "integer"})
WORD: Tree = {"type": "regex", "pattern": "[a-z]+"}
NESTED: Tree = {"type": "grammar", "grammar": 'root ::= "a" | "(" root ")"'}
FOO = tag("<f=foo>", NUMBER, "</f>")
BAR = tag("<f=bar>", WORD, "</f>")

# (structure, texts that fit, texts that do not)
STRUCTURES: tuple[tuple[Tree, tuple[str, ...], tuple[str, ...]], ...] = (
    (const('say "yes"\n中\\'), ('say "yes"\n中\\',), ("", 'say "yes"', 'say "yes"\n中\\ ')),
    (schema({"type": "object", "properties": {"ab": {"type": "boolean"}}, "required": ["ab"],
             "additionalProperties": False}), ('{"ab":true}', '{"ab":false}'), ("{}", '{"ab":12}', "12")),
    (WORD, ("a", "yes"), ("", "a1")),
    (NESTED, ("a", "((a))"), ("(a", "b", "")),
    (ANY, ("", "yes 中\n{"), ()),
    (sequence(const("ab"), NUMBER, const("!")), ("ab12!", "ab0!"), ("ab!", "ab12", "12!")),
    (sequence(ANY, const("END")), ("END", "ab ENEND"), ("", "abc", "abcEN")),
    (sequence(ANY, FOO), ("<f=foo>12</f>", "yes <<f=foo>1</f>"), ("<f=foo>a</f>", "yes")),
    (either(const("yes"), const("yesterday"), sequence(const("ye"), NUMBER)),
     ("yes", "yesterday", "ye12"), ("ye", "no")),
    (tag("<a>", ANY, "</a>"), ("<a></a>", "<a>b</</a>"), ("<a>", "b</a>", "<a>b</a>c", "<a></a></a>")),
    (tag("<a>", either(NUMBER, WORD), "</a>"), ("<a>12</a>", "<a>no</a>"), ("<a>A</a>", "<a></a>")),
    (tag("[", tag("<", NESTED, ">"), "]"), ("[<(a)>]",), ("[<a>", "[a]")),
    (triggered(["<f"], FOO, BAR),
     ("", "no call", "<f=foo>12</f>", "yes <f=bar>ab</f> and <f=foo>0</f>.", "a <"),
     ("<f", "<f=no>1</f>", "<f=foo>ab</f>", "yes <f=foo>12")),
    (triggered(["<f=f", "<f=b"], FOO, BAR), ("<f=", "a<f=bar>no</f>b<f=foo>1</f>"), ("<f=b", "<f=foo>")),
    # With at_least_one a text begins with a tag.
    (triggered(["<f"], FOO, BAR, at_least_one=True),
     ("<f=foo>12</f>", "<f=bar>no</f> and <f=foo>1</f>!"), ("", "no call", "yes <f=foo>1</f>")),
    (triggered(["<f"], FOO, BAR, stop_after_first=True),
     ("", "no call", "yes <f=foo>1</f>"), ("<f=foo>1</f>.", "<f=foo>1</f><f=foo>1</f>")),
    (triggered(["<f"], FOO, BAR, at_least_one=True, stop_after_first=True),
     ("<f=foo>12</f>", "<f=bar>ab</f>"), ("", "a<f=foo>12</f>", "<f=foo>12</f>a")),
    (tag("<t>", triggered(["<f"], FOO, BAR), "</t>"),
     ("<t></t>", "<t>yes<f=foo>1</f></t>"), ("<t>yes", "<t><f</t>", "<t></t></t>")),
    (separated(",", FOO, BAR), ("", "<f=foo>1</f>", "<f=foo>1</f>,<f=bar>no</f>"), ("<f=foo>1</f>,", "a", ",")),
    (separated("", FOO, at_least_one=True), ("<f=foo>1</f>", "<f=foo>1</f><f=foo>2</f>"), ("", "<f=foo>1</f>a")),
    (separated(",", FOO, BAR, stop_after_first=True), ("", "<f=bar>no</f>"), ("<f=foo>1</f>,<f=foo>1</f>",)),
    (sequence(const("["), separated(", ", FOO, BAR, at_least_one=True), const("]")),
     ("[<f=foo>1</f>]", "[<f=foo>1</f>, <f=bar>ab</f>]"), ("[]", "[<f=foo>1</f>, ]")),
    # The older form of triggered tags.
    ({"structures": [{"begin": "<f>", "schema": {"type": "integer"}, "end": "</f>"}], "triggers": ["<f"]},
     ("yes", "a<f>12</f>b"), ("<f", "<f>ab</f>")),
    ({"type": "structural_tag", "format": const("yes")}, ("yes",), ("no",)),
)  # fmt: skip

BROKEN_STRUCTURES: tuple[Any, ...] = (
    {},
    {"type": "no_such_type"},
    {"type": "const_string"},
    {"type": "const_string", "value": 1},
    const("a\0"),
    {"type": "regex", "pattern": "(unclosed"},
    {"type": "grammar", "grammar": "root ::= missing"},
    schema({"type": "no such type"}),
    schema({"type": "array", "contains": {"type": "integer"}}),
    sequence(ANY, {"type": "tag", "begin": "a"}),
    triggered(["<g"], FOO),
    triggered([], FOO),
    {"type": "const_string", "value": "a", "exclude": ["b"]},
    {"structures": [{"begin": "<f>", "schema": {}}], "triggers": ["<f"]},
)
