"""The site builds without a warning, holds every page, and can be exported as plain Markdown."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .blocks import ROOT, pages

NAV_TEXT = (ROOT / "mkdocs.yml").read_text()


def run(*words: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    done = run(sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path))
    assert done.returncode == 0, done.stderr
    home = (tmp_path / "index.html").read_text()
    # Works offline: nothing is fetched from elsewhere.
    assert not re.findall(r"""(?:src|href)=["']https?://[^"']*\.(?:js|css|woff2?)""", home)


def test_every_page_is_in_the_navigation() -> None:
    for page in (ROOT / "docs").rglob("*.md"):
        assert page.relative_to(ROOT / "docs").as_posix() in NAV_TEXT, page


def test_export_as_plain_markdown(tmp_path: Path) -> None:
    done = run(sys.executable, "scripts/export-docs", str(tmp_path))
    assert done.returncode == 0, done.stderr
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.md")}
    expected = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert written == expected | {"core.md"}
    everything = (tmp_path / "core.md").read_text()
    for page in expected:
        text = (tmp_path / page).read_text()
        assert text.rstrip() in everything
        for target in re.findall(r"\]\(([^)#\s]+)\)", text):
            assert "://" in target or (tmp_path / page).parent.joinpath(target).exists(), f"{page}: {target}"


def test_the_command_page_is_generated() -> None:
    done = run(sys.executable, "scripts/commands-page", "--check")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        assert "://" in target or (page.parent / target).exists(), target
