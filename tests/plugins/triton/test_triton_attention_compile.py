"""Attention's kernels compile for every GPU, with the tiles that are taken there, and fit its memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from cross_compile import SHARED_MEMORY, TARGETS, cross_compile

from core.interfaces.spec import AttentionSpec
from plugin_triton.attention import launcher as launches
from plugin_triton.attention.launcher import Cached, Launcher, Workspace
from plugin_triton.attention.sharing import SharedRows
from plugin_triton.attention.step import Step
from plugin_triton.attention.tiles import Device, HeadShape

TYPES = {
    torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32", torch.int32: "*i32",
    torch.float8_e4m3fn: "*fp8e4nv", torch.float8_e5m2: "*fp8e5",
}  # fmt: skip
ROWS = 64


@dataclass(frozen=True)
class Case:
    """One layer's heads and rule, the types it computes in and keeps, and the pages it keeps them in."""

    heads: int
    kv_heads: int
    dim: int
    v_dim: int = 0
    latent: int = 0
    rope: int = 0
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False
    dtype: torch.dtype = torch.bfloat16
    kv_dtype: torch.dtype | None = None
    page_size: int = 16
    invariant: bool = False


CASES = {
    "llama": Case(32, 8, 128),
    "llama_wide_pages_eight_bits": Case(32, 8, 128, kv_dtype=torch.float8_e4m3fn, page_size=64),
    "gemma": Case(8, 4, 256, window=1024, softcap=30.0),
    "glm_flash": Case(20, 1, 256, 256, latent=512, rope=64, page_size=64),
    "deepseek_rank": Case(128, 1, 192, 128, latent=512, rope=64),
    "half_of_64_with_sinks": Case(64, 8, 64, sinks=True, window=128, dtype=torch.float16, kv_dtype=torch.float8_e5m2),
    "float32_of_80": Case(4, 2, 80, dtype=torch.float32),
    "invariant": Case(32, 8, 128, window=1024, softcap=30.0, invariant=True),
}


class Compiled:
    """Stands for a kernel: what would be launched is compiled."""

    def __init__(self, kernel: Any, target: str) -> None:
        self.kernel, self.target = kernel, target
        self.arg_names = kernel.arg_names

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        assert all(size >= 1 for size in grid)
        return self.compile

    def compile(self, *args: Any, **keywords: Any) -> None:
        kernel = self.kernel
        options = {
            name: keywords.pop(name) for name in ("num_warps", "launch_pdl", "enable_fp_fusion") if name in keywords
        }
        given = dict(zip(kernel.arg_names, args, strict=False)) | keywords
        constants = {kernel.arg_names[index] for index in kernel.constexprs}
        open_ = {parameter.name for parameter in kernel.params if parameter.do_not_specialize}
        arguments = {
            name: value if name in constants else self.described(value, name in open_) for name, value in given.items()
        }
        cross_compile(kernel, arguments, self.target, **options)

    @staticmethod
    def described(value: Any, any_number: bool) -> Any:
        if isinstance(value, torch.Tensor):
            return TYPES[value.dtype]
        if isinstance(value, float):
            return "fp32"
        if any_number:
            return "i32"
        return 1 if value == 1 else "i32:16" if value % 16 == 0 else "i32"


def device_of(target: str) -> Device:
    if target.startswith("sm_"):
        return Device.nvidia(int(target[3:]) // 10, 132, SHARED_MEMORY[target])
    return Device(132, SHARED_MEMORY[target], wide=False)


# All of them on all targets take minutes; each case and each target are here with what tells them apart.
PAIRS = [
    *(("llama", target) for target in TARGETS),
    ("llama_wide_pages_eight_bits", "sm_90"), ("llama_wide_pages_eight_bits", "gfx950"),
    ("gemma", "sm_90"), ("glm_flash", "sm_90"), ("glm_flash", "sm_100"), ("deepseek_rank", "gfx942"),
    ("half_of_64_with_sinks", "sm_100"), ("float32_of_80", "gfx942"), *(("invariant", target) for target in TARGETS),
]  # fmt: skip


@pytest.mark.parametrize(("name", "target"), PAIRS)
def test_kernels_compile(name: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]
    for kernel in ("store_kernel", "decode_kernel", "prefix_kernel", "prefill_kernel"):
        monkeypatch.setattr(launches, kernel, Compiled(getattr(launches, kernel), target))
    spec = AttentionSpec(
        case.heads,
        case.kv_heads,
        case.dim,
        0.1,
        case.v_dim,
        case.window,
        case.softcap,
        case.sinks,
        case.latent,
        case.rope,
    )
    kv_dtype = case.kv_dtype or case.dtype
    launcher = Launcher(
        HeadShape.of(spec, case.heads, case.kv_heads), spec, dtype=case.dtype, kv_dtype=kv_dtype, scales=(1.0, 1.0),
        page_size=case.page_size, device=device_of(target), pdl=target.startswith("sm_"),
        shares=not case.invariant, invariant=case.invariant,
    )  # fmt: skip
    shape = launcher.shape

    def empty(*sizes: int, dtype: torch.dtype = case.dtype) -> torch.Tensor:
        return torch.empty(*sizes, dtype=dtype)

    numbers = torch.zeros(ROWS * 8, dtype=torch.int32)
    shared = SharedRows(ROWS, launcher.prefix_rows, torch.device("cpu")) if launcher.splits(ROWS).shared else None
    assert (shared is None) == (case.window is not None)
    table = numbers.view(ROWS, 8)
    step = Step(ROWS + 4, ROWS, 1, ROWS, ROWS + 400, 8, True, shared, numbers, table, 8, numbers, numbers)
    keys = empty(64, shape.num_kv_heads, shape.dim + shape.tail, dtype=kv_dtype)
    values = keys if case.latent else empty(64, shape.num_kv_heads, shape.v_dim, dtype=kv_dtype)
    cached, work = (
        Cached(keys, values),
        Workspace(empty(8, dtype=torch.float32), empty(8, dtype=torch.float32), numbers),
    )
    new = empty(8, shape.num_kv_heads, case.latent or case.dim), empty(8, shape.num_kv_heads, case.rope or shape.v_dim)
    q, out = empty(8, case.heads, case.latent or case.dim), empty(8, case.heads, shape.v_dim)
    q_tail = empty(8, case.heads, case.rope) if case.latent else None
    sinks = empty(case.heads) if case.sinks else None
    launcher.store(*new, numbers, cached, 0, 8)
    launcher.decode(q, out, cached, step, work, q_tail=q_tail, new=new, sinks=sinks)
    launcher.prefill(q, out, cached, step, q_tail=q_tail, sinks=sinks)
