"""What can be seen in a package's sources without running them: private imports, unsafe loading, network at import."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PUBLIC = ("core.interfaces", "core.layers", "core.ops", "core.parsing", "core.testing", "core.attention")
_PICKLES = ("pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal")
_NETWORK = ("requests", "urllib", "urllib3", "httpx", "aiohttp", "socket", "ftplib")
_DOWNLOADS = ("hf_hub_download", "snapshot_download", "urlopen", "urlretrieve", "download_url_to_file")


class Remark(NamedTuple):
    """severity: "error" or "warning". line: 1-based."""

    severity: str
    check: str
    line: int
    what: str
    why: str
    fix: str


def remarks_on(path: Path) -> list[Remark]:
    """Of one Python file, in order of lines. A file that is no Python is an error."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError) as exc:
        line = getattr(exc, "lineno", None) or 1
        return [Remark("error", "source", line, "no valid Python", str(exc), "mend the file")]
    names = _imported_names(tree)
    found = [*_private_imports(tree), *_unsafe_loading(tree, names), *_network_at_import(tree, names)]
    return sorted(found, key=lambda remark: remark.line)


def contract_classes(path: Path) -> set[str]:
    """Names of the contract suites that classes of a test file subclass, e.g. "AttentionContract"."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return set()
    bases = {
        ast.unparse(base).rpartition(".")[2] for node in ast.walk(tree) if isinstance(node, ast.ClassDef)
        for base in node.bases
    }  # fmt: skip
    original = {
        alias.asname or alias.name: alias.name
        for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names
    }  # fmt: skip
    return {original.get(base, base) for base in bases}


def line_of_import(path: Path, module: str) -> int:
    """Line on which a file imports a module at its top level; 1 if it does not itself."""
    tree = ast.parse(path.read_bytes())
    for node in _at_import(tree):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if any(name.split(".")[0] == module for name in names):
            return int(getattr(node, "lineno", 1))
    return 1


def _private_imports(tree: ast.AST) -> Iterator[Remark]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            base = node.module or ""
            modules = [f"core.{alias.name}" for alias in node.names] if base == "core" else [base]
            if _is_public(base):
                hidden = [alias.name for alias in node.names if alias.name.startswith("_")]
                modules += [f"{base}.{name}" for name in hidden]
        else:
            continue
        for module in modules:
            private = any(part.startswith("_") for part in module.split("."))
            if module.split(".")[0] == "core" and module != "core" and (private or not _is_public(module)):
                yield Remark(
                    "error", "private", node.lineno, f"import of {module}",
                    "it is private to core and may change in any release",
                    f"use only {', '.join(PUBLIC)}; if something is missing there, ask for it",
                )  # fmt: skip


def _is_public(module: str) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in PUBLIC)


def _unsafe_loading(tree: ast.AST, names: dict[str, str]) -> Iterator[Remark]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = _called(node, names)
        module, _, function = called.rpartition(".")
        keywords = {word.arg: word.value for word in node.keywords}
        if module.split(".")[0] in _PICKLES and function in ("load", "loads", "Unpickler", "open"):
            yield Remark(
                "warning", "pickle", node.lineno, f"call of {called}", "it runs whatever code the data holds",
                "read safetensors, JSON or msgpack instead",
            )  # fmt: skip
        if called == "torch.load" and not _is_true(keywords.get("weights_only")):
            yield Remark(
                "warning", "pickle", node.lineno, "torch.load without weights_only=True",
                "it runs whatever code the file holds", "pass weights_only=True, or read safetensors",
            )  # fmt: skip
        if _is_true(keywords.get("trust_remote_code")):
            yield Remark(
                "warning", "remote-code", node.lineno, "trust_remote_code=True",
                "only the operator may let a checkpoint run code", "leave it out",
            )  # fmt: skip


def _network_at_import(tree: ast.Module, names: dict[str, str]) -> Iterator[Remark]:
    for node in _at_import(tree):
        called = _called(node, names) if isinstance(node, ast.Call) else ""
        if called.split(".")[0] in _NETWORK or called.rpartition(".")[2] in _DOWNLOADS:
            yield Remark(
                "warning", "network", node.lineno, f"call of {called} when the module is imported",  # type: ignore[attr-defined]
                "an import must not depend on a network", "call it when it is needed, and let core fetch files",
            )  # fmt: skip


def _at_import(tree: ast.AST) -> Iterator[ast.AST]:
    """Nodes that run when the module is imported."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) in (
            "TYPE_CHECKING", "typing.TYPE_CHECKING", "__name__ == '__main__'",
        ):  # fmt: skip
            continue
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            for part in (*getattr(node, "decorator_list", ()), *node.args.defaults):
                yield part
                yield from _at_import(part)
            continue
        yield node
        yield from _at_import(node)


def _imported_names(tree: ast.AST) -> dict[str, str]:
    """Local name -> what it stands for, over the whole file."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update({alias.asname: alias.name for alias in node.names if alias.asname})
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.update({alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names})
    return names


def _called(node: ast.Call, names: dict[str, str]) -> str:
    """Dotted name of what is called, local names resolved."""
    parts: list[str] = []
    function: ast.expr = node.func
    while isinstance(function, ast.Attribute):
        parts.append(function.attr)
        function = function.value
    if not isinstance(function, ast.Name):
        return ""
    return ".".join([names.get(function.id, function.id), *reversed(parts)])


def _is_true(value: ast.expr | None) -> bool:
    return isinstance(value, ast.Constant) and value.value is True
