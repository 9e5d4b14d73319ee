"""MkDocs hooks: files outside docs/ that pages link to (sources, READMEs) become pages of the site.

In the repository such links work as they stand. On the site, `[model](../core/interfaces/model.py)` leads to a page
with that file's text.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
LINK = re.compile(r"(\]\()([^)#\s]+)((?:#[^)]*)?\))")
LANGUAGES = {".py": "python", ".toml": "toml", ".yml": "yaml", ".yaml": "yaml", ".json": "json"}


def on_files(files: Files, config: Any) -> Files:
    """Add a page for every file outside docs/ that a page links to, and for those that such pages link to in turn."""
    pending = [(DOCS / posixpath.dirname(f.src_uri), f.content_string) for f in files.documentation_pages()]
    known: set[Path] = set()
    while pending:
        folder, text = pending.pop()
        for _, target, _ in LINK.findall(text):
            path = _outside(folder, target)
            if path is None or path in known:
                continue
            known.add(path)
            if path.suffix == ".md":
                pending.append((path.parent, path.read_text(encoding="utf-8")))
            content = _page(path)
            page = File.generated(config, _uri(path), content=content)
            page.inclusion = page.inclusion.NOT_IN_NAV
            files.append(page)
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point links that leave docs/ at those pages."""
    folder = posixpath.dirname(page.file.src_uri)

    def replace(match: re.Match[str]) -> str:
        path = _outside(DOCS / folder, match[2])
        if path is None:
            return match[0]
        return match[1] + posixpath.relpath(_uri(path), folder or ".") + match[3]

    return LINK.sub(replace, markdown)


def _outside(folder: Path, target: str) -> Path | None:
    """The file of the repository, outside docs/, that a link means."""
    if "://" in target or target.startswith("mailto:"):
        return None
    path = Path(os.path.normpath(folder / target))
    if path.is_dir():
        path = path / "README.md"
    inside = path.is_relative_to(DOCS) or not path.is_relative_to(ROOT)
    return None if inside or not path.is_file() else path


def _uri(path: Path) -> str:
    return f"source/{path.relative_to(ROOT).as_posix()}.md"


def _page(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    name = path.relative_to(ROOT).as_posix()
    if path.suffix == ".md":
        # Its own links are relative to where it stands; they leave docs/ too, so make them start at docs/source/….
        return LINK.sub(lambda m: m[1] + _rebased(path, m[2]) + m[3], text)
    return f"# {name}\n\n````{LANGUAGES.get(path.suffix, 'text')}\n{text}````\n"


def _rebased(path: Path, target: str) -> str:
    if "://" in target:
        return target
    absolute = Path(os.path.normpath(path.parent / target))
    if absolute.is_dir():
        absolute = absolute / "README.md"
    here = posixpath.dirname(_uri(path))
    if absolute.is_relative_to(DOCS):
        return posixpath.relpath(absolute.relative_to(DOCS).as_posix(), here)
    # `on_page_markdown` sees this page too: give it a path that it recognises as lying outside docs/.
    return os.path.relpath(absolute, DOCS / here)
