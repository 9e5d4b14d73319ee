"""RequestRoute: a route whose function takes the request as it is and returns a response."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response


class RequestRoute(APIRoute):
    """FastAPI calls a function `(request) -> Response` directly: it has neither arguments to find for it nor a value to
    convert, and looks for both at every request otherwise. Other functions are called as ever."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        endpoint: Callable[..., Any] = self.endpoint
        if list(inspect.signature(endpoint).parameters) == ["request"] and not self.dependencies:
            return endpoint
        return super().get_route_handler()
