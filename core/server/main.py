"""`core serve`: the server's life, from the port to the last request.

The port is taken first (a port in use is known before anything is loaded), then the engine's process is started, so
that it loads while this process imports its own half and reads the tokenizer. The server answers /health and /ready
from early on. The first SIGTERM or Ctrl-C drains, the second leaves at once; the engine's process never stays behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from core.config.loading import ResolvedSettings
from core.config.sections import ServerSettings
from core.engine.child import EngineProcess
from core.engine.collector import leave_started_objects
from core.engine.environment import device_environment
from core.engine.process_client import DEFAULT_FACTORY, ProcessClient
from core.hooks import HookManager
from core.interfaces.errors import ConfigError, CoreError
from core.metrics.loading import LoadingBar
from core.registry import Catalog, Resolution
from core.registry.resolve import resolve
from core.server.tenants.table import TenantTable
from core.tracing.log_lines import LogSink, log_to

if TYPE_CHECKING:
    import uvicorn

    from core.server.context import ServerContext
    from core.server.plugin_routes import PluginRouter
    from core.tracing.spans import Tracer

log = logging.getLogger("core.server")
BACKLOG = 4096
MAX_FILES = 1 << 16  # descriptors, as far as the system allows: each connection takes one
FATAL_DRAIN_S = 2  # clients of a dead engine have their errors by then


def serve(resolved: ResolvedSettings) -> int:
    """Serve until told to stop; returns the exit code (0 after a drain).

    Raises ConfigError if the port is taken or a setting is wrong, and the CoreError that stopped the engine's start.
    """
    started_s = time.monotonic()
    settings = resolved.settings
    TenantTable(settings.server)  # a file of keys that is wrong is known before anything is loaded
    raise_file_limit()
    sink = _log_to_stderr(settings.server)
    try:
        return _serve(resolved, started_s, sink)
    finally:
        sink.close()


def _serve(resolved: ResolvedSettings, started_s: float, sink: LogSink) -> int:
    settings = resolved.settings
    listener = bind(settings.server)
    with listener:
        process = EngineProcess.spawn(DEFAULT_FACTORY)
        try:
            catalog = Catalog.scan()
            environment = device_environment(settings, catalog)
            process.prepare(environment)
            resolution = resolve(settings, catalog)
            hooks = HookManager.start(resolution.hooks, settings, "server")
            life = _Life(resolved, resolution, hooks, process, listener, started_s, environment, sink)
            with asyncio.Runner(loop_factory=_loop_factory()) as runner:
                return runner.run(life.run())
        finally:
            process.kill()


def raise_file_limit() -> None:
    """Let this process have more descriptors than the 1024 that systems give who does not ask."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(MAX_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # some systems have another limit still
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def bind(settings: ServerSettings) -> socket.socket:
    """A socket on the configured address. Raises ConfigError."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=BACKLOG)
    except OverflowError as error:
        raise ConfigError(f"port {settings.port}: {error}", field="server.port", value=settings.port) from error
    except OSError as error:
        taken = "is in use" in str(error) or error.errno in (98, 48)
        raise ConfigError(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror or error}",
            field="server.port" if taken else "server.host",
            value=settings.port if taken else settings.host,
            hint="stop the other server, or choose another port with --port (0 picks a free one)"
            if taken
            else "check --host and --port",
        ) from error


class _Life:
    """One run of the server."""

    def __init__(
        self,
        resolved: ResolvedSettings,
        resolution: Resolution,
        hooks: HookManager,
        process: EngineProcess,
        listener: socket.socket,
        started_s: float,
        environment: Mapping[str, str],
        sink: LogSink,
    ) -> None:
        self._resolved = resolved
        self._settings = resolved.settings
        self._resolution = resolution
        self._hooks = hooks
        self._process = process
        self._listener = listener
        self._started_s = started_s
        self._environment = environment
        self._sink = sink
        self._exit_code = 0
        self._num_signals = 0
        self._bar = LoadingBar()
        self._server: uvicorn.Server | None = None
        self._ctx: ServerContext | None = None
        self._loading: asyncio.Task[None] | None = None
        self._resuming: asyncio.Future[dict[str, Any]] | None = None

    async def run(self) -> int:
        """From here to the exit code."""
        from core.metrics.prometheus import ServerMetrics

        settings = self._settings
        metrics = ServerMetrics(self._name, settings.server.metrics_aliases)
        metrics.lost_log_lines = lambda: self._sink.num_lost
        plugin_metrics, tracer = self._hooks.metrics(), self._tracer()
        engine = ProcessClient(
            settings,
            msgspec.msgpack.encode(self._resolution.lock()),
            environment=self._environment,
            process=self._process,
            on_fatal=self._fatal,
            on_progress=self._bar,
            observer=metrics,
        )
        with self._signals():
            starting = asyncio.create_task(engine.start())
            await asyncio.sleep(0)  # the engine has its orders before this process is busy importing
            try:
                # Imports take a while and hold the interpreter; the engine's process does not wait for them.
                from core.server.context import ServerContext

                ctx = self._ctx = ServerContext(
                    settings.server, metrics, engine, plugin_metrics=plugin_metrics, started_s=self._started_s
                )
                self._server = _uvicorn(ctx, self._routers(ctx), tracer)
                serving = asyncio.create_task(self._server.serve([self._listener]))
                self._loading = asyncio.create_task(self._become_ready(ctx, starting, engine))
                await asyncio.wait({serving, self._loading}, return_when=asyncio.FIRST_COMPLETED)
                if self._loading.done() and not self._loading.cancelled() and self._loading.exception() is not None:
                    self._server.should_exit = True
                await serving
                if not self._loading.done():
                    self._loading.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await self._loading
            finally:
                starting.cancel()
                await engine.stop(drain=False, timeout_s=0)
                await asyncio.gather(starting, return_exceptions=True)
                if tracer is not None:
                    await asyncio.to_thread(tracer.close)
        return self._exit_code

    def _tracer(self) -> Tracer | None:
        server = self._settings.server
        if server.otlp_traces_endpoint is None:
            return None
        from core.tracing.spans import Tracer

        return Tracer(self._name, server.otlp_traces_endpoint, server.otlp_service_name)

    def _routers(self, ctx: ServerContext) -> list[PluginRouter]:
        from core.server.access import Access
        from core.server.plugin_routes import make_routers

        access = Access(ctx, self._name, self._resolution.effective)
        return make_routers(self._resolution.routes, self._settings.plugins, access)

    @property
    def _name(self) -> str:
        model = self._settings.model
        return model.served_model_name or model.model or self._resolution.checkpoint_choice.name

    async def _become_ready(self, ctx: ServerContext, starting: asyncio.Task[Any], engine: ProcessClient) -> None:
        """Load what this process needs, wait for the engine, say so."""
        from core.server.context import Phase
        from core.server.loading import load_service

        service_of = await asyncio.to_thread(load_service, self._settings, self._resolution, self._name)
        try:
            hello = await starting
        finally:
            self._bar.close()
        ctx.service = service_of(engine, hello)
        leave_started_objects()
        if ctx.phase is Phase.STARTING:
            ctx.phase = Phase.READY
            self._announce()

    def _announce(self) -> None:
        host, port = self._listener.getsockname()[:2]
        shown = "localhost" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
        url = f"http://{shown}:{port}"
        page = f"chat at {url}/ · " if self._settings.server.chat_page else ""
        seconds = time.monotonic() - self._started_s
        with contextlib.suppress(OSError, ValueError):  # a full disk or a closed pipe is no reason not to serve
            print(f"{self._name} is ready after {seconds:.1f} s: {page}OpenAI API at {url}/v1", flush=True)

    # Ends

    def _fatal(self, error: CoreError) -> None:
        """The engine is gone for good."""
        from core.server.context import Phase

        log.error("the engine is gone: %s", error)
        self._exit_code = 1
        if self._ctx is not None:
            self._ctx.phase, self._ctx.problem = Phase.FAILED, error.message
        if self._server is not None:
            self._server.config.timeout_graceful_shutdown = FATAL_DRAIN_S
            self._server.should_exit = True

    def _signalled(self, number: int) -> None:
        from core.server.context import Phase

        self._num_signals += 1
        if self._num_signals > 1:
            log.warning("leaving at once")
            self._exit_code = 128 + number
            if self._server is not None:
                self._server.should_exit = self._server.force_exit = True
            self._process.kill()
            return
        if self._ctx is None or self._server is None:  # nothing runs yet
            raise SystemExit(128 + number)
        log.info("draining for at most %g s; Ctrl-C leaves at once", self._settings.server.drain_timeout_s)
        if self._ctx.phase is Phase.STARTING and self._loading is not None:
            self._loading.cancel()
        self._ctx.phase = Phase.DRAINING
        if self._ctx.engine is not None and self._ctx.engine.paused:  # what it holds is to end, too
            self._resuming = asyncio.ensure_future(self._ctx.engine.control("resume"))
        self._server.should_exit = True

    def _reread_keys(self) -> None:
        if self._ctx is not None:
            self._ctx.tenants.reload()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        numbers = (signal.SIGINT, signal.SIGTERM)
        for number in numbers:
            loop.add_signal_handler(number, self._signalled, number)
        loop.add_signal_handler(signal.SIGHUP, self._reread_keys)
        try:
            yield
        finally:
            for number in (*numbers, signal.SIGHUP):
                loop.remove_signal_handler(number)


def _uvicorn(ctx: ServerContext, routers: Sequence[PluginRouter], tracer: Tracer | None) -> uvicorn.Server:
    import uvicorn

    from core.server.app import build_app
    from core.server.request_log import AccessLines

    logging.getLogger("uvicorn.access").addFilter(AccessLines(lambda: ctx.tenants.secrets))

    class Server(uvicorn.Server):
        """Signals are handled by `_Life`."""

        def capture_signals(self) -> Any:
            return contextlib.nullcontext()

    debug = ctx.settings.log_level == "debug"
    config = uvicorn.Config(
        build_app(ctx, routers, tracer),
        log_config=None,
        access_log=debug,
        http=_http_protocol(),
        lifespan="off",
        ws="none",
        backlog=BACKLOG,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=ctx.settings.drain_timeout_s,  # type: ignore[arg-type]
    )
    return Server(config)


def _http_protocol() -> Any:
    """A class, or the name of uvicorn's own where httptools is not installed."""
    try:
        from core.server.http_protocol import BoundedHttp
    except ImportError:
        return "h11"
    return BoundedHttp


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def _log_to_stderr(settings: ServerSettings) -> LogSink:
    sink = LogSink()
    log_to(sink, settings.log_format, "server")
    level = settings.log_level
    logging.getLogger("core").setLevel(level.upper())
    for noisy in ("uvicorn", "uvicorn.error"):
        logging.getLogger(noisy).setLevel(logging.DEBUG if level == "debug" else logging.ERROR)
    return sink
