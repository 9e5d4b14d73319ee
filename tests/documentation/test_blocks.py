"""Every code block of every page is run or checked, in the order of the page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .blocks import GENERATED, ROOT, blocks, pages, prose
from .session import PageSession

PAGES = [page for page in pages() if page.name not in GENERATED]
# Run by a test of its own, which times each step.
OWN_TEST = {"tutorial.md"}


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if p.name not in OWN_TEST and any(blocks(p))], ids=name)
def test_blocks_of_a_page_run_from_top_to_bottom(page: Path, tmp_path: Path) -> None:
    from plugin_demo import checkpoint

    with PageSession(tmp_path, checkpoint()) as session:
        for block in blocks(page):
            session.run(block)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_code_is_fenced(page: Path) -> None:
    """An indented block would escape the checks."""
    lines = prose(page).splitlines()
    for before, line in zip(["", *lines], lines, strict=False):
        indented = re.match(r"    \S", line) is not None and not before.strip()
        assert not indented, f"{name(page)}: {line!r} looks like an indented code block; use a fence"
