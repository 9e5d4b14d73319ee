"""Each rank reads its own rows of a weight file: the file is mapped, and only what is copied is touched."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from core.interfaces.build import BuildContext
from core.interfaces.context import PluginContext
from core.interfaces.model import ModuleRule, WeightRules
from core.layers.embedding import VocabEmbedding
from core.layers.linear import QkvLinear, RowLinear
from core.layers.moe import TorchNativeMoe
from core.layers.unquantized import Unquantized
from core.ops.reference import REFERENCES
from core.runner.weights import SINGLE_FILE, load_weights

VOCAB, HIDDEN, RANKS = 8192, 1024, 4
KIB = 1 << 10


class Rank:
    size = RANKS

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def all_gather(self, x: torch.Tensor, dim: int = -1) -> torch.Tensor:
        return x


def context(rank: int) -> BuildContext:
    plugin = PluginContext()
    return BuildContext(
        dtype=torch.float32, device=torch.device("cpu"), ops=REFERENCES, quant=Unquantized(None, plugin),
        moe=TorchNativeMoe(plugin), tp=Rank(rank), max_tokens=8, context_length=8,
    )  # fmt: skip


class Model(nn.Module):
    def __init__(self, rank: int) -> None:
        super().__init__()
        ctx = context(rank)
        self.embed = VocabEmbedding("embed", VOCAB, HIDDEN, ctx)
        self.qkv = QkvLinear("qkv", HIDDEN, 16, 16, 64, ctx, bias=False)
        self.out = RowLinear("out", HIDDEN, HIDDEN, ctx, bias=False)


RULES = WeightRules(
    (
        ModuleRule("embed", "embed"),
        ModuleRule("out", "out"),
        *(ModuleRule(f"{part}_proj", "qkv", part) for part in "qkv"),
    ),
    {},
)


def touched_kib(file: str) -> int:
    """Memory of this process that is pages of the file."""
    total = 0
    for block in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text()):
        if file in block.split("\n", 1)[0] and (found := re.search(r"Rss:\s+(\d+)", block)):
            total += int(found[1])
    return total


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells which pages of a mapped file were touched")
@pytest.mark.parametrize("rank", [0, 2])
def test_a_rank_touches_its_share_of_the_file(tmp_path: Path, rank: int) -> None:
    full = {f"{name}.weight": torch.randn(HIDDEN, HIDDEN) for name in ("out", "q_proj", "k_proj", "v_proj")}
    full["embed.weight"] = torch.randn(VOCAB, HIDDEN)
    save_file(full, tmp_path / SINGLE_FILE)
    file, seen = str(tmp_path / SINGLE_FILE), []

    def progress(done: int, total: int) -> None:
        seen.append(touched_kib(file))

    model: Any = Model(rank)
    load_weights(model, RULES, tmp_path, threads=1, progress=progress)
    whole = sum(tensor.nbytes for tensor in full.values()) // KIB
    # Columns of a matrix are in every page of it, so the output projection is touched whole. The kernel maps up to
    # 2 MiB around what is read.
    projection = HIDDEN * HIDDEN * 4 // KIB
    share = (whole - projection) // RANKS + projection
    assert max(seen) <= share + len(full) * 2 * KIB, (max(seen), share, whole)
    assert share + len(full) * 2 * KIB < 0.6 * whole

    rows, columns = VOCAB // RANKS, HIDDEN // RANKS
    assert torch.equal(model.embed.weight, full["embed.weight"][rank * rows : (rank + 1) * rows])
    assert torch.equal(model.out.weight, full["out.weight"][:, rank * columns : (rank + 1) * columns])
    query = model.qkv.weight[:columns]
    assert torch.equal(query, full["q_proj.weight"][rank * columns : (rank + 1) * columns])
