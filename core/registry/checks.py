"""The last steps of `resolve`: what was chosen must fit together, and be what was asked for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from core.interfaces.errors import ConfigError, CoreError, PluginLoadError
from core.interfaces.hardware import HardwareBackend
from core.interfaces.quant import QuantFacts
from core.registry.candidates import wrong_hardware
from core.registry.context import plugin_context
from core.registry.resolution import Choice, Decision, Resolution

if TYPE_CHECKING:
    from core.config.sections import Settings

# Settings that ask for plugins by name -> the field of Resolution that holds what was chosen. Values that ask for
# nothing in particular are in _OPEN.
_PLUGINS = (
    ("engine.device", "hardware"),
    ("model.quantization", "quant"),
    ("engine.attention_backend", "attention"),
    ("engine.moe_backend", "moe"),
    ("cache.prefix_cache", "prefix_cache"),
    ("scheduler.schedule_policy", "schedule_policy"),
    ("model.tool_call_parser", "tool_parser"),
    ("model.reasoning_parser", "reasoning_parser"),
    ("engine.grammar_backend", "grammar"),
    ("engine.logit_processors", "logit_processors"),
    ("engine.hooks", "hooks"),
    ("server.routes", "routes"),
)
_VALUES = (
    ("model.dtype", "dtype"),
    ("engine.overlap", "overlap"),
    ("cache.page_size", "page_size"),
    ("cache.kv_cache_dtype", "kv_cache_dtype"),
)
_SAME = {"fp8": "fp8_e4m3"}  # other spellings of a value
_OPEN = (None, "auto", "", (), ("auto",))
_NOTHING = ("none",)  # of lists; where one plugin is chosen its name is "none" too


def check_device_of_all(resolution: Resolution) -> None:
    """Plugins that were not picked among several (a parser, a prefix cache) may still need another device."""
    name = resolution.hardware.name
    for choice in resolution.choices():
        why = wrong_hardware(choice.record, name) if choice.record is not None else ""
        if choice.record is not None and why:
            raise ConfigError(
                f"device is {name!r}, but {choice.record.title} cannot be used there: {why}",
                field="engine.device",
                value=name,
                hint="choose another with --device",
            )


def check_quant(resolution: Resolution) -> None:
    """The chosen method must be able to serve the model. It is asked here, before anything is loaded."""
    choice = resolution.quant
    assert choice.record is not None
    ctx = plugin_context(choice.record, resolution.plugin_settings)
    try:
        method = choice.target(resolution.quant_config, ctx)
        facts = QuantFacts(
            resolution.spec, resolution.dtype, resolution.hardware.name, resolution.tensor_parallel_size,
            resolution.moe.target,
        )  # fmt: skip
        why = method.rejects(facts)
    except CoreError:
        raise
    except Exception as exc:
        raise PluginLoadError(
            f"{choice.record.title} could not be set up: {type(exc).__name__}: {exc}",
            hint="choose another method with --quantization",
        ) from exc
    if why:
        raise ConfigError(
            f"quantization {choice.name!r} cannot serve {resolution.spec.architecture}: {why}",
            field="model.quantization",
            value=choice.name,
            hint="choose another method with --quantization, or an unquantized checkpoint",
        )


def check_deterministic(resolution: Resolution) -> None:
    """No chosen plugin may compute a request's results in a way that depends on the batch. Attention is chosen so;
    operations are called in tiles of fixed size; what computes by itself has to say that it can."""
    asked = [("quantization", resolution.quant, "an unquantized checkpoint")]
    if resolution.spec.num_experts:
        asked.append(("mixture-of-experts plugin", resolution.moe, "a model without experts"))
    for what, choice, way_out in asked:
        if not getattr(choice.target, "batch_invariant", False):
            raise ConfigError(
                f"deterministic is set, but results of {what} {choice.name!r} depend on the batch",
                field="engine.deterministic",
                value=True,
                hint=f"leave --deterministic out, or use {way_out}",
            )


def check_ranks(resolution: Resolution, *, deterministic: bool) -> None:
    """Whether the model can be spread over the ranks that were asked for. Sizes that do not divide are found by the
    layers, and how many devices there are is the device's own to say."""
    size = resolution.tensor_parallel_size
    if size == 1:
        return
    given: dict[str, Any] = {"field": "engine.tensor_parallel_size", "value": size}
    for what, choice in (("model", resolution.model), ("quantization", resolution.quant)):
        if choice.record is not None and choice.record.capabilities.get("tensor_parallel") is False:
            raise ConfigError(
                f"tensor_parallel_size is {size}, but {what} {choice.name!r} cannot be spread over ranks: "
                f"{choice.record.title} says so",
                **given,
                hint="use --tensor-parallel-size 1",
            )
    if deterministic:
        raise ConfigError(
            f"tensor_parallel_size is {size}, but deterministic is set: how ranks add up their parts may depend on "
            "the size of the batch",
            **given,
            hint="use --tensor-parallel-size 1, or leave --deterministic out",
        )


def describe_ranks(size: int, communicator: str) -> Decision:
    """The line of `explain`."""
    if size == 1:
        return Decision("tensor parallel", "1 rank", "every layer is computed whole")
    return Decision("tensor parallel", f"{size} ranks", f"asked for; a process each, they talk over {communicator}")


def check_device(resolution: Resolution, device: HardwareBackend) -> None:
    """The device must be able to run all of it."""
    why = device.rejects(resolution.facts)
    if why:
        raise ConfigError(
            f"device {resolution.hardware.name!r} cannot run this: {why}",
            field="engine.device",
            value=resolution.hardware.name,
            hint="change what is named above, or choose another with --device",
        )


def check_requested(settings: Settings, resolution: Resolution, *, explicit_cache: bool) -> None:
    """What the operator asked for must be what is in effect. Each step refuses what it cannot give, so this finds only
    mistakes of core itself; it is the place that makes a silent fall-back impossible.

    explicit_cache: whether the prefix cache was asked for; its default may give way, with a reason.
    """
    for dotted, attribute in _PLUGINS:
        asked = _setting(settings, dotted)
        if asked in _OPEN or (dotted == "cache.prefix_cache" and not explicit_cache):
            continue
        chosen: Choice | Iterable[Choice] = getattr(resolution, attribute)
        choices = (chosen,) if isinstance(chosen, Choice) else tuple(chosen)
        wanted = asked if isinstance(asked, list | tuple) else (asked,)
        for choice in choices:
            if not any(_is(choice, str(name)) for name in wanted):
                raise _differs(dotted, asked, choice.name)
        for name in wanted if isinstance(asked, list | tuple) and asked != _NOTHING else ():
            if not any(_is(choice, name) for choice in choices):
                raise _differs(dotted, asked, ", ".join(choice.name for choice in choices) or "none")
    for dotted, attribute in _VALUES:
        asked = _setting(settings, dotted)
        effective = getattr(resolution, attribute)
        effective = ("on" if effective else "off") if isinstance(effective, bool) else effective
        asked = _SAME.get(asked, asked) if isinstance(asked, str) else asked
        if asked not in _OPEN and asked != effective:
            raise _differs(dotted, asked, effective)


def _setting(settings: Settings, dotted: str) -> object:
    section, _, name = dotted.partition(".")
    return getattr(getattr(settings, section), name)


def _is(choice: Choice, asked: str) -> bool:
    return choice.name == asked or (choice.record is not None and choice.record.answers_to(asked))


def _differs(dotted: str, asked: object, effective: object) -> ConfigError:
    name = dotted.rpartition(".")[2]
    return ConfigError(
        f"{name} is {asked!r}, but {effective} would be in effect",
        field=dotted,
        value=asked,
        hint=f"leave --{name.replace('_', '-')} out to accept that, or report this: core should have said why",
    )
