"""The page and a really running server: the demo model calls a tool, and writes JSON that fits a schema."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

pytest.importorskip("selenium", reason="needs selenium")

from page_driver import Page
from selenium.webdriver import Chrome

from tests.e2e.process import ServerProcess

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(None, tmp_path_factory.mktemp("log") / "server.log", "--cpu-threads", "1") as running:
        yield running


def test_tool_call_thinking_and_json_schema(browser: Chrome, demo: ServerProcess) -> None:
    page = Page(browser, demo.url)
    page.problems()  # of the page before, whose server has ended, are not this test's
    page.get("#settings-toggle").click()
    page.get("#server-toggle").click()
    assert page.get("#param-temperature").get_attribute("placeholder") == "Model's default: 0.3"
    page.fill("#param-temperature", "0")
    page.run("arguments[0].click()", page.get("#tools-example"))
    page.say("What is the weather in Paris?")
    page.answered()
    assert page.get(".call h3").text == "get_weather"
    assert json.loads(page.get(".call pre").text) == {"city": "Paris"}
    page.focused().send_keys('{"city": "Paris", "temperature": 21, "unit": "celsius", "condition": "sunny"}')
    page.press("Send the result")
    page.wait(lambda: len(page.all(".message.assistant")) == 2)
    assert "21" in page.answered()
    page.picture("demo-tool")

    page.get("#new-chat").click()
    page.fill("#tools", "")
    page.fill("#thinking", "on")
    assert "5" in page.ask("What is 2 + 3?")
    assert page.text_of("details.reasoning summary").startswith("Thoughts · ")
    page.fill("#thinking", "")

    page.get("#new-chat").click()
    page.fill("#form-kind", "json_schema")
    page.run("arguments[0].click()", page.get("#form-example"))
    page.run("arguments[0].click()", page.get("#logprobs"))
    page.fill("#param-max_tokens", "200")
    answer = json.loads(page.ask("What is the capital of France?"))
    assert answer.keys() == {"city", "country", "large"}
    assert page.text_of(".assistant .verdict") == "✓ Valid JSON"
    assert page.all(".token")
    page.wait(lambda: page.text_of("#kv").startswith("KV memory: "))
    assert "demo" in page.text_of("#facts")
    page.picture("demo-json")
    assert [problem for problem in page.problems() if demo.url in problem] == []
