"""Chat templates come with checkpoints and are not trusted: no way out of the sandbox, no end of memory or time."""

from __future__ import annotations

import time

import pytest

from core.frontend.chat import ChatRenderer, ChatRequest
from core.frontend.template import RESERVED, ChatTemplate
from core.frontend.template_limits import MAX_CHARS, Budget
from core.interfaces.errors import RequestError
from core.testing.byte_codec import byte_tokenizer

HI = [{"role": "user", "content": "Hi"}]


def render(source: str, **variables: object) -> str:
    return ChatTemplate({"default": source}, {}).render(HI, variables=variables)


ESCAPES = (
    "{{ ''.__class__.__mro__ }}",
    "{{ messages.__class__ }}",
    "{{ messages|attr('__class__') }}",
    "{{ ''|attr('__cl' ~ 'ass__') }}",
    "{{ messages['__class__']['__base__'] }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__globals__['datetime'] }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ self.__init__ }}",
    "{{ self._TemplateReference__context }}",
    "{{ '{0.__class__}'.format(messages) }}",
    "{{ '{x.__class__.__mro__}'.format_map({'x': messages}) }}",
    "{{ ''.format.__self__ }}",
    "{{ cycler.__init__.__globals__.os }}",
    "{{ joiner.__init__.__globals__ }}",
    "{{ messages.append({}) }}",
    "{{ messages[0].update({'content': 'x'}) }}",
    "{{ namespace(__class__=1) }}",
    "{% set n = namespace() %}{% set n.__class__ = 1 %}",
    "{% include '/etc/passwd' %}",
    "{% import '/etc/passwd' as x %}",
    "{% extends '/etc/passwd' %}",
    "{{ ().__class__.__base__.__subclasses__() }}",
    "{{ messages|map(attribute='__class__')|list }}",
)


@pytest.mark.parametrize("source", ESCAPES)
def test_no_way_to_the_internals(source: str) -> None:
    """Refused, or nothing at all: Jinja shows unsafe attributes as undefined where they are not used."""
    try:
        text = render(source)
    except RequestError:
        return
    assert not any(sign in text for sign in ("class", "object at", "module", "function", "root:")), text


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 10**9 }}",
        "{{ 10**9 * 'a' }}",
        "{{ [1] * 10**9 }}",
        "{{ 10 ** (10 ** 9) }}",
        "{% for i in range(10**9) %}x{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) if false %}{% endfor %}" * 30,
        "{% set x = 'aaaaaaaaaaaaaaaa' %}" + "{% set x = x ~ x %}" * 30,
        "{% set x = 'aaaaaaaaaaaaaaaa' %}" + "{% set x = x + x %}" * 30,
        "{% set x = [1] %}" + "{% set x = x + x %}" * 30,
        "{% set x = 'a' * 1000000 %}{{ x.replace('a', x) }}",
        "{% set x = 'a' * 1000000 %}{{ x|replace('a', x) }}",
        "{% set x = 'a' * 1000000 %}{{ ([x] * 1000)|join }}",
        "{% set x = 'a' * 1000000 %}{{ ''.join([x] * 1000) }}",
        "{% set x = 'a' * 1000000 %}{% for i in range(1000) %}{{ x }}{% endfor %}",
        "{% set x = 'a' * 1000000 %}{% macro m() %}{% for i in range(1000) %}{{ x }}{% endfor %}{% endmacro %}{{ m()|length }}",  # noqa: E501
        "{{ 'a'|center(10**9) }}",
        "{{ 'a'.center(10**9) }}",
        "{{ 'a'.ljust(10**9) }}",
        "{{ 'a'.zfill(10**9) }}",
        "{{ '\\t'.expandtabs(10**9) }}",
        "{{ 'a\\nb'|indent(10**9) }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '%*d' % (10**9, 1) }}",
        "{{ '%1000000000d'|format(1) }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{{ '{:{}}'.format(1, 10**9) }}",
        "{{ messages|tojson(indent=10**9) }}",
        "{{ []|slice(10**9)|list }}",
        "{{ lipsum(n=10**6) }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
        "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    ],
)  # fmt: skip
def test_no_template_runs_or_grows_without_end(source: str) -> None:
    with pytest.raises(RequestError, match="chat template") as caught:
        render(source)
    assert caught.value.status == 400


def test_the_clock_ends_a_template_too() -> None:
    now = iter(range(1000))
    budget = Budget(clock=lambda: float(next(now)) * 6)
    from jinja2.exceptions import SecurityError

    with pytest.raises(SecurityError, match="longer than"):  # noqa: PT012
        for _ in range(100_000):
            budget.spend()


def test_what_templates_do_is_allowed() -> None:
    source = (
        "{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ loop.last }}{{ m.role ~ ': ' ~ m['content'] }}{% endfor %}"  # noqa: E501
        "{{ 'x' * 3 }}{{ 2 ** 10 }}{{ '%s-%d' % ('a', 3) }}{{ '%5s'|format('b') }}{{ '{:>4}'.format('c') }}"
        "{{ ['a', 'b']|join(', ') }}{{ 'aXb'.replace('X', '--') }}{{ 'l1\\nl2'|indent(2) }}{{ [3, 1]|sort }}"
        "{{ {'a': [1]}|tojson(indent=1) }}{{ range(3)|list }}{% for k, v in {'z': 1}|dictsort %}{{ k }}{{ v }}{% endfor %}"  # noqa: E501
        "{% for x in [1, [2]] recursive %}{{ x if x is number else loop(x) }}{% endfor %}"
    )
    assert render(source) == (
        "1/1Trueuser: Hixxx1024a-3    b   ca, ba--bl1\n  l2[1, 3]" + '{\n "a": [\n  1\n ]\n}' + "[0, 1, 2]z112"
    )


def test_a_long_conversation_is_no_attack() -> None:
    chat = [{"role": "user", "content": "x" * 200}] * 5000
    text = ChatTemplate({"default": "{% for m in messages %}{{ m.content }}{% endfor %}"}, {}).render(chat)
    assert len(text) == 1_000_000 < MAX_CHARS


def test_content_is_data_and_no_template() -> None:
    template = ChatTemplate({"default": "{{ messages[0].content }}|{{ colour }}"}, {})
    hostile = "{{ 7*7 }}{% raise %}{# #}"
    text = template.render([{"role": "user", "content": hostile}], variables={"colour": hostile})
    assert text == f"{hostile}|{hostile}"


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_variables_of_a_request_take_no_reserved_name(name: str) -> None:
    renderer = ChatRenderer(byte_tokenizer())
    with pytest.raises(RequestError, match=name) as caught:
        renderer.render(ChatRequest(HI, template_variables={name: []}))
    assert caught.value.param == "chat_template_kwargs"


@pytest.mark.parametrize(
    "name", ["raise_exception", "strftime_now", "namespace", "self", "range", "context", "environment"]
)
def test_names_of_the_environment_give_a_request_no_power(name: str) -> None:
    """A request's variables are plain JSON; shadowing a function makes the template fail, and nothing more."""
    template = ChatTemplate({"default": "{{ raise_exception('no') }}{{ range(3)|list }}{{ self }}"}, {})
    started = time.process_time()
    try:
        text = template.render(HI, variables={name: {"a": 1}})
    except RequestError as error:
        assert error.status == 400  # noqa: PT017
    else:
        assert "object" not in text.replace("TemplateReference", "")
    assert time.process_time() - started < 60


def test_a_variable_may_have_the_name_of_an_argument() -> None:
    """These once ended as a TypeError, an answer of 500."""
    renderer = ChatRenderer(byte_tokenizer())
    plain = renderer.render(ChatRequest(HI))
    assert renderer.render(ChatRequest(HI, template_variables={"self": 1, "template": 2})) == plain
