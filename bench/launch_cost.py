"""Host time of a decoder layer that is launched kernel by kernel, on a machine without a GPU.

    python -m bench.launch_cost [--shape llama qwen3-moe llama-fp8] [--attention fa3 triton] [--tokens 128] [--check]

A prompt's step goes through the code that serves it on a GPU: layers, operations, experts, attention, down to where
the driver or a library would be called (`bench.without_device`). Printed for each layer: processor time in microseconds
(the least of all rounds), calls of Python functions, launches and how many of them went through Triton's own look-up
("jit"), products of the library and tensors allocated; then the parts, each called alone. What drivers and libraries
take beneath is not in it. Compare figures of one machine only.
"""

from __future__ import annotations

import argparse
import cProfile
import itertools
import pstats
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from bench import without_device
from core.interfaces.attention import AttentionConfig
from core.interfaces.batch import BatchLayout, ForwardBatch
from core.interfaces.build import BuildContext
from core.interfaces.context import PluginContext
from core.layers.linear import LinearBase
from core.layers.module import WeightModule
from core.layers.moe import Experts
from core.layers.unquantized import Unquantized
from core.ops.table import build_ops
from core.testing.mock_runner import SingleRank

LAYERS = 4
PAGE = 16
_COMMON = {
    "dtype": "bfloat16", "vocab_size": 512, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": LAYERS,
    "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64, "hidden_act": "silu", "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "max_position_embeddings": 4096, "tie_word_embeddings": False, "eos_token_id": 1,
}  # fmt: skip
_MOE = {
    "model_type": "qwen3_moe", "num_experts": 16, "num_experts_per_tok": 8, "moe_intermediate_size": 128,
    "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [],
}  # fmt: skip
SHAPES = ("llama", "qwen3-moe", "llama-fp8")


def empty_product(x: torch.Tensor, weight: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    """For products of the library, whose weight may lie either way."""
    width = weight.shape[1] if weight.shape[0] == x.shape[1] else weight.shape[0]
    return torch.empty((x.shape[0], width), dtype=torch.bfloat16)


def build(shape: str, attention: str, tokens: int, *, watched: bool) -> tuple[Callable[[], Any], dict[str, Any]]:
    """(a step; part -> a call of what layers call, with the last layer's arguments, filled by a step if `watched`)."""
    from plugin_llama.arch import LlamaArch
    from plugin_qwen.arch import Qwen3MoeArch
    from plugin_triton.moe.runner import TritonMoe
    from plugin_triton.ops.table import TritonOps

    parts: dict[str, Any] = {}
    watch = _Watch(parts) if watched else None
    arch: Any = Qwen3MoeArch if shape == "qwen3-moe" else LlamaArch
    spec = arch.spec(_COMMON | (_MOE if shape == "qwen3-moe" else {"model_type": "llama"}))
    plugin = PluginContext()
    ops = dict(build_ops(TritonOps(plugin).ops()))
    if watch is not None:
        ops = {name: watch(name, op) for name, op in ops.items()} | _keep_references(ops)
    moe = TritonMoe(plugin)
    ctx = BuildContext(
        dtype=torch.bfloat16, device=torch.device("cpu"), ops=ops, quant=_quant(shape, plugin), moe=moe,
        tp=SingleRank(), max_tokens=4096, context_length=4096,
    )  # fmt: skip
    model = arch.build(spec, ctx)
    for module in model.modules():
        if isinstance(module, WeightModule):
            module.finish()
    backend = _attention(attention, spec, plugin)
    if watch is not None:
        backend.run = watch("attention", backend.run)
        for module in model.modules():
            if isinstance(module, Experts):
                module.__dict__["compute"] = watch("experts", module.compute)
            elif isinstance(module, LinearBase):
                name = module.shape.path.rsplit(".", 1)[-1]
                module.forward = watch(name, module.forward)
                if module.fused is not None:
                    module.__dict__["fused"] = watch(f"norm + {name}", module.fused)
    batch = _batch(spec, backend, tokens)
    batch.plan_attention()
    return partial(model.forward, batch), parts


class _Watch:
    """Wraps functions so that the outermost ones' last arguments are kept."""

    def __init__(self, parts: dict[str, Any]) -> None:
        self.parts, self.depth = parts, 0

    def __call__(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            if not self.depth:
                self.parts[name] = partial(call, *args, **kwargs)
            self.depth += 1
            try:
                return call(*args, **kwargs)
            finally:
                self.depth -= 1

        own = getattr(call, "bind", None)
        if own is not None:
            watched.bind = lambda **constants: self(name, own(**constants))  # type: ignore[attr-defined]
        return watched


def _keep_references(ops: dict[str, Any]) -> dict[str, Any]:
    """Layers ask whether an operation is core's reference, so those stay what they are."""
    from core.ops.reference import REFERENCES

    return {name: op for name, op in ops.items() if op is REFERENCES[name]}


def _quant(shape: str, plugin: PluginContext) -> Any:
    if shape != "llama-fp8":
        return Unquantized(None, plugin)
    import plugin_fp8.kernels
    import plugin_fp8.linear
    from plugin_fp8.method import Fp8
    from plugin_fp8.products import Scaled

    plugin_fp8.kernels.dependent = without_device.always
    plugin_fp8.linear.product_of = Scaled  # on the CPU it would be the reference
    return Fp8(None, PluginContext(settings={}))


def _attention(name: str, spec: Any, plugin: PluginContext) -> Any:
    rule = spec.layers[0].attention
    config = AttentionConfig(
        group=spec.cache_groups[0],
        layers={index: layer.attention for index, layer in enumerate(spec.layers)},
        num_heads=rule.num_heads, num_kv_heads=rule.num_kv_heads, page_size=PAGE, num_pages=256, dtype=torch.bfloat16,
        device=torch.device("cpu"), max_seqs=16, max_tokens=4096, context_length=4096,
    )  # fmt: skip
    if name == "triton":
        from plugin_triton.attention.backend import TritonAttention

        return TritonAttention(config, plugin)
    import plugin_fa3.backend
    from plugin_fa3.providers.base import _ATTEND, Binding, Provider
    from plugin_fa3.settings import Settings
    from plugin_fa3.store_triton import store

    class Library(Provider):
        """Of the build that sglang-kernel brings, as many arguments; its operator is ENTRY's."""

        install = "nothing"

        def __init__(self) -> None:
            names = [*_ATTEND, *(f"unused_{i}" for i in range(17))]
            arguments = [
                SimpleNamespace(name=each, has_default_value=lambda: True, default_value=None) for each in names
            ]
            self._fwd = Binding(_library, SimpleNamespace(name="fwd", arguments=arguments), _ATTEND)

        def _load(self) -> None:
            return None

    class OnCpu(plugin_fa3.backend.Fa3Attention):
        def _choose_provider(self) -> Provider:
            return Library()

    plugin_fa3.backend.store_for = lambda device: store
    return OnCpu(config, PluginContext(settings=Settings()))


def _library(*args: Any) -> tuple[None, None]:
    return None, None


def _batch(spec: Any, backend: Any, tokens: int) -> ForwardBatch:
    """One prompt from its first token."""
    pages = -(-tokens // PAGE)
    table = np.arange(1, pages + 1, dtype=np.int32)[None]
    kind = torch.int32 if backend.capabilities.slot_dtype == "int32" else torch.int64
    lens, starts = np.array([tokens], np.int32), np.array([0, tokens], np.int32)
    layout = BatchLayout(
        PAGE, 0, lens, lens, starts, table, torch.arange(PAGE, PAGE + tokens, dtype=kind),
        torch.from_numpy(table), torch.from_numpy(lens), torch.from_numpy(starts),
    )  # fmt: skip
    positions = torch.arange(tokens)
    buffers = backend.allocate()
    kv = tuple(buffers[layer] for layer in range(len(spec.layers)))
    return ForwardBatch(positions % 7, positions, positions[-1:], (layout,), (backend,), kv)


def counts(step: Callable[[], Any]) -> Counter[str]:
    """What a step does: Python calls, launches, products, allocations."""
    found: Counter[str] = Counter()

    def note(frame: Any, event: str, arg: Any) -> None:
        if event == "call":
            found["python"] += 1
            code = frame.f_code
            if code is empty_product.__code__:
                found["products"] += 1
                found["python"] -= 1
                found["empty"] -= 1
            elif code.co_name == "compute_cache_key" and "triton" in code.co_filename:
                found["jit"] += 1
        elif event == "c_call":
            name = getattr(arg, "__name__", "")
            if arg is without_device.ENTRY:
                found["launches"] += 1
            elif name in ("empty", "empty_like", "new_empty", "zeros"):
                found["empty"] += 1

    sys.setprofile(note)
    try:
        step()
    finally:
        sys.setprofile(None)
    return found


def least_us(call: Callable[[], Any], rounds: int, repeat: int) -> float:
    """Processor time of one call."""
    best = float("inf")
    for _ in range(rounds):
        start = time.process_time_ns()
        for _ in range(repeat):
            call()
        best = min(best, time.process_time_ns() - start)
    return best / repeat / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=SHAPES)
    parser.add_argument("--attention", nargs="+", choices=("fa3", "triton"), default=("fa3", "triton"))
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--check", action="store_true", help="compare each launch with Triton's own; no times")
    parser.add_argument("--profile", action="store_true", help="functions by their own time")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.nn.functional.linear = torch.mm = torch._scaled_mm = empty_product
    torch.addmm = lambda bias, x, weight: empty_product(x, weight)
    checked = without_device.Checked()
    with torch.inference_mode(), without_device.installed(checked.entry if args.check else without_device.ENTRY):
        for shape, attention in itertools.product(args.shape, args.attention):
            if args.check:
                _check(shape, attention, args.tokens, checked)
            else:
                _report(shape, attention, args)


def _check(shape: str, attention: str, tokens: int, checked: without_device.Checked) -> None:
    with checked.comparing():
        step, _ = build(shape, attention, tokens, watched=False)
        step()  # finds the kernels
        checked.compared = 0
        step()
    print(f"{shape}, attention {attention}: {checked.compared} launches are as Triton's own", flush=True)


def _report(shape: str, attention: str, args: argparse.Namespace) -> None:
    step, _ = build(shape, attention, args.tokens, watched=False)
    watched, parts = build(shape, attention, args.tokens, watched=True)
    for call in (step, step, watched, watched):
        call()
    found = counts(step)
    us = least_us(step, args.rounds, 5) / LAYERS
    print(
        f"{shape}, attention {attention}, {args.tokens} tokens: {us:.1f} us a layer; "
        + ", ".join(
            f"{name} {found[name] / LAYERS:.1f}" for name in ("python", "launches", "jit", "products", "empty")
        ),
        flush=True,
    )
    print("   " + ", ".join(f"{name} {least_us(call, args.rounds, 10):.1f}" for name, call in list(parts.items())))
    if args.profile:
        profile = cProfile.Profile()
        profile.runcall(lambda: [step() for _ in range(50)])
        pstats.Stats(profile).sort_stats("tottime").print_stats(35)


if __name__ == "__main__":
    main()
