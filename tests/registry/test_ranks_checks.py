"""What a number of ranks is refused for before anything is loaded, and how it is explained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from registry_fakes import (
    attention,
    hardware,
    make_spec,
    model,
    quant,
    record,
    records,
    settings,
    swap,
    write_checkpoint,
)

from core.interfaces.errors import ConfigError
from core.interfaces.hardware import EngineFacts
from core.registry.resolve import resolve


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "ckpt")


def explained(folder: Path, **flat: Any) -> str:
    resolution = resolve(settings(folder, **flat), swap(records()))
    row = next(row for row in resolution.explain() if row.what == "tensor parallel")
    assert resolution.effective["tensor_parallel_size"] == str(resolution.tensor_parallel_size)
    return f"{row.chosen}: {row.reason}"


def test_the_ranks_are_explained(folder: Path) -> None:
    assert explained(folder) == "1 rank: every layer is computed whole"
    assert explained(folder, tensor_parallel_size=4) == "4 ranks: asked for; a process each, they talk over gloo"


@pytest.mark.parametrize(
    ("kind", "name", "target", "text"),
    [
        ("models", "XForCausalLM", model(make_spec()), "model 'XForCausalLM' cannot be spread over ranks"),
        ("quant", "none", quant(None), "quantization 'none' cannot be spread over ranks"),
    ],
)
def test_a_plugin_that_says_it_cannot(folder: Path, kind: str, name: str, target: Any, text: str) -> None:
    def catalog(flag: bool | None) -> Any:
        capabilities = {} if flag is None else {"tensor_parallel": flag}
        return swap(records(), record(kind, name, target, capabilities=capabilities))

    with pytest.raises(ConfigError, match=text) as caught:
        resolve(settings(folder, tensor_parallel_size=2), catalog(False))
    assert (caught.value.field, caught.value.value) == ("engine.tensor_parallel_size", 2)
    assert "--tensor-parallel-size 1" in str(caught.value)
    assert resolve(settings(folder), catalog(False)).tensor_parallel_size == 1
    for flag in (True, None):
        assert resolve(settings(folder, tensor_parallel_size=2), catalog(flag)).tensor_parallel_size == 2


def test_deterministic_mode_has_one_rank(folder: Path) -> None:
    asked = {"deterministic": True, "tensor_parallel_size": 2}
    fakes = swap(records(), record("attention", "plain", attention(batch_invariant=True)))
    with pytest.raises(ConfigError, match="tensor_parallel_size is 2, but deterministic is set") as caught:
        resolve(settings(folder, **asked), fakes)
    assert "leave --deterministic out" in str(caught.value)


def test_the_device_says_how_many_there_are(folder: Path) -> None:
    class Two(hardware()):  # type: ignore[misc]
        def rejects(self, facts: EngineFacts) -> str | None:
            return "there are 2; use --tensor-parallel-size 2" if facts.tensor_parallel_size > 2 else None

    catalog = swap(records(), record("hardware", "host", Two))
    assert resolve(settings(folder, tensor_parallel_size=2), catalog).facts.tensor_parallel_size == 2
    with pytest.raises(ConfigError, match="there are 2; use --tensor-parallel-size 2"):
        resolve(settings(folder, tensor_parallel_size=3), catalog)
