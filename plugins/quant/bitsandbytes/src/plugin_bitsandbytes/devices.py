"""What the installed library can do on a device."""

from __future__ import annotations

import torch

from core.interfaces.errors import ConfigError
from plugin_bitsandbytes.blocks import Blocks, num_blocks, quantize
from plugin_bitsandbytes.config import INT8
from plugin_bitsandbytes.kernels import TILE_ROWS, pack_tiles, unpack_tiles
from plugin_bitsandbytes.library import bitsandbytes, cextension
from plugin_bitsandbytes.library import functional as bnb

# int8 products of cuBLASLt need Turing.
_INT8_CAPABILITY = (7, 5)


def check_device(device: torch.device, kind: str) -> None:
    """Raise ConfigError unless bitsandbytes has kernels for `device`."""
    known = sorted(bitsandbytes.supported_torch_devices)
    if device.type not in known:
        raise _refused(device, f"has no kernels for it; it has some for {', '.join(known)}", "choose one of those")
    if device.type in ("cpu", "cuda") and not has_native_library():
        raise _refused(
            device, "could not load its native library", "`python -m bitsandbytes` says why; reinstall bitsandbytes"
        )
    if device.type == "cuda" and torch.version.hip is None and kind == INT8:
        capability = torch.cuda.get_device_capability(device)
        if capability < _INT8_CAPABILITY:
            stated = ".".join(map(str, capability))
            raise _refused(device, f"needs compute capability 7.5 for int8, and it has {stated}", "use nf4 or fp4")


def _refused(device: torch.device, why: str, hint: str) -> ConfigError:
    return ConfigError(
        f"device is {str(device)!r}, but bitsandbytes {bitsandbytes.__version__} {why}",
        field="engine.device",
        value=str(device),
        hint=f"{hint}, with --device, or use an unquantized checkpoint",
    )


def has_native_library() -> bool:
    mock = getattr(cextension, "ErrorHandlerMockBNBNativeLibrary", ())
    return not isinstance(cextension.lib, mock)


def can_fuse(device: torch.device, compute: torch.dtype) -> bool:
    """Whether the library has its fused product for this CPU, in the layout that this package knows."""
    if device.type != "cpu" or compute != torch.bfloat16 or not bnb.has_avx512bf16():
        return False
    if not hasattr(bnb, "_convert_weight_packed_for_cpu"):
        return False
    rows, cols = TILE_ROWS, 64
    numel = rows * cols
    packed = torch.empty(numel // 2, dtype=torch.uint8)
    absmax = torch.empty(num_blocks(numel, cols))
    quantize(torch.linspace(-1, 1, numel).view(rows, cols), "nf4", cols, packed, absmax, torch.float32)
    tiles, _ = pack_tiles(Blocks("nf4", cols, rows, cols, packed, absmax))
    return torch.equal(unpack_tiles(tiles), packed)
