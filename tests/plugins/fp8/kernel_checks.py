"""What the tests of the kernels run in processes of their own: in Triton's interpreter, and through its compiler.

TRITON_INTERPRET=1 python kernel_checks.py numbers
python kernel_checks.py compile
"""

from __future__ import annotations

import sys

import torch

from plugin_fp8 import few, front, grouped, kernels, scales


def numbers() -> None:
    """Both products, and the norm in front of them, against float64 with odd shapes; prints the worst errors."""
    torch.manual_seed(0)
    worst = {"few": 0.0, "grouped": 0.0, "front": 0.0}
    for tokens, rows, columns, group in (
        (1, 40, 256, 0), (1, 40, 288, 32), (1, 37, 384, 128), (1, 5, 2064, 0), (3, 70, 256, 0), (17, 130, 1024, 128),
        (5, 64, 4096, 0), (20, 33, 96, 32), (64, 65, 80, 0), (4, 70, 1536, 64),
    ):  # fmt: skip
        wide = torch.randn(rows, columns) * 0.05
        if group:
            scale = torch.rand(rows, -(-columns // group)) * 0.01 + 0.001
            stored = scales.to_e4m3(wide / scales.spread(scale, group, columns))
        else:
            stored, scale = scales.quantize_rows(wide)
        dense = stored.double() * scales.spread(scale, group or columns, columns).double()
        x, residual, norm = torch.randn(tokens, columns), torch.randn(tokens, columns), torch.rand(columns) + 0.5
        check_front(worst, x, residual, norm, group)
        held, held_scale = scales.quantize_groups(x, group or columns)
        inputs = held.double() * scales.spread(held_scale, group or columns, columns).double()
        scratch = kernels.Scratch()
        scratch.reserve(x.device, rows, columns, group)
        for bias in (None, torch.randn(rows)):
            want = inputs @ dense.t() + (0 if bias is None else bias.double())
            for _ in range(2):  # twice: what it counts with is left as it was
                got = kernels.few_product(held, held_scale, stored, scale, group, bias, torch.float32, scratch)
            worst["few"] = max(worst["few"], error(got, want))
            if group:
                got = kernels.grouped_product(held, held_scale, stored, scale, group, bias, torch.float32)
                worst["grouped"] = max(worst["grouped"], error(got, want))
        assert scratch.memory is None or not scratch.memory[1].any()
    print(worst)
    assert max(worst["few"], worst["grouped"]) < 1e-5, worst


def check_front(
    worst: dict[str, float], x: torch.Tensor, residual: torch.Tensor, norm: torch.Tensor, group: int
) -> None:
    """The normed sum as e4m3 is as near to it as e4m3 can be: half a step of three bits of mantissa, of each scale."""
    for other, keep in ((residual, True), (None, False)):
        found = front.norm_quantize(x, other, norm, 1e-5, group, keep_normed=keep, pdl=False)
        total = x if other is None else x + other
        assert torch.equal(found.total, total)
        want = torch.rms_norm(total.double(), (x.shape[1],), norm.double(), 1e-5)
        if keep:
            assert found.normed is not None
            torch.testing.assert_close(found.normed.double(), want, rtol=1e-5, atol=1e-6)
        size = group or x.shape[1]
        spread = scales.spread(found.scale, size, x.shape[1]).double()
        ideal = want / spread
        up = scales.to_e4m3(ideal.float()).double().abs()
        # The interpreter rounds a little otherwise, and loses the carry where a value becomes a power of two; what a
        # GPU gives is compared number by number in the plugin's evaluation.
        carried = (up > ideal.abs()) & (up.log2() % 1 == 0)
        off = (found.stored.double() * spread - want).abs().masked_fill(carried, 0)
        allowed = (want.abs() / 16).maximum(spread * 2.0**-10) * 1.25 + 1e-6
        worst["front"] = max(worst["front"], float((off / allowed).max()))
        assert bool((off <= allowed).all()), float((off / allowed).max())
        largest = scales.quantize_groups(want.float(), size)[1]
        torch.testing.assert_close(found.scale, largest, rtol=1e-5, atol=0)


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    assert got.shape == want.shape
    return float((got.double() - want).abs().max() / want.abs().max())


def compile_all() -> None:
    """Every kernel for a GPU that need not be here."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    target = GPUTarget("cuda", 90, 32)
    e4m3, wide = "*fp8e4nv", "*bf16"
    tensors = {
        "x": e4m3, "scale_x": "*fp32", "weight": e4m3, "scale": "*fp32", "bias": wide, "y": wide, "parts": "*fp32",
        "arrived": "*i32", "tokens": "i32", "stride_t": "i32", "stride_g": "i32",
    }  # fmt: skip
    rows = {"x": wide, "residual": wide, "weight": wide, "stored": e4m3, "scale": "*fp32", "total": wide,
            "normed": wide, "eps": "fp32"}  # fmt: skip
    for group, groups in ((0, 1), (128, 32)):
        shape = {"N": 6144, "K": 4096, "BIAS": True, "GROUPS": groups, "GROUP": group}
        jobs = [
            (few._few, tensors, {**shape, "BLOCK_T": 64, "BLOCK_N": 64, "BLOCK_K": group or 256, "SPLIT": 2, "AHEAD": 2,
                                 "PDL": True}, {"num_warps": 4, "num_stages": 4}),
            (front._front, rows, {"K": 4096, "GROUPS": groups, "GROUP": group, "BLOCK": 4096, "ADD": True, "KEEP": True,
                                  "PDL": True, "SMALLEST": 1e-12, "LARGEST": 448.0}, {"num_warps": 8}),
        ]  # fmt: skip
        if group:
            constants = {**shape, "BLOCK_T": 128, "BLOCK_N": 128, "BAND": 8}
            jobs.append((grouped._grouped, tensors, constants, {"num_warps": 8, "num_stages": 4}))
        for kernel, types, constants, options in jobs:
            signature = {name: "constexpr" if name in constants else types[name] for name in kernel.arg_names}
            attributes = {
                (place,): [["tt.divisibility", 16]]
                for place, name in enumerate(kernel.arg_names) if signature[name].startswith("*")
            }  # fmt: skip
            source = ASTSource(kernel, signature, constexprs=constants, attrs=attributes)
            made = triton.compile(source, target=target, options=options)
            assert made.metadata.shared <= 232448
            print(kernel.__name__, group, "wgmma" in made.asm["ptx"])


if __name__ == "__main__":
    {"numbers": numbers, "compile": compile_all}[sys.argv[1]]()
