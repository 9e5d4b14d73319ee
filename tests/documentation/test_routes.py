"""The HTTP page lists every route of the application, and no other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from core.config.sections import ServerSettings
from core.metrics.prometheus import ServerMetrics
from core.server.app import build_app
from core.server.context import ServerContext

from .blocks import ROOT

ROUTE = re.compile(r"`(GET|POST|PUT|DELETE) (/[^`]*)`")


def served() -> set[tuple[str, str]]:
    """(method, path) of all routes that core itself has."""
    app = build_app(ServerContext(ServerSettings(admin_routes="on"), ServerMetrics("tiny")))
    return {
        (method, route.path.replace(":path", ""))
        for route in leaves(app.routes)
        for method in (route.methods or ())
        if method not in ("HEAD", "OPTIONS")
    }


def leaves(routes: Any) -> Iterator[Any]:
    """Routes, those of included routers too."""
    for route in routes:
        inner = getattr(route, "routes", None)
        if hasattr(route, "path"):
            yield route
        elif inner is not None:
            yield from leaves(inner)
        else:
            yield from leaves(route.original_router.routes)


def test_the_page_lists_what_there_is() -> None:
    page = (ROOT / "docs" / "http.md").read_text()
    rows = "\n".join(line for line in page.splitlines() if line.startswith("| `"))
    listed = {(match[1], match[2]) for match in ROUTE.finditer(rows)}
    assert listed == served()
