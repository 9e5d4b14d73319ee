"""Layouts of checkpoint tensors: stacked experts, multi-token prediction layers, what is missing or unknown."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from glm4_cases import BASE, MOE, glm4, glm4_moe, glm4_moe_lite
from parity import ParityCase
from safetensors.torch import load_file, save_file

from core.interfaces.errors import WeightError
from core.interfaces.model import ModelArch
from plugin_glm4.arch import Glm4Arch, Glm4MoeArch, Glm4MoeLiteArch
from plugin_glm4.weights import MTP_REASON

Tensors = dict[str, torch.Tensor]
LAST = BASE["num_hidden_layers"]
FAMILIES = [(glm4_moe, Glm4MoeArch), (glm4_moe_lite, Glm4MoeLiteArch)]


def rewrite(folder: Path, change: Callable[[Tensors], None]) -> None:
    file = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    change(tensors)
    save_file(tensors, file)


def again(case: ParityCase, folder: Path, arch: type[ModelArch]) -> ParityCase:
    return ParityCase(case.hf, folder, arch, save=False, backend=type(case.attention[0]))


def stack_experts(tensors: Tensors) -> None:
    for layer in range(1, LAST):
        prefix = f"model.layers.{layer}.mlp.experts"
        parts: dict[str, list[torch.Tensor]] = {}
        for part in ("gate", "up", "down"):
            experts = range(MOE["n_routed_experts"])
            parts[part] = [tensors.pop(f"{prefix}.{e}.{part}_proj.weight") for e in experts]
        gate_up = [torch.cat(pair) for pair in zip(parts["gate"], parts["up"], strict=True)]
        tensors[f"{prefix}.gate_up_proj"] = torch.stack(gate_up)
        tensors[f"{prefix}.down_proj"] = torch.stack(parts["down"])


def add_mtp(tensors: Tensors, layer: int = LAST) -> None:
    """A multi-token prediction layer as the published checkpoints have it: a decoder layer and what surrounds it."""
    last, new = f"model.layers.{LAST - 1}.", f"model.layers.{layer}."
    for name, tensor in list(tensors.items()):
        if name.startswith(last):
            tensors[name.replace(last, new)] = tensor.clone()
    hidden = BASE["hidden_size"]
    tensors[f"{new}eh_proj.weight"] = torch.zeros(hidden, 2 * hidden)
    for norm in ("enorm", "hnorm", "shared_head.norm"):
        tensors[f"{new}{norm}.weight"] = torch.ones(hidden)
    for table in ("embed_tokens", "shared_head.head"):
        tensors[f"{new}{table}.weight"] = torch.zeros(BASE["vocab_size"], hidden)


@pytest.mark.parametrize(("make", "arch"), FAMILIES)
def test_stacked_expert_tensors(tmp_path: Path, make: Any, arch: type[ModelArch]) -> None:
    split = make(tmp_path)
    rewrite(tmp_path, stack_experts)
    stacked = again(split, tmp_path, arch)
    stacked.check_prefill(11)
    assert stacked.report.num_tensors < split.report.num_tensors


@pytest.mark.parametrize(("make", "arch"), FAMILIES)
def test_multi_token_prediction_is_kept_aside(tmp_path: Path, make: Any, arch: type[ModelArch]) -> None:
    plain = make(tmp_path, num_nextn_predict_layers=1)
    rewrite(tmp_path, add_mtp)
    case = again(plain, tmp_path, arch)
    case.check_prefill(11)
    ignored = dict(case.report.ignored)
    assert set(ignored.values()) == {MTP_REASON}
    for name in ("eh_proj", "enorm", "hnorm", "shared_head.head", "embed_tokens", "mlp.gate", "self_attn.o_proj"):
        assert f"model.layers.{LAST}.{name}.weight" in ignored


@pytest.mark.parametrize(("make", "arch"), FAMILIES)
def test_a_layer_beyond_those_is_an_error(tmp_path: Path, make: Any, arch: type[ModelArch]) -> None:
    case = make(tmp_path, num_nextn_predict_layers=1)
    rewrite(tmp_path, lambda tensors: add_mtp(tensors, LAST + 1))
    with pytest.raises(WeightError, match=rf"unexpected: model\.layers\.{LAST + 1}\."):
        again(case, tmp_path, arch)


@pytest.mark.parametrize(
    ("make", "arch", "name"),
    [
        (glm4, Glm4Arch, "model.layers.0.post_mlp_layernorm.weight"),
        (glm4, Glm4Arch, "model.layers.1.mlp.gate_up_proj.weight"),
        (glm4_moe, Glm4MoeArch, "model.layers.1.mlp.gate.e_score_correction_bias"),
        (glm4_moe, Glm4MoeArch, "model.layers.2.mlp.shared_experts.up_proj.weight"),
        (glm4_moe, Glm4MoeArch, "model.layers.2.mlp.experts.5.down_proj.weight"),
        (glm4_moe_lite, Glm4MoeLiteArch, "model.layers.1.self_attn.kv_b_proj.weight"),
        (glm4_moe_lite, Glm4MoeLiteArch, "model.layers.0.self_attn.kv_a_proj_with_mqa.weight"),
    ],
)
def test_missing_tensors_are_named(tmp_path: Path, make: Any, arch: type[ModelArch], name: str) -> None:
    case = make(tmp_path)

    def drop(tensors: Tensors) -> None:
        del tensors[name]

    rewrite(tmp_path, drop)
    with pytest.raises(WeightError, match=rf"1 tensors are missing: {re.escape(name)}"):
        again(case, tmp_path, arch)


@pytest.mark.parametrize(
    ("make", "arch", "name"),
    [
        (glm4, Glm4Arch, "model.layers.0.self_attn.q_norm.weight"),
        (glm4_moe, Glm4MoeArch, "model.layers.0.mlp.gate.weight"),
        (glm4_moe, Glm4MoeArch, "model.layers.1.self_attn.q_norm.weight"),
        (glm4_moe_lite, Glm4MoeLiteArch, "model.layers.1.self_attn.q_proj.weight"),
        (glm4_moe_lite, Glm4MoeLiteArch, "model.layers.1.eh_proj.weight"),
    ],
)
def test_unknown_tensors_are_named(tmp_path: Path, make: Any, arch: type[ModelArch], name: str) -> None:
    case = make(tmp_path)
    rewrite(tmp_path, lambda tensors: tensors.update({name: torch.ones(4)}))
    with pytest.raises(WeightError, match=rf"1 tensors are unexpected: {re.escape(name)}"):
        again(case, tmp_path, arch)
