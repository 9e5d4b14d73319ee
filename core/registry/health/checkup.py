"""The child process that imports plugins so that nobody else has to: `python -m core.registry.health.checkup`.

Reads one JSON request from standard input and appends one JSON line to the request's "report" file before and one after
each plugin, so that the parent knows which one it was if this process dies or hangs.

Request: {"report": path, "paths": folders to scan instead of sys.path or null, "packages": [module, ...],
"plugins": [[kind, "distribution:name"], ...]}. Packages are imported first, each alone counts what it brings in.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
from typing import Any, TextIO

from core.interfaces.errors import PluginError
from core.registry.catalog import Catalog
from core.registry.records import PluginRecord

# What a package should not bring in by being imported: seconds of start-up of every process that touches it.
HEAVY = ("torch", "transformers", "tensorflow", "jax", "pandas", "scipy")
_BINARY = re.compile(
    r"undefined symbol|cannot open shared object|symbol not found|DLL load failed|invalid ELF header|GLIBC|"
    r"incompatible architecture|wrong ELF class|cannot load shared library|Library not loaded",
    re.IGNORECASE,
)


def main() -> None:
    """Do one request and leave at once, whatever threads a plugin has started."""
    request = json.load(sys.stdin)
    paths = request["paths"]
    if paths is not None:
        sys.path[:0] = paths
    with open(request["report"], "a", encoding="utf-8") as report:
        for package in request["packages"]:
            _write(report, {"begin": ["package", package]})
            _write(report, {"end": ["package", package], **_import_package(package)})
        if request["plugins"]:
            catalog = Catalog.scan(paths=paths)
            for kind, name in request["plugins"]:
                _write(report, {"begin": [kind, name]})
                _write(report, {"end": [kind, name], **_load(catalog, kind, name)})
    os._exit(0)


def _import_package(package: str) -> dict[str, Any]:
    before = set(sys.modules)
    error = ""
    try:
        importlib.import_module(package)
    except BaseException as exc:
        error = f"{type(exc).__name__}: {exc}"
    new = {name.partition(".")[0] for name in set(sys.modules) - before}
    return {"error": error, "heavy": sorted(new & set(HEAVY))}


def _load(catalog: Catalog, kind: str, name: str) -> dict[str, Any]:
    try:
        target = catalog.load(kind, name)
    except PluginError as exc:
        return {"error": exc.message, "loader": _loader_error(exc.__cause__)}
    record = catalog.record(kind, name)
    out: dict[str, Any] = {"error": "", "warnings": list(record.warnings)}
    if kind == "hardware":
        out["probe"] = _probe(target)
    if record.config is not None:
        out["settings_error"] = _settings_error(record)
    return out


def _probe(target: Any) -> dict[str, Any]:
    try:
        result = target.probe()
        return {"available": bool(result.available), "reason": result.reason, "description": result.description}
    except BaseException as exc:
        return {"error": f"{type(exc).__name__}: {exc}"}


def _settings_error(record: PluginRecord) -> str:
    from core.registry.options import load_model

    try:
        load_model(record)
    except PluginError as exc:
        return exc.message
    return ""


def _loader_error(exc: BaseException | None) -> str:
    """What the dynamic loader said, if a compiled extension is behind the failure; else ""."""
    seen: set[int] = set()
    while exc is not None and id(exc) not in seen:
        seen.add(id(exc))
        if isinstance(exc, ImportError | OSError) and _BINARY.search(str(exc)):
            return str(exc)
        exc = exc.__cause__ or exc.__context__
    return ""


def _write(report: TextIO, line: dict[str, Any]) -> None:
    report.write(json.dumps(line) + "\n")
    report.flush()


if __name__ == "__main__":
    main()
