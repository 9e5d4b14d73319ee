"""Layers of every rank, summed or gathered by a fake communicator, equal the unsharded layer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from core.interfaces.build import BuildContext
from core.interfaces.context import PluginContext
from core.interfaces.errors import ConfigError, WeightError
from core.layers.embedding import LmHead, VocabEmbedding
from core.layers.linear import QkvLinear, kv_shard
from core.layers.mlp import GatedMlp
from core.layers.module import WeightModule
from core.layers.moe import MoeLayer, TorchNativeMoe
from core.layers.router_config import RouterSpec
from core.layers.unquantized import Unquantized
from core.ops.reference import REFERENCES

HIDDEN = 6


class Rank:
    """One rank of a group of threads that meet at a barrier."""

    def __init__(self, rank: int, size: int, barrier: threading.Barrier, slots: list[Any]) -> None:
        self.rank, self.size, self.barrier, self.slots = rank, size, barrier, slots

    def _exchange(self, x: torch.Tensor) -> list[torch.Tensor]:
        self.slots[self.rank] = x
        self.barrier.wait(10)
        everyone = list(self.slots)
        self.barrier.wait(10)
        return everyone

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack(self._exchange(x)).sum(0)

    def all_gather(self, x: torch.Tensor, dim: int = -1) -> torch.Tensor:
        return torch.cat(self._exchange(x), dim)


def context(rank: int = 0, size: int = 1, barrier: threading.Barrier | None = None, slots: Any = None) -> BuildContext:
    plugin = PluginContext()
    return BuildContext(
        dtype=torch.float32,
        device=torch.device("cpu"),
        ops=REFERENCES,
        quant=Unquantized(None, plugin),
        moe=TorchNativeMoe(plugin),
        tp=Rank(rank, size, barrier or threading.Barrier(1), slots if slots is not None else [None]),
        max_tokens=8,
        context_length=8,
    )


def on_ranks(size: int, work: Callable[[BuildContext], torch.Tensor]) -> list[torch.Tensor]:
    """work's result on each of `size` ranks, run at the same time."""
    barrier, slots = threading.Barrier(size), [None] * size
    results: list[Any] = [None] * size

    def run(rank: int) -> None:
        try:
            results[rank] = work(context(rank, size, barrier, slots))
        except Exception as error:
            results[rank] = error
            barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


def tensor(name: str, *shape: int) -> torch.Tensor:
    """The same numbers for the same name on every rank."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(name.encode()) * 31 + len(shape)))


def fill(module: WeightModule, full: dict[tuple[str, str], tuple[int, ...]]) -> None:
    for (suffix, part), shape in full.items():
        module.load(suffix, part, tensor(suffix + part, *shape))
    module.finish()


@pytest.mark.parametrize("size", [2, 3, 6])
@pytest.mark.parametrize("bias", [False, True])
def test_gated_mlp(size: int, bias: bool) -> None:
    inter = 12
    x = tensor("x", 5, HIDDEN)

    def work(ctx: BuildContext) -> torch.Tensor:
        mlp = GatedMlp("mlp", HIDDEN, inter, ctx, bias=bias)
        shapes: dict[tuple[str, str], tuple[int, ...]] = {("weight", p): (inter, HIDDEN) for p in ("gate", "up")}
        down: dict[tuple[str, str], tuple[int, ...]] = {("weight", ""): (HIDDEN, inter)}
        if bias:
            shapes |= {("bias", p): (inter,) for p in ("gate", "up")}
            down[("bias", "")] = (HIDDEN,)
        fill(mlp.gate_up_proj, shapes)
        fill(mlp.down_proj, down)
        assert mlp.down_proj.shape.in_features == inter // ctx.tp.size
        return mlp(x)

    whole = work(context())
    for part in on_ranks(size, work):
        torch.testing.assert_close(part, whole)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_gate_and_up_in_one_tensor(size: int) -> None:
    inter = 12
    x, gate_up, down = tensor("x", 5, HIDDEN), tensor("gate_up", 2 * inter, HIDDEN), tensor("down", HIDDEN, inter)

    def work(ctx: BuildContext) -> torch.Tensor:
        mlp = GatedMlp("mlp", HIDDEN, inter, ctx, stacked=True)
        layer = mlp.gate_up_proj
        assert layer.covers("weight", "") == layer.expected()
        with pytest.raises(WeightError, match="shape"):
            layer.load("weight", "", gate_up[:-1])
        layer.load("weight", "", gate_up)
        layer.finish()
        mlp.down_proj.load("weight", "", down)
        mlp.down_proj.finish()
        return mlp(x)

    gate, up = (x @ gate_up.T).chunk(2, -1)
    for part in on_ranks(size, work):
        torch.testing.assert_close(part, (torch.nn.functional.silu(gate) * up) @ down.T)


def test_one_tensor_for_several_parts_is_unexpected_where_the_model_has_them_apart() -> None:
    layer = GatedMlp("mlp", HIDDEN, 12, context()).gate_up_proj
    assert not layer.covers("weight", "") <= layer.expected()


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("tied", [False, True])
def test_vocabulary(size: int, tied: bool) -> None:
    vocab = 11  # no multiple of the number of ranks: the last rank is padded
    ids = torch.arange(vocab)

    def work(ctx: BuildContext) -> torch.Tensor:
        embedding = VocabEmbedding("embed", vocab, HIDDEN, ctx)
        head = LmHead("head", vocab, HIDDEN, ctx, tied=embedding if tied else None)
        fill(embedding, {("weight", ""): (vocab, HIDDEN)})
        fill(head, {("weight", ""): (vocab, HIDDEN)})
        rows = embedding(ids)
        torch.testing.assert_close(rows, tensor("weight", vocab, HIDDEN))
        return head(rows)

    weight = tensor("weight", vocab, HIDDEN)
    for logits in on_ranks(size, work):
        assert logits.shape == (vocab, vocab)
        torch.testing.assert_close(logits, weight @ weight.T)


@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(4, 2, 2), (4, 2, 4), (6, 3, 3), (8, 1, 4)])
def test_qkv_gives_each_rank_its_heads(heads: int, kv_heads: int, size: int) -> None:
    dim = 2
    x = tensor("x", 3, HIDDEN)
    shapes = {"q": (heads * dim, HIDDEN), "k": (kv_heads * dim, HIDDEN), "v": (kv_heads * dim, HIDDEN)}

    def project(part: str) -> torch.Tensor:
        y = x @ tensor(f"weight{part}", *shapes[part]).T + tensor(f"bias{part}", shapes[part][0])
        return y.view(3, -1, dim)

    def work(ctx: BuildContext) -> torch.Tensor:
        layer = QkvLinear("qkv", HIDDEN, heads, kv_heads, dim, ctx, bias=True)
        full: dict[tuple[str, str], tuple[int, ...]] = {("weight", p): shape for p, shape in shapes.items()}
        full |= {("bias", p): shape[:1] for p, shape in shapes.items()}
        fill(layer, full)
        return layer(x).view(3, -1, dim)

    per_kv = heads // kv_heads
    q, k, v = (project(part) for part in "qkv")
    for rank, y in enumerate(on_ranks(size, work)):
        local = heads // size
        kept = max(1, kv_heads // size)
        torch.testing.assert_close(y[:, :local], q[:, rank * local : (rank + 1) * local])
        for i in range(kept):
            # The KV head that this rank's query heads of group i use in the whole model.
            wanted = (rank * local + i * local // kept) // per_kv
            torch.testing.assert_close(y[:, local + i], k[:, wanted])
            torch.testing.assert_close(y[:, local + kept + i], v[:, wanted])


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("size", [2, 4])
def test_experts(size: int, stacked: bool) -> None:
    num, inter = 5, 8
    x = tensor("x", 7, HIDDEN)

    def work(ctx: BuildContext) -> torch.Tensor:
        layer = MoeLayer("mlp", HIDDEN, inter, RouterSpec(num, 2, renormalize=True), ctx)
        fill(layer.gate, {("weight", ""): (num, HIDDEN)})
        gate, up, down = (
            tensor("gate", num, inter, HIDDEN), tensor("up", num, inter, HIDDEN), tensor("down", num, HIDDEN, inter)
        )  # fmt: skip
        if stacked:
            layer.experts.load("gate_up_proj", "", torch.cat((gate, up), 1))
            layer.experts.load("down_proj", "", down)
        else:
            for e in range(num):
                for part, full in (("gate", gate), ("up", up), ("down", down)):
                    layer.experts.load("weight", part, full[e], e)
        layer.experts.finish()
        return layer(x)

    whole = work(context())
    for part in on_ranks(size, work):
        torch.testing.assert_close(part, whole)


@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(4, 4, 3), (5, 1, 2), (6, 3, 2), (6, 2, 3)])
def test_uneven_sharding_is_refused(heads: int, kv_heads: int, size: int) -> None:
    with pytest.raises(ConfigError, match="evenly") as caught:
        QkvLinear("qkv", HIDDEN, heads, kv_heads, 2, context(0, size), bias=False)
    assert caught.value.field == "engine.tensor_parallel_size"


def test_kv_heads_are_replicated_in_order() -> None:
    assert [kv_shard(2, context(rank, 6).tp) for rank in range(6)] == [(1, 0), (1, 0), (1, 0), (1, 1), (1, 1), (1, 1)]
    assert [kv_shard(4, context(rank, 2).tp) for rank in range(2)] == [(2, 0), (2, 2)]
