"""The QuantMethod that core finds."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
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
        """Parts of one layer may be quantized and left out side by side; no list of modules is refused for that."""
        if self._all_left_out(sources):
            return UnquantizedLinear()
        from plugin_bitsandbytes.linear import QuantizedLinear

        return QuantizedLinear(self.format, sources)

    def experts(self, path: str, sources: Sequence[str]) -> ExpertsMethod:
        single = [source for source in sources if "{expert}" in source]
        if len(single) == len(_PARTS):
            names = dict(zip(_PARTS, single, strict=True))
        else:
            whole = next((source for source in sources if "{expert}" not in source), path)
            names = {part: f"{whole}.{{expert}}.{part}_proj" for part in _PARTS}
        if self._all_left_out(names.values()):
            return UnquantizedExperts()
        from plugin_bitsandbytes.experts import QuantizedExperts

        return QuantizedExperts(self.format, names)

    def _all_left_out(self, names: Collection[str]) -> bool:
        """Of a checkpoint that is quantized while it is loaded. One that is quantized already is taken as it stands:
        versions of transformers differ in which modules a list of skipped ones names."""
        if self.format.prequantized:
            return False
        return all(any(names_module(entry, name) for entry in self.format.skip) for name in names)
