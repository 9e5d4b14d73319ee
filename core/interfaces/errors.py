"""The one exception tree. Users' mistakes are typed errors that say the way out; `assert` is for invariants.

CoreError
├── ConfigError            a setting is wrong (field, value, way out)
├── PluginError            a plugin cannot be used
│   ├── PluginNotFound     nothing of that name is installed
│   ├── PluginLoadError    import or construction failed
│   ├── PluginApiError     built for another interface version
│   ├── PluginClash        two distributions claim one name
│   └── PluginMismatch     a child process sees other plugins than its parent
├── CheckpointError        config, tokenizer or weights on disk are unusable
│   ├── UnknownArchitecture
│   └── WeightError        missing, unexpected or misshapen tensors
├── CapacityError          the memory budget cannot hold what was asked for
├── RequestError           one request is invalid; the server goes on
└── EngineError            the engine cannot answer
    ├── EngineDead         the engine process is gone
    └── Overloaded         the queue is full; retry later
"""

from __future__ import annotations

from typing import Any


class CoreError(Exception):
    """Base of every error `core` raises on purpose. `hint` is the way out, shown on its own line."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


class ConfigError(CoreError):
    """A setting cannot be used. `field` is its dotted name, `value` what was given."""

    def __init__(self, message: str, *, field: str = "", value: Any = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.field = field
        self.value = value


class PluginError(CoreError):
    """A plugin cannot be used."""


class PluginNotFound(PluginError):
    """Nothing of that kind and name is installed."""


class PluginLoadError(PluginError):
    """Import or construction of a selected plugin failed."""


class PluginApiError(PluginError):
    """A plugin was built for an interface version that this core does not speak."""


class PluginClash(PluginError):
    """Two distributions claim the same kind and name."""


class PluginMismatch(PluginError):
    """A child process resolved other plugins than its parent did."""


class CheckpointError(CoreError):
    """A checkpoint on disk is unusable."""


class UnknownArchitecture(CheckpointError):
    """No installed plugin serves the checkpoint's architecture."""


class WeightError(CheckpointError):
    """Missing, unexpected, truncated or misshapen tensors; the message lists them."""


class CapacityError(CoreError):
    """The memory budget cannot hold what was asked for."""


class RequestError(CoreError, ValueError):
    """One request is invalid. `param` names the field, `status` is the HTTP status, `code` OpenAI's code."""

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        status: int = 400,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.param = param
        self.code = code
        self.status = status


class EngineError(CoreError):
    """The engine cannot answer."""


class EngineDead(EngineError):
    """The engine process is gone or stuck; in-flight requests end with this."""


class Overloaded(EngineError):
    """The waiting queue is full. `retry_after_s` is the suggested pause in seconds."""

    def __init__(self, message: str, *, retry_after_s: int = 1) -> None:
        super().__init__(message, hint=f"retry after {retry_after_s} s")
        self.retry_after_s = retry_after_s
