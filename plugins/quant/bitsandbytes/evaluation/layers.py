"""Milliseconds of all linear layers of a 0.6-billion-parameter decoder (28 layers, hidden size 1024), by tokens a call.

python evaluation/layers.py [--device cuda] [--threads 2] [--layers 28]
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch

from core.interfaces.context import PluginContext
from core.interfaces.quant import LinearPart, LinearShape
from core.layers.module import Layer
from core.layers.unquantized import UnquantizedLinear
from core.ops.reference import REFERENCES
from plugin_bitsandbytes.method import BitsAndBytes
from plugin_bitsandbytes.settings import Options

# (inputs, outputs) of qkv, o, gate and up, down.
SHAPES = ((1024, 4096), (2048, 1024), (1024, 6144), (3072, 1024))
NUM_LAYERS = 28
TOKENS = (1, 4, 16, 64, 256)
FORMATS: dict[str, dict[str, Any] | None] = {
    "bf16": None,
    "nf4": {"format": "nf4"},
    "nf4 nested": {"format": "nf4", "nested": True},
    "nf4, not fused": {"format": "nf4", "fused": False},
    "fp4": {"format": "fp4"},
    "int8": {"format": "int8"},
}


def make(options: dict[str, Any] | None, device: torch.device, ops: Any, num_layers: int) -> list[tuple[Any, int]]:
    layers = []
    for number in range(num_layers):
        for cols, rows in SHAPES:
            path = f"layers.{number}.{rows}x{cols}"
            shape = LinearShape(path, cols, (LinearPart("", rows, 0, rows),), False, cols)
            context = PluginContext(settings=Options(**(options or {})))
            method = UnquantizedLinear() if options is None else BitsAndBytes(None, context).linear(path, [path])
            module: Any = Layer()
            module.ops = ops
            method.create(module, shape, torch.bfloat16, device)
            method.load(module, shape, "weight", "", torch.randn(rows, cols).to(torch.bfloat16) * 0.02)
            method.finish(module, shape)
            layers.append((lambda x, m=method, module=module: m.apply(module, x), cols))
    return layers


@torch.inference_mode()
def measure(layers: list[tuple[Any, int]], tokens: int, device: torch.device) -> float:
    inputs = {cols: torch.randn(tokens, cols, dtype=torch.bfloat16, device=device) for _, cols in layers}
    best = float("inf")
    for _ in range(6):
        started = time.perf_counter()
        for apply, cols in layers:
            apply(inputs[cols])
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return 1000 * best


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layers", type=int, default=NUM_LAYERS, help="build fewer, and scale the time")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    ops: Any = REFERENCES
    if device.type == "cpu":
        from core.hardware.cpu import CpuBackend
        from core.ops.table import build_ops

        ops = build_ops(CpuBackend(PluginContext()).ops())
    print("| tokens a call |" + "".join(f" {tokens} |" for tokens in TOKENS))
    for name, options in FORMATS.items():
        layers = make(options, device, ops, args.layers)
        times = [measure(layers, tokens, device) * NUM_LAYERS / args.layers for tokens in TOKENS]
        print(f"| {name} |" + "".join(f" {time_ms:.1f} |" for time_ms in times), flush=True)


if __name__ == "__main__":
    main()
