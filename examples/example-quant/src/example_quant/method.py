"""What the entry point names: which checkpoints are read, and which layers are quantized."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from core.interfaces.context import PluginContext
from core.interfaces.errors import ConfigError
from core.interfaces.quant import ExpertsMethod, LinearMethod, QuantMethod
from core.layers.skip import skips
from core.layers.unquantized import UnquantizedExperts, UnquantizedLinear
from example_quant.experts import Int8Experts
from example_quant.linear import Int8Linear

NAME = "int8_rows"
_SKIPS = "modules_to_not_convert"


class Int8Rows(QuantMethod):
    """With a quantization_config the checkpoint holds integers; without one (the operator asked for this method) it
    holds floats, which are quantized while they are loaded."""

    def __init__(self, hf_quant_config: Mapping[str, Any] | None, ctx: PluginContext) -> None:
        super().__init__(hf_quant_config, ctx)
        self.stored = hf_quant_config is not None
        entries = (hf_quant_config or {}).get(_SKIPS) or []
        if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
            raise ConfigError(
                f"quantization_config.{_SKIPS} is {entries!r}", field=_SKIPS, hint="it must list module names"
            )
        self.skipped = entries

    @classmethod
    def recognises(cls, hf_quant_config: Mapping[str, Any] | None) -> bool:
        # False for None: an unquantized checkpoint must not be quantized because this package is installed.
        return hf_quant_config is not None and hf_quant_config.get("quant_method") == NAME

    def linear(self, path: str, sources: Sequence[str]) -> LinearMethod:
        # Skip lists speak of the checkpoint's modules and match whole path segments; `skips` knows both.
        if skips(self.skipped, path, sources, field=_SKIPS):
            return UnquantizedLinear()
        return Int8Linear(self.stored)

    def experts(self, path: str, sources: Sequence[str]) -> ExpertsMethod:
        if skips(self.skipped, path, sources, field=_SKIPS):
            return UnquantizedExperts()
        if self.stored:
            raise ConfigError(
                f"experts at {path} are stored as {NAME}, which this package only makes while loading",
                field="model.quantization",
                value=NAME,
                hint=f"store the experts unquantized and list them in {_SKIPS}, or use the unquantized checkpoint",
            )
        return Int8Experts()
