"""The chat page in a real browser."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import Running

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
selenium = pytest.importorskip("selenium", reason="needs selenium")

from selenium.webdriver import Chrome, ChromeOptions, ChromeService  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver"),
]
HOSTILE = "<img src=x onerror=\"document.title='hacked'\"><b>bold</b>"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    options = ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1100,800",
        f"--user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):  # fmt: skip
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options=options, service=ChromeService(DRIVER))
    yield driver
    driver.quit()


class Page:
    def __init__(self, browser: Chrome, url: str) -> None:
        self.browser = browser
        browser.get(url)
        browser.execute_script("localStorage.clear(); sessionStorage.clear()")
        browser.get(url)

    def get(self, selector: str):
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list:
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def wait(self, condition) -> None:
        WebDriverWait(self.browser, 15, poll_frequency=0.05).until(lambda _: condition())

    def status(self) -> str:
        return self.get("#status").text

    def say(self, text: str, keys: str = Keys.ENTER) -> None:
        before = len(self.all(".message.assistant"))
        self.get("#input").send_keys(text, keys)
        self.wait(lambda: len(self.all(".message.assistant")) == before + 1)

    def answered(self) -> str:
        self.wait(lambda: not self.all(".message.busy"))
        return self.all(".message.assistant")[-1].find_element(By.CSS_SELECTOR, ":scope > .text").text

    def picture(self, name: str) -> None:
        folder = os.environ.get("CORE_TEST_PICTURES")
        if folder:
            self.browser.save_screenshot(str(Path(folder) / f"{name}.png"))


@pytest.fixture
def page(browser: Chrome, server: Running) -> Page:
    made = Page(browser, server.url)
    made.wait(lambda: made.status() == "ready")
    return made


def test_talks_over_several_turns(page: Page, server: Running) -> None:
    assert page.get("#model").text == "tiny"
    page.picture("empty")
    page.say("Hi there")
    assert page.answered() == "Hello, world 🙂!"
    server.says("<think>Let me think about it.</think>Here is some code:\n\n```python\nprint('hi')\n```\nDone, Grüße!")
    page.get("#input").send_keys("second", Keys.SHIFT, Keys.ENTER)
    page.get("#input").send_keys(Keys.NULL)
    page.say("line")
    assert "Done, Grüße!" in page.answered()
    assert page.all(".message.assistant pre")[-1].text == "print('hi')"
    prompt = server.tokenizer.decode(server.engine.requests[1].prompt.tolist(), False)
    assert "Hello, world 🙂!<|im_end|>" in prompt
    assert "user\nsecond\nline<|im_end|>" in prompt
    foot = page.all(".message.assistant .foot")[-1].text
    assert "tokens/s" in foot
    assert "first token after" in foot
    thoughts = page.get(".message.assistant details")
    assert thoughts.get_attribute("open") is None
    thoughts.find_element(By.CSS_SELECTOR, "summary").click()
    assert "Let me think" in thoughts.text
    page.picture("conversation")
    page.get("#theme").click()
    page.picture("dark")
    page.get("#new-chat").click()
    assert page.all(".message") == []
    page.say("Fresh")
    page.answered()
    assert "Hi there" not in server.tokenizer.decode(server.engine.requests[2].prompt.tolist(), False)


@pytest.mark.parametrize("by", ["button", "escape"])
def test_stop_keeps_what_was_written_and_frees_the_engine(page: Page, server: Running, by: str) -> None:
    server.engine.script = lambda request: [10] * 200
    server.engine.delay_s = 0.05
    page.say("go on forever")
    page.wait(lambda: len(page.get(".message.assistant > .text").text) > 5)
    if by == "button":
        page.get("#stop").click()
    else:
        page.get("#input").send_keys(Keys.ESCAPE)
    assert len(page.answered()) > 5
    assert "stopped" in page.get(".message.assistant .foot").text
    page.wait(lambda: server.engine.running == 0)
    assert server.engine.cancelled == 1


def test_settings_reach_the_server_and_stay(page: Page, server: Running) -> None:
    page.get("#settings-toggle").click()
    values = {"system": "Be brief.", "temperature": "0.3", "top_p": "0.9", "max_tokens": "7", "seed": "42"}
    for name, value in values.items():
        page.get(f"#{name}").send_keys(value)
    page.picture("settings")
    page.say("Hi")
    page.answered()
    request = server.engine.requests[0]
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.max_tokens, request.seed) == (0.3, 0.9, 7, 42)
    assert "system\nBe brief.<|im_end|>" in server.tokenizer.decode(request.prompt.tolist(), False)
    assert "cut at the token limit" in page.get(".message.assistant .foot").text
    page.browser.refresh()
    assert page.get("#system").get_attribute("value") == "Be brief."


def test_tool_calls_are_shown(page: Page, server: Running) -> None:
    server.says('<tool_call>{"name": "weather", "arguments": {"city": "Bonn"}}</tool_call>')
    page.get("#settings-toggle").click()
    page.get("#tools").send_keys('[{"type": "function", "function": {"name": "weather"}}]')
    page.say("Weather?")
    page.answered()
    assert page.get(".message.assistant .call").text == 'weather({"city": "Bonn"})'
    page.get("#tools").clear()
    page.get("#tools").send_keys("[broken")
    page.get("#input").send_keys("again", Keys.ENTER)
    page.wait(lambda: "JSON list" in page.status())
    assert len(page.all(".message.assistant")) == 1


def test_model_text_is_never_html(page: Page, server: Running) -> None:
    server.says(HOSTILE)
    page.say(HOSTILE)
    assert page.answered() == HOSTILE
    assert page.all(".message img, .message b") == []
    assert page.browser.title == "Chat with tiny"


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


def test_api_key_is_asked_for(browser: Chrome, launch) -> None:
    with launch(api_key="geheim") as server:
        page = Page(browser, server.url)
        page.wait(lambda: page.status() == "API key needed")
        page.get("#api-key").send_keys("geheim", Keys.TAB)
        page.wait(lambda: page.status() == "ready")
        page.say("Hi")
        assert page.answered() == "Hello, world 🙂!"


def test_every_control_has_a_name_and_nothing_is_blocked(page: Page) -> None:
    page.get("#settings-toggle").click()
    for control in page.all("button, input, textarea"):
        if control.is_displayed():
            assert control.accessible_name, control.get_attribute("outerHTML")
    blocked = [entry for entry in page.browser.get_log("browser") if "Content Security Policy" in entry["message"]]
    assert blocked == []
