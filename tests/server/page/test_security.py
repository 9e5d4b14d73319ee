"""What the page lets nobody do, whatever a model writes."""

from __future__ import annotations

import json

import httpx
import pytest
from running import Running

pytest.importorskip("selenium", reason="needs selenium")

from page_driver import Page
from selenium.webdriver import Chrome
from selenium.webdriver.common.keys import Keys

pytestmark = pytest.mark.browser
HOSTILE = (
    "<img src=x onerror=\"document.title='hacked'\"></script><script>document.title='hacked'</script>"
    '<a href="javascript:document.title=1">link</a> [link](javascript:alert(1)) <b>bold</b>'
)
MADE = ".message img, .message script, .message a, .message b, .message iframe, #popup img, #popup b, #facts b"


def test_what_a_model_writes_is_never_html(page: Page, server: Running) -> None:
    page.run("arguments[0].click()", page.get("#logprobs"))
    server.says(f"<think>{HOSTILE}</think>{HOSTILE}\n```html\n{HOSTILE}\n```")
    page.say(HOSTILE)
    assert page.answered().splitlines()[0] == HOSTILE
    assert page.get(".message.user .text").text == HOSTILE
    assert page.text_of("details.reasoning .text") == HOSTILE
    assert page.all(MADE) == []
    page.all(".token")[0].send_keys(Keys.ARROW_RIGHT)
    assert page.all(MADE) == []
    assert page.browser.title == "Chat with tiny"


def test_what_a_tool_call_holds_is_never_html(page: Page, server: Running) -> None:
    tool = {"type": "function", "function": {"name": "look"}}
    page.fill("#tools", json.dumps([tool]))
    server.says(f"<tool_call>{json.dumps({'name': 'look', 'arguments': {HOSTILE: HOSTILE}})}</tool_call>")
    page.say("Go")
    page.answered()
    assert json.loads(page.get(".call pre").text) == {HOSTILE: HOSTILE}
    assert page.all(MADE) == []
    assert page.browser.title == "Chat with tiny"


def test_hostile_words_from_the_server_stay_words(page: Page, server: Running) -> None:
    server.engine.overloaded = True
    page.fill("#tool_choice", "")
    page.fill("#tools", json.dumps([{"type": "function", "function": {"name": HOSTILE}}]))
    page.say("Go")
    page.wait(lambda: page.all(".error"))
    assert page.all(f"{MADE}, #tools-state b, #tool_choice b, .error b") == []
    assert page.browser.title == "Chat with tiny"


def test_nothing_leaves_the_origin_and_nothing_is_blocked(page: Page, server: Running) -> None:
    page.ask("Hi")
    page.get("#server-toggle").click()
    page.wait(lambda: page.text_of(".plot .now") != "–")
    loaded = page.run("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert any(name.endswith("/v1/chat/completions") for name in loaded)
    assert [name for name in loaded if not name.startswith((f"{server.url}/", "data:"))] == []
    assert page.problems() == []


def test_the_api_key_is_asked_for_and_kept_in_the_tab(browser: Chrome, launch) -> None:
    with launch(api_key="geheim") as server:
        page = Page(browser, server.url, ready=False)
        page.wait(lambda: page.status() == "API key needed")
        assert page.focused() == page.get("#api-key")
        page.get("#api-key").send_keys("wrong", Keys.TAB)
        page.wait(lambda: page.get("#api-key").get_attribute("value") == "wrong" and page.status() == "API key needed")
        page.fill("#api-key", "geheim")
        page.wait(lambda: page.status() == "ready")
        assert page.ask("Hi") == "Hello, world 🙂!"
        page.press("Settings")
        page.get("#server-toggle").click()
        page.wait(lambda: page.text_of(".plot .now") != "–")
        assert "geheim" not in page.run("return JSON.stringify({...localStorage}) + location.href + document.cookie")
        urls = page.run("return performance.getEntriesByType('resource').map((entry) => entry.name).join()")
        assert "geheim" not in urls


class TestHeaders:
    """Of the page and each of its files."""

    FILES = ("", "page/chat.js", "page/styles.css", "page/parameters.json")

    @pytest.mark.parametrize("name", FILES)
    def test_policy(self, server: Running, name: str) -> None:
        headers = httpx.get(f"{server.url}/{name}").headers
        policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
        assert policy == {
            "default-src": "'none'", "script-src": "'self'", "style-src": "'self'", "connect-src": "'self'",
            "img-src": "'self' data:", "base-uri": "'none'", "form-action": "'none'", "frame-ancestors": "'none'",
        }  # fmt: skip
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cross-origin-opener-policy"] == "same-origin"
        assert "camera=()" in headers["permissions-policy"]

    @pytest.mark.parametrize("name", FILES)
    def test_unchanged_files_are_not_sent_again(self, server: Running, name: str) -> None:
        first = httpx.get(f"{server.url}/{name}")
        assert first.headers["cache-control"] == "no-cache"
        tag = first.headers["etag"]
        for known in (tag, f'W/{tag}, "other"', "*"):
            again = httpx.get(f"{server.url}/{name}", headers={"if-none-match": known})
            assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
            assert "content-security-policy" in again.headers
        assert httpx.get(f"{server.url}/{name}", headers={"if-none-match": '"other"'}).status_code == 200
