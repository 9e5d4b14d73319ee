"""Compile Triton kernels for GPUs that this machine does not have: Triton's compiler needs none.

Only in a process without TRITON_INTERPRET, since the decorator decides when a kernel is defined.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TARGETS: Mapping[str, GPUTarget] = {
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
    "gfx950": GPUTarget("hip", "gfx950", 64),
}
# Bytes of fast memory that a program may use at most.
SHARED_MEMORY: Mapping[str, int] = {"sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10, "gfx950": 160 << 10}
_BINARY = {"cuda": "cubin", "hip": "hsaco"}


def cross_compile(kernel: Any, arguments: Mapping[str, Any], target: str, **options: Any) -> Any:
    """Compile for one of TARGETS as a launch with such arguments would, and check that a binary came out which fits
    the chip. Returns triton's compiled kernel.

    arguments: by parameter name, all without a default. For a run-time argument its type as Triton writes it:
    "*bf16" (a pointer, aligned as torch allocates), "*i64", "i32", "fp32"; "i32:16" is a number that 16 divides. For
    a tl.constexpr, and for what is None or 1 in the launch, the value. options: num_warps, num_stages, launch_pdl, ...
    """
    names = kernel.arg_names
    constant = {names[index] for index in kernel.constexprs}
    given = {
        name: parameter.default
        for name, parameter in kernel.signature.parameters.items()
        if parameter.default is not parameter.empty
    } | dict(arguments)
    assert set(given) == set(names), f"missing {set(names) - set(given)}, unknown {set(given) - set(names)}"
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for index, name in enumerate(names):
        value = given[name]
        if name in constant or not isinstance(value, str):
            signature[name], constants[name] = "constexpr", value
            continue
        kind, _, divisor = value.partition(":")
        signature[name] = kind
        if divisor or kind.startswith("*"):
            attributes[(index,)] = [["tt.divisibility", int(divisor or 16)]]
    place = TARGETS[target]
    if place.backend != "cuda":
        options.pop("launch_pdl", None)
    options.setdefault("enable_fp_fusion", True)  # the default changes, and warns, between versions
    source = ASTSource(kernel, signature, constexprs=constants, attrs=attributes)
    compiled = triton.compile(source, target=place, options=options)
    assert compiled.asm[_BINARY[place.backend]], f"no binary for {target}"
    assert compiled.metadata.shared <= SHARED_MEMORY[target], f"{compiled.metadata.shared} bytes of shared memory"
    return compiled
