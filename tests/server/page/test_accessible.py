"""The page without a mouse, without sight, and in a narrow window."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from running import Running

pytest.importorskip("selenium", reason="needs selenium")

from page_driver import Page  # noqa: E402
from selenium.webdriver import Chrome  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

pytestmark = pytest.mark.browser
CONTROLS = "button, input, textarea, select, summary, [role=option], [role=img]"
# Pairs of text and background with a contrast below 4.5 to 1 (WCAG 2.2, 1.4.3); of what is shown.
PALE = """
    const luminance = ([r, g, b]) => [r, g, b].map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
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
        if (ratio < 4.5) found.push(`${node.tagName} ${node.className} ${ratio.toFixed(2)}: ${node.textContent.slice(0, 40)}`);
    }
    return found;
"""


@pytest.fixture
def full(page: Page, server: Running) -> Page:
    """With everything there is: a conversation, reasoning, tokens, a call, both panels unfolded."""
    server.says('<think>Hm.</think>Fine.<tool_call>{"name": "look", "arguments": {}}</tool_call>')
    page.fill("#tools", '[{"type": "function", "function": {"name": "look"}}]')
    page.fill("#form-kind", "choice")
    page.run("arguments[0].click()", page.get("#logprobs"))
    page.fill("#form-kind", "text")
    page.ask("Hi")
    page.get("#settings-toggle").click()
    page.get("#server-toggle").click()
    page.fill("#form-kind", "choice")
    page.run("for (const made of document.querySelectorAll('details')) made.open = true")
    page.wait(lambda: page.text_of(".plot .now") != "–")
    return page


def test_every_control_has_a_name(full: Page) -> None:
    shown = [control for control in full.all(CONTROLS) if control.is_displayed()]
    assert len(shown) > 40
    assert [made.get_attribute("outerHTML") for made in shown if not made.accessible_name.strip()] == []
    assert full.run("return [...document.querySelectorAll('main, header, aside')].length") == 4
    ids = full.run("return [...document.querySelectorAll('[id]')].map((made) => made.id)")
    assert len(ids) == len(set(ids))
    dangling = """
        const refs = [...document.querySelectorAll("[for], [aria-describedby], [aria-labelledby], [aria-controls]")];
        const ids = (made) => ["for", "aria-describedby", "aria-labelledby", "aria-controls"].map((n) => made.getAttribute(n));
        return refs.flatMap(ids).filter((id) => id && !document.getElementById(id));
    """
    assert full.run(dangling) == []


def test_every_control_is_reached_by_tab_and_none_is_a_trap(full: Page) -> None:
    wanted = """
        return [...document.querySelectorAll("button, input, textarea, select, summary, [tabindex='0']")]
            .filter((made) => made.checkVisibility() && !made.disabled).length
    """
    note = """
        window.reached = new Set();
        document.addEventListener("focusin", (event) => window.reached.add(event.target));
        document.activeElement.blur();
    """
    total = full.run(wanted)
    full.run(note)
    full.get("body").send_keys(Keys.TAB * (total + 3))
    assert full.run("return window.reached.size") >= total
    missed = full.run(
        """
        return [...document.querySelectorAll("button, input, textarea, select, summary, [tabindex='0']")]
            .filter((made) => made.checkVisibility() && !made.disabled && !window.reached.has(made)).map((made) => made.outerHTML)
        """
    )
    assert missed == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_contrast(full: Page, theme: str) -> None:
    full.run("document.documentElement.dataset.theme = arguments[0]", theme)
    assert full.run(PALE) == []


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
            assert not page.run("return [...document.querySelectorAll('.panel')].some((p) => p.scrollWidth > p.clientWidth)")
            page.picture(f"narrow-{name}")
        page.get("#server-toggle").click()
        assert page.get("#column").is_displayed()
        assert not page.get("#settings").is_displayed()
