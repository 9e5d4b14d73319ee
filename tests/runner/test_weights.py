"""Weight loading: accounting and faults, on small Llama-shaped checkpoints written by hand."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from core.interfaces.build import BuildContext
from core.interfaces.context import PluginContext
from core.interfaces.errors import WeightError
from core.interfaces.model import ModuleRule, WeightRules
from core.layers.embedding import LmHead, VocabEmbedding
from core.layers.linear import QkvLinear
from core.layers.moe import Experts, TorchNativeMoe
from core.layers.norm import RmsNorm
from core.layers.unquantized import Unquantized
from core.ops.reference import REFERENCES
from core.runner import weights
from core.runner.weights import INDEX_FILE, SINGLE_FILE, dummy_weights, load_weights
from core.runner.weights_rules import RuleTable

VOCAB, HIDDEN, HEADS, HEAD_DIM, EXPERTS, INTER = 10, 6, 2, 4, 3, 5
RULES = WeightRules(
    (
        ModuleRule("model.embed_tokens", "embed"),
        ModuleRule("lm_head", "head"),
        ModuleRule("model.layers.{layer}.norm", "layers.{layer}.norm"),
        *(ModuleRule(f"model.layers.{{layer}}.{p}_proj", "layers.{layer}.qkv", p) for p in "qkv"),
        *(
            ModuleRule(f"model.layers.{{layer}}.experts.{{expert}}.{p}_proj", "layers.{layer}.experts", p)
            for p in ("gate", "up", "down")
        ),
        ModuleRule("model.layers.{layer}.experts", "layers.{layer}.experts"),
    ),
    {r".*\.inv_freq": "computed"},
)


class OneRank:
    rank = 0
    size = 1

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def all_gather(self, x: torch.Tensor, dim: int = -1) -> torch.Tensor:
        return x


def context(dtype: torch.dtype = torch.float32, tp: Any = None) -> BuildContext:
    plugin = PluginContext()
    return BuildContext(
        dtype=dtype,
        device=torch.device("cpu"),
        ops=REFERENCES,
        quant=Unquantized(None, plugin),
        moe=TorchNativeMoe(plugin),
        tp=tp or OneRank(),
        max_tokens=8,
        context_length=8,
    )


class Layer(nn.Module):
    def __init__(self, index: int, ctx: BuildContext) -> None:
        super().__init__()
        self.norm = RmsNorm(f"layers.{index}.norm", HIDDEN, 1e-6, ctx)
        self.qkv = QkvLinear(f"layers.{index}.qkv", HIDDEN, HEADS, 1, HEAD_DIM, ctx, bias=True)
        self.experts = Experts(f"layers.{index}.experts", EXPERTS, HIDDEN, INTER, ctx)


class Model(nn.Module):
    def __init__(self, *, tied: bool = False, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        ctx = context(dtype)
        self.embed = VocabEmbedding("embed", VOCAB, HIDDEN, ctx)
        self.layers = nn.ModuleList([Layer(i, ctx) for i in range(2)])
        self.head = LmHead("head", VOCAB, HIDDEN, ctx, tied=self.embed if tied else None)


def checkpoint(*, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    tensors: dict[str, torch.Tensor] = {}

    def add(name: str, *shape: int) -> None:
        tensors[name] = torch.randn(shape, generator=generator).to(dtype)

    add("model.embed_tokens.weight", VOCAB, HIDDEN)
    add("lm_head.weight", VOCAB, HIDDEN)
    for i in range(2):
        prefix = f"model.layers.{i}"
        add(f"{prefix}.norm.weight", HIDDEN)
        for part, rows in {"q": HEADS * HEAD_DIM, "k": HEAD_DIM, "v": HEAD_DIM}.items():
            add(f"{prefix}.{part}_proj.weight", rows, HIDDEN)
            add(f"{prefix}.{part}_proj.bias", rows)
        for e in range(EXPERTS):
            for part, shape in {"gate": (INTER, HIDDEN), "up": (INTER, HIDDEN), "down": (HIDDEN, INTER)}.items():
                add(f"{prefix}.experts.{e}.{part}_proj.weight", *shape)
    return tensors


def write(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    save_file(tensors, folder / SINGLE_FILE)
    return folder


def write_shards(folder: Path, tensors: dict[str, torch.Tensor], num_shards: int) -> Path:
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for shard in range(num_shards):
        file = f"model-{shard + 1:05d}-of-{num_shards:05d}.safetensors"
        mine = names[shard::num_shards]
        save_file({name: tensors[name] for name in mine}, folder / file)
        weight_map.update(dict.fromkeys(mine, file))
    (folder / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_every_tensor_arrives(tmp_path: Path) -> None:
    tensors = checkpoint()
    tensors["model.layers.0.rotary.inv_freq"] = torch.ones(2)
    model = Model()
    calls: list[tuple[int, int]] = []
    report = load_weights(
        model, RULES, write(tmp_path, tensors), threads=1, progress=lambda done, total: calls.append((done, total))
    )
    layer: Any = model.layers[1]
    prefix = "model.layers.1"
    qkv = torch.cat([tensors[f"{prefix}.{p}_proj.weight"] for p in "qkv"])
    assert torch.equal(layer.qkv.weight, qkv)
    assert torch.equal(layer.qkv.bias, torch.cat([tensors[f"{prefix}.{p}_proj.bias"] for p in "qkv"]))
    assert torch.equal(layer.experts.gate_up[2, INTER:], tensors[f"{prefix}.experts.2.up_proj.weight"])
    assert torch.equal(layer.experts.gate_up[0, :INTER], tensors[f"{prefix}.experts.0.gate_proj.weight"])
    assert torch.equal(layer.experts.down[1], tensors[f"{prefix}.experts.1.down_proj.weight"])
    assert torch.equal(model.embed.weight, tensors["model.embed_tokens.weight"])
    assert torch.equal(model.head.weight, tensors["lm_head.weight"])
    x = torch.randn(3, HIDDEN)
    torch.testing.assert_close(layer.qkv(x), x @ qkv.T + layer.qkv.bias)
    assert report.num_tensors == len(tensors) - 1
    assert report.ignored == (("model.layers.0.rotary.inv_freq", "computed"),)
    assert report.num_bytes == sum(t.numel() * 4 for n, t in tensors.items() if "inv_freq" not in n)
    assert calls[0] == (0, report.num_bytes)
    assert calls[-1] == (report.num_bytes, report.num_bytes)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)


@pytest.mark.parametrize("threads", [1, 4])
def test_shards_equal_a_single_file(tmp_path: Path, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.runner.weights.PIECE_BYTES", 64)  # many pieces
    tensors = checkpoint()
    (tmp_path / "one").mkdir()
    (tmp_path / "many").mkdir()
    single, sharded = Model(), Model()
    load_weights(single, RULES, write(tmp_path / "one", tensors), threads=threads)
    report = load_weights(sharded, RULES, write_shards(tmp_path / "many", tensors, 3), threads=threads)
    assert report.num_files == 3
    expected = state(single)
    for name, value in state(sharded).items():
        assert torch.equal(value, expected[name]), name


def test_dtype_is_converted(tmp_path: Path) -> None:
    model = Model(dtype=torch.bfloat16)
    tensors = checkpoint()
    load_weights(model, RULES, write(tmp_path, tensors), threads=1)
    assert model.embed.weight.dtype == torch.bfloat16
    assert torch.equal(model.embed.weight, tensors["model.embed_tokens.weight"].bfloat16())


def test_tied_head_may_be_absent(tmp_path: Path) -> None:
    tensors = checkpoint()
    del tensors["lm_head.weight"]
    model = Model(tied=True)
    load_weights(model, RULES, write(tmp_path, tensors), threads=1)
    assert model.head.weight is model.embed.weight
    x = torch.randn(2, HIDDEN)
    torch.testing.assert_close(model.head(x), x @ tensors["model.embed_tokens.weight"].T)


def test_tied_head_may_be_a_duplicate(tmp_path: Path) -> None:
    tensors = checkpoint()
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    load_weights(Model(tied=True), RULES, write(tmp_path, tensors), threads=1)


def test_tied_head_that_differs_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(WeightError, match=r"head\.weight differs.*(?s:.*)tie_word_embeddings"):
        load_weights(Model(tied=True), RULES, write(tmp_path, checkpoint()), threads=1)


def test_untied_head_must_be_there(tmp_path: Path) -> None:
    tensors = checkpoint()
    del tensors["lm_head.weight"]
    with pytest.raises(WeightError, match=r"1 tensors are missing: lm_head\.weight"):
        load_weights(Model(), RULES, write(tmp_path, tensors), threads=1)


def test_missing_and_unexpected_are_listed_together(tmp_path: Path) -> None:
    tensors = checkpoint()
    del tensors["model.layers.1.k_proj.weight"]
    del tensors["model.layers.0.experts.2.up_proj.weight"]
    tensors["model.layers.0.q_proj.weight_scale"] = torch.ones(1)
    tensors["model.layers.7.norm.weight"] = torch.ones(HIDDEN)
    tensors["vision.weight"] = torch.ones(1)
    model = Model()
    before = state(model)
    with pytest.raises(WeightError) as caught:
        load_weights(model, RULES, write(tmp_path, tensors), threads=2)
    text = str(caught.value)
    assert "2 tensors are missing" in text
    assert "model.layers.1.k_proj.weight" in text
    assert "model.layers.0.experts.2.up_proj.weight" in text
    assert "3 tensors are unexpected" in text
    for name in ("model.layers.0.q_proj.weight_scale", "model.layers.7.norm.weight", "vision.weight"):
        assert name in text
    for name, value in state(model).items():  # settled before any data was read
        assert torch.equal(value.nan_to_num(), before[name].nan_to_num())


def test_long_lists_are_cut(tmp_path: Path) -> None:
    tensors = checkpoint() | {f"extra.{i:03d}.weight": torch.ones(1) for i in range(33)}
    with pytest.raises(WeightError, match=r"33 tensors are unexpected: extra\.000\.weight.* and 13 more"):
        load_weights(Model(), RULES, write(tmp_path, tensors), threads=1)


def test_stacked_and_split_experts_together_are_an_error(tmp_path: Path) -> None:
    tensors = checkpoint()
    tensors["model.layers.0.experts.down_proj"] = torch.zeros(EXPERTS, HIDDEN, INTER)
    with pytest.raises(WeightError, match=r"both give layers\.0\.experts"):
        load_weights(Model(), RULES, write(tmp_path, tensors), threads=1)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("model.embed_tokens.weight", (VOCAB + 1, HIDDEN)),
        ("lm_head.weight", (VOCAB, HIDDEN - 1)),
        ("model.layers.0.norm.weight", (1,)),
        ("model.layers.1.q_proj.weight", (HEAD_DIM, HIDDEN)),
        ("model.layers.1.v_proj.bias", (HEAD_DIM, 1)),
        ("model.layers.1.experts.0.down_proj.weight", (INTER, HIDDEN)),
        ("model.layers.1.experts.2.gate_proj.weight", (INTER, HIDDEN, 1)),
    ],
)
@pytest.mark.parametrize("threads", [1, 3])
def test_wrong_shape_names_file_and_tensor(
    tmp_path: Path, name: str, shape: tuple[int, ...], threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.runner.weights.PIECE_BYTES", 64)
    tensors = checkpoint() | {name: torch.zeros(shape)}
    with pytest.raises(WeightError) as caught:
        load_weights(Model(), RULES, write(tmp_path, tensors), threads=threads)
    assert SINGLE_FILE in str(caught.value)
    assert name in str(caught.value)
    assert str(list(shape)) in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.bool])
def test_wrong_dtype_names_file_and_tensor(tmp_path: Path, dtype: torch.dtype) -> None:
    name = "model.layers.0.q_proj.weight"
    tensors = checkpoint()
    tensors[name] = tensors[name].to(dtype)
    with pytest.raises(WeightError, match=r"model\.safetensors: tensor model\.layers\.0\.q_proj\.weight: dtype"):
        load_weights(Model(), RULES, write(tmp_path, tensors), threads=1)


def _cut_data(data: bytes) -> bytes:
    return data[:-5]


def _cut_header(data: bytes) -> bytes:
    return data[:40]


def _bad_length(data: bytes) -> bytes:
    return struct.pack("<Q", 1 << 50) + data[8:]


def _bad_json(data: bytes) -> bytes:
    return data[:8] + b"}" + data[9:]


@pytest.mark.parametrize("damage", [_cut_data, _cut_header, _bad_length, _bad_json, lambda data: b""])
def test_damaged_file(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    file = write(tmp_path, checkpoint()) / SINGLE_FILE
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(WeightError, match=r"model\.safetensors: truncated or not a safetensors file"):
        load_weights(Model(), RULES, tmp_path, threads=2)


def test_damaged_shard(tmp_path: Path) -> None:
    write_shards(tmp_path, checkpoint(), 3)
    file = tmp_path / "model-00002-of-00003.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(WeightError, match="model-00002-of-00003"):
        load_weights(Model(), RULES, tmp_path, threads=2)


def test_missing_shard(tmp_path: Path) -> None:
    write_shards(tmp_path, checkpoint(), 3)
    (tmp_path / "model-00003-of-00003.safetensors").unlink()
    with pytest.raises(WeightError, match=r"1 of 3 weight files are missing: model-00003-of-00003\.saf"):
        load_weights(Model(), RULES, tmp_path, threads=2)


def test_index_that_lies_about_a_shard(tmp_path: Path) -> None:
    write_shards(tmp_path, checkpoint(), 2)
    file = tmp_path / "model-00001-of-00002.safetensors"
    tensors = load_file(file)
    gone = sorted(tensors)[0]
    save_file({k: v.clone() for k, v in tensors.items() if k != gone}, file)
    with pytest.raises(WeightError, match=f"not in the file: {gone}"):
        load_weights(Model(), RULES, tmp_path, threads=2)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": 3}', "\xff"])
def test_broken_index(tmp_path: Path, content: str) -> None:
    (tmp_path / INDEX_FILE).write_text(content, encoding="latin-1")
    with pytest.raises(WeightError, match=r"index\.json: not a weight index"):
        load_weights(Model(), RULES, tmp_path, threads=1)


def test_index_may_not_leave_the_folder(tmp_path: Path) -> None:
    (tmp_path / INDEX_FILE).write_text(json.dumps({"weight_map": {"a.weight": "../elsewhere.safetensors"}}))
    with pytest.raises(WeightError, match="not a file name in the same folder"):
        load_weights(Model(), RULES, tmp_path, threads=1)


def test_no_weights_says_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(WeightError, match=r"no model\.safetensors .*found pytorch_model\.bin"):
        load_weights(Model(), RULES, tmp_path, threads=1)
    with pytest.raises(WeightError, match=r"no model\.safetensors"):
        load_weights(Model(), RULES, tmp_path / "nowhere", threads=1)


def test_dummy_weights_depend_on_seed_and_name_alone() -> None:
    first, second, other = Model(), Model(tied=True), Model()
    dummy_weights(first, 1)
    dummy_weights(second, 1)
    dummy_weights(other, 2)
    a, b, c = state(first), state(second), state(other)
    for name, value in b.items():
        assert torch.equal(a[name], value), name
    assert not torch.equal(a["embed.weight"], c["embed.weight"])
    assert not torch.equal(a["layers.0.qkv.weight"], a["layers.1.qkv.weight"])
    assert torch.equal(a["layers.0.norm.weight"], torch.ones(HIDDEN))
    spread = torch.cat([v.flatten() for k, v in a.items() if "norm" not in k]).std()
    assert 0.01 < spread < 0.03
    assert first.head(torch.ones(1, HIDDEN)).shape == (1, VOCAB)


def test_large_dummy_weights_are_cut_out_of_one_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_DRAWN_ONE_BY_ONE", 0)
    monkeypatch.setattr(weights, "DRAWING", 61)
    first, second, other = Model(), Model(), Model()
    dummy_weights(first, 1)
    dummy_weights(second, 1)
    dummy_weights(other, 2)
    a, b, c = state(first), state(second), state(other)
    drawing = torch.empty(61).normal_(0.0, weights.DUMMY_STD, generator=torch.Generator().manual_seed(1))
    starts = set()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name
        if "norm" in name:
            continue
        assert not torch.equal(value, c[name]), name
        flat = value.flatten()
        (start,) = torch.nonzero(drawing.to(value.dtype) == flat[0]).flatten().tolist()
        starts.add(start)
        assert torch.equal(flat, drawing.to(value.dtype)[(torch.arange(len(flat)) + start) % 61])
        if value.dim() == 2:
            assert len(value.unique(dim=0)) == len(value), "no row repeats"
    assert len(starts) > 2, "each begins at a place of its own"


def test_rule_table_inverts_itself() -> None:
    table = RuleTable(RULES)
    for name in checkpoint():
        address = table.address(name)
        assert address is not None
        assert table.name(address.target, address.suffix, address.part, address.expert) == name


def test_expert_in_the_target() -> None:
    rule = ModuleRule("m.{layer}.e.{expert}.w", "l.{layer}.e{expert}.x", "up")
    table = RuleTable(WeightRules((rule,), {}))
    address = table.address("m.3.e.12.w.weight")
    assert address is not None
    assert (address.target, address.suffix, address.part, address.expert) == ("l.3.e12.x", "weight", "up", None)
    assert table.name("l.3.e12.x", "weight", "up", None) == "m.3.e.12.w.weight"
    assert table.address("m.a.e.12.w.weight") is None
    assert table.address("m.3.e.12.weight") is None
