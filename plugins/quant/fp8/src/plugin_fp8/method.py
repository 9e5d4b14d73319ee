"""The QuantMethod that core finds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from core.interfaces.context import PluginContext
from core.interfaces.quant import ExpertsMethod, LinearMethod, QuantFacts, QuantMethod
from core.layers.unquantized import UnquantizedExperts, UnquantizedLinear
from plugin_fp8 import kv
from plugin_fp8.config import read, recognises
from plugin_fp8.settings import Options

COMPUTE_DTYPES = ("bfloat16", "float16", "float32")
_PARTS = ("gate", "up", "down")


class Fp8(QuantMethod):
    """Serves e4m3 checkpoints, and quantizes others while they are loaded if asked for.

    Raises CheckpointError or ConfigError when it is constructed, if the format cannot be served.
    """

    def __init__(self, hf_quant_config: Mapping[str, Any] | None, ctx: PluginContext) -> None:
        super().__init__(hf_quant_config, ctx)
        self.options = ctx.settings if isinstance(ctx.settings, Options) else Options(**ctx.settings)
        self.format = read(hf_quant_config, self.options)
        self._scratch: Any = None

    @classmethod
    def recognises(cls, hf_quant_config: Mapping[str, Any] | None) -> bool:
        return recognises(hf_quant_config)

    def rejects(self, facts: QuantFacts) -> str | None:
        if facts.dtype not in COMPUTE_DTYPES:
            return f"it computes in {', '.join(COMPUTE_DTYPES)}, not in {facts.dtype}; choose one with --dtype"
        return None

    def linear(self, path: str, sources: Sequence[str]) -> LinearMethod:
        if self.format.leaves_out(path, sources):
            return UnquantizedLinear()
        # Kernels are imported where a layer is built, not where a format is recognised.
        from plugin_fp8.kernels import Scratch
        from plugin_fp8.linear import CheckpointLinear, OnlineLinear

        if self._scratch is None:
            self._scratch = Scratch()
        if not self.format.prequantized:
            return OnlineLinear(self._scratch)
        return CheckpointLinear(self.format, self._scratch)

    def experts(self, path: str, sources: Sequence[str]) -> ExpertsMethod:
        single = [source for source in sources if "{expert}" in source]
        names = single or [f"{sources[0] if sources else path}.{{expert}}.{part}_proj" for part in _PARTS]
        # Entries that name single experts are looked up with the first one's number.
        if self.format.leaves_out(path, [name.replace("{expert}", "0") for name in names]):
            return UnquantizedExperts()
        from plugin_fp8.experts import CheckpointExperts, OnlineExperts

        return CheckpointExperts(self.format) if self.format.prequantized else OnlineExperts()

    def ignored(self) -> Mapping[str, str]:
        return kv.LEFT_OUT

    def kv_cache_dtype(self) -> str | None:
        return kv.DTYPE if self.format.kv_cache else None

    def kv_scales(self) -> Mapping[str, str]:
        return kv.SCALES
