"""The conversation: streaming, stopping, changing what was said, reasoning, errors."""

from __future__ import annotations

import pytest
from running import Running

pytest.importorskip("selenium", reason="needs selenium")

from page_driver import Page
from selenium.webdriver.common.keys import Keys

pytestmark = pytest.mark.browser


def prompt(server: Running, index: int = -1) -> str:
    return server.tokenizer.decode(server.engine.requests[index].prompt.tolist(), False)


def test_talks_over_several_turns(page: Page, server: Running) -> None:
    assert page.get("#model").text == "tiny"
    page.picture("empty")
    assert page.ask("Hi there") == "Hello, world 🙂!"
    server.says("<think>Let me think about it.</think>Here is some code:\n\n```python\nprint('hi')\n```\nDone, Grüße!")
    page.get("#input").send_keys("second", Keys.SHIFT, Keys.ENTER)
    page.get("#input").send_keys(Keys.NULL)
    assert "Done, Grüße!" in page.ask("line")
    assert page.all(".message.assistant pre")[-1].text == "print('hi')"
    assert "Hello, world 🙂!<|im_end|>" in prompt(server)
    assert "user\nsecond\nline<|im_end|>" in prompt(server)
    page.picture("conversation")
    page.get("#theme").click()
    page.picture("dark")
    page.get("#new-chat").click()
    assert page.all(".message") == []
    page.ask("Fresh")
    assert "Hi there" not in prompt(server)


def test_figures_and_folded_reasoning(page: Page, server: Running) -> None:
    server.says("<think>Let me think about it.</think>42")
    assert page.ask("What?") == "42"
    foot = page.get(".message.assistant .figures").text
    usage = server.engine.requests[0]
    assert f"prompt {len(usage.prompt)} tokens, {len(usage.prompt) // 16 * 16} cached" in foot
    assert " reasoning · first token after " in foot
    assert " tokens/s" in foot
    thoughts = page.get(".message.assistant details.reasoning")
    assert thoughts.get_attribute("open") is None
    count = int(thoughts.text.removeprefix("Thoughts · ").removesuffix(" tokens"))
    assert f"{count} reasoning" in foot
    thoughts.find_element("css selector", "summary").send_keys(Keys.ENTER)
    assert "Let me think" in thoughts.text


@pytest.mark.parametrize("by", ["button", "escape"])
def test_stop_keeps_what_was_written_and_frees_the_engine(page: Page, server: Running, by: str) -> None:
    server.engine.script = lambda request: [10] * 200
    server.engine.delay_s = 0.05
    page.say("go on forever")
    page.wait(lambda: len(page.get(".message.assistant > .text").text) > 5)
    if by == "button":
        page.get("#stop-button").click()
    else:
        page.get("#input").send_keys(Keys.ESCAPE)
    assert len(page.answered()) > 5
    assert "stopped" in page.get(".message.assistant .foot").text
    page.wait(lambda: server.engine.running == 0)
    assert server.engine.cancelled == 1


def test_answers_are_made_anew_and_messages_changed(page: Page, server: Running) -> None:
    page.ask("first")
    page.ask("second")
    server.says("Another one.")
    page.press("Regenerate")
    page.wait(lambda: len(server.engine.requests) == 3)
    assert page.answered() == "Another one."
    assert prompt(server, 2) == prompt(server, 1)
    page.all(".message.user .foot button")[0].click()  # Edit
    assert page.all(".message") == []
    assert page.get("#input").get_attribute("value") == "first"
    page.ask(" of all")
    assert "user\nfirst of all<|im_end|>" in prompt(server)
    assert "second" not in prompt(server)
    assert len(page.all(".message")) == 2


def test_errors_have_a_way_out(page: Page, server: Running) -> None:
    server.engine.overloaded = True
    page.say("Hi")
    page.wait(lambda: page.all(".error"))
    assert "queue is full" in page.get(".error").text
    page.picture("error")
    server.engine.overloaded = False
    page.get(".error button").click()
    page.wait(lambda: not page.all(".error"))
    assert page.answered() == "Hello, world 🙂!"
    assert len(page.all(".message.user")) == 1
