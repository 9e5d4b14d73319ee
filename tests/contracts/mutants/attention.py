"""Broken attention backends."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch

from core.attention.torch_native import TorchNativeAttention
from core.interfaces.attention import AttentionBackend, AttentionConfig
from core.interfaces.batch import BatchLayout
from core.interfaces.context import PluginContext
from core.interfaces.spec import AttentionSpec, CacheGroupSpec
from core.registry.catalog import Catalog
from core.registry.records import PluginRecord
from core.testing.contracts.attention import AttentionContract
from core.testing.dense_attention import DenseAttention

_CLAIMS = DenseAttention.capabilities
Sequences = Iterator[tuple[slice, torch.Tensor, torch.Tensor]]


class _Mutant(AttentionContract):
    caught_by: ClassVar[tuple[str, ...]] = ()


class _Changed(DenseAttention):
    """Attends with another rule than the layer's."""

    def changed(self, spec: AttentionSpec) -> AttentionSpec:
        return spec

    def run(self, q: Any, k: Any, v: Any, layer: int, kv: Any, sinks: Any = None) -> torch.Tensor:
        good = self.config
        self.config = replace(good, layers={**good.layers, layer: self.changed(good.layers[layer])})
        try:
            return super().run(q, k, v, layer, kv, sinks)
        finally:
            self.config = good


class TestWindowOffByOne(_Mutant):
    caught_by = ("test_a_token_sees_its_window_and_no_more", "test_random_steps")

    class implementation(_Changed):  # noqa: N801
        def changed(self, spec: AttentionSpec) -> AttentionSpec:
            return replace(spec, window=None if spec.window is None else spec.window + 1)


class TestIgnoresSoftcap(_Mutant):
    caught_by = ("test_softcap",)

    class implementation(_Changed):  # noqa: N801
        def changed(self, spec: AttentionSpec) -> AttentionSpec:
            return replace(spec, softcap=None)


class TestOneScaleForAll(_Mutant):
    caught_by = ("test_the_scale_is_the_layers", "test_layers_of_a_group_with_rules_of_their_own")

    class implementation(_Changed):  # noqa: N801
        def changed(self, spec: AttentionSpec) -> AttentionSpec:
            return replace(spec, scale=1 / math.sqrt(spec.head_dim))


class TestIgnoresSinks(_Mutant):
    caught_by = ("test_sinks", "test_layers_of_a_group_with_rules_of_their_own")

    class implementation(DenseAttention):  # noqa: N801
        def run(self, q: Any, k: Any, v: Any, layer: int, kv: Any, sinks: Any = None) -> torch.Tensor:
            return super().run(q, k, v, layer, kv)


class TestSpreadsHeadsTheOtherWay(_Mutant):
    """Query head h reads KV head h % Hkv."""

    caught_by = ("test_query_heads_share_key_heads", "test_one_request_from_prompt_to_decode")

    class implementation(DenseAttention):  # noqa: N801
        def run(self, q: Any, k: Any, v: Any, layer: int, kv: Any, sinks: Any = None) -> torch.Tensor:
            heads = self.config.num_kv_heads
            order = torch.arange(q.shape[1]).view(-1, heads).t().reshape(-1)
            out = super().run(q[:, order], k, v, layer, kv, None if sinks is None else sinks[order])
            return out[:, order.argsort()]


class TestReadsWholePages(_Mutant):
    """Hides what lies past the end by multiplying with zero, which leaves not-a-number what it is."""

    caught_by = ("test_what_lies_in_unwritten_memory_shows_nowhere", "test_one_request_from_prompt_to_decode")

    class implementation(DenseAttention):  # noqa: N801
        def sequences(self, spec: AttentionSpec) -> Sequences:
            size = self.config.page_size
            for rows, slots, visible in super().sequences(spec):
                rest = torch.arange(int(slots[-1]) + 1, (int(slots[-1]) // size + 1) * size)
                hidden = visible.new_zeros(visible.shape[0], len(rest))
                yield rows, torch.cat((slots, rest)), torch.cat((visible, hidden), 1)


class TestReadsTheNullPage(_Mutant):
    """Reads every row of the table as long as the longest."""

    caught_by = ("test_what_lies_in_unwritten_memory_shows_nowhere", "test_many_sequences_of_unlike_length")

    class implementation(DenseAttention):  # noqa: N801
        def sequences(self, spec: AttentionSpec) -> Sequences:
            longest = int(self.layout.seq_lens.max())
            for rows, slots, visible in super().sequences(spec):
                rest = slots.new_zeros(max(0, longest - len(slots)))
                hidden = visible.new_zeros(visible.shape[0], len(rest))
                yield rows, torch.cat((slots, rest)), torch.cat((visible, hidden), 1)


class TestLeavesPaddingRowsAsTheyAre(_Mutant):
    caught_by = ("test_rows_past_the_layouts_tokens",)

    class implementation(DenseAttention):  # noqa: N801
        def run(self, q: Any, k: Any, v: Any, layer: int, kv: Any, sinks: Any = None) -> torch.Tensor:
            out = super().run(q, k, v, layer, kv, sinks)
            out[self.layout.num_tokens :] = float("nan")
            return out


class TestNormalisesOverTheBatch(_Mutant):
    """A padding row's not-a-number reaches all."""

    caught_by = ("test_rows_past_the_layouts_tokens", "test_padding_sequences_on_the_null_page")

    class implementation(DenseAttention):  # noqa: N801
        def run(self, q: Any, k: Any, v: Any, layer: int, kv: Any, sinks: Any = None) -> torch.Tensor:
            return super().run(q, k, v, layer, kv, sinks) + 0 * q.sum()


class TestChunkForgetsItsHistory(_Mutant):
    caught_by = (
        "test_chunks_of_a_prompt", "test_decodes_first_then_chunks_with_and_without_history",
        "test_long_prompts_and_long_histories", "test_random_steps",
    )  # fmt: skip

    class implementation(DenseAttention):  # noqa: N801
        def sequences(self, spec: AttentionSpec) -> Sequences:
            for rows, slots, visible in super().sequences(spec):
                count = rows.stop - rows.start
                yield (rows, slots, visible) if count == 1 else (rows, slots[-count:], visible[:, -count:])


class TestMaskFromTheTopLeft(_Mutant):
    """Row i of a chunk sees keys 0 .. i instead of all up to its own."""

    caught_by = ("test_chunks_of_a_prompt", "test_long_prompts_and_long_histories")

    class implementation(DenseAttention):  # noqa: N801
        def sequences(self, spec: AttentionSpec) -> Sequences:
            for rows, slots, visible in super().sequences(spec):
                yield rows, slots, torch.ones_like(visible).tril()


class TestTakesOneTokenForADecode(_Mutant):
    """Only the rows that the layout calls decodes are computed as such; a prompt of one token is lost."""

    caught_by = ("test_a_prompt_of_one_token", "test_random_steps")

    class implementation(DenseAttention):  # noqa: N801
        def sequences(self, spec: AttentionSpec) -> Sequences:
            for index, part in enumerate(super().sequences(spec)):
                if self.layout.q_lens[index] > 1 or index < self.layout.num_decodes:
                    yield part


class TestNeedsKeysAndValues(_Mutant):
    """Stores zeros if a fused operation has stored the keys and values before."""

    caught_by = ("test_what_a_fused_operation_has_stored",)

    class implementation(DenseAttention):  # noqa: N801
        def run(self, q: Any, k: Any, v: Any, layer: int, kv: Any, sinks: Any = None) -> torch.Tensor:
            k = torch.zeros_like(kv[0][self.layout.slot_mapping]) if k is None else k
            v = torch.zeros_like(kv[1][self.layout.slot_mapping]) if v is None else v
            return super().run(q, k, v, layer, kv, sinks)


class TestTakesTensorsForContiguous(_Mutant):
    caught_by = ("test_heads_as_slices_of_a_fused_projection",)

    class implementation(DenseAttention):  # noqa: N801
        def run(self, q: Any, k: Any, v: Any, layer: int, kv: Any, sinks: Any = None) -> torch.Tensor:
            heads, dim = q.shape[1:]
            return super().run(q.as_strided(q.shape, (heads * dim, dim, 1)), k, v, layer, kv, sinks)


class TestKeepsAPlanOfTheSameShape(_Mutant):
    caught_by = ("test_the_last_plan_counts", "test_random_steps")

    class implementation(DenseAttention):  # noqa: N801
        def plan(self, layout: BatchLayout) -> None:
            old = self._layout
            if old is None or old.num_seqs != layout.num_seqs:
                super().plan(layout)
            else:
                old.slot_mapping = layout.slot_mapping
                old.q_lens, old.cu_q_lens = layout.q_lens, layout.cu_q_lens


class TestKeepsLayouts(_Mutant):
    caught_by = ("test_a_layout_is_let_go_at_the_next_plan",)

    class implementation(DenseAttention):  # noqa: N801
        def plan(self, layout: BatchLayout) -> None:
            super().plan(layout)
            self.__dict__.setdefault("history", []).append(layout)


class TestLayersShareABuffer(_Mutant):
    caught_by = ("test_layers_of_a_group_with_rules_of_their_own",)

    class implementation(DenseAttention):  # noqa: N801
        def allocate(self) -> dict[int, tuple[torch.Tensor, ...]]:
            buffers = super().allocate()
            return dict.fromkeys(buffers, next(iter(buffers.values())))


class TestTakesMoreThanItSays(_Mutant):
    caught_by = ("test_buffers_take_no_more_than_page_bytes_says",)

    class implementation(DenseAttention):  # noqa: N801
        @classmethod
        def page_bytes(cls, group: CacheGroupSpec, page_size: int, itemsize: int, tp_size: int) -> int:
            return super().page_bytes(group, page_size, itemsize, 2 * tp_size)


class TestIgnoresKvScales(_Mutant):
    caught_by = ("test_numbers_beyond_a_kv_dtypes_range_stay_finite",)

    class implementation(TorchNativeAttention):  # noqa: N801
        def __init__(self, config: AttentionConfig, ctx: PluginContext) -> None:
            super().__init__(replace(config, kv_scales={}), ctx)


class TestOneScaleForAllLayers(_Mutant):
    caught_by = ("test_scales_of_eight_bits_are_any_numbers_and_each_layers_own",)

    class implementation(TorchNativeAttention):  # noqa: N801
        def __init__(self, config: AttentionConfig, ctx: PluginContext) -> None:
            first = next(iter(config.kv_scales.values()))
            super().__init__(replace(config, kv_scales=dict.fromkeys(config.layers, first)), ctx)


class TestSwapsKvScales(_Mutant):
    caught_by = (
        "test_numbers_beyond_a_kv_dtypes_range_stay_finite",
        "test_a_cache_of_eight_bits_is_as_near_as_eight_bits_are",
    )

    class implementation(TorchNativeAttention):  # noqa: N801
        def __init__(self, config: AttentionConfig, ctx: PluginContext) -> None:
            swapped = {layer: (value, key) for layer, (key, value) in config.kv_scales.items()}
            super().__init__(replace(config, kv_scales=swapped), ctx)


class TestKeepsTheComputeType(_Mutant):
    caught_by = ("test_every_claimed_kv_dtype", "test_a_kv_dtype_takes_the_bytes_it_has")

    class implementation(TorchNativeAttention):  # noqa: N801
        def __init__(self, config: AttentionConfig, ctx: PluginContext) -> None:
            super().__init__(replace(config, kv_dtype=None), ctx)


class TestLosesTheLastPage(_Mutant):
    caught_by = ("test_every_page_holds_tokens",)

    class implementation(DenseAttention):  # noqa: N801
        def plan(self, layout: BatchLayout) -> None:
            last = (self.config.num_pages - 1) * self.config.page_size
            super().plan(replace(layout, slot_mapping=layout.slot_mapping.clamp(max=last - 1)))


class TestOnlyPowersOfTwo(_Mutant):
    """Any page size is claimed."""

    caught_by = ("test_every_claimed_page_size", "test_random_steps")

    class implementation(DenseAttention):  # noqa: N801
        def sequences(self, spec: AttentionSpec) -> Sequences:
            layout, shift = self.layout, self.layout.page_size.bit_length() - 1
            for index, (rows, slots, visible) in enumerate(super().sequences(spec)):
                end = int(layout.seq_lens[index])
                seen = torch.arange(end - len(slots), end)
                pages = torch.as_tensor(layout.page_table[index].astype("int64"))
                within = (seen >> shift).clamp(max=len(pages) - 1)
                yield rows, pages[within] * layout.page_size + seen % layout.page_size, visible


class TestComputesInHalfPrecision(_Mutant):
    caught_by = ("test_every_claimed_dtype",)

    class implementation(DenseAttention):  # noqa: N801
        def run(self, q: Any, k: Any, v: Any, layer: int, kv: Any, sinks: Any = None) -> torch.Tensor:
            return super().run(q.bfloat16().to(q.dtype), k, v, layer, kv, sinks)


class TestRefusesEverything(_Mutant):
    caught_by = ("test_one_request_from_prompt_to_decode", "test_every_claimed_dtype")

    class implementation(DenseAttention):  # noqa: N801
        @classmethod
        def rejects(cls, config: AttentionConfig) -> str | None:
            return "not today"


class TestRefusesNothing(_Mutant):
    caught_by = ("test_heads_that_do_not_divide_are_refused_before_they_run",)

    class implementation(DenseAttention):  # noqa: N801
        @classmethod
        def rejects(cls, config: AttentionConfig) -> str | None:
            return None


class TestRefusesWithoutAReason(_Mutant):
    caught_by = ("test_values_of_another_width",)

    class implementation(DenseAttention):  # noqa: N801
        @classmethod
        def rejects(cls, config: AttentionConfig) -> str | None:
            return "" if any(spec.v_head_dim != spec.head_dim for spec in config.layers.values()) else None


class TestForgetsTheRopePart(_Mutant):
    caught_by = ("test_one_request_from_prompt_to_decode", "test_every_claimed_head_dim")

    class implementation(DenseAttention):  # noqa: N801
        def run_mla(self, q_nope: Any, q_rope: Any, *rest: Any) -> torch.Tensor:
            return super().run_mla(q_nope, torch.zeros_like(q_rope), *rest)


class TestClaimsLatentsOnly(_Mutant):
    """... and inherits the run_mla of the interface."""

    caught_by = ("test_capabilities_can_be_read_by_core",)

    class implementation(DenseAttention):  # noqa: N801
        run_mla = AttentionBackend.run_mla


class TestDependsOnTheBatch(_Mutant):
    caught_by = ("test_batch_invariance",)

    class implementation(DenseAttention):  # noqa: N801
        capabilities = replace(_CLAIMS, batch_invariant=True)

        def run(self, q: Any, k: Any, v: Any, layer: int, kv: Any, sinks: Any = None) -> torch.Tensor:
            return super().run(q, k, v, layer, kv, sinks) * (1 + 2e-7 * self.layout.num_seqs)


class TestAsksTheDevice(_Mutant):
    caught_by = ("test_a_step_that_can_be_captured_reads_nothing_back",)

    class implementation(DenseAttention):  # noqa: N801
        capabilities = replace(_CLAIMS, graph=True)

        def plan(self, layout: BatchLayout) -> None:
            super().plan(layout)
            assert layout.device_seq_lens is not None
            self.longest = int(layout.device_seq_lens.max())


class TestTheManifestSaysLess(_Mutant):
    caught_by = ("test_the_manifest_says_what_the_class_says",)
    stated: ClassVar[Mapping[str, Any]] = {"dtypes": ["float32"], "sinks": True}

    @classmethod
    def catalog(cls) -> Catalog:
        record = PluginRecord(cls.kind, "under_test", "x", capabilities=cls.stated, loaded=DenseAttention)
        return Catalog.from_records([record])
