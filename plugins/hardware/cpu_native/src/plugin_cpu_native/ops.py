"""The operations of `core.ops` in C. What a kernel does not take goes to core's reference.

Importing this module compiles and loads the kernels, so that an operator who cannot have them reads why in
`core plugins list` and is served by core's own operations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F

from core.interfaces.context import PluginContext
from core.interfaces.ops import OpTable
from core.ops import reference
from plugin_cpu_native.library import ELEMENT_BYTES, Kernels, kernels

kernels()

_OUT_MULTIPLE, _IN_MULTIPLE = 16, 32


class PackedWeight:
    """A bfloat16 weight [N, K] in the kernels' layout [N/16, K/2, 16, 2]. Keeps no reference to the original."""

    __slots__ = ("in_features", "out_features", "packed", "pointer")

    def __init__(self, weight: torch.Tensor, library: Kernels) -> None:
        self.out_features, self.in_features = weight.shape
        self.packed = torch.empty(weight.numel(), dtype=torch.bfloat16)
        source = weight.detach().contiguous()
        self.pointer = self.packed.data_ptr()
        library.pack(source.data_ptr(), self.pointer, self.out_features, self.in_features)


class CpuNativeOps(OpTable):
    """float32 and bfloat16 on the CPU; linear layers only in bfloat16 and where the processor multiplies it."""

    def __init__(self, ctx: PluginContext) -> None:
        super().__init__(ctx)
        self._kernels = kernels()

    def ops(self) -> Mapping[str, Callable[..., Any]]:
        library = self._kernels
        table = {
            "rms_norm": _rms_norm(library),
            "add_rms_norm": _add_rms_norm(library),
            "qk_norm": _rms_norm(library),
            "rope": _rope(library),
            "qk_norm_rope": _qk_norm_rope(library),
            "silu_and_mul": _silu_and_mul(library),
        }
        if library.linear_kind:
            table |= {"pack_linear_weight": _pack(library), "linear": _linear(library)}
        return table


def _rms_norm(library: Kernels) -> Callable[..., torch.Tensor]:
    norm = library.norm

    def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """x [..., H], weight [H]."""
        element, dims, size = ELEMENT_BYTES.get(x.dtype), x.dim(), weight.shape[0]
        if element is None or weight.dtype != x.dtype or dims > 3 or dims < 2 or x.stride(-1) != 1:
            return reference.rms_norm(x, weight, eps)
        out = x.new_empty(x.shape)
        if dims == 2:
            norm(x.data_ptr(), None, weight.data_ptr(), None, out.data_ptr(),
                 x.shape[0], x.stride(0), 1, 0, size, element, eps)  # fmt: skip
        else:
            norm(x.data_ptr(), None, weight.data_ptr(), None, out.data_ptr(),
                 x.shape[0], x.stride(0), x.shape[1], x.stride(1), size, element, eps)  # fmt: skip
        return out

    return rms_norm


def _add_rms_norm(library: Kernels) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    norm = library.norm

    def add_rms_norm(
        x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """x, residual [T, H] -> (rms_norm(x + residual), x + residual)."""
        dtype = x.dtype
        element = ELEMENT_BYTES.get(dtype)
        if (
            element is None
            or weight.dtype != dtype
            or residual.dtype != dtype
            or x.dim() != 2
            or x.stride(1) != 1
            or residual.shape != x.shape
            or not residual.is_contiguous()
        ):
            return reference.add_rms_norm(x, residual, weight, eps)
        num_rows, size = x.shape
        both = x.new_empty((2, num_rows, size))
        start = both.data_ptr()
        norm(x.data_ptr(), residual.data_ptr(), weight.data_ptr(), start + num_rows * size * element, start,
             num_rows, x.stride(0), 1, 0, size, element, eps)  # fmt: skip
        return both[0], both[1]

    return add_rms_norm


def _turns(q_like: torch.Tensor, cos_sin: torch.Tensor, positions: torch.Tensor) -> bool:
    """Whether the kernel takes heads [T, H, D] in place."""
    return (
        q_like.dtype in ELEMENT_BYTES
        and cos_sin.dtype == torch.float32
        and cos_sin.stride(1) == 1
        and positions.dtype == torch.int64
        and positions.is_contiguous()
        and q_like.stride(2) == 1
        and q_like.stride(1) == q_like.shape[2]
    )


def _rope(library: Kernels) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    norm_rope = library.norm_rope

    def rope(
        q: torch.Tensor,
        k: torch.Tensor,
        cos_sin: torch.Tensor,
        positions: torch.Tensor,
        *,
        interleaved: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """New (q, k), turned; both lie in one block of memory."""
        if q.shape[2] != k.shape[2] or q.dtype != k.dtype or q.dtype not in ELEMENT_BYTES:
            return reference.rope(q, k, cos_sin, positions, interleaved=interleaved)
        both = torch.cat((q, k), 1)
        if not _turns(both, cos_sin, positions):
            return reference.rope(q, k, cos_sin, positions, interleaved=interleaved)
        num_q = q.shape[1]
        norm_rope(both.data_ptr(), None, None, cos_sin.data_ptr(), positions.data_ptr(), both.shape[0],
                  both.stride(0), cos_sin.stride(0), num_q, k.shape[1], both.shape[2], cos_sin.shape[1] // 2,
                  both.element_size(), interleaved, 0.0)  # fmt: skip
        return both[:, :num_q], both[:, num_q:]

    return rope


def _qk_norm_rope(library: Kernels) -> Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    norm_rope = library.norm_rope

    def qk_norm_rope(
        qkv: torch.Tensor,
        heads: tuple[int, int, int],
        q_weight: torch.Tensor | None,
        k_weight: torch.Tensor | None,
        eps: float,
        cos_sin: torch.Tensor,
        positions: torch.Tensor,
        *,
        interleaved: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """In place: the results are views of qkv."""
        if (
            not _turns(qkv, cos_sin, positions)
            or (q_weight is not None and q_weight.dtype != qkv.dtype)
            or (k_weight is not None and k_weight.dtype != qkv.dtype)
        ):
            return reference.qk_norm_rope(
                qkv, heads, q_weight, k_weight, eps, cos_sin, positions, interleaved=interleaved
            )
        norm_rope(qkv.data_ptr(), None if q_weight is None else q_weight.data_ptr(),
                  None if k_weight is None else k_weight.data_ptr(), cos_sin.data_ptr(), positions.data_ptr(),
                  qkv.shape[0], qkv.stride(0), cos_sin.stride(0), heads[0], heads[1], qkv.shape[2],
                  cos_sin.shape[1] // 2, ELEMENT_BYTES[qkv.dtype], interleaved, eps)  # fmt: skip
        q, k, v = torch.split_with_sizes(qkv, heads, 1)
        return q, k, v

    return qk_norm_rope


def _silu_and_mul(library: Kernels) -> Callable[..., torch.Tensor]:
    kernel = library.silu_and_mul

    def silu_and_mul(gate_up: torch.Tensor) -> torch.Tensor:
        """gate_up [T, 2I] -> [T, I]."""
        element = ELEMENT_BYTES.get(gate_up.dtype)
        if element is None or gate_up.dim() != 2 or gate_up.stride(1) != 1 or gate_up.shape[1] % 2:
            return reference.silu_and_mul(gate_up)
        num_rows, size = gate_up.shape[0], gate_up.shape[1] // 2
        out = gate_up.new_empty((num_rows, size))
        kernel(gate_up.data_ptr(), out.data_ptr(), num_rows, gate_up.stride(0), size, element)
        return out

    return silu_and_mul


def _pack(library: Kernels) -> Callable[[torch.Tensor], Any]:
    def pack_linear_weight(weight: torch.Tensor) -> Any:
        """weight [N, K] -> PackedWeight for bfloat16 and dimensions that fill tiles, else the weight itself."""
        if (
            weight.dtype != torch.bfloat16
            or weight.dim() != 2
            or not weight.numel()
            or weight.shape[0] % _OUT_MULTIPLE
            or weight.shape[1] % _IN_MULTIPLE
        ):
            return weight
        return PackedWeight(weight, library)

    return pack_linear_weight


def _linear(library: Kernels) -> Callable[..., torch.Tensor]:
    kernel, kind = library.linear, library.linear_kind

    def linear(x: torch.Tensor, weight: torch.Tensor | PackedWeight, bias: torch.Tensor | None = None) -> torch.Tensor:
        """x [T, K] -> [T, N]; weight [N, K] as a tensor or as `pack_linear_weight` returned it."""
        if isinstance(weight, torch.Tensor):
            return F.linear(x, weight, bias)
        if x.stride(-1) != 1:
            x = x.contiguous()
        num_rows, num_out = x.shape[0], weight.out_features
        out = x.new_empty((num_rows, num_out))
        kernel(x.data_ptr(), weight.pointer, None if bias is None else bias.data_ptr(), out.data_ptr(),
               num_rows, x.stride(0), num_out, weight.in_features, kind)  # fmt: skip
        return out

    return linear
