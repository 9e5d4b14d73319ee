"""Chat templates: the Jinja programs that Hugging Face tokenizers carry, run in a sandbox.

Behaves as transformers' `apply_chat_template` does (the tests compare the two), without importing it. A template comes
with a checkpoint and is not trusted: it sees plain data only, may not change it, reaches no Python internals, and uses
up no more than `core.frontend.template_limits` allows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn

from core.interfaces.errors import CheckpointError, RequestError

if TYPE_CHECKING:
    from jinja2 import Template

RESERVED = frozenset({"messages", "tools", "documents", "add_generation_prompt", "continue_final_message"})
# Of a template, beside Jinja's own. RuntimeError: recursion without end.
_FAILURES = (ArithmeticError, LookupError, TypeError, ValueError, AttributeError, MemoryError, RuntimeError)
_CONTINUE_MARK = "CORE_CONTINUES_HERE_9c1e "  # the blank tells whether the template trims the message


class ChatTemplate:
    """One or several named templates (a checkpoint may have one of its own for tools)."""

    def __init__(self, sources: Mapping[str, str], variables: Mapping[str, str]) -> None:
        """sources: name -> Jinja text; "default" is used, and "tool_use" when tools are given.
        variables: special tokens by name (bos_token, ...), seen by the template."""
        self._sources = dict(sources)
        self._variables = dict(variables)
        self._compiled: dict[str, Template] = {}

    def source(self, tools: bool = False) -> str:
        """The text of the template that would be used."""
        return self._sources[self._pick(tools)]

    def _pick(self, tools: bool) -> str:
        if tools and "tool_use" in self._sources:
            return "tool_use"
        if "default" in self._sources:
            return "default"
        if len(self._sources) == 1:
            return next(iter(self._sources))
        raise CheckpointError(
            f"the tokenizer has the chat templates {sorted(self._sources)} and none named 'default'",
            hint="name a template file with --chat-template",
        )

    def _template(self, name: str) -> Template:
        if name not in self._compiled:
            import jinja2

            try:
                self._compiled[name] = _environment().from_string(self._sources[name])
            except jinja2.TemplateSyntaxError as error:
                raise CheckpointError(
                    f"the chat template is not valid Jinja: {error.message} (line {error.lineno})",
                    hint="name another template file with --chat-template",
                ) from error
        return self._compiled[name]

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt text.

        continue_final_message: cut the text right after the last message's content, so that the model goes on with it.
        Raises RequestError if the template refuses the messages or cannot handle them.
        """
        import jinja2

        chat = [dict(message) for message in messages]
        content = ""
        if continue_final_message:
            content = chat[-1].get("content") or ""
            chat[-1]["content"] = content + _CONTINUE_MARK
        template = self._template(self._pick(bool(tools)))
        from core.frontend.template_limits import Budget, budget

        token = budget.set(Budget())
        try:
            text = template.render(
                {
                    **self._variables,
                    **(variables or {}),
                    "messages": chat,
                    "tools": list(tools) if tools else None,
                    "documents": None,
                    "add_generation_prompt": add_generation_prompt,
                }
            )
        except (jinja2.TemplateError, *_FAILURES) as error:
            raise RequestError(
                f"the chat template does not accept these messages: {error}",
                param="messages",
                code="chat_template_error",
            ) from error
        finally:
            budget.reset(token)
        return _cut(text, content) if continue_final_message else text


def _cut(text: str, content: str) -> str:
    """`text` up to the end of the last message's content."""
    bare = _CONTINUE_MARK.strip()
    position = text.rfind(bare)
    if position < 0 or content.strip() not in text:
        raise RequestError(
            "continue_final_message: the chat template does not show the last message's content, "
            "so there is nothing to continue",
            param="continue_final_message",
        )
    preserved = text.startswith(_CONTINUE_MARK, position)
    return text[:position] if preserved else text[:position].rstrip()


def _environment() -> Any:
    import jinja2
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.utils import Namespace

    from core.frontend.template_limits import LimitedEnvironment

    class GenerationTag(Extension):
        """`{% generation %}` marks the assistant's tokens for training; here it only shows its body."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    class PlainNamespace(Namespace):
        """No underscore names: they would lead to Python internals."""

        def __init__(*args: Any, **kwargs: Any) -> None:
            values = dict(*args[1:], **kwargs)
            for name in values:
                _check_name(name)
            Namespace.__init__(args[0], values)

        def __setitem__(self, name: str, value: Any) -> None:
            _check_name(name)
            super().__setitem__(name, value)

    def _check_name(name: str) -> None:
        if name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace may not hold {name!r}")

    def raise_exception(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def strftime_now(pattern: str) -> str:
        return datetime.now().strftime(pattern)

    environment = LimitedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols])
    environment.filters["tojson"] = tojson
    environment.globals.update(raise_exception=raise_exception, strftime_now=strftime_now, namespace=PlainNamespace)
    environment.limit_filters()
    return environment
