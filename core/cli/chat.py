"""`core chat`: talk in the terminal, with a model in this process or a server somewhere."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import click

from core.cli.generate import ENGINE_SECTIONS
from core.cli.options import ResolvedSettings, settings_command
from core.cli.sampling_options import given_sampling, sampling_options
from core.interfaces.errors import EngineError

Message = dict[str, Any]
# Answers `messages`, calling `show(kind, text)` for each piece; returns the whole answer and its number of tokens.
Answer = Callable[[list[Message], Callable[[str, str], None]], tuple[str, int]]

_HELP = "/new starts over, /system TEXT sets the system message, /quit or Ctrl-D leaves, Ctrl-C stops an answer"


def _chat(resolved: ResolvedSettings, url: str | None, api_key: str | None, system: str | None, **own: Any) -> None:
    sampling = given_sampling(own)
    if url is not None:
        converse(remote(url, api_key, sampling), f"talking to {url}", system)
        return
    from core.llm import LLM

    with LLM.from_settings(resolved.settings) as llm:
        name = resolved.settings.model.model or "the bundled model"
        converse(local(llm, sampling), f"talking to {name}", system)


def converse(answer: Answer, title: str, system: str | None) -> None:
    """Read lines, print answers as they come, until the end of input."""
    click.echo(f"{title}; {_HELP}")
    messages: list[Message] = []
    while True:
        try:
            line = input("\nyou> ").strip()
        except (EOFError, KeyboardInterrupt):
            click.echo()
            return
        if line in ("/quit", "/exit"):
            return
        if line == "/new":
            messages = []
            click.echo("(new conversation)")
            continue
        if line.startswith("/system"):
            system = line.removeprefix("/system").strip() or None
            click.echo(f"(system message: {system or 'none'})")
            continue
        if line.startswith("/"):
            click.echo(f"({_HELP})")
            continue
        if not line:
            continue
        messages.append({"role": "user", "content": line})
        start = [{"role": "system", "content": system}] if system else []
        try:
            text, summary = _answered(answer, [*start, *messages])
        except KeyboardInterrupt:
            click.echo(" (stopped)")
            messages.pop()
            continue
        except EngineError as error:
            click.echo(f"\nerror: {error}", err=True)
            messages.pop()
            continue
        messages.append({"role": "assistant", "content": text})
        click.secho(summary, dim=True)


def _answered(answer: Answer, messages: list[Message]) -> tuple[str, str]:
    begin = time.perf_counter()
    first: list[float] = []
    shown: list[str] = []

    def show(kind: str, text: str) -> None:
        if not first:
            first.append(time.perf_counter())
        if shown[-1:] != [kind]:
            click.secho(f"\n{kind}> ", nl=False, bold=True)
            shown.append(kind)
        click.secho(text, nl=False, dim=kind == "thinking")

    text, num_tokens = answer(messages, show)
    click.echo()
    end = time.perf_counter()
    if not first or num_tokens < 2:
        return text, f"({num_tokens} tokens)"
    rate = (num_tokens - 1) / max(end - first[0], 1e-9)
    return text, f"({num_tokens} tokens, first after {1000 * (first[0] - begin):.0f} ms, {rate:.0f} tokens/s)"


def local(llm: Any, sampling: dict[str, Any]) -> Answer:
    """Answers of an `LLM`."""

    def answer(messages: list[Message], show: Callable[[str, str], None]) -> tuple[str, int]:
        def on_delta(_index: int, delta: Any) -> None:
            if delta.reasoning:
                show("thinking", delta.reasoning)
            if delta.text:
                show("core", delta.text)
            for call in delta.tool_calls:
                show("tool call", f"{call.name or ''}{call.arguments}")

        output = llm.chat(messages, sampling, on_delta=on_delta)[0]
        completion = output.completions[0]
        if completion.error is not None:
            raise EngineError(completion.error)
        return completion.text, len(completion.token_ids)

    return answer


def remote(url: str, api_key: str | None, sampling: dict[str, Any]) -> Answer:
    """Answers of an OpenAI-compatible server. url: with or without /v1."""
    import httpx

    base = url.rstrip("/").removesuffix("/v1")
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}

    def answer(messages: list[Message], show: Callable[[str, str], None]) -> tuple[str, int]:
        text, num_tokens = "", 0
        try:
            with httpx.Client(base_url=base, headers=headers, timeout=600) as client:
                models = client.get("/v1/models")
                models.raise_for_status()
                body = {
                    **sampling,
                    "model": models.json()["data"][0]["id"],
                    "messages": messages,
                    "stream": True,
                    "stream_options": {"include_usage": True},
                }
                for event in _events(client, body):
                    for choice in event.get("choices", ()):
                        delta = choice.get("delta", {})
                        if delta.get("reasoning_content"):
                            show("thinking", delta["reasoning_content"])
                        if delta.get("content"):
                            text += delta["content"]
                            show("core", delta["content"])
                        for call in delta.get("tool_calls") or ():
                            function = call.get("function", {})
                            show("tool call", f"{function.get('name') or ''}{function.get('arguments') or ''}")
                    num_tokens = (event.get("usage") or {}).get("completion_tokens", num_tokens)
        except httpx.HTTPError as error:
            raise EngineError(f"{base}: {error}", hint="is the server running, and is --api-key right?") from error
        return text, num_tokens

    return answer


def _events(client: Any, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.status_code != 200:
            response.read()
            raise EngineError(f"HTTP {response.status_code}: {response.text[:400]}")
        for line in response.iter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise EngineError(str(event["error"].get("message", event["error"])))
            yield event


command = settings_command(
    "chat",
    _chat,
    help="Talk in the terminal. Without --url the model runs in this process.",
    sections=ENGINE_SECTIONS,
    params=[
        click.Option(["url", "--url"], help="A running server, as in http://127.0.0.1:30000."),
        click.Option(["api_key", "--api-key"], envvar="CORE_API_KEY", help="Key for --url."),
        click.Option(["system", "--system"], help="System message."),
        *sampling_options(),
    ],
)
