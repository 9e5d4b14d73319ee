"""What the quantization suite is made of: formats to test, and core's own layers built and filled with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, ClassVar

import pytest
import torch

from core.interfaces.build import BuildContext
from core.interfaces.context import PluginContext
from core.interfaces.errors import ConfigError
from core.interfaces.moe import MoeRunner
from core.interfaces.quant import QuantMethod
from core.layers.embedding import LmHead
from core.layers.linear import LinearBase, MergedLinear, QkvLinear, ReplicatedLinear, RowLinear
from core.layers.moe import TorchNativeMoe
from core.testing.contracts.base import Contract

Tensors = Mapping[str, torch.Tensor]
_FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
LAYER = "model.layers.3"


@dataclass(frozen=True)
class Variant:
    """One way to use the method.

    label: for the test's name. hf_config: the checkpoint's quantization_config; None: an unquantized checkpoint,
    which the method quantizes while it is loaded. settings: the plugin's own, over those of the suite.
    weight_error: largest |dense - original| / |original| of a normal random weight (Frobenius); 0: the very numbers.
    apply_error: what rounding of the activations adds to the error of a product with many outputs; 0 for formats of
        weights only.
    compresses: whether it claims to take less memory than the compute dtype.
    """

    label: str
    hf_config: Mapping[str, Any] | None = None
    settings: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    weight_error: float = 0.0
    apply_error: float = 0.0
    compresses: bool = False


@dataclass
class Rank:
    """A communicator that passes on what this rank has; the tests put the ranks together themselves."""

    rank: int = 0
    size: int = 1

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def all_gather(self, x: torch.Tensor, dim: int = -1) -> torch.Tensor:
        return x


@dataclass(frozen=True)
class Layer:
    """A linear layer of a model as its checkpoint has it.

    kind: "qkv", "merged", "row", "replicated" or "vocab" (an output embedding).
    parts: name -> (weight [out, in], bias or None), whole model. heads: of "qkv", (query heads, KV heads, head dim).
    """

    kind: str
    parts: Mapping[str, tuple[torch.Tensor, torch.Tensor | None]]
    heads: tuple[int, int, int] = (0, 0, 0)

    @property
    def path(self) -> str:
        if self.kind == "vocab":
            return "lm_head"
        names = {"qkv": "self_attn.qkv_proj", "merged": "mlp.gate_up_proj", "row": "mlp.down_proj"}
        return f"{LAYER}.{names.get(self.kind, 'self_attn.o_proj')}"

    def build(self, ctx: BuildContext, path: str = "") -> LinearBase:
        """core's layer, with empty weights."""
        path = path or self.path
        (weight, bias), *_ = self.parts.values()
        has_bias = bias is not None
        if self.kind == "qkv":
            return QkvLinear(path, weight.shape[1], *self.heads, ctx, bias=has_bias)
        if self.kind == "merged":
            rows = {name: pair[0].shape[0] for name, pair in self.parts.items()}
            return MergedLinear(path, weight.shape[1], rows, ctx, bias=has_bias)
        if self.kind == "vocab":
            return LmHead(path, weight.shape[0], weight.shape[1], ctx)
        cls = RowLinear if self.kind == "row" else ReplicatedLinear
        return cls(path, weight.shape[1], weight.shape[0], ctx, bias=has_bias)

    @property
    def weight(self) -> torch.Tensor:
        """The whole stacked weight."""
        return torch.cat([weight for weight, _ in self.parts.values()])

    @property
    def bias(self) -> torch.Tensor | None:
        biases = [bias for _, bias in self.parts.values() if bias is not None]
        return torch.cat(biases) if biases else None


class QuantSetup(Contract):
    """The parts an author gives.

    variants: ways to use the method, each tested. dtypes: compute types. features: a width that the format shares
    over 2, 3 and 4 ranks without a remainder.
    """

    kind = "quant"
    variants: ClassVar[tuple[Variant, ...]] = (Variant("default"),)
    dtypes: ClassVar[tuple[str, ...]] = ("float32", "bfloat16")
    features: ClassVar[int] = 384

    def stored(self, variant: Variant, weight: torch.Tensor) -> Tensors:
        """How a checkpoint of `variant` holds the weight [out, in] of one linear module: suffix -> tensor, e.g.
        {"weight": packed, "weight.absmax": scales}. Needed for variants with an hf_config."""
        if variant.hf_config is not None:
            raise NotImplementedError(f"give {type(self).__name__}.stored for {variant.label}")
        return {"weight": weight}

    def skipping(self, variant: Variant, modules: Sequence[str]) -> Variant | None:
        """The variant with `modules` in its list of modules to leave unquantized, where the checkpoint or the settings
        keep it; None if the format has no such list."""
        return None

    def moe_runner(self) -> MoeRunner:
        """What runs the experts of this method's format."""
        return TorchNativeMoe(PluginContext())

    # Building

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "variant" in metafunc.fixturenames:
            metafunc.parametrize("variant", self.variants, ids=lambda variant: variant.label)
        if "dtype" in metafunc.fixturenames:
            metafunc.parametrize("dtype", [getattr(torch, name) for name in self.dtypes], ids=self.dtypes)

    def method(self, variant: Variant) -> QuantMethod:
        method: QuantMethod = self.plugin()(variant.hf_config, self.context(self.device(), variant.settings))
        return method

    def build_context(self, variant: Variant, dtype: torch.dtype, rank: Rank | None = None) -> BuildContext:
        return BuildContext(
            dtype=dtype,
            device=self.device(),
            ops=self.ops(),
            quant=self.method(variant),
            moe=self.moe_runner(),
            tp=rank or Rank(),
            max_tokens=64,
            context_length=64,
            sources=sources,
        )

    def layer(
        self, kind: str, in_features: int, *rows: int, bias: bool = True, heads: tuple[int, int, int] = (0, 0, 0),
        dtype: torch.dtype = torch.float32,
    ) -> Layer:  # fmt: skip
        """A random layer; rows of each part. Its tensors are where a checkpoint's are, on the host, in `dtype`."""
        host = torch.device("cpu")
        names = {"qkv": ("q", "k", "v"), "merged": ("gate", "up")}.get(kind, ("",))
        parts = {}
        for number, (name, count) in enumerate(zip(names, rows, strict=True)):
            scale = in_features**-0.5
            weight = self.random(count, in_features, dtype=dtype, device=host, seed=number + 1, scale=scale)
            offset = self.random(count, dtype=dtype, device=host, seed=number + 9) if bias else None
            parts[name] = (weight, offset)
        return Layer(kind, parts, heads)

    def tensors(self, variant: Variant, layer: Layer, plain: Iterable[str] = ()) -> list[tuple[str, str, torch.Tensor]]:
        """(suffix, part, tensor) as a checkpoint gives them; parts in `plain` are left unquantized."""
        found: list[tuple[str, str, torch.Tensor]] = []
        for part, (weight, bias) in layer.parts.items():
            held = {"weight": weight} if part in plain else self.stored(variant, weight)
            found += [(suffix, part, tensor) for suffix, tensor in held.items()]
            if bias is not None:
                found.append(("bias", part, bias))
        return found

    def filled(
        self, variant: Variant, layer: Layer, dtype: torch.dtype, rank: Rank | None = None, path: str = "",
        plain: Iterable[str] = (), context: BuildContext | None = None,
    ) -> LinearBase:  # fmt: skip
        """The layer built, accounted for, loaded and finished, as core does. context: of the model that it belongs
        to, else one of its own."""
        module = layer.build(context or self.build_context(variant, dtype, rank), path)
        tensors = self.tensors(variant, layer, plain)
        covered = set().union(*(module.covers(suffix, part) for suffix, part, _ in tensors))
        assert covered == module.expected(), (
            f"{layer.path}: a checkpoint of {variant.label} lacks {sorted(module.expected() - covered)}, "
            f"and {sorted(covered - module.expected())} is not expected"
        )
        for suffix, part, tensor in tensors:
            module.load(suffix, part, tensor)
        module.finish()
        return module

    def sharded(self, variant: Variant, layer: Layer, dtype: torch.dtype, size: int) -> list[LinearBase]:
        """The layer on each of `size` ranks. Skips the test if the format cannot hold or share it, after a look at
        what it says."""
        try:
            return [self.filled(variant, layer, dtype, Rank(rank, size)) for rank in range(size)]
        except ConfigError as error:
            reason = refusal(error)
        ranks = f" on {size} ranks" if size > 1 else ""
        self.require(False, f"{variant.label}: {layer.kind} layers of such sizes{ranks} ({reason})")
        raise AssertionError("not reached")

    def dense(
        self, variant: Variant, layer: Layer, dtype: torch.dtype, rank: Rank | None = None, path: str = "",
        plain: Iterable[str] = (),
    ) -> torch.Tensor:  # fmt: skip
        """The weight that `apply` multiplies with: `dense` of the same layer without its bias, since the interface's
        own way, results for unit vectors, rounds where a bias is added. On the host."""
        bare = replace(layer, parts={name: (weight, None) for name, (weight, _) in layer.parts.items()})
        module = self.filled(variant, bare, dtype, rank, path, plain)
        dense = module.method.dense(module, module.shape, dtype, self.device())
        assert dense.dtype == dtype, f"dense() gives {dense.dtype}, asked for {dtype}"
        assert dense.shape == (module.shape.out_features, module.shape.in_features)
        return dense.cpu()

    def assert_weight(self, variant: Variant, dense: torch.Tensor, original: torch.Tensor) -> None:
        """`dense` holds `original` as well as the variant claims."""
        want = original.to(dense.dtype).double()
        error = float((dense.double() - want).norm() / want.norm())
        # The dense weight is in the compute dtype, and what rounds to it is not the format's fault.
        limit = variant.weight_error + (self.tolerance_of(dense.dtype) if variant.weight_error else 0.0)
        assert error <= limit, f"{variant.label}: the weight is off by {error:.4g}, claimed is {variant.weight_error}"

    def assert_product(
        self, variant: Variant, module: LinearBase, dense: torch.Tensor, bias: torch.Tensor | None, x: torch.Tensor
    ) -> None:
        """module(x) is x times dense plus bias."""
        got = module(x)
        x = x.cpu()
        want = x.double() @ dense.double().t()
        if bias is not None:
            want = want + bias.double()
        assert got.dtype == x.dtype, f"the result is {got.dtype}, not {x.dtype}"
        assert got.shape == want.shape
        if got.numel():
            # What was summed decides the rounding, not what happened to cancel out.
            usual = x.double().norm(dim=1) * dense.double().norm() / x.shape[1] ** 0.5
            what = f"{variant.label}: the product"
            # A row's error is the mean of its outputs': of a few it is now and then three times as large.
            extra = variant.apply_error * (1 + 2 / got.shape[1] ** 0.5)
            self.assert_close(got, want, x.dtype, what, extra=extra, sizes=usual)


def refusal(error: ConfigError) -> str:
    """The text of a refusal, which must name the setting and the way out."""
    assert error.field, f"ConfigError without a field: {error}"
    assert error.hint, f"ConfigError without a way out: {error}"
    return error.message


def sources(path: str) -> tuple[str, ...]:
    """The checkpoint modules of a layer, named as most checkpoints name them."""
    head, _, last = path.rpartition(".")
    if last == "experts":
        return tuple(f"{path}.{{expert}}.{part}_proj" for part in ("gate", "up", "down"))
    return tuple(f"{head}.{name}" if head else name for name in _FUSED.get(last, (last,)))
