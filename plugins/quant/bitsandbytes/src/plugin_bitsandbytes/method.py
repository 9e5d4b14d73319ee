"""The QuantMethod that core finds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from core.interfaces.context import PluginContext
from core.interfaces.quant import ExpertsMethod, LinearMethod, QuantFacts, QuantMethod
from core.layers.skip import names_module
from core.layers.unquantized import UnquantizedExperts, UnquantizedLinear
from plugin_bitsandbytes.config import COMPUTE_DTYPES, read, stated
from plugin_bitsandbytes.settings import Options

# bitsandbytes takes a second to import, and every installed method is asked what it recognises: the modules that need
# it are imported where a layer is built.
_PARTS = ("gate", "up", "down")


class BitsAndBytes(QuantMethod):
    """Serves checkpoints that bitsandbytes quantized, and quantizes others while they are loaded if asked for.

    Raises CheckpointError or ConfigError when it is constructed, if the format cannot be served.
    """

    def __init__(self, hf_quant_config: Mapping[str, Any] | None, ctx: PluginContext) -> None:
        super().__init__(hf_quant_config, ctx)
        options = ctx.settings if isinstance(ctx.settings, Options) else Options(**ctx.settings)
        self.format = read(hf_quant_config, options)

    @classmethod
    def recognises(cls, hf_quant_config: Mapping[str, Any] | None) -> bool:
        return stated(hf_quant_config)

    def rejects(self, facts: QuantFacts) -> str | None:
        if facts.dtype not in COMPUTE_DTYPES:
            return f"it computes in {', '.join(COMPUTE_DTYPES)}, not in {facts.dtype}; choose one with --dtype"
        return None

    def linear(self, path: str, sources: Sequence[str]) -> LinearMethod:
        skipped = self._skipped(sources)
        if not self.format.prequantized and len(skipped) == len(sources):
            return UnquantizedLinear()
        from plugin_bitsandbytes.linear import QuantizedLinear

        return QuantizedLinear(self.format, sources, skipped)

    def experts(self, path: str, sources: Sequence[str]) -> ExpertsMethod:
        single = [source for source in sources if "{expert}" in source]
        if len(single) == len(_PARTS):
            names = dict(zip(_PARTS, single, strict=True))
        else:
            whole = next((source for source in sources if "{expert}" not in source), path)
            names = {part: f"{whole}.{{expert}}.{part}_proj" for part in _PARTS}
        skipped = [part for part, name in names.items() if self._skipped([name])]
        if not self.format.prequantized and len(skipped) == len(_PARTS):
            return UnquantizedExperts()
        from plugin_bitsandbytes.experts import QuantizedExperts

        return QuantizedExperts(self.format, names, skipped)

    def _skipped(self, sources: Sequence[str]) -> list[str]:
        return [source for source in sources if any(names_module(entry, source) for entry in self.format.skip)]
