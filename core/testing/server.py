"""memory_server: the real HTTP application over a real engine, in this process, without a socket.

    async with memory_server(plugins=[plugin("routes", "mine", MyRoutes)]) as server:
        reply = await server.client.post("/mine/summary", json={"text": "..."})

`with` instead of `async with` gives clients for code without an event loop. The default model is MockModel with a byte
per token: no checkpoint, no download, ready in a fraction of a second once torch is imported. Its texts mean nothing,
but everything else is as in `core serve`: limits, errors, streaming, cancellation, metrics, hooks.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import tempfile
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from core.config.loading import load_settings
from core.config.sections import Settings
from core.engine.build import build_engine
from core.engine.inline_client import InlineClient
from core.hooks import HookManager
from core.interfaces.errors import CoreError
from core.metrics.prometheus import ServerMetrics
from core.registry.catalog import Catalog
from core.registry.records import PluginRecord, canonical
from core.registry.resolution import Resolution
from core.registry.resolve import resolve
from core.server.access import Access
from core.server.app import build_app
from core.server.context import Phase, ServerContext
from core.server.loading import load_service
from core.server.plugin_routes import make_routers
from core.testing.byte_codec import byte_tokenizer
from core.testing.byte_tokenizer import ByteTokenizer
from core.testing.mock_hardware import MockHardware
from core.testing.mock_model import MockConfig, MockModel
from core.testing.transport import async_transport, sync_transport

if TYPE_CHECKING:
    from fastapi import FastAPI

T = TypeVar("T")
MOCK = "mock"
URL = "http://memory"
OWN = "core"
MOCK_CONFIG = MockConfig(
    vocab_size=ByteTokenizer.vocab_size, context_length=2048, eos_token_ids=ByteTokenizer.eos_token_ids
)


def plugin(
    kind: str,
    name: str,
    target: Any,
    *,
    distribution: str = "plugin-under-test",
    version: str = "0.0",
    config: type | str | None = None,
    capabilities: Mapping[str, Any] | None = None,
) -> PluginRecord:
    """A plugin as an object, without a distribution. target: what an entry point would name. config: the
    pydantic model of its settings, or "module:Model".
    """
    if isinstance(config, type):
        config = f"{config.__module__}:{config.__qualname__}"
    return PluginRecord(
        kind, name, distribution, version, f"{getattr(target, '__module__', '?')}:{name}",
        config=config, capabilities=dict(capabilities or {}), loaded=target,
    )  # fmt: skip


def memory_server(
    model: str | os.PathLike[str] = MOCK,
    *,
    plugins: Iterable[PluginRecord] = (),
    distributions: Iterable[str] | None = None,
    **settings: Any,
) -> MemoryServer:
    """A server to enter with `async with` or `with`.

    model: "mock", or a checkpoint as `core serve --model` takes it. plugins: made by `plugin`; routes among them are
    served unless `routes` says otherwise. distributions: names of installed ones whose plugins are visible too; by
    default none beside core's own for the mock, and all for a checkpoint. settings: any setting by name, as in `LLM`;
    `plugins` are the objects here, so plugins' own settings go into `plugin_settings={name: {key: value}}`.
    Entering raises whatever would stop `core serve`.
    """
    return MemoryServer(os.fspath(model), tuple(plugins), distributions, settings)


class MemoryServer:
    """See memory_server. client: an httpx.AsyncClient, or an httpx.Client after `with`."""

    client: Any
    app: FastAPI
    engine: InlineClient
    resolution: Resolution
    settings: Settings
    hooks: HookManager

    def __init__(
        self,
        model: str,
        plugins: tuple[PluginRecord, ...],
        distributions: Iterable[str] | None,
        settings: Mapping[str, Any],
    ) -> None:
        self._model = model
        self._plugins = plugins
        self._distributions = tuple(distributions) if distributions is not None else None
        self._given = dict(settings)
        self._portal: Any = None
        self._async_exit: contextlib.AsyncExitStack | None = None
        self._exit: contextlib.ExitStack | None = None

    # Life

    async def __aenter__(self) -> MemoryServer:
        import httpx

        await self._start()
        assert self._async_exit is not None
        self.client = httpx.AsyncClient(transport=async_transport(self.app), base_url=URL, headers=self._headers())
        self._async_exit.push_async_callback(self.client.aclose)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    def __enter__(self) -> MemoryServer:
        import httpx
        from anyio.from_thread import start_blocking_portal

        with contextlib.ExitStack() as stack:
            self._portal = stack.enter_context(start_blocking_portal())
            stack.callback(lambda: self._portal.call(self._stop))
            self._portal.call(self._start)
            transport = sync_transport(self.app, self._portal)
            self.client = stack.enter_context(httpx.Client(transport=transport, base_url=URL, headers=self._headers()))
            self._exit = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._exit is not None
        self._exit.close()

    async def _start(self) -> None:
        async with contextlib.AsyncExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="core-mock-"))
            self._resolve(Path(folder))
            settings, resolution = self.settings, self.resolution
            tokenizer = byte_tokenizer() if self._model == MOCK else None
            self.hooks = HookManager.start(resolution.hooks, settings, "engine")
            metrics = ServerMetrics(self.model_name)
            self.engine = InlineClient(
                lambda: build_engine(settings, resolution, hooks=self.hooks, tokenizer=tokenizer),
                on_fatal=self._fatal,
                random_seed=settings.engine.random_seed,
                observer=metrics,
            )
            plugin_metrics = self.hooks.metrics()
            self.context = ServerContext(settings.server, metrics, self.engine, plugin_metrics=plugin_metrics)
            access = Access(self.context, self.model_name, resolution.effective)
            self.app = build_app(self.context, make_routers(resolution.routes, settings.plugins, access))
            service_of = load_service(settings, resolution, self.model_name, tokenizer)
            stack.push_async_callback(self.engine.stop, drain=False)
            self.context.service = service_of(self.engine, await self.engine.start())
            self.context.phase = Phase.READY
            self._async_exit = stack.pop_all()

    async def _stop(self) -> None:
        if self._async_exit is not None:
            stack, self._async_exit = self._async_exit, None
            await stack.aclose()

    def _resolve(self, folder: Path) -> None:
        given = {**self._given}
        own_settings = given.pop("plugin_settings", {})
        defaults: dict[str, Any] = {
            "model": self._model, "device": MOCK, "max_running_requests": 16, "random_seed": 0, "log_interval_s": 0,
            "routes": [record.name for record in self._plugins if record.kind == "routes"],
        }  # fmt: skip
        if self._model == MOCK:
            (folder / "config.json").write_text(json.dumps(MOCK_CONFIG.hf_config()))
            defaults |= {"model": str(folder), "served_model_name": MOCK, "load_format": "dummy"}
        flags = {**defaults, **given, "plugins": own_settings}
        self.settings = load_settings(flags, origin="argument").settings
        self.resolution = resolve(self.settings, self._catalog())

    def _catalog(self) -> Catalog:
        visible = self._distributions
        if visible is None:
            visible = () if self._model == MOCK else None
        names = None if visible is None else {canonical(name) for name in (OWN, *visible)}
        installed = [
            record for record in Catalog.scan().records if names is None or canonical(record.distribution) in names
        ]
        mocks = [
            plugin("models", "MockForCausalLM", MockModel, distribution=OWN),
            plugin("hardware", MOCK, MockHardware, distribution=OWN),
        ]
        return Catalog.from_records([*installed, *mocks, *self._plugins])

    def _fatal(self, error: CoreError) -> None:
        self.context.phase, self.context.problem = Phase.FAILED, error.message

    # For tests

    @property
    def model_name(self) -> str:
        """As in replies."""
        model = self.settings.model
        return model.served_model_name or model.model or self.resolution.checkpoint_choice.name

    def run(self, function: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        """Call a coroutine function on the server's event loop; for code after `with`."""
        assert self._portal is not None, "after `async with`, await it"
        result: T = self._portal.call(function, *arguments)
        return result

    def _headers(self) -> dict[str, str]:
        key = self.settings.server.api_key
        return {"authorization": f"Bearer {key}"} if key else {}

    def openai(self, **options: Any) -> Any:
        """An `openai` client of this server: AsyncOpenAI, or OpenAI after `with`."""
        import openai

        sync = self._portal is not None
        client: Any = openai.DefaultHttpxClient if sync else openai.DefaultAsyncHttpxClient
        # The package of the client's base class: httpx, or one of its shape that this version of openai uses.
        library = importlib.import_module(client.__mro__[1].__module__.partition(".")[0])
        transport = sync_transport(self.app, self._portal, library) if sync else async_transport(self.app, library)
        made: Any = openai.OpenAI if sync else openai.AsyncOpenAI
        key = self.settings.server.api_key or "none"
        options = {"api_key": key, "base_url": f"{URL}/v1", "max_retries": 0, **options}
        return made(http_client=client(transport=transport), **options)
