"""Layers on a GPU against their definition and against bitsandbytes' own layers; then times. Exits 1 on a difference.

python evaluation/gpu_check.py [--device cuda]
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from typing import Any

import bitsandbytes as bnb
import bitsandbytes.functional as functional
import torch

from core.interfaces.context import PluginContext
from core.interfaces.quant import ExpertsShape, LinearPart, LinearShape
from core.layers.module import Layer
from core.ops.reference import REFERENCES
from plugin_bitsandbytes.method import BitsAndBytes
from plugin_bitsandbytes.settings import Options

FOUR_BIT = {"quant_method": "bitsandbytes", "load_in_4bit": True}
EIGHT_BIT = {"quant_method": "bitsandbytes", "load_in_8bit": True}


def filled(
    config: Any, options: dict[str, Any], shape: LinearShape, tensors: dict[str, dict[str, torch.Tensor]],
    dtype: torch.dtype, device: torch.device,
) -> Any:  # fmt: skip
    method = BitsAndBytes(config, PluginContext(settings=Options(**options))).linear(shape.path, [shape.path])
    module: Any = Layer()
    module.ops = REFERENCES
    method.create(module, shape, dtype, device)
    for part, given in tensors.items():
        for suffix, tensor in given.items():
            method.load(module, shape, suffix, part, tensor.cpu())
    method.finish(module, shape)
    module.apply_rows = lambda x: method.apply(module, x)
    module.weight_of = lambda: method.dense(module, shape, dtype, device)
    return module


def plain_shape(rows: int, cols: int) -> LinearShape:
    return LinearShape("layer", cols, (LinearPart("", rows, 0, rows),), False, cols)


class Checks:
    def __init__(self) -> None:
        self.num, self.wrong = 0, 0

    def close(self, what: str, got: torch.Tensor, wanted: torch.Tensor, tolerance: float) -> None:
        self.num += 1
        error = float((got.float() - wanted.float()).abs().max() / wanted.float().abs().max().clamp_min(1e-9))
        if not error <= tolerance:
            self.wrong += 1
            print(f"WRONG {what}: {error:.3g}, allowed {tolerance}", flush=True)


TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 2e-2, torch.float16: 4e-3}


def four_bit(checks: Checks, device: torch.device) -> None:
    for kind, nested, block_size, dtype in itertools.product(
        ("nf4", "fp4"), (False, True), (32, 64, 256, 4096), (torch.float32, torch.bfloat16, torch.float16)
    ):
        for rows, cols in ((256, 512), (96, 320), (33, 70), (5, 7)):
            what = f"{kind} nested={nested} {block_size} {dtype} {rows}x{cols}"
            weight = (torch.randn(rows, cols) * 0.05).to(device, dtype)
            packed, state = functional.quantize_4bit(
                weight, blocksize=block_size, compress_statistics=nested, quant_type=kind
            )
            wanted = functional.dequantize_4bit(packed, state)
            tensors = {"weight": packed} | {f"weight.{k}": v for k, v in state.as_dict(packed=True).items()}
            config = {**FOUR_BIT, "bnb_4bit_quant_type": kind, "llm_int8_skip_modules": []}
            shape = plain_shape(rows, cols)
            read = filled(config, {}, shape, {"": tensors}, dtype, device)
            options = {"format": kind, "nested": nested, "blocksize": block_size}
            made = filled(None, options, shape, {"": {"weight": weight}}, dtype, device)
            checks.close(f"{what} weight", read.weight_of(), wanted, 0.0)
            checks.close(f"{what} weight made", made.weight_of(), wanted, 0.0 if not nested else 1e-5)
            for tokens in (1, 4, 33, 300):
                x = torch.randn(tokens, cols, device=device).to(dtype)
                own = bnb.matmul_4bit(x, packed, quant_state=state)
                checks.close(f"{what} x {tokens} own", read.apply_rows(x), own, 0.0)
                exact = x.double() @ wanted.double().t()
                checks.close(f"{what} x {tokens}", made.apply_rows(x), exact, TOLERANCE[dtype])


def int8(checks: Checks, device: torch.device) -> None:
    for threshold, dtype in itertools.product((0.0, 2.0, 6.0), (torch.float32, torch.bfloat16, torch.float16)):
        for rows, cols in ((256, 512), (96, 320), (33, 70)):
            weight = (torch.randn(rows, cols) * 0.05).to(dtype)
            own = bnb.nn.Linear8bitLt(cols, rows, False, has_fp16_weights=False, threshold=threshold)
            own.weight.data = weight.clone()
            own = own.to(device).eval()
            tensors = {name: tensor.detach() for name, tensor in own.state_dict().items()}
            config = {**EIGHT_BIT, "llm_int8_threshold": threshold, "llm_int8_skip_modules": []}
            shape = plain_shape(rows, cols)
            read = filled(config, {}, shape, {"": tensors}, dtype, device)
            options = {"format": "int8", "threshold": threshold}
            made = filled(None, options, shape, {"": {"weight": weight}}, dtype, device)
            for tokens in (1, 4, 33, 300):
                x = torch.randn(tokens, cols, device=device).to(dtype)
                wanted = own(x.clone())
                for name, layer in (("read", read), ("made", made)):
                    checks.close(f"int8 {name} {threshold} {dtype} {rows}x{cols} x {tokens}", layer.apply_rows(x),
                                 wanted, 1e-3)  # fmt: skip


def ranks_and_parts(checks: Checks, device: torch.device) -> None:
    """qkv of three ranks, nested 64-blocks cut to 32."""
    weights = {name: (torch.randn(60, 96) * 0.05).to(device) for name in "qkv"}
    tensors, wanted = {}, {}
    for name, weight in weights.items():
        packed, state = functional.quantize_4bit(weight, compress_statistics=True, quant_type="nf4")
        wanted[name] = functional.dequantize_4bit(packed, state)
        tensors[name] = {"weight": packed} | {f"weight.{k}": v for k, v in state.as_dict(packed=True).items()}
    config = {**FOUR_BIT, "bnb_4bit_quant_type": "nf4"}
    for rank in range(3):
        parts = tuple(LinearPart(name, 20, 20 * i, 60, 20 * rank) for i, name in enumerate("qkv"))
        shape = LinearShape("qkv", 96, parts, False, 96)
        layer = filled(config, {}, shape, tensors, torch.float32, device)
        share = torch.cat([wanted[name][20 * rank : 20 * rank + 20] for name in "qkv"])
        checks.close(f"rank {rank}", layer.weight_of(), share, 0.0)
        x = torch.randn(5, 96, device=device)
        checks.close(f"rank {rank} product", layer.apply_rows(x), x @ share.t(), 1e-3)


def experts(checks: Checks, device: torch.device) -> None:
    for kind in ("nf4", "int8"):
        method = BitsAndBytes(None, PluginContext(settings=Options(format=kind))).experts("experts", ["experts"])
        shape = ExpertsShape("experts", 4, 128, 256, 256)
        module: Any = Layer()
        module.ops = REFERENCES
        method.create(module, shape, torch.bfloat16, device)
        both, down = torch.randn(4, 512, 128) * 0.1, torch.randn(4, 128, 256) * 0.1
        method.load(module, shape, "gate_up_proj", "", -1, both)
        method.load(module, shape, "down_proj", "", -1, down)
        assert method.finish(module, shape) is None
        x = torch.randn(9, 128, device=device, dtype=torch.bfloat16)
        ids = torch.randint(0, 4, (9, 2), device=device)
        scales = torch.rand(9, 2, device=device)
        got = method.apply(module, x, ids, scales)
        wanted = torch.zeros(9, 128, device=device)
        for token, slot in itertools.product(range(9), range(2)):
            e = int(ids[token, slot])
            gate, up = (module.gate_up[e].dense(torch.float32) @ x[token].float()).chunk(2)
            hidden = torch.nn.functional.silu(gate) * up
            wanted[token] += scales[token, slot] * (module.down[e].dense(torch.float32) @ hidden)
        checks.close(f"experts {kind}", got, wanted, 0.05)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda")
    device = torch.device(parser.parse_args().device)
    torch.manual_seed(0)
    checks = Checks()
    for check in (four_bit, int8, ranks_and_parts, experts):
        check(checks, device)
        print(check.__name__, checks.num, "checked,", checks.wrong, "wrong", flush=True)
    print(json.dumps({"torch": torch.__version__, "bitsandbytes": bnb.__version__, "device": str(device)}))
    sys.exit(bool(checks.wrong))


if __name__ == "__main__":
    main()
