"""AttentionContract: a backend against float64 over random batches, for what its capabilities claim."""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import strategies as st

from core.interfaces.attention import KV_DTYPES, AttentionBackend
from core.interfaces.batch import BatchLayout
from core.interfaces.errors import CoreError
from core.interfaces.spec import StateKind
from core.registry.select_attention import GroupNeeds
from core.testing.contracts.attention_setup import AttentionSetup
from core.testing.contracts.attention_world import Outcome, Shape
from core.testing.contracts.host_reads import NoHostReads


class AttentionContract(AttentionSetup):
    """A backend writes a step's keys and values into pages and attends over all that its sequences have stored.

    Every test of numbers runs for each state kind that the backend claims. Memory that nothing was written to is
    not-a-number, so that a single key too many shows.
    """

    # Claims

    def test_capabilities_can_be_read_by_core(self) -> None:
        caps = self.capabilities()
        assert caps.state_kinds, "state_kinds is empty: core would never choose this backend"
        assert all(isinstance(kind, StateKind) for kind in caps.state_kinds)
        assert StateKind.RECURRENT not in caps.state_kinds, "recurrent state is not attention"
        assert caps.slot_dtype in ("int64", "int32")
        assert caps.dtypes, "dtypes is empty"
        assert all(isinstance(getattr(torch, name, None), torch.dtype) for name in caps.dtypes), caps.dtypes
        assert "auto" in caps.kv_dtypes, "core asks for the compute type unless the operator says otherwise"
        assert set(caps.kv_dtypes) <= {"auto", *KV_DTYPES}, (
            f"kv_dtypes: {caps.kv_dtypes}, known: {', '.join(KV_DTYPES)}"
        )
        for sizes in (caps.page_sizes, caps.head_dims):
            assert sizes is None or (sizes and all(isinstance(size, int) and size > 0 for size in sizes)), sizes
        if StateKind.MLA_LATENT in caps.state_kinds:
            assert self.plugin().run_mla is not AttentionBackend.run_mla, "claims mla_latent and lacks run_mla"

    def test_the_manifest_says_what_the_class_says(self) -> None:
        """Selection rules out by the manifest before it imports; what it lacks is not compared."""
        caps = self.capabilities()
        for key, stated in self.record().capabilities.items():
            claimed = getattr(caps, key, None)
            if key in ("page_sizes", "head_dims", "dtypes", "kv_dtypes", "hardware", "state_kinds"):
                assert claimed is not None, f"the manifest restricts {key} to {stated}, the class takes any"
                assert {str(value) for value in stated} == {str(value) for value in claimed}, key
            elif key in ("softcap", "sinks", "tree_mask", "graph", "batch_invariant"):
                assert stated == claimed, f"the manifest says {key} = {stated}, the class {claimed}"

    def test_core_would_choose_it_for_the_plainest_model(self, shape: Shape) -> None:
        config = shape.config(self.device())
        dtype = str(shape.dtype).removeprefix("torch.")
        needs = GroupNeeds(config.group, tuple(config.layers.values()), dtype, self.hardware(), shape.page_size)
        reason = needs.rejects(self.capabilities())
        assert not reason, f"core finds that it {reason}"

    def test_heads_that_do_not_divide_are_refused_before_they_run(self, shape: Shape) -> None:
        self.require(shape.kind is not StateKind.MLA_LATENT, "grouped heads of a latent")
        config = replace(shape, num_heads=6, num_kv_heads=4).config(self.device())
        if self.refusal(config) is None:
            with pytest.raises(CoreError):
                self.plugin()(config, self.context(self.device()))

    # Memory

    @pytest.mark.parametrize("tp_size", [1, 2])
    def test_buffers_take_no_more_than_page_bytes_says(self, shape: Shape, tp_size: int) -> None:
        for page_size in self.page_sizes():
            rules = (shape.rules[0],) * 3
            made = replace(shape, rules=rules, page_size=page_size, num_pages=11, num_kv_heads=2, tp_size=tp_size)
            world = self.world(made)
            kv, config = world.kv, world.config
            assert set(kv) == set(config.layers), f"allocate() has layers {sorted(kv)}, not {sorted(config.layers)}"
            storages: dict[int, int] = {}
            for buffer in (buffer for buffers in kv.values() for buffer in buffers):
                assert buffer.device == config.device
                storages[buffer.untyped_storage().data_ptr()] = buffer.untyped_storage().nbytes()
            itemsize = config.dtype.itemsize
            stated = self.plugin().page_bytes(config.group, page_size, itemsize, tp_size) * config.num_pages
            taken = sum(storages.values())
            assert 0 < taken <= stated, f"{taken} bytes for pages of {page_size}, page_bytes says {stated}"

    def test_every_page_holds_tokens(self, shape: Shape) -> None:
        """All pages but the null page are full at once, the last one too."""
        world = self.world(replace(shape, num_pages=12))
        numbers = self.prompts(world, [shape.page_size - 1 or 1] * 11 if shape.page_size > 1 else [1] * 10)
        assert len(world.free) == (0 if shape.page_size > 1 else 1)
        self.check(world, [(n, 1) for n in numbers[: len(numbers) if shape.page_size > 1 else 1]])

    def test_every_claimed_page_size(self, shape: Shape) -> None:
        for page_size in self.page_sizes():
            world = self.world(replace(shape, page_size=page_size, num_pages=self.num_pages(page_size)))
            self.prompts(world, [page_size, page_size + 1, 2 * page_size + 3, max(1, page_size - 1)])
            self.check(world, [(n, 1) for n in range(4)])
            self.check(world, [(3, 1), (1, page_size + 2), (0, 2)])

    def test_every_claimed_head_dim(self, shape: Shape) -> None:
        latent = shape.kind is StateKind.MLA_LATENT
        for index, dim in enumerate(self.mla_dims if latent else self.head_dims()):
            world = self.world(self.with_mla_dims(shape, index) if latent else replace(shape, head_dim=dim))  # type: ignore[arg-type]
            self.prompts(world, [9, 5])
            self.check(world, [(0, 1), (1, 4)])

    def test_every_claimed_dtype(self, shape: Shape) -> None:
        for name in self.capabilities().dtypes:
            world = self.world(replace(shape, dtype=getattr(torch, name)))
            self.prompts(world, [21, 40])
            for _ in range(3):
                self.check(world, [(0, 1), (1, 1)])
            self.check(world, [(1, 1), (0, 9)])

    # Other types of the cache

    @pytest.mark.parametrize("name", sorted(KV_DTYPES))
    def test_every_claimed_kv_dtype(self, shape: Shape, name: str) -> None:
        """What is attended to is what the cache keeps of a key or value, by the tokens of the same step too."""
        made = self.with_kv_dtype(shape, name)
        for scales in ((1.0, 1.0), (0.5, 0.125)):
            self.few_steps(replace(made, kv_scales=scales), f"a cache of {name}")

    @pytest.mark.parametrize("name", sorted(KV_DTYPES))
    def test_scales_of_eight_bits_are_any_numbers_and_each_layers_own(self, shape: Shape, name: str) -> None:
        """No powers of two, another pair for each layer, keys and values apart."""
        generator = random.Random(name)
        drawn = tuple((2 ** generator.uniform(-5, 3), 2 ** generator.uniform(-7, 1)) for _ in range(2))
        made = self.eight_bits(shape, name, rules=shape.rules[:1] * len(drawn), layer_scales=drawn)
        self.few_steps(made, f"a cache of {name} with scales")

    @pytest.mark.parametrize("name", sorted(KV_DTYPES))
    def test_a_cache_of_eight_bits_is_as_near_as_eight_bits_are(self, shape: Shape, name: str) -> None:
        """Of one key, whose value is all there is to attend to: within half a step of the type from what was stored."""
        made = self.eight_bits(shape, name, kv_scales=(0.37, 0.029))
        self.require(shape.kind is not StateKind.MLA_LATENT, "a value by itself in latent attention")
        world = self.world(made)
        (layer,) = world.config.layers
        layout = world.layout([(n, 1) for n in world.new(6)])
        inputs = world.inputs(layer, layout.num_tokens)
        world.backend.plan(layout)
        got, value = world.run(layer, inputs).cpu().double(), inputs[2].cpu().double()
        value = value.repeat_interleave(got.shape[1] // value.shape[1], 1)
        info = torch.finfo(world.config.cache_dtype)
        step = torch.maximum(value.abs() * info.eps, torch.tensor(info.smallest_normal * info.eps * 0.029))
        rounding = value.abs() * (2 * torch.finfo(world.config.dtype).eps)
        assert bool(((got - value).abs() <= step / 2 * 1.001 + rounding).all())
        assert bool((got != value).any()), "nothing was kept in eight bits"

    @pytest.mark.parametrize("name", sorted(KV_DTYPES))
    def test_a_kv_dtype_takes_the_bytes_it_has(self, shape: Shape, name: str) -> None:
        world = self.world(self.with_kv_dtype(shape, name))
        storages = {
            buffer.untyped_storage().data_ptr(): buffer.untyped_storage().nbytes()
            for buffers in world.kv.values()
            for buffer in buffers
        }
        config, itemsize = world.config, world.config.cache_dtype.itemsize
        stated = self.plugin().page_bytes(config.group, config.page_size, itemsize, 1) * config.num_pages
        assert 0 < sum(storages.values()) <= stated

    @pytest.mark.parametrize("name", sorted(KV_DTYPES))
    def test_numbers_beyond_a_kv_dtypes_range_stay_finite(self, shape: Shape, name: str) -> None:
        """They become the largest that there is, and not-a-number stays with the token that has it."""
        small = 2.0**-12 if name == "fp8_e4m3" else 2.0**-17  # 1 is beyond the range
        world = self.world(self.eight_bits(shape, name, kv_scales=(2.0**-8, small)))
        self.prompts(world, [9, 20])
        self.check(world, [(0, 1), (1, 1)])
        self.check(world, [(1, 1), (0, 5)])

    def with_kv_dtype(self, shape: Shape, name: str) -> Shape:
        """The same with a cache of another type; skipped if that is not claimed, or no other than computed in."""
        self.require(name in self.capabilities().kv_dtypes, f"a cache of {name}")
        made = replace(shape, kv_dtype=getattr(torch, KV_DTYPES[name]))
        self.require(made.kv_dtype != shape.dtype, f"a cache of {name} beside a compute type that is another")
        return made

    def eight_bits(self, shape: Shape, name: str, **scales: Any) -> Shape:
        """`with_kv_dtype` with changes; skipped for types that have no scales, and if `rejects` refuses these."""
        made = replace(self.with_kv_dtype(shape, name), **scales)
        self.require(made.config(self.device()).cache_dtype.itemsize == 1, "a cache of eight bits")
        reason = self.refusal(made.config(self.device()))
        self.require(reason is None, f"a cache of {name} with scales ({reason})")
        return made

    # Batches

    def test_one_request_from_prompt_to_decode(self, shape: Shape) -> None:
        world = self.world(shape)
        self.prompts(world, [19])
        for _ in range(6):
            self.check(world, [(0, 1)])

    def test_a_prompt_of_one_token(self, shape: Shape) -> None:
        world = self.world(shape)
        world.new(3)
        self.check(world, [(0, 1)], num_decodes=0)
        self.check(world, [(0, 1), (1, 1), (2, 1)], num_decodes=1)
        self.check(world, [(2, 1), (0, 1), (1, 5)])

    def test_decodes_first_then_chunks_with_and_without_history(self, shape: Shape) -> None:
        world = self.world(shape)
        self.prompts(world, [13, 7, 30, 1])
        world.new()
        self.check(world, [(0, 1), (2, 1), (1, 6), (4, 17), (3, 2)])
        self.check(world, [(0, 1), (1, 1), (2, 1), (3, 1), (4, 1)])

    @pytest.mark.parametrize("chunks", [(1, 23), (8, 8, 8), (23, 1), (5, 6, 13)], ids=str)
    def test_chunks_of_a_prompt(self, shape: Shape, chunks: tuple[int, ...]) -> None:
        world = self.world(shape)
        world.new()
        for count in chunks:
            self.check(world, [(0, count)], num_decodes=0)
        self.check(world, [(0, 1)])

    def test_long_prompts_and_long_histories(self, shape: Shape) -> None:
        world = self.world(shape)
        self.prompts(world, [601])
        self.check(world, [(0, 70)])
        world.new()
        self.check(world, [(0, 1), (1, 33)])

    def test_many_sequences_of_unlike_length(self, shape: Shape) -> None:
        world = self.world(shape)
        numbers = self.prompts(world, [1 + (7 * n) % 19 for n in range(64)])
        self.check(world, [(n, 1) for n in numbers])
        self.check(world, [(n, 1) for n in reversed(numbers)])

    def test_random_steps(self, shape: Shape) -> None:
        """Any claimed configuration, any mixture of work."""

        def run(data: st.DataObject) -> None:
            drawn = data.draw(self.shapes(shape.kind), label="shape")
            world = self.world(drawn, data.draw(st.integers(0, 9999), label="seed"))
            for _ in range(data.draw(st.integers(1, 4), label="steps")):
                self.random_step(world, data)

        self.for_all(st.data(), run, examples=30)

    # Rules

    @pytest.mark.parametrize("heads", [(1, 1), (6, 6), (6, 2), (10, 2), (7, 1)], ids=str)
    def test_query_heads_share_key_heads(self, shape: Shape, heads: tuple[int, int]) -> None:
        made = replace(shape, num_heads=heads[0], num_kv_heads=heads[1])
        self.few_steps(made, f"{heads[0]} query heads over {heads[1]} KV heads")

    def test_values_of_another_width(self, shape: Shape) -> None:
        self.require(shape.kind is not StateKind.MLA_LATENT, "another width of a latent's values (see mla_dims)")
        other = next((dim for dim in self.head_dims() if dim != shape.head_dim), None)
        self.require(other, "a second head dim")
        self.few_steps(replace(shape, v_head_dim=other or 0), "v_head_dim unlike head_dim")

    def test_the_scale_is_the_layers(self, shape: Shape) -> None:
        for scale in (1.0, 0.02):
            self.few_steps(shape.with_rule(scale=scale), f"scale {scale}")

    @pytest.mark.parametrize("which", ["1", "2", "page-1", "page", "page+1", "page*3", "17", "1000"])
    def test_a_token_sees_its_window_and_no_more(self, which: str) -> None:
        """Itself and the window - 1 tokens before it: in prefills, chunks and decodes."""
        self.require(StateKind.SLIDING_WINDOW in self.capabilities().state_kinds, "state kind sliding_window")
        shape = self.shape_of(StateKind.SLIDING_WINDOW)
        page = shape.page_size
        windows = {"page-1": max(1, page - 1), "page": page, "page+1": page + 1, "page*3": page * 3}
        world = self.world(shape.with_rule(window=windows.get(which) or int(which)))
        self.prompts(world, [1, 2, 29, 3 * page])
        self.check(world, [(n, 1) for n in range(4)])
        self.check(world, [(2, 1), (0, 19), (3, 3)])

    @pytest.mark.parametrize("softcap", [0.5, 30.0])
    def test_softcap(self, shape: Shape, softcap: float) -> None:
        self.require(self.capabilities().softcap, "softcap")
        self.require(shape.kind is not StateKind.MLA_LATENT, "softcap in latent attention")
        self.few_steps(shape.with_rule(softcap=softcap, scale=1.0), "softcap")

    @pytest.mark.parametrize("softcap", [None, 2.0])
    def test_sinks(self, shape: Shape, softcap: float | None) -> None:
        self.require(self.capabilities().sinks, "sinks")
        self.require(shape.kind is not StateKind.MLA_LATENT, "sinks in latent attention")
        self.require(softcap is None or self.capabilities().softcap, "softcap")
        self.few_steps(shape.with_rule(has_sinks=True, softcap=softcap), "sinks")

    def test_layers_of_a_group_with_rules_of_their_own(self, shape: Shape) -> None:
        caps, first = self.capabilities(), shape.rules[0]
        rules = [first, replace(first, scale=0.9)]
        if shape.kind is StateKind.SLIDING_WINDOW:
            rules.append(replace(first, window=2))
        if caps.softcap and shape.kind is not StateKind.MLA_LATENT:
            rules.append(replace(first, softcap=1.5))
        if caps.sinks and shape.kind is not StateKind.MLA_LATENT:
            rules.append(replace(first, has_sinks=True))
        self.few_steps(replace(shape, rules=tuple(rules)), "layers with different rules")

    def few_steps(self, shape: Shape, what: str) -> None:
        """Prefills, decodes and chunks; skipped if `rejects` refuses the configuration."""
        reason = self.refusal(shape.config(self.device()))
        self.require(reason is None, f"{what} ({reason})")
        world = self.world(shape)
        self.prompts(world, [21, 6])
        self.check(world, [(0, 1), (1, 1)])
        self.check(world, [(1, 1), (0, 7)])

    # Whose memory it is

    def test_pages_that_sequences_share(self, shape: Shape) -> None:
        world = self.world(shape)
        self.prompts(world, [10 * shape.page_size + 1])
        family = [world.fork(0, pages) for pages in (9, 9, 4)]
        self.check(world, [(n, 3 + n) for n in family])
        self.check(world, [(n, 1) for n in (*family, 0)])

    def test_pages_with_an_earlier_owner(self, shape: Shape) -> None:
        world = self.world(shape)
        self.prompts(world, [30, 9])
        world.end(0)
        self.prompts(world, [11])
        self.check(world, [(2, 1), (1, 1)])

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e4])
    def test_what_lies_in_unwritten_memory_shows_nowhere(self, shape: Shape, value: float) -> None:
        """The null page and the rest of each last page are read by nobody."""
        world = self.world(shape, poison=value)
        self.prompts(world, [1, 2 * shape.page_size + 1, 17])
        self.check(world, [(0, 1), (1, 1), (2, 1)])
        self.check(world, [(1, 1), (2, 5)])

    def test_rows_past_the_layouts_tokens(self, shape: Shape) -> None:
        """A padded step: rows without a sequence hold not-a-number and write to the null page. The others do not
        notice, and what comes back for them is finite, since the next layer computes with it."""
        world = self.world(shape)
        numbers = self.prompts(world, [9, 20, 3])
        self.check(world, [(n, 1) for n in numbers], padding_rows=5)
        self.check(world, [(0, 1), (1, 4)], padding_rows=3)
        self.check(world, [(2, 18)], padding_rows=1)
        self.check(world, [(n, 1) for n in numbers])

    def test_padding_sequences_on_the_null_page(self, shape: Shape) -> None:
        """A captured step may be filled up with rows of one token that stand on page 0, several of them and whatever
        they hold."""
        world = self.world(shape)
        work = [(n, 1) for n in self.prompts(world, [6, 11])]
        nobody = world.new(2)
        for number in nobody:
            world.stories[number].pages = [0]
        layout = world.layout([*work, *((n, 1) for n in nobody)])
        (layer,) = world.config.layers
        inputs = world.inputs(layer, layout.num_tokens)
        for x in inputs:
            x[len(work) :] = float("nan")
        world.backend.plan(layout)
        got = world.run(layer, inputs)[: len(work)]
        self.check_outcome(world, Outcome(layer, got, world.remember(layer, work, inputs)))

    def test_what_a_fused_operation_has_stored(self, shape: Shape) -> None:
        """k and v are None; for latents, the same step again."""
        world = self.world(shape)
        self.prompts(world, [9, 20])
        world.new()
        self.check(world, [(0, 1), (1, 1)], twice=True)
        self.check(world, [(1, 1), (0, 6), (2, 13)], twice=True, padding_rows=2)

    def test_heads_as_slices_of_a_fused_projection(self, shape: Shape) -> None:
        world = self.world(shape)
        world.new(2)
        self.check(world, [(0, 23), (1, 4)], fused=True)
        self.check(world, [(0, 1), (1, 1)], fused=True)
        self.check(world, [(1, 1), (0, 5)], fused=True, twice=True)

    # Plans

    def test_the_last_plan_counts(self, shape: Shape) -> None:
        """Planned for one batch, then for another, then for the first again."""
        world = self.world(shape)
        self.prompts(world, [5, 18, 9, 26])
        batches: list[list[tuple[int, int]]] = [[(0, 1), (1, 7)], [(2, 1), (3, 1)]]
        layouts = [world.layout(work) for work in batches]
        (layer,) = world.config.layers
        answers: dict[int, tuple[list[torch.Tensor], torch.Tensor]] = {}
        for turn, which in enumerate((1, 0, 1)):
            for layout in layouts if turn == 0 else layouts[which : which + 1]:
                world.backend.plan(layout)
            if which not in answers:
                inputs = world.inputs(layer, layouts[which].num_tokens)
                answers[which] = inputs, world.remember(layer, batches[which], inputs)
            inputs, want = answers[which]
            self.check_outcome(world, Outcome(layer, world.run(layer, inputs), want))

    def test_a_layout_is_let_go_at_the_next_plan(self, shape: Shape) -> None:
        world = self.world(shape)
        self.prompts(world, [5, 18])
        kept: list[weakref.ref[object]] = []

        def remember(layout: BatchLayout) -> None:
            kept.extend(weakref.ref(array) for array in (layout.page_table, layout.q_lens, layout.seq_lens))
            kept.append(weakref.ref(layout.slot_mapping))

        self.check(world, [(0, 1), (1, 1)], after_plan=remember)
        self.check(world, [(1, 1), (0, 3)])
        gc.collect()
        assert not [ref for ref in kept if ref() is not None], "arrays of an earlier layout are still referred to"

    def test_batch_invariance(self, shape: Shape) -> None:
        """Claimed: a row's result has the same bits alone and in any batch."""
        self.require(self.capabilities().batch_invariant, "batch_invariant")
        world = self.world(shape)
        numbers = self.prompts(world, [1 + (11 * n) % 37 for n in range(12)])
        (layer,) = world.config.layers
        work = [(n, 1 if n < 8 else 5) for n in numbers]
        layout = world.layout(work)
        inputs = world.inputs(layer, layout.num_tokens)
        world.backend.plan(layout)
        together = world.run(layer, inputs)
        for (number, count), row in zip(work, layout.cu_q_lens, strict=False):
            world.backend.plan(world.layout_again([(number, count)]))
            alone = world.run(layer, [x[row : row + count] for x in inputs])
            assert torch.equal(alone, together[row : row + count]), f"row {row} differs alone"

    def test_a_step_that_can_be_captured_reads_nothing_back(self, shape: Shape) -> None:
        """Claimed: graph. Neither plan nor run waits for a value from the device. What is checked is that no operation
        is called that must do so on any device; capturing itself is tested with the device's plugin."""
        self.require(self.capabilities().graph, "graph")
        self.reads_nothing_back(shape)
        if "fp8_e4m3" in self.capabilities().kv_dtypes:
            self.reads_nothing_back(self.eight_bits(shape, "fp8_e4m3", kv_scales=(0.3, 0.07)))

    def reads_nothing_back(self, shape: Shape) -> None:
        """Two steps of decodes, watched."""
        world = self.world(shape)
        numbers = self.prompts(world, [9, 20, 3])
        (layer,) = world.config.layers
        for _ in range(2):
            work: Sequence[tuple[int, int]] = [(n, 1) for n in numbers]
            layout = world.layout(work)
            inputs = world.inputs(layer, layout.num_tokens)
            with NoHostReads(world.config.device):
                world.backend.plan(layout)
                got = world.run(layer, inputs)
            self.check_outcome(world, Outcome(layer, got, world.remember(layer, work, inputs)))
