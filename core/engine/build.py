"""From a Resolution to a running Engine: device, model, KV memory, scheduler, warm-up. Each phase is timed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from core.config.sections import Settings
from core.engine.engine import Engine
from core.engine.grammars import Backends, GrammarLimits, GrammarPool
from core.engine.group import RankGroup
from core.engine.listeners import EngineListeners
from core.engine.make_runner import make_hardware, make_runner
from core.engine.messages import AddRequest, Hello
from core.engine.processors import make_processors
from core.engine.set_up import context_of, set_up
from core.engine.vocabulary import Vocabularies
from core.engine.wire_errors import describe
from core.frontend.tokenizer import Tokenizer
from core.hooks import HookManager
from core.interfaces.errors import RequestError
from core.interfaces.hardware import HardwareBackend, MemoryInfo
from core.interfaces.hooks import EngineStarted, WeightsLoaded
from core.interfaces.pooling import PoolingPlan
from core.interfaces.prefix_cache import CacheGeometry
from core.memory.manager import MemoryManager
from core.registry.catalog import Catalog
from core.registry.lock import LockSet
from core.registry.resolution import Resolution
from core.registry.resolve import resolve
from core.runner.async_executor import ThreadExecutor
from core.runner.executor import Executor, InProcessExecutor
from core.runner.processors import LogitProcessors
from core.scheduler.facts import ModelFacts
from core.scheduler.request import Request
from core.scheduler.scheduler import Scheduler

if TYPE_CHECKING:
    from core.engine.start import StartEngine
    from core.runner.weights import LoadReport

Progress = Callable[[str, float], None]
_INT32, _UINT32 = np.dtype("<i4"), np.dtype("<u4")
_GIB = 1 << 30
logger = logging.getLogger("core.engine")


def build_from_start(start: StartEngine, progress: Progress) -> Engine:
    """The factory of a child process: resolve again, and refuse if it comes out otherwise than in the parent."""
    settings = Settings.model_validate_json(start.settings)
    lock = msgspec.msgpack.decode(start.lock, type=LockSet) if start.lock else None
    return build_engine(settings, resolve(settings, Catalog.scan(), lock), progress, own_process=True)


def build_engine(
    settings: Settings,
    resolution: Resolution,
    progress: Progress | None = None,
    hooks: HookManager | None = None,
    tokenizer: Tokenizer | None = None,
    *,
    own_process: bool = False,
) -> Engine:
    """Build and warm up. Raises CheckpointError, CapacityError, PluginLoadError or ConfigError; those of another rank
    name it.

    progress: phase for people, and fraction of it done. hooks: listeners that this process has started already.
    tokenizer: the model's, where this process has it already; else it is read when the first grammar is asked for.
    own_process: this process is the engine's alone, and may leave if its device is stuck for good.
    """
    if hooks is None:
        hooks = HookManager.start(resolution.hooks, settings, "engine")
    group: RankGroup | None = None
    try:
        hardware = make_hardware(settings, resolution)
        group = RankGroup.start(settings, resolution, hardware, own_process=own_process)
        return _build(settings, resolution, progress or _silent, hooks, tokenizer, hardware, group)
    except BaseException as error:
        if group is not None:
            group.close()
        if isinstance(error, Exception):
            hooks.call("core_engine_stopping", reason=describe(error)[0])
        raise


def _build(
    settings: Settings,
    resolution: Resolution,
    progress: Progress,
    hooks: HookManager,
    tokenizer: Tokenizer | None,
    hardware: HardwareBackend,
    group: RankGroup,
) -> Engine:
    timer = _PhaseTimer(progress)

    @cache
    def read_tokenizer() -> Tokenizer:
        model = settings.model
        folder = model.tokenizer or resolution.checkpoint
        return tokenizer or Tokenizer.load(folder, trust_remote_code=model.trust_remote_code)

    runner = make_runner(
        settings, resolution, hardware, group.communicator, broadcast=group.broadcast,
        processors=lambda device: make_processors(resolution, read_tokenizer, device),
    )  # fmt: skip
    timer.done("device")
    with group.loading(runner):
        report = runner.load(lambda done, total: progress("weights", done / total if total else 1.0))
    timer.done("weights")
    if group.size > 1:
        group.join(runner)
        timer.done("ranks")
    if hooks.has("core_weights_loaded"):
        hooks.call("core_weights_loaded", report=_weights_loaded(resolution, report))
    num_pages = group.allocate(runner)
    timer.done("KV cache")
    if settings.engine.deterministic:
        from core.runner.invariance import check_invariance

        check_invariance(runner, num_pages)
        timer.done("batch invariance")
    scheduler = make_scheduler(settings, resolution, num_pages)
    group.warm_up(runner)
    timer.done("warm-up")
    # Streams overlap by themselves; a device without them gets a thread.
    executor: Executor = InProcessExecutor(runner)
    if resolution.overlap and not hardware.capabilities.async_steps:
        executor = ThreadExecutor(runner)
    executor = group.executor(executor, runner)
    memory = hardware.memory()
    hello = make_hello(settings, resolution, num_pages, timer.phases, memory)
    capacity = (num_pages - 1) * resolution.page_size
    logger.info(
        "ready in %.2f s (%s); %s on %s, KV cache %d tokens in %d pages of %d; %.2f of %.2f GiB of device memory free",
        timer.total_s, timer.summary, resolution.spec.architecture, resolution.hardware.name, capacity, num_pages - 1,
        resolution.page_size, memory.free_bytes / _GIB, memory.total_bytes / _GIB,
    )  # fmt: skip
    if capacity < resolution.context_length:
        logger.warning(
            "the KV cache holds %d tokens, less than the context length of %d: longer requests are refused",
            capacity, resolution.context_length,
        )  # fmt: skip
    eos = tuple(resolution.spec.eos_token_ids)
    vocab_size = resolution.spec.vocab_size
    engine = Engine(
        scheduler,
        executor,
        hello,
        lambda message: to_request(message, eos, vocab_size, resolution.pooling, runner.processors),
        max_slots=settings.scheduler.max_running_requests,
        overlap=resolution.overlap,
        log_interval_s=settings.engine.log_interval_s,
        listeners=EngineListeners.of(hooks, settings.scheduler.max_running_requests),
        grammars=make_grammars(settings, resolution, read_tokenizer),
        ranks=group.ranks,
    )
    if hooks.has("core_engine_started"):
        started = EngineStarted(
            hello.architecture, MappingProxyType(hello.effective), num_pages, hello.page_size, hello.load_s
        )
        hooks.call("core_engine_started", info=started)
    return engine


def _weights_loaded(resolution: Resolution, report: LoadReport | None) -> WeightsLoaded:
    architecture = resolution.spec.architecture
    if report is None:
        return WeightsLoaded(architecture, 0, 0, 0.0)
    return WeightsLoaded(architecture, report.num_tensors, report.num_bytes, report.seconds, report.ignored)


def _silent(phase: str, fraction: float) -> None:
    return None


def to_request(
    message: AddRequest,
    eos_token_ids: tuple[int, ...],
    vocab_size: int,
    plan: PoolingPlan | None = None,
    processors: LogitProcessors | None = None,
) -> Request:
    """The scheduler's request. Raises RequestError for token ids outside the vocabulary, for what the model was not
    built for, and for logit processors that are not enabled or refuse their arguments. plan: what the model was built
    for; None is text alone."""
    (plan or PoolingPlan()).check(message.pooling, vocab_size)
    tokens = np.frombuffer(message.token_ids, _INT32)
    # Negative ones are the largest without a sign.
    if len(tokens) and int(tokens.view(_UINT32).max()) >= vocab_size:
        raise RequestError(
            f"the prompt holds token id {int(tokens.max() if tokens.min() >= 0 else tokens.min())}; "
            f"it must be between 0 and {vocab_size - 1}",
            param="prompt",
        )
    message.sampling.check_vocabulary(vocab_size)
    if message.sampling.processors:
        (processors or LogitProcessors()).open(message.sampling)
    return Request(
        id=message.id,
        tokens=tokens,
        sampling=message.sampling,
        seed=message.seed,
        namespace=message.namespace,
        priority=message.priority,
        arrival_s=message.arrival_s,
        eos_token_ids=eos_token_ids,
        tenant=message.tenant,
        weight=message.weight,
        timeout_s=message.timeout_s,
        pooling=message.pooling,
    )


def make_grammars(settings: Settings, resolution: Resolution, tokenizer: Callable[[], Tokenizer]) -> GrammarPool | None:
    """What compiles grammars, None where no backend was chosen. Tokenizer and backend are made with the first one."""
    choice, engine = resolution.grammar, settings.engine
    if choice.record is None:
        return None

    def vocabularies() -> Vocabularies:
        spec = resolution.spec
        return Vocabularies.of(tokenizer(), spec.vocab_size, spec.eos_token_ids)

    ctx = context_of(resolution, choice)
    return GrammarPool(
        Backends(vocabularies, lambda vocabulary: set_up(choice, choice.target, vocabulary, ctx)),
        choice.target.kinds,
        GrammarLimits(
            timeout_s=engine.grammar_timeout_s,
            cache_bytes=engine.grammar_cache_bytes,
            max_bytes=engine.max_grammar_bytes,
            threads=engine.grammar_threads,
            max_waiting=settings.scheduler.max_queued_requests,
        ),
        name=choice.name,
    )


def make_scheduler(settings: Settings, resolution: Resolution, num_pages: int) -> Scheduler:
    """Scheduler, memory and prefix cache for `num_pages` pages."""
    groups = len(resolution.spec.cache_groups)
    facts = ModelFacts(
        context_length=resolution.context_length,
        num_pages=num_pages,
        page_size=resolution.page_size,
        chunk_tokens=resolution.chunk_tokens,
        max_running=settings.scheduler.max_running_requests,
        num_groups=groups,
    )
    geometry = CacheGeometry(resolution.page_size, groups, settings.cache.eviction_policy)
    choice = resolution.prefix_cache
    cache = set_up(choice, choice.target, geometry, context_of(resolution, choice))
    memory = MemoryManager(
        cache,
        num_pages=num_pages,
        page_size=resolution.page_size,
        num_slots=facts.max_running,
        max_pages=facts.max_pages,
        num_groups=groups,
    )
    choice = resolution.schedule_policy
    policy = set_up(choice, choice.target, context_of(resolution, choice), settings.engine.random_seed or 0)
    return Scheduler(settings.scheduler, facts, memory, policy=policy)


def make_hello(
    settings: Settings, resolution: Resolution, num_pages: int, phases: Mapping[str, float], memory: MemoryInfo
) -> Hello:
    """What front ends are told. phases: seconds of the start. memory: the device's, once everything is allocated."""
    capacity = (num_pages - 1) * resolution.page_size
    return Hello(
        architecture=resolution.spec.architecture,
        vocab_size=resolution.spec.vocab_size,
        context_length=resolution.context_length,
        max_prompt_tokens=min(resolution.context_length, capacity) - 1,
        num_pages=num_pages,
        page_size=resolution.page_size,
        max_running_requests=settings.scheduler.max_running_requests,
        eos_token_ids=list(resolution.spec.eos_token_ids),
        effective=resolution.effective,
        load_s=sum(phases.values()),
        phases=dict(phases),
        device_total_bytes=memory.total_bytes,
        device_free_bytes=memory.free_bytes,
    )


class _PhaseTimer:
    """Seconds of each phase of the start."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._start_s = self._last_s = time.monotonic()
        self.phases: dict[str, float] = {}

    def done(self, phase: str) -> None:
        now_s = time.monotonic()
        self.phases[phase] = now_s - self._last_s
        self._last_s = now_s
        self._progress(phase, 1.0)

    @property
    def total_s(self) -> float:
        return self._last_s - self._start_s

    @property
    def summary(self) -> str:
        return ", ".join(f"{phase} {seconds:.2f}" for phase, seconds in self.phases.items())
