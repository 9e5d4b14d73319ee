"""QuantContract: a quantization method in core's own layers, against float64, with strict accounting and sharding."""

from __future__ import annotations

import gc
import types
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import strategies as st

from core.interfaces.errors import ConfigError, CoreError, WeightError
from core.interfaces.quant import QuantFacts, QuantMethod
from core.interfaces.spec import ModelSpec
from core.layers.linear import LinearBase, MergedLinear
from core.testing.contracts.quant_experts import QuantExpertsTests
from core.testing.contracts.quant_setup import LAYER, Layer, Rank, Variant, refusal

_KINDS = ("replicated", "row", "merged", "qkv", "vocab")


class QuantContract(QuantExpertsTests):
    """A method creates weights in core's layers, loads what a checkpoint gives, finishes, and multiplies.

    Every test runs for each of `variants`. What `dense` says the weight is, `apply` must multiply with; how far that
    is from the checkpoint's unquantized weight is what a variant claims.
    """

    def common(self, kind: str, dtype: torch.dtype = torch.float32, features: int | None = None) -> Layer:
        """A layer of sizes that every format can hold."""
        width = features or self.features
        if kind == "qkv":
            head = width // 12
            return self.layer(kind, width, width, 2 * head, 2 * head, heads=(12, 2, head), dtype=dtype)
        rows = (width, width) if kind == "merged" else (width,)
        return self.layer(kind, width, *rows, bias=kind != "vocab", dtype=dtype)

    def x(self, rows: int, features: int, dtype: torch.dtype, seed: int = 3) -> torch.Tensor:
        return self.random(rows, features, dtype=dtype, seed=seed)

    # What it says of itself

    def test_it_recognises_its_checkpoints_and_no_others(self, variant: Variant) -> None:
        recognises = self.plugin().recognises
        if variant.hf_config is not None:
            assert recognises(variant.hf_config) is True
        strangers: list[Mapping[str, Any]] = [
            {}, {"quant_method": "a-format-of-tomorrow"}, {"quant_method": None}, {"quant_method": ["x"], "bits": None},
        ]  # fmt: skip
        for config in strangers:
            assert recognises(config) is False, f"recognises {config}"
        assert recognises(None) in (True, False)

    def test_refusals_are_text(self, variant: Variant) -> None:
        spec = ModelSpec("Any", 64, 64, (), (), 64)
        method = self.method(variant)
        for dtype in (*self.dtypes, "float64", "float8_e5m2"):
            for size in (1, 3):
                runner = type(self.moe_runner())
                facts = QuantFacts(spec, dtype, self.hardware(), size, runner)
                reason = method.rejects(facts)
                assert reason is None or (isinstance(reason, str) and reason.strip()), f"rejects() gave {reason!r}"
                assert reason is None or dtype not in self.dtypes or size > 1, f"rejects its own {dtype}: {reason}"

    def test_a_kv_cache_dtype_is_a_name_or_none(self, variant: Variant) -> None:
        wish = self.method(variant).kv_cache_dtype()
        assert wish is None or (isinstance(wish, str) and wish)

    # Numbers

    @pytest.mark.parametrize("kind", _KINDS)
    def test_the_weight_is_what_the_checkpoint_holds(self, variant: Variant, kind: str, dtype: torch.dtype) -> None:
        layer = self.common(kind, dtype)
        self.sharded(variant, layer, dtype, 1)
        self.assert_weight(variant, self.dense(variant, layer, dtype), layer.weight)

    @pytest.mark.parametrize("kind", _KINDS)
    def test_apply_multiplies_with_dense(self, variant: Variant, kind: str, dtype: torch.dtype) -> None:
        layer = self.common(kind, dtype)
        (module,) = self.sharded(variant, layer, dtype, 1)
        dense = self.dense(variant, layer, dtype)
        for rows in (1, 0, 2, 7, 33, 130):
            self.assert_product(variant, module, dense, layer.bias, self.x(rows, self.features, dtype))

    def test_apply_takes_slices(self, variant: Variant, dtype: torch.dtype) -> None:
        """Rows of x that do not lie next to each other."""
        layer = self.common("replicated", dtype)
        (module,) = self.sharded(variant, layer, dtype, 1)
        dense, wide = self.dense(variant, layer, dtype), self.x(6, 2 * self.features, dtype)
        self.assert_product(variant, module, dense, layer.bias, wide[:, self.features :])
        self.assert_product(variant, module, dense, layer.bias, wide[::2, : self.features])

    def test_apply_neither_keeps_nor_changes_its_input(self, variant: Variant) -> None:
        layer = self.common("replicated")
        (module,) = self.sharded(variant, layer, torch.float32, 1)
        x = self.x(3, self.features, torch.float32)
        before, first = x.clone(), module(x)
        assert torch.equal(x, before), "apply changes its input"
        answer = first.clone()
        module(self.x(3, self.features, torch.float32, seed=4))
        assert torch.equal(first, answer), "a later call changes an earlier result"

    def test_odd_sizes(self, variant: Variant) -> None:
        """Any sizes: right, or ConfigError when the layer is made."""

        def check(sizes: tuple[int, int, int, bool]) -> None:
            in_features, out_features, rows, bias = sizes
            layer = self.layer("replicated", in_features, out_features, bias=bias)
            try:
                module = self.filled(variant, layer, torch.float32)
            except ConfigError as error:
                refusal(error)
                return
            x = self.x(rows, in_features, torch.float32)
            self.assert_product(variant, module, self.dense(variant, layer, torch.float32), layer.bias, x)

        width = st.one_of(st.integers(1, 150), st.integers(1, 5).map(lambda n: 32 * n))
        sizes = st.tuples(width, st.integers(1, 90), st.integers(0, 9), st.booleans())
        self.for_all(sizes, check, examples=15)

    # Accounting

    @pytest.mark.parametrize("kind", ["vocab", "qkv"])
    def test_any_order_and_any_thread_gives_the_same(self, variant: Variant, kind: str) -> None:
        layer = self.common(kind)
        tensors, x = self.tensors(variant, layer), self.x(3, self.features, torch.float32)
        results = []
        for order in (tensors, tensors[::-1], None):
            module = layer.build(self.build_context(variant, torch.float32))
            if order is None:
                with ThreadPoolExecutor(4) as pool:
                    list(pool.map(lambda job: module.load(*job), tensors))  # noqa: B023
            else:
                for job in order:
                    module.load(*job)
            module.finish()
            results.append(module(x))
        assert torch.equal(results[0], results[1]), "the order of loading matters"
        assert torch.equal(results[0], results[2]), "loading in several threads gives another layer"

    @pytest.mark.parametrize("size", [1, 2])
    def test_all_parts_in_one_tensor(self, variant: Variant, size: int) -> None:
        """Checkpoints that store gate and up as one: over several ranks a method may refuse them."""
        layer, width = self.common("merged"), self.features
        held = [*self.stored(variant, layer.weight).items(), ("bias", layer.bias)]
        for rank in range(size):
            context = self.build_context(variant, torch.float32, Rank(rank, size))
            rows = {"gate": width, "up": width}
            module = MergedLinear(layer.path, width, rows, context, bias=True, stacked=True)
            refused = ""
            try:
                for suffix, tensor in held:
                    assert tensor is not None
                    assert module.covers(suffix, "") <= module.expected()
                    module.load(suffix, "", tensor)
            except WeightError as error:
                refused = error.message
            self.require(not refused or size == 1, f"{variant.label}: such a tensor over ranks ({refused})")
            assert not refused, f"one rank refuses it: {refused}"
            module.finish()
            share = slice(rank * width // size, (rank + 1) * width // size)
            weight = torch.cat([layer.parts[name][0][share] for name in rows])
            bias = torch.cat([bias[share] for name in rows if (bias := layer.parts[name][1]) is not None])
            about = replace(variant, apply_error=variant.apply_error + 1.5 * variant.weight_error)
            self.assert_product(about, module, weight, bias, self.x(5, width, torch.float32))

    def test_nothing_may_be_missing(self, variant: Variant) -> None:
        """Each tensor of a checkpoint is expected by core, or missed in `finish`, or makes no difference."""
        layer = self.common("merged")
        tensors, x = self.tensors(variant, layer), self.x(3, self.features, torch.float32)
        whole = self.filled(variant, layer, torch.float32)(x)
        for left_out in tensors:
            module = layer.build(self.build_context(variant, torch.float32))
            covered = {slot for job in tensors if job is not left_out for slot in module.covers(*job[:2])}
            if module.expected() - covered:
                continue
            for job in tensors:
                if job is not left_out:
                    module.load(*job)
            try:
                module.finish()
            except WeightError:
                continue
            same = torch.equal(module(x), whole)
            assert same, f"{left_out[0]} of part {left_out[1]!r} may be left out, and the layer is another then"

    def test_what_is_unknown_is_refused(self, variant: Variant) -> None:
        layer = self.common("merged")
        for suffix, part in (("weight.of_nothing", "gate"), ("nonsense", "up"), ("weight", "sideways")):
            module = layer.build(self.build_context(variant, torch.float32))
            assert module.covers(suffix, part) - module.expected(), f"core would take {suffix} of part {part!r}"
            with pytest.raises(WeightError) as caught:
                module.load(suffix, part, layer.parts["gate"][0])
            assert str(caught.value), "WeightError without a text"

    @pytest.mark.parametrize("fault", ["transposed", "a row too many", "flat", "another dtype", "bias too long"])
    def test_a_tensor_that_does_not_fit_is_refused(self, variant: Variant, fault: str) -> None:
        """When it is loaded, or when all are there."""
        width = self.features
        layer = self.layer("replicated", width, 2 * width)
        tensors = {(suffix, part): tensor for suffix, part, tensor in self.tensors(variant, layer)}
        weight = tensors["weight", ""]
        bad = {
            "transposed": weight.t().contiguous() if weight.dim() > 1 else weight[:-1],
            "a row too many": torch.cat((weight, weight[:1])),
            "flat": weight.reshape(-1, 1, 1),
            "another dtype": torch.zeros(weight.shape, dtype=torch.complex64),
        }
        if fault == "bias too long":
            tensors["bias", ""] = torch.cat((tensors["bias", ""], tensors["bias", ""][:1]))
        else:
            tensors["weight", ""] = bad[fault]
        module = layer.build(self.build_context(variant, torch.float32))

        def load() -> None:
            for (suffix, part), tensor in tensors.items():
                module.load(suffix, part, tensor)
            module.finish()

        with pytest.raises(WeightError):
            load()

    def test_after_finish_nothing_wants_a_gradient(self, variant: Variant) -> None:
        for kind in ("replicated", "merged"):
            module = self.filled(variant, self.common(kind), torch.float32)
            for name, tensor in (*module.named_parameters(), *module.named_buffers()):
                assert not tensor.requires_grad, f"{name} wants a gradient"
                assert tensor.device.type == self.device().type, f"{name} is on {tensor.device}"

    def test_it_takes_less_memory(self, variant: Variant, record_property: Any) -> None:
        """What a layer beside another one adds: memory that layers of a model share is not counted for each."""
        layer = self.common("merged", torch.bfloat16)
        dtype = getattr(torch, self.dtypes[-1])
        context = self.build_context(variant, dtype)
        first = self.filled(variant, layer, dtype, context=context)
        before = _storages_of(first)
        second = self.filled(variant, layer, dtype, context=context)
        held = {address: size for address, size in _storages_of(second).items() if address not in before}
        per_weight = sum(held.values()) / layer.weight.numel()
        record_property("bytes_per_weight", round(per_weight, 3))
        self.require(variant.compresses, f"{variant.label}: less memory ({per_weight:.2f} bytes a weight)")
        assert held, "the second layer has no memory of its own"
        assert per_weight < dtype.itemsize, f"{per_weight:.2f} bytes a weight, {dtype} takes {dtype.itemsize}"

    # Modules that are left out

    def test_a_skipped_module_is_left_alone_and_its_namesakes_are_not(self, variant: Variant) -> None:
        """Entries of a list name whole segments of a path: layers.1 is not layers.10."""
        skipping = self.skipping(variant, ["model.layers.1", "o_proj_of_another"])
        if skipping is None:
            self.require(False, f"{variant.label}: a list of modules to skip")
            return
        layer = self.common("replicated")
        skipped = self.dense(skipping, layer, torch.float32, path="model.layers.1.self_attn.o_proj", plain=layer.parts)
        assert torch.equal(skipped, layer.weight), "the skipped layer is quantized"
        for number in ("10", "11", "21", "3"):
            dense = self.dense(skipping, layer, torch.float32, path=f"model.layers.{number}.self_attn.o_proj")
            self.assert_weight(variant, dense, layer.weight)
            same = torch.equal(dense, layer.weight)
            assert not (variant.weight_error and same), f"layers.{number} is not quantized, only layers.1 is skipped"

    def test_a_fused_layer_skipped_in_part(self, variant: Variant) -> None:
        """ConfigError, or both parts as they should be."""
        skipping = self.skipping(variant, [f"{LAYER}.mlp.up_proj"])
        if skipping is None:
            self.require(False, f"{variant.label}: a list of modules to skip")
            return
        layer = self.common("merged")
        try:
            module = self.filled(skipping, layer, torch.float32, plain=["up"])
        except ConfigError as error:
            reason = refusal(error)
        else:
            self.assert_skipped_in_part(skipping, layer, module)
            return
        assert "up_proj" in reason, f"the refusal does not say which part: {reason}"

    def assert_skipped_in_part(self, variant: Variant, layer: Layer, module: LinearBase) -> None:
        dense = self.dense(variant, layer, torch.float32, plain=["up"])
        assert torch.equal(dense[self.features :], layer.parts["up"][0]), "the skipped part is quantized"
        self.assert_weight(variant, dense[: self.features], layer.parts["gate"][0])
        self.assert_product(variant, module, dense, layer.bias, self.x(5, self.features, torch.float32))

    # Ranks

    @pytest.mark.parametrize("size", [2, 3, 4])
    @pytest.mark.parametrize("kind", ["row", "merged", "qkv", "vocab"])
    def test_ranks_together_hold_the_layer(self, variant: Variant, kind: str, size: int) -> None:
        """Sizes that share well. A key head may be kept by several ranks."""
        layer = self.common(kind)
        if kind == "qkv":
            head = self.features // 12
            kv_heads = {2: 2, 3: 1, 4: 2}[size]
            layer = self.layer("qkv", self.features, self.features, kv_heads * head, kv_heads * head,
                               heads=(12, kv_heads, head))  # fmt: skip
        self.check_ranks(variant, layer, size)

    @pytest.mark.parametrize("size", [2, 3, 4])
    def test_a_vocabulary_that_does_not_divide(self, variant: Variant, size: int) -> None:
        """The last rank's rows past its end are zero."""
        self.check_ranks(variant, self.layer("vocab", self.features, self.features + 5, bias=False), size)

    @pytest.mark.parametrize("kind", ["row", "merged"])
    def test_ranks_that_cut_through_what_belongs_together(self, variant: Variant, kind: str) -> None:
        """Odd shares: right, or refused with a way out when the layer is made."""
        width = 4 * 48
        rows = (width, width) if kind == "merged" else (width,)
        self.check_ranks(variant, self.layer(kind, width, *rows), 4)

    def check_ranks(self, variant: Variant, layer: Layer, size: int) -> None:
        self.sharded(variant, layer, torch.float32, 1)
        ranks = self.sharded(variant, layer, torch.float32, size)
        reference = self.dense(variant, layer, torch.float32)
        same = variant.hf_config is not None or not variant.weight_error
        for rank, module in enumerate(ranks):
            shape, dense = module.shape, self.dense(variant, layer, torch.float32, Rank(rank, size))
            pieces, biases, row = [], [], 0
            for (_, bias), part in zip(layer.parts.values(), shape.parts, strict=True):
                original = reference[row : row + part.full_out_features] if same else layer.parts[part.name][0]
                row += part.full_out_features
                first, last = part.shard_offset, part.shard_offset + part.out_features
                piece = original[first:last, shape.in_offset : shape.in_offset + shape.in_features]
                pieces.append(torch.nn.functional.pad(piece, (0, 0, 0, part.out_features - len(piece))))
                if bias is not None:
                    biases.append(bias[first:last] * (1 if layer.kind != "row" or rank == 0 else 0))
            wanted = torch.cat(pieces)
            if same:
                error = float((dense - wanted).abs().max())
                assert error <= 1e-6, f"rank {rank} of {size} holds another part of the weight (off by {error:.3g})"
            else:
                self.assert_weight(variant, dense, wanted)
            bias_here = torch.cat(biases) if biases else None
            x = self.x(4, shape.in_features, torch.float32)
            self.assert_product(variant, module, dense, bias_here, x)

    def test_a_refusal_comes_before_weights_are_read(self, variant: Variant) -> None:
        """Whatever the format cannot hold or share raises in `create`, not in `load`, `finish` or `apply`."""
        for kind in ("row", "merged"):
            rows = (90, 90) if kind == "merged" else (90,)
            layer = self.layer(kind, 90, *rows)
            for rank in range(3):
                context = self.build_context(variant, torch.float32, Rank(rank, 3))
                try:
                    module = layer.build(context)
                except CoreError:
                    continue
                for job in self.tensors(variant, layer):
                    module.load(*job)
                module.finish()
                module(self.x(2, module.shape.in_features, torch.float32))

    def test_interface(self) -> None:
        assert issubclass(self.plugin(), QuantMethod)


def _storages_of(module: torch.nn.Module) -> dict[int, int]:
    """Address -> bytes of all memory that a layer holds."""
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in _tensors_of(module)}


def _tensors_of(module: torch.nn.Module, depth: int = 6) -> Iterator[torch.Tensor]:
    """Every tensor that a layer holds, also where its parameters do not show it."""
    skip = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, str, bytes, int, float)
    seen: set[int] = set()
    ignored = {"ops", "method", "shape"}
    todo = [(value, 0) for name, value in vars(module).items() if name not in ignored]
    while todo:
        value, level = todo.pop()
        if id(value) in seen or isinstance(value, skip):
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            yield value
        elif level < depth:
            todo += [(inner, level + 1) for inner in gc.get_referents(value)]
