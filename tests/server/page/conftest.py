"""One browser for all tests of the page, and one server that each test gets as new."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from running import Running

if TYPE_CHECKING:
    from page_driver import Page
    from selenium.webdriver import Chrome


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    from page_driver import CHROMIUM, DRIVER, start

    if not (CHROMIUM and DRIVER):
        pytest.skip("needs chromium and chromedriver")
    driver = start(tmp_path_factory.mktemp("profile"))
    yield driver
    driver.quit()


@pytest.fixture
def server(roomy_server: Running) -> Running:
    return roomy_server


@pytest.fixture
def page(browser: Chrome, server: Running) -> Iterator[Page]:
    from page_driver import Page

    browser.get_log("browser")
    page = Page(browser, server.url)
    yield page
    assert [told for told in page.problems() if "Content Security Policy" in told or "Uncaught" in told] == []
