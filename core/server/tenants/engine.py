"""TenantEngine: the engine as the routes get it. Every request that goes in is some tenant's and within its limits."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import TYPE_CHECKING, Any, cast

from core.engine.client import EngineClient, EngineRequest, TokenChunk
from core.server.tenants.visit import Visit, current_visit

if TYPE_CHECKING:
    from core.config.sections import ServerSettings


class TenantEngine:
    """An EngineClient; all but `generate` is the engine's own."""

    def __init__(self, engine: EngineClient, settings: ServerSettings, model: str) -> None:
        self._engine = engine
        self._timeout_s = settings.request_timeout_s
        self._model = model

    @staticmethod
    def of(engine: EngineClient, settings: ServerSettings, model: str) -> EngineClient:
        """`engine`, behind the limits."""
        return cast(EngineClient, TenantEngine(engine, settings, model))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def generate(self, request: EngineRequest) -> AsyncIterator[TokenChunk]:
        """See EngineClient. Raises RequestError at once, before anything runs, if a limit is reached."""
        if self._timeout_s is not None:
            request.timeout_s = min(self._timeout_s, request.timeout_s or self._timeout_s)
        visit = current_visit.get()
        if visit is None:
            return self._engine.generate(request)
        visit.check_model(self._model)
        visit.take(request)
        stream = self._engine.generate(request)
        return stream if visit.tenant is None else _counted(stream, request, visit)


async def _counted(
    stream: AsyncIterator[TokenChunk], request: EngineRequest, visit: Visit
) -> AsyncGenerator[TokenChunk]:
    began = False
    try:
        async for chunk in stream:
            if not began and chunk.finish_reason not in ("error", "abort"):
                began = True
                visit.began(request, chunk.cached_tokens or 0)
            visit.generated(len(chunk.tokens))
            yield chunk
    finally:
        close = getattr(stream, "aclose", None)
        if close is not None:
            await close()
