"""The playground as a user has it: a real headless Chromium."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
SET = """
    const [field, value] = arguments;
    field.value = value;
    field.dispatchEvent(new Event("input", {bubbles: true}));
    field.dispatchEvent(new Event("change", {bubbles: true}));
"""


def start(profile: Path) -> Chrome:
    """A browser that talks to nobody but the server under test."""
    options = ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1400,800",
        f"--user-data-dir={profile}",
    ):  # fmt: skip
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return Chrome(options=options, service=ChromeService(DRIVER))


class Page:
    """The page of the server at `url`, freshly loaded, with nothing kept from before."""

    def __init__(self, browser: Chrome, url: str, *, ready: bool = True) -> None:
        self.browser = browser
        browser.execute_cdp_cmd("Storage.clearDataForOrigin", {"origin": url, "storageTypes": "local_storage"})
        browser.get(url)
        if ready:
            self.wait(lambda: self.status() == "ready")

    def get(self, selector: str) -> WebElement:
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def wait(self, condition: Callable[[], Any]) -> None:
        WebDriverWait(self.browser, 20, poll_frequency=0.05).until(lambda _: condition())

    def run(self, script: str, *arguments: Any) -> Any:
        return self.browser.execute_script(script, *arguments)

    def status(self) -> str:
        return self.get("#status").text

    def text_of(self, selector: str) -> str:
        """Of the first match, shown or not."""
        return self.get(selector).get_attribute("textContent")

    def fill(self, selector: str, value: str) -> None:
        """Set a field's value at once, as pasting does; fields in folded sections too."""
        self.run(SET, self.get(selector), value)

    def say(self, text: str, keys: str = Keys.ENTER) -> None:
        before = len(self.all(".message.assistant"))
        self.get("#input").send_keys(text, keys)
        self.wait(lambda: len(self.all(".message.assistant")) == before + 1)

    def answered(self) -> str:
        self.wait(lambda: not self.all(".answering"))
        return self.all(".message.assistant")[-1].find_element(By.CSS_SELECTOR, ":scope > .text").text

    def ask(self, text: str) -> str:
        self.say(text)
        return self.answered()

    def press(self, label: str) -> None:
        """The last shown button with this label."""
        [*_, last] = [made for made in self.all("button") if made.text == label]
        last.click()

    def focused(self) -> WebElement:
        return self.browser.switch_to.active_element

    def problems(self) -> list[str]:
        """What the browser's log has of the page itself: blocked by the policy, failed, thrown."""
        return [entry["message"] for entry in self.browser.get_log("browser")]

    def picture(self, name: str) -> None:
        folder = os.environ.get("CORE_TEST_PICTURES")
        if folder:
            self.browser.save_screenshot(str(Path(folder) / f"{name}.png"))
