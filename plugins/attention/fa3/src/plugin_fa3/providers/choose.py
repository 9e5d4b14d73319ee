"""Which build serves: the one that was asked for, else the first that is installed, loads and can."""

from __future__ import annotations

from core.interfaces.errors import ConfigError
from plugin_fa3.providers.base import Provider, ProviderError
from plugin_fa3.providers.binding import UnknownSignature
from plugin_fa3.providers.flash_attn import FlashAttnProvider
from plugin_fa3.providers.sglang import SglangProvider
from plugin_fa3.providers.vllm import VllmProvider

PROVIDERS: tuple[type[Provider], ...] = (SglangProvider, VllmProvider, FlashAttnProvider)


def installed() -> list[type[Provider]]:
    """Those whose library is on this machine, in order of choice. Loads nothing."""
    return [provider for provider in PROVIDERS if provider.library() is not None]


def how_to_install() -> str:
    names = [provider.install for provider in PROVIDERS]
    return f"no FlashAttention-3 library is installed: pip install {names[0]} (or {' or '.join(names[1:])})"


def choose(asked: str, *, sinks: bool) -> Provider:
    """The provider of that name, loaded, or for "auto" the first that works. sinks: the model has attention sinks.
    Raises ConfigError with what to do."""
    candidates = [p for p in PROVIDERS if p.library() is not None] if asked == "auto" else _named(asked)
    problems = []
    for candidate in candidates:
        if sinks and candidate.sinks_argument is None:
            problems.append(f"{candidate.name}: it has no attention sinks, which the model needs")
            continue
        try:
            return candidate()
        except (ProviderError, UnknownSignature) as exc:
            problems.append(f"{candidate.name}: {exc}")
    raise ConfigError(
        f"fa3.provider is {asked!r}, and no FlashAttention-3 can be used ({'; '.join(problems) or how_to_install()})",
        field="fa3.provider",
        value=asked,
        hint="use --set fa3.provider=auto and install another one, or use --attention-backend auto",
    )


def _named(asked: str) -> list[type[Provider]]:
    return [provider for provider in PROVIDERS if provider.name == asked]
