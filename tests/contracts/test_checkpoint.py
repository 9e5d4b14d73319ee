"""The suite of packaged checkpoints: the demo passes, broken ones do not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.interfaces.errors import CheckpointError, WeightError
from core.registry import Catalog, PluginRecord
from core.testing.contracts.checkpoint import CheckpointContract
from plugin_demo import checkpoint


class TestDemo(CheckpointContract):
    name = "demo"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return shutil.copytree(checkpoint(), tmp_path / "files")


def suite(folder: Any) -> CheckpointContract:
    record = PluginRecord(
        "checkpoints", "copied", "not-installed", loaded=lambda: folder, capabilities={"tool_parser": "x"}
    )
    found = Catalog.from_records([record, *(r for r in Catalog.scan().records if r.kind != "checkpoints")])

    class Suite(CheckpointContract):
        name = "copied"

        @classmethod
        def catalog(cls) -> Catalog:
            return found

    return Suite()


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="part of the wheel"):
        suite(tmp_path / "nothing").test_folder_is_there()
    with pytest.raises(AssertionError, match="current directory"):
        suite("files").test_folder_is_there()


def test_code_in_the_folder(copy: Path) -> None:
    (copy / "modeling.py").write_text("print('hello')")
    with pytest.raises(AssertionError, match=r"modeling\.py"):
        suite(copy).test_folder_is_there()


def test_unknown_architecture(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "architectures": ["NobodyForCausalLM"]}))
    with pytest.raises(AssertionError, match="NobodyForCausalLM"):
        suite(copy).test_config_names_an_installed_architecture()


@pytest.mark.parametrize("fault", ["missing", "extra", "infinite"])
def test_weights(copy: Path, fault: str) -> None:
    tensors = load_file(copy / "model.safetensors")
    name = "model.layers.3.mlp.up_proj.weight"
    if fault == "missing":
        del tensors[name]
    elif fault == "extra":
        tensors["model.extra.weight"] = torch.ones(2)
    else:
        tensors[name][3, 3] = float("inf")
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises((WeightError, AssertionError), match="extra" if fault == "extra" else "layers.3.mlp"):
        suite(copy).test_every_tensor_is_taken()


def test_tokenizer_of_another_model(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "vocab_size": 100, "eos_token_id": 3}))
    with pytest.raises(AssertionError, match="the model knows 100"):
        suite(copy).test_tokenizer()
    (copy / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError):
        suite(copy).test_tokenizer()


def test_parsers_that_nobody_brings(copy: Path) -> None:
    with pytest.raises(AssertionError, match="tool_parser 'x'"):
        suite(copy).test_wished_parsers_are_installed()
