"""The examples of docs/hooks.md and docs/routes.md are plugins that pass the suites, and tests that pass."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from core.interfaces.hooks import HOOK_NAMES, HookPlugin
from core.interfaces.routes import RoutePlugin
from core.testing.contracts.base import Contract
from core.testing.contracts.hooks import HooksContract
from core.testing.contracts.routes import Example, RoutesContract

DOCS = Path(__file__).resolve().parents[1] / "docs"
# Of each example a request and what is in its answer.
ASKED: dict[str, tuple[Example, str]] = {
    "Titles": (Example("POST", "/titles", {"text": "a story"}, generates=True), "title"),
    "Plain": (Example("POST", "/plain", {"prompt": "Once"}, generates=True), ""),
    "Budget": (Example("GET", "/budget?text=hi"), "num_tokens"),
}


def blocks(page: str) -> list[tuple[str, dict[str, Any]]]:
    """(heading, what the block defines) of every Python block of a page."""
    found = []
    for heading, body in re.findall(
        r"^## (.*?)\n(.*?)(?=^## |\Z)", (DOCS / page).read_text(), re.DOTALL | re.MULTILINE
    ):
        for block in re.findall(r"```python\n(.*?)```", body, re.DOTALL):
            names: dict[str, Any] = {"__name__": f"docs_{heading}"}
            exec(compile(block, f"{page}: {heading}", "exec"), names)
            found.append((heading, names))
    return found


def classes(page: str, base: type) -> list[tuple[str, type]]:
    return [
        (heading, value)
        for heading, names in blocks(page)
        for value in names.values()
        if inspect.isclass(value) and issubclass(value, base) and value.__module__ == f"docs_{heading}"
    ]


def run_suite(suite: Contract, caplog: pytest.LogCaptureFixture) -> set[str]:
    """Run every test of the suite; returns those that were skipped."""
    skipped = set()
    for name, test in inspect.getmembers(suite, inspect.ismethod):
        if name.startswith("test_"):
            try:
                test(*([caplog] if "caplog" in inspect.signature(test).parameters else []))
            except pytest.skip.Exception:
                skipped.add(name)
    return skipped


def test_every_hook_has_its_example() -> None:
    found = classes("hooks.md", HookPlugin)
    for hook in HOOK_NAMES:
        assert [cls for heading, cls in found if heading == hook and hook in vars(cls)], hook
    table = re.findall(r"^\| \[`(\w+)`\]", (DOCS / "hooks.md").read_text(), re.MULTILINE)
    assert sorted(table) == sorted(HOOK_NAMES)


@pytest.mark.parametrize(("heading", "cls"), classes("hooks.md", HookPlugin), ids=lambda value: str(value))
def test_hooks(heading: str, cls: type, caplog: pytest.LogCaptureFixture) -> None:
    skipped = run_suite(type("Suite", (HooksContract,), {"implementation": cls})(), caplog)
    assert skipped == ({"test_metrics"} if heading != "core_metrics" else set())


@pytest.mark.parametrize("name", ASKED)
def test_routes(name: str, caplog: pytest.LogCaptureFixture) -> None:
    cls = next(cls for _, cls in classes("routes.md", RoutePlugin) if cls.__name__ == name)
    example, part = ASKED[name]
    suite = type("Suite", (RoutesContract,), {"implementation": cls, "examples": (example,)})()
    about_generations = {"test_ends_with_its_client", "test_tells_what_the_engine_says"}
    assert run_suite(suite, caplog) == (set() if example.generates else about_generations)
    with suite.server() as server:
        reply = server.client.request(example.method, example.path, **({"json": example.json} if example.json else {}))
        assert part in reply.text


def test_every_route_is_asked() -> None:
    assert {cls.__name__ for _, cls in classes("routes.md", RoutePlugin)} == {*ASKED, "Hello"}


@pytest.mark.parametrize("page", ["hooks.md", "routes.md"])
async def test_tests_of_the_pages_pass(page: str) -> None:
    import asyncio

    ran = 0
    for _, names in blocks(page):
        for name, test in names.items():
            if name.startswith("test_"):
                await (test() if inspect.iscoroutinefunction(test) else asyncio.to_thread(test))
                ran += 1
    assert ran
