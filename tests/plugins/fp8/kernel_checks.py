"""What the tests of the kernels run in processes of their own: in Triton's interpreter, and through its compiler.

TRITON_INTERPRET=1 python kernel_checks.py numbers
python kernel_checks.py compile
"""

from __future__ import annotations

import sys

import torch

from plugin_fp8 import few, grouped, kernels, scales


def numbers() -> None:
    """Both products against float64, with odd shapes; prints the worst error of each."""
    torch.manual_seed(0)
    worst = {"few": 0.0, "stored": 0.0, "grouped": 0.0}
    for tokens, rows, columns, group in (
        (1, 40, 256, 0), (1, 40, 288, 32), (1, 37, 384, 128), (1, 5, 2064, 0), (3, 70, 256, 0), (17, 130, 1024, 128),
        (5, 64, 4096, 0), (20, 33, 96, 32), (64, 65, 80, 0),
    ):  # fmt: skip
        wide = torch.randn(rows, columns) * 0.05
        if group:
            scale = torch.rand(rows, -(-columns // group)) * 0.01 + 0.001
            stored = scales.to_e4m3(wide / scales.spread(scale, group, columns))
        else:
            stored, scale = scales.quantize_rows(wide)
        dense = stored.double() * scales.spread(scale, group or columns, columns).double()
        for bias in (None, torch.randn(rows)):
            x = torch.randn(tokens, columns)
            offset = 0 if bias is None else bias.double()
            scratch = kernels.Scratch()
            scratch.reserve(x.device, rows, columns, group, 64)
            for _ in range(2):  # twice: what it counts with is left as it was
                got = kernels.few_rows_product(x, stored, scale, group, bias, scratch)
            worst["few"] = max(worst["few"], error(got, x.double() @ dense.t() + offset))
            held, held_scale = scales.quantize_rows(x)
            wide = held.double() * held_scale.double()
            got = torch.empty(tokens, rows)
            tile = few.Tile(64, group or 128, 4, 3, 2 if columns >= 512 else 1)
            memory = (torch.empty(2 * rows * 64), torch.zeros(rows, dtype=torch.int32))
            few.run(tile, held, stored, scale, group, bias, got, memory, pdl=False, scale_x=held_scale)
            worst["stored"] = max(worst["stored"], error(got, wide @ dense.t() + offset))
            if group:
                held, held_scale = scales.quantize_groups(x, group)
                inputs = held.double() * scales.spread(held_scale, group, columns).double()
                got = kernels.grouped_product(held, held_scale, stored, scale, group, bias, torch.float32)
                worst["grouped"] = max(worst["grouped"], error(got, inputs @ dense.t() + offset))
    print(worst)
    assert max(worst.values()) < 1e-5, worst


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    assert got.shape == want.shape
    return float((got.double() - want).abs().max() / want.abs().max())


def compile_all() -> None:
    """Every kernel for a GPU that need not be here."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    target = GPUTarget("cuda", 90, 32)
    tensors = {"x": "*bf16", "weight": "*fp8e4nv", "scale": "*fp32", "bias": "*bf16", "y": "*bf16"}
    common = {"N": 6144, "K": 4096, "BIAS": True}
    for group, groups in ((0, 1), (128, 32)):
        jobs = [
            (few._one, tensors, {**common, "GROUPS": groups, "GROUP": group, "BLOCK_N": 4, "BLOCK_K": 2048, "VEC": 16,
                                 "PDL": True}, {"num_warps": 4}),
            *((few._some, {**tensors, "x": kind, "scale_x": "*fp32", "parts": "*fp32", "arrived": "*i32",
                           "tokens": "i32"},
               {**common, "GROUPS": groups, "GROUP": group, "BLOCK_T": 16, "BLOCK_N": 64, "BLOCK_K": 128, "SPLIT": 2,
                "PDL": True, "HALF": half, "STORED": kind == "*fp8e4nv", "AHEAD": 2},
               {"num_warps": 4, "num_stages": 5})
              for kind, half in (("*bf16", True), ("*bf16", False), ("*fp8e4nv", False))),
        ]  # fmt: skip
        if group:
            shapes = {**tensors, "x": "*fp8e4nv", "scale_x": "*fp32", "tokens": "i32", "stride_t": "i32",
                      "stride_g": "i32"}  # fmt: skip
            constants = {**common, "GROUPS": groups, "GROUP": group, "BLOCK_T": 128, "BLOCK_N": 128, "BAND": 8}
            jobs.append((grouped._grouped, shapes, constants, {"num_warps": 8, "num_stages": 4}))
        for kernel, types, constants, options in jobs:
            signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
            attributes = {
                (place,): [["tt.divisibility", 16]]
                for place, name in enumerate(kernel.arg_names) if signature[name].startswith("*")
            }  # fmt: skip
            source = ASTSource(kernel, signature, constexprs=constants, attrs=attributes)
            made = triton.compile(source, target=target, options=options)
            print(kernel.__name__, group, made.metadata.shared, "wgmma" in made.asm["ptx"], "cvt" in made.asm["ptx"])
            assert made.metadata.shared <= 232448


if __name__ == "__main__":
    {"numbers": numbers, "compile": compile_all}[sys.argv[1]]()
