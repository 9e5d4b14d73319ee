"""The page without a mouse, without sight, and in a narrow window."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from running import Running

pytest.importorskip("selenium", reason="needs selenium")

from page_driver import Page
from selenium.webdriver import Chrome
from selenium.webdriver.common.keys import Keys

pytestmark = pytest.mark.browser
CONTROLS = "button, input, textarea, select, summary, [role=option], [role=img]"
# Pairs of text and background with a contrast below 4.5 to 1 (WCAG 2.2, 1.4.3); of what is shown.
PALE = """
    const linear = (c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    const luminance = ([r, g, b]) => [r, g, b].map(linear)
        .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
    const context = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
    const over = (layers) => {
        context.clearRect(0, 0, 1, 1);
        for (const layer of layers) { context.fillStyle = layer; context.fillRect(0, 0, 1, 1); }
        return [...context.getImageData(0, 0, 1, 1).data];
    };
    const found = [];
    for (const node of document.querySelectorAll("body *")) {
        const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
        if (!(own || node.matches("textarea, input, select")) || !node.checkVisibility()) continue;
        const layers = [];
        for (let box = node; box; box = box.parentElement) layers.unshift(getComputedStyle(box).backgroundColor);
        const [a, b] = [luminance(over([...layers])), luminance(over([...layers, getComputedStyle(node).color]))];
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (ratio < 4.5) found.push(`${ratio.toFixed(2)} ${node.outerHTML.slice(0, 90)}`);
    }
    return found;
"""


# What can be operated or stands for a picture, and has no name: neither a label, nor words of its own.
NAMELESS = """
    const words = (id) => document.getElementById(id)?.textContent ?? "";
    const name = (made) => made.getAttribute("aria-label")
        || (made.getAttribute("aria-labelledby") ?? "").split(" ").map(words).join(" ").trim()
        || [...(made.labels ?? [])].map((label) => label.textContent).join(" ").trim()
        || (made.matches("button, summary, [role=option]") ? made.textContent.trim() : "");
    const shown = [...document.querySelectorAll(arguments[0])].filter((made) => made.checkVisibility());
    return [shown.length, shown.filter((made) => !name(made)).map((made) => made.outerHTML)];
"""
DANGLING = """
    const names = ["for", "aria-describedby", "aria-labelledby", "aria-controls"];
    const refs = [...document.querySelectorAll(names.map((name) => `[${name}]`).join())];
    return refs.flatMap((made) => names.map((name) => made.getAttribute(name)))
        .filter((id) => id && !document.getElementById(id));
"""
TWICE = """
    const ids = [...document.querySelectorAll("[id]")].map((made) => made.id);
    return ids.filter((id, index) => ids.indexOf(id) !== index);
"""
STOPS = """
    const found = [...document.querySelectorAll("button, input, textarea, select, summary, [tabindex='0']")];
    return found.filter((made) => made.checkVisibility() && !made.disabled && !window.reached.has(made))
        .map((made) => made.outerHTML.slice(0, 200));
"""


def show_everything(page: Page, server: Running) -> None:
    """A conversation, reasoning, tokens, a call; both panels, unfolded."""
    server.says('<think>Hm.</think>Fine.<tool_call>{"name": "look", "arguments": {}}</tool_call>')
    page.fill("#tools", '[{"type": "function", "function": {"name": "look"}}]')
    page.run("arguments[0].click()", page.get("#logprobs"))
    page.ask("Hi")
    page.get("#settings-toggle").click()
    page.get("#server-toggle").click()
    page.fill("#form-kind", "choice")
    page.run("for (const made of document.querySelectorAll('details')) made.open = true")
    page.wait(lambda: page.text_of(".plot .now") != "–")


def test_names_keyboard_and_contrast(page: Page, server: Running) -> None:
    show_everything(page, server)
    shown, nameless = page.run(NAMELESS, CONTROLS)
    assert shown > 40
    assert nameless == []
    assert page.get("#theme").accessible_name == "Switch between light and dark"
    assert page.get("#param-top_p").accessible_name == "top_p"
    assert page.run("return [...document.querySelectorAll('main, header, aside')].length") == 4
    assert page.run(DANGLING) == []
    assert page.run(TWICE) == []
    # Every control is reached by Tab, none is a trap.
    page.run(
        "window.reached = new Set();"
        "document.addEventListener('focusin', (event) => window.reached.add(event.target));"
        "document.activeElement.blur();"
    )
    total = len(page.run(STOPS))
    assert total > 40
    page.get("body").send_keys(Keys.TAB * (total + 3))
    assert page.run(STOPS) == []
    for theme in ("light", "dark"):
        page.run("document.documentElement.dataset.theme = arguments[0]", theme)
        assert page.run(PALE) == []


class TestNarrow:
    @pytest.fixture
    def narrow(self, browser: Chrome) -> Iterator[None]:
        size = browser.get_window_size()
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride", {"width": 320, "height": 640, "deviceScaleFactor": 1, "mobile": False}
        )
        yield
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.set_window_size(size["width"], size["height"])

    def test_nothing_is_cut_off(self, narrow: None, page: Page, server: Running) -> None:
        wide = "return document.documentElement.scrollWidth > innerWidth || document.body.scrollWidth > innerWidth"
        server.says("x" * 120)
        assert page.run("return innerWidth") == 320
        page.ask("y" * 120)
        assert not page.run(wide)
        assert page.get("#send").is_displayed()
        for name in ("settings", "server"):
            page.get(f"#{name}-toggle").click()
            page.run("for (const made of document.querySelectorAll('details')) made.open = true")
            assert page.get(f"#{name}").is_displayed()
            assert not page.get("#column").is_displayed()  # one thing at a time
            assert not page.run(wide)
            assert not page.run(
                "return [...document.querySelectorAll('.panel')].some((p) => p.scrollWidth > p.clientWidth)"
            )
            page.picture(f"narrow-{name}")
        page.get("#server-toggle").click()
        assert page.get("#column").is_displayed()
        assert not page.get("#settings").is_displayed()
