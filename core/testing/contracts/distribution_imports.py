"""What the modules of a package import, read from their source; nothing is run."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# What core promises to keep; all else in it may change without notice.
PUBLIC = ("core.attention", "core.interfaces", "core.layers", "core.ops", "core.parsing", "core.testing")


@dataclass(frozen=True, slots=True)
class Import:
    """One import. where: "file:line". module: its full dotted name. top_level: run when the file is imported."""

    where: str
    module: str
    top_level: bool


def imports_of(folder: Path, package: str) -> Iterator[Import]:
    """Imports of all modules below the package's folder, relative ones left out (they stay in the package)."""
    for path in sorted(folder.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        top_level = {id(node) for node in _run_at_import(tree)}
        for node in ast.walk(tree):
            where = f"{package}/{path.relative_to(folder)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield Import(where, alias.name, id(node) in top_level)
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                if node.module == "core":  # the names may be modules
                    for alias in node.names:
                        yield Import(where, f"core.{alias.name}", id(node) in top_level)
                else:
                    yield Import(where, node.module, id(node) in top_level)


def _run_at_import(tree: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(tree):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from _run_at_import(child)


def is_public(module: str) -> bool:
    """Whether a module of core is one that plugins may import."""
    return any(module == name or module.startswith(f"{name}.") for name in PUBLIC)
