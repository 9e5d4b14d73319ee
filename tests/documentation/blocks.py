"""Code blocks of the documentation's pages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Written by scripts, which have a check of their own.
GENERATED = ("commands.md", "configuration.md", "metrics.md")
# Between these markers stand files that a script put there; the files are tested where they come from.
EMBEDDED = re.compile(r"<!-- begin embedded.*?-->.*?<!-- end embedded -->", re.DOTALL)
FENCE = re.compile(r"^( *)(`{3,})([a-z]*)[^\n]*\n(.*?)^\1\2 *$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Block:
    """language: the word after the fence, "" if none. line: of the fence, from 1."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def pages() -> list[Path]:
    """Every page that people read, generated ones included."""
    return sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])


def blocks(page: Path) -> Iterator[Block]:
    """The page's fenced blocks, embedded files left out."""
    text = EMBEDDED.sub(lambda match: "\n" * match[0].count("\n"), page.read_text())
    for match in FENCE.finditer(text):
        indent = match[1]
        body = "".join(line.removeprefix(indent) for line in match[4].splitlines(keepends=True))
        yield Block(page, text.count("\n", 0, match.start()) + 1, match[3], body)


def prose(page: Path) -> str:
    """The page without its blocks."""
    return FENCE.sub("", EMBEDDED.sub("", page.read_text()))
