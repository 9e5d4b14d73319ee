"""What the attention suite is made of: the backend under test in a world, and random configurations it claims."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import assume
from hypothesis import strategies as st

from core.interfaces.attention import AttentionBackend, AttentionCapabilities, AttentionConfig
from core.interfaces.spec import StateKind
from core.testing.contracts.attention_world import Kv, Outcome, Rule, Shape, World
from core.testing.contracts.base import Contract

ATTENTION_KINDS = (StateKind.FULL, StateKind.SLIDING_WINDOW, StateKind.MLA_LATENT)
_MANY_PAGE_SIZES = (1, 3, 4, 7, 16, 33)
_MANY_HEAD_DIMS = (4, 12, 16, 20, 64, 80, 128)


class AttentionSetup(Contract):
    """The parts an author may give are attributes and methods of this class.

    mla_dims: (latent, rope, nope, value) sizes to test latent attention with, for backends with fixed ones.
    """

    kind = "attention"
    mla_dims: ClassVar[tuple[tuple[int, int, int, int], ...]] = ((32, 8, 16, 16), (24, 4, 12, 20))

    def poison(self, kv: Kv, value: float = float("nan")) -> None:
        """Fill fresh buffers with what unlucky earlier requests may have left there. Override it for a layout with
        parts that are not contents of pages."""
        for buffers in kv.values():
            for buffer in buffers:
                if buffer.is_floating_point() and buffer.element_size() > 1:
                    buffer.fill_(value)
                else:
                    buffer.view(torch.uint8).fill_(0xFF)  # not-a-number in eight-bit floating point too

    # What is claimed

    def capabilities(self) -> AttentionCapabilities:
        capabilities = self.plugin().capabilities
        assert isinstance(capabilities, AttentionCapabilities)
        return capabilities

    def runs_on(self, hardware: str) -> str:
        names = self.capabilities().hardware
        if names is not None and hardware not in names:
            return f"it runs on {', '.join(names)}, the device is {hardware}"
        reason: str | None = self.plugin().unavailable()
        assert reason is None or (isinstance(reason, str) and reason.strip()), f"unavailable() gave {reason!r}"
        return reason or super().runs_on(hardware)

    def page_sizes(self) -> tuple[int, ...]:
        return self.capabilities().page_sizes or _MANY_PAGE_SIZES

    def head_dims(self) -> tuple[int, ...]:
        return self.capabilities().head_dims or _MANY_HEAD_DIMS

    def shape_of(self, kind: StateKind) -> Shape:
        """The plainest configuration of a kind."""
        dtypes = self.capabilities().dtypes
        sizes, dims = self.page_sizes(), self.head_dims()
        page_size = 4 if 4 in sizes else min(sizes)
        shape = Shape(
            kind=kind,
            head_dim=16 if 16 in dims else min(dims),
            page_size=page_size,
            num_pages=self.num_pages(page_size),
            dtype=getattr(torch, "float32" if "float32" in dtypes else dtypes[0]),
        )
        if kind is StateKind.MLA_LATENT:
            return self.with_mla_dims(shape, 0)
        return shape.with_rule(window=6) if kind is StateKind.SLIDING_WINDOW else shape

    def with_mla_dims(self, shape: Shape, index: int) -> Shape:
        latent, rope, nope, value = self.mla_dims[index % len(self.mla_dims)]
        return replace(shape, latent_dim=latent, rope_dim=rope, head_dim=nope, v_head_dim=value)

    @staticmethod
    def num_pages(page_size: int) -> int:
        """Pages for some 900 tokens in up to 70 sequences, and the null page."""
        return 71 + 900 // page_size

    @pytest.fixture(params=ATTENTION_KINDS, ids=str)
    def shape(self, request: pytest.FixtureRequest) -> Shape:
        self.require(request.param in self.capabilities().state_kinds, f"state kind {request.param}")
        return self.shape_of(request.param)

    def refusal(self, config: AttentionConfig) -> str | None:
        reason: str | None = self.plugin().rejects(config)
        assert reason is None or (isinstance(reason, str) and reason.strip()), f"rejects() gave {reason!r}"
        return reason

    def world(self, shape: Shape, seed: int = 0, poison: float = float("nan")) -> World:
        """A world for a configuration that the capabilities claim."""
        device = self.device()
        config = shape.config(device)
        reason = self.refusal(config)
        assert reason is None, f"its capabilities claim {shape}, and it rejects that: {reason}"
        backend: AttentionBackend = self.plugin()(config, self.context(device))
        kv = backend.allocate()
        self.poison(kv, poison)
        return World(backend, config, kv, seed)

    def check(self, world: World, work: Sequence[tuple[int, int]], **how: Any) -> None:
        """One step of (sequence, new tokens) pairs; `how` as in World.step."""
        for outcome in world.step(work, **how):
            self.check_outcome(world, outcome)

    def check_outcome(self, world: World, outcome: Outcome) -> None:
        got, want, config = outcome.got, outcome.want, world.config
        assert got.dtype == config.dtype, f"the result is {got.dtype}, not {config.dtype}"
        assert got.shape[0] >= want.shape[0]
        padding_is_finite = bool(torch.isfinite(got[want.shape[0] :]).all())
        assert padding_is_finite, "rows past the layout's tokens are not finite"
        self.assert_close(got[: want.shape[0]], want, config.dtype, f"layer {outcome.layer}")

    def prompts(self, world: World, lengths: Sequence[int]) -> list[int]:
        """Sequences that have been prefilled, in batches that a step can hold."""
        numbers = world.new(len(lengths))
        for first in range(0, len(numbers), 16):
            self.check(world, list(zip(numbers, lengths, strict=True))[first : first + 16])
        return numbers

    def random_step(self, world: World, data: st.DataObject) -> None:
        size = world.config.page_size
        if world.stories and data.draw(st.integers(0, 4)) == 0:
            world.end(data.draw(st.sampled_from(range(len(world.stories)))))
        for _ in range(data.draw(st.integers(0 if world.stories else 1, 3))):
            parents = [n for n, story in enumerate(world.stories) if story.length >= size]
            if len(parents) > 0 and data.draw(st.booleans()):
                parent = data.draw(st.sampled_from(parents))
                world.fork(parent, data.draw(st.integers(1, world.stories[parent].length // size)))
            else:
                world.new()
        started = [n for n, story in enumerate(world.stories) if story.length]
        decodes = [n for n in started if data.draw(st.booleans())]
        work = [(n, 1) for n in decodes]
        for n in range(len(world.stories)):
            if n not in decodes and data.draw(st.booleans()):
                work.append((n, data.draw(st.integers(1, 24))))
        if work:
            self.check(
                world,
                work,
                num_decodes=len(decodes),
                padding_rows=data.draw(st.integers(0, 2)),
                fused=data.draw(st.booleans()),
                twice=data.draw(st.booleans()),
            )

    def shapes(self, kind: StateKind) -> st.SearchStrategy[Shape]:
        """Configurations within what the capabilities claim; those that `rejects` refuses are left out."""
        caps, base = self.capabilities(), self.shape_of(kind)
        windows = st.integers(1, 40) if kind is StateKind.SLIDING_WINDOW else st.none()
        latent = kind is StateKind.MLA_LATENT
        rules = st.builds(
            Rule,
            windows,
            st.sampled_from([None, 0.7, 20.0]) if caps.softcap and not latent else st.none(),
            st.booleans() if caps.sinks and not latent else st.just(False),
            st.sampled_from([None, 0.05, 0.4]),
        )

        @st.composite
        def draw_shape(draw: st.DrawFn) -> Shape:
            kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 4))
            page_size = draw(st.integers(1, 33) if caps.page_sizes is None else st.sampled_from(caps.page_sizes))
            drawn = replace(
                base,
                num_heads=kv_heads * group,
                num_kv_heads=kv_heads,
                page_size=page_size,
                num_pages=self.num_pages(page_size),
                dtype=getattr(torch, draw(st.sampled_from(caps.dtypes))),
                rules=tuple(draw(st.lists(rules, min_size=1, max_size=2))),
            )
            if latent:
                drawn = self.with_mla_dims(drawn, draw(st.integers(0, 7)))
            else:
                dims = sorted(dim for dim in self.head_dims() if dim <= 128) or sorted(self.head_dims())[:1]
                drawn = replace(
                    drawn, head_dim=draw(st.sampled_from(dims)), v_head_dim=draw(st.sampled_from([0, 0, *dims]))
                )
            assume(self.refusal(drawn.config(self.device())) is None)
            return drawn

        return draw_shape()
