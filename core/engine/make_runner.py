"""From a Resolution to one rank's device and runner, and how many KV pages fit there. Every rank comes this way."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from core.engine.environment import apply_environment, core_dump_variables, variables_of, with_threads
from core.engine.set_up import context_of, set_up
from core.interfaces.attention import KV_DTYPES
from core.interfaces.build import Communicator
from core.interfaces.errors import CapacityError
from core.interfaces.hardware import HardwareBackend
from core.registry.context import plugin_context
from core.runner.config import RunnerConfig
from core.runner.runner import ModelRunner

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from core.config.sections import Settings
    from core.interfaces.context import PluginContext
    from core.registry.resolution import Choice, Resolution
    from core.runner.processors import LogitProcessors

MIN_PAGES = 2
MIN_FULL_LENGTHS = 32
logger = logging.getLogger("core.engine")


def make_hardware(settings: Settings, resolution: Resolution) -> HardwareBackend:
    """The device's backend, not initialised; what it wants in this process's environment is there."""
    choice, takes_threads = resolution.hardware, resolution.hardware.target.capabilities.threads
    assert choice.record is not None
    threads, ranks = settings.engine.cpu_threads, resolution.tensor_parallel_size
    if threads is not None and not takes_threads:
        logger.warning("cpu_threads=%d has no effect: %s does not compute on the host's threads", threads, choice.name)
    if threads is None and ranks > 1:  # they share the cores
        from core.hardware.host_memory import usable_cores

        threads = max(1, usable_cores() // ranks)
    plugins = with_threads(resolution.plugin_settings, choice.name, threads if takes_threads else None)
    hardware: HardwareBackend = set_up(choice, choice.target, plugin_context(choice.record, plugins))
    # A process of our own has them long since; here they are for whoever embeds the engine.
    dumps = core_dump_variables(hardware, settings.engine.device_core_dumps)
    apply_environment({**variables_of(hardware), **dumps}, choice.name)
    return hardware


def make_runner(
    settings: Settings,
    resolution: Resolution,
    hardware: HardwareBackend,
    tp: Communicator,
    *,
    kind: type[ModelRunner] = ModelRunner,
    broadcast: Callable[[torch.Tensor], torch.Tensor] | None = None,
    processors: Callable[[torch.device], LogitProcessors] | None = None,
) -> ModelRunner:
    """The runner of rank `tp.rank`, nothing loaded. kind: its class. processors: makes those that requests may name."""
    import torch

    from core.ops.fixed_rows import fixed_rows
    from core.ops.table import build_ops

    device = set_up(resolution.hardware, hardware.initialize, tp.rank)

    def made(choice: Choice) -> PluginContext:
        return context_of(resolution, choice, device)

    tables = [set_up(choice, choice.target, made(choice)).ops() for choice in resolution.ops]
    quant, moe, kv_dtype = resolution.quant, resolution.moe, resolution.kv_cache_dtype
    ops = build_ops(hardware.ops(), *tables)
    if settings.engine.deterministic:
        ops = fixed_rows(ops)
    config = RunnerConfig(
        spec=resolution.spec,
        arch=resolution.arch,
        quant=set_up(quant, quant.target, resolution.quant_config, made(quant)),
        moe=set_up(moe, moe.target, made(moe)),
        ops=ops,
        attention=tuple(choice.target for choice in resolution.attention),
        attention_contexts=tuple(made(choice) for choice in resolution.attention),
        tp=tp,
        dtype=getattr(torch, resolution.dtype),
        kv_dtype=getattr(torch, KV_DTYPES[kv_dtype]) if kv_dtype in KV_DTYPES else None,
        kv_scales=resolution.kv_scales[tp.rank] if resolution.kv_scales else None,
        page_size=resolution.page_size,
        max_running=settings.scheduler.max_running_requests,
        chunk_tokens=resolution.chunk_tokens,
        context_length=resolution.context_length,
        checkpoint=resolution.checkpoint,
        load_format="dummy" if settings.model.load_format == "dummy" else "safetensors",
        load_threads=settings.model.load_threads,
        seed=settings.engine.random_seed or 0,
        facts=resolution.facts,
        processors=processors(device) if processors is not None else None,
        broadcast=broadcast,
    )
    return kind(config, hardware)


def plan_pages(
    settings: Settings, resolution: Resolution, hardware: HardwareBackend, page_bytes: int, sharing: int = 1
) -> int:
    """Pages of each cache group, the null page included. Raises CapacityError with the numbers if fewer than two
    can be had. Unless asked for by number, not more than would ever be of use: every slot at full length, and room
    for cached prefixes where slots are few. sharing: ranks that take their KV memory from the same budget."""
    cache, page_size = settings.cache, resolution.page_size
    asked = None if cache.kv_cache_bytes is None else cache.kv_cache_bytes * sharing
    budget = hardware.kv_budget_bytes(cache.memory_fraction, asked) // sharing
    pages = budget // max(page_bytes, 1) - 1  # without the null page
    if cache.max_total_tokens is not None:
        pages = min(pages, cache.max_total_tokens // page_size)
    if cache.kv_cache_bytes is None and cache.max_total_tokens is None:
        longest = -(-resolution.context_length // page_size) + 1  # overlap may run a token past the end
        pages = min(pages, longest * max(settings.scheduler.max_running_requests, MIN_FULL_LENGTHS))
    if pages < MIN_PAGES:
        limit = f"max_total_tokens is {cache.max_total_tokens}" if cache.max_total_tokens is not None else ""
        raise CapacityError(
            f"the KV cache would hold {max(pages, 0)} pages of {page_size} tokens, at least {MIN_PAGES} are needed: "
            f"a page takes {page_bytes} bytes and the budget is {budget} bytes{'; ' + limit if limit else ''}",
            hint="raise --kv-cache-bytes, --memory-fraction or --max-total-tokens, or use a smaller --page-size",
        )
    return pages + 1


def pages_of(settings: Settings, resolution: Resolution, hardware: HardwareBackend, runner: ModelRunner) -> int:
    """`plan_pages` of this rank, whose weights are loaded."""
    sharing = resolution.tensor_parallel_size if hardware.shares_host_memory(runner.device) else 1
    return plan_pages(settings, resolution, hardware, runner.kv_bytes_per_page(), sharing)
