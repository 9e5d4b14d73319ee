"""A configuration becomes a model with its weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch

from core.interfaces.build import BuildContext
from core.interfaces.errors import PluginError
from core.interfaces.hardware import HardwareBackend
from core.interfaces.model import CausalLM
from core.runner.config import RunnerConfig
from core.runner.kv_scales import KvScaleReader, describe
from core.runner.weights import LoadReport, Progress, dummy_weights, load_weights
from core.runner.weights_rules import HEADS, RuleTable, leaving_out, without_head

logger = logging.getLogger(__name__)


def load_model(
    config: RunnerConfig, hardware: HardwareBackend, device: torch.device, progress: Progress | None = None
) -> tuple[CausalLM, LoadReport | None]:
    """Build the model and fill its weights; the report is None for random weights. Raises CheckpointError, WeightError,
    PluginError for what the device gives."""
    rules = leaving_out(config.arch.weights(config.spec), config.quant.ignored())
    ctx = BuildContext(
        dtype=config.dtype,
        device=device,
        ops=config.ops,
        quant=config.quant,
        moe=config.moe,
        tp=config.tp,
        max_tokens=config.max_step_tokens,
        context_length=config.context_length,
        layers=_checked_layers(hardware),
        sources=RuleTable(rules).sources,
    )
    model: Any = config.arch.build(config.spec, ctx)
    report = None
    if config.spec.task == "embed" and all(getattr(model, name, None) is None for name in HEADS):
        rules = without_head(rules)
    if config.load_format == "dummy" or config.checkpoint is None:
        dummy_weights(model, config.seed)
    else:
        wanted = config.scales_kv and config.kv_scales is None
        reader = KvScaleReader(config.quant.kv_scales(), config.spec, wanted=wanted)
        report = load_weights(
            model, rules, config.checkpoint, threads=config.load_threads, progress=progress, kv_scales=reader
        )
        _tell_kv_scales(config, report)
    prepared = hardware.prepare_model(model)
    if prepared is None:
        raise PluginError(f"device {type(hardware).__qualname__}: prepare_model() returned None")
    return prepared, report


def _tell_kv_scales(config: RunnerConfig, report: LoadReport) -> None:
    if config.kv_scales is not None or config.tp.rank:
        return
    dtype = str(config.kv_dtype or config.dtype).removeprefix("torch.")
    text = describe(report.kv_scales, config.spec, dtype, eight_bits=config.scales_kv)
    if text:
        logger.info("%s", text)


def _checked_layers(hardware: HardwareBackend) -> Mapping[str, type]:
    """The device's layer classes. Raises PluginError for one that replaces nothing of core's: it would be ignored."""
    layers = dict(hardware.layers())
    for name, cls in layers.items():
        bases = cls.__mro__[1:] if isinstance(cls, type) else ()
        if not any(base.__name__ == name and base.__module__.startswith("core.layers.") for base in bases):
            raise PluginError(
                f"device {type(hardware).__qualname__}: layers() has {cls!r} for {name!r}, which is no subclass of a "
                f"class of that name in core.layers",
                hint="name one of core's layer classes and derive from it",
            )
    return layers
