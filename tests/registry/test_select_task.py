"""Which task a model is built for, and how it pools: operator, then checkpoint, then architecture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from core.config.sections import ModelSettings
from core.interfaces.errors import CheckpointError, ConfigError
from core.interfaces.spec import ModelSpec
from core.registry.select_task import choose_task


def spec(**fields: Any) -> ModelSpec:
    return ModelSpec("X", 10, 64, (), (), 128, **fields)


def write(folder: Path, kinds: list[str], pooling: dict[str, Any] | None = None) -> None:
    modules = [{"idx": at, "path": "" if at == 0 else f"{at}_x", "type": kind} for at, kind in enumerate(kinds)]
    (folder / "modules.json").write_text(json.dumps(modules))
    if pooling is not None:
        (folder / "1_x").mkdir()
        (folder / "1_x" / "config.json").write_text(json.dumps(pooling))


OLD = "sentence_transformers.models."
LAST = {"word_embedding_dimension": 64, "pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False,
        "include_prompt": True}  # fmt: skip


@pytest.mark.parametrize(
    ("own", "given", "task", "shown", "pooling"),
    [
        ("generate", {}, "generate", "generate", None),
        ("generate", {"pooling": "mean"}, "generate", "generate", "mean"),
        ("generate", {"task": "embed"}, "embed", "embed", "last"),
        ("generate", {"is_embedding": True, "pooling": "cls"}, "embed", "embed", "first"),
        ("generate", {"task": "score"}, "generate", "score", None),
        ("classify", {}, "classify", "classify", "last"),
        ("classify", {"task": "score"}, "classify", "classify", "last"),
        ("classify", {"task": "embed"}, "embed", "embed", "last"),
        ("embed", {}, "embed", "embed", "last"),
    ],
)
def test_tasks(tmp_path: Path, own: Any, given: Any, task: str, shown: str, pooling: str | None) -> None:
    plan, decisions = choose_task(ModelSettings(**given), spec(task=own), {}, tmp_path)
    assert (plan.task, plan.shown_task, plan.pooling) == (task, shown, pooling)
    assert [decision.name for decision in decisions] == ["task", "pooling"]
    assert all(decision.reason for decision in decisions)


@pytest.mark.parametrize(
    ("own", "given"),
    [
        ("classify", {"task": "generate"}),
        ("embed", {"task": "generate"}),
        ("generate", {"task": "classify"}),
        ("embed", {"task": "score"}),
        ("generate", {"task": "generate", "is_embedding": True}),
    ],
)
def test_what_cannot_be_built(tmp_path: Path, own: Any, given: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        choose_task(ModelSettings(**given), spec(task=own), {}, tmp_path)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("pooling", "wanted"),
    [
        (LAST, "last"),
        ({"pooling_mode_cls_token": True}, "first"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": False}, "mean"),
        ({"pooling_mode": "lasttoken"}, "last"),
        ({"pooling_mode": "mean", "include_prompt": True}, "mean"),
    ],
)
def test_modules_say_how_to_pool(tmp_path: Path, pooling: dict[str, Any], wanted: str) -> None:
    write(tmp_path, [f"{OLD}Transformer", f"{OLD}Pooling"], pooling)
    plan, decisions = choose_task(ModelSettings(), spec(), {}, tmp_path)
    assert (plan.task, plan.pooling, plan.normalize) == ("embed", wanted, False)
    assert "modules.json" in decisions[0].reason
    overridden, _ = choose_task(ModelSettings(pooling="mean", normalize="on"), spec(), {}, tmp_path)
    assert (overridden.pooling, overridden.normalize) == ("mean", True)
    asked, _ = choose_task(ModelSettings(task="generate"), spec(), {}, tmp_path)
    assert (asked.task, asked.pooling) == ("generate", None)


def test_a_normalising_module(tmp_path: Path) -> None:
    write(tmp_path, [f"{OLD}Transformer", f"{OLD}Pooling", f"{OLD}Normalize"], LAST)
    assert choose_task(ModelSettings(), spec(), {}, tmp_path)[0].normalize
    assert not choose_task(ModelSettings(normalize="off"), spec(), {}, tmp_path)[0].normalize


@pytest.mark.parametrize(
    ("kinds", "pooling", "told"),
    [
        ([f"{OLD}Transformer", f"{OLD}Dense"], None, "Dense"),
        ([f"{OLD}Transformer", f"{OLD}Pooling"], {"pooling_mode_max_tokens": True}, "pooling_mode_max_tokens"),
        (
            [f"{OLD}Transformer", f"{OLD}Pooling"],
            {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True},
            "pooling_mode_cls_token and pooling_mode_mean_tokens",
        ),
        ([f"{OLD}Transformer", f"{OLD}Pooling"], {}, "nothing"),
        ([f"{OLD}Transformer", f"{OLD}Pooling"], None, "cannot be read"),
    ],
)
def test_modules_that_are_not_known(tmp_path: Path, kinds: list[str], pooling: Any, told: str) -> None:
    write(tmp_path, kinds, pooling)
    with pytest.raises(CheckpointError, match=told):
        choose_task(ModelSettings(), spec(), {}, tmp_path)


def test_a_pooling_module_stays_inside_the_folder(tmp_path: Path) -> None:
    modules = [{"path": "../elsewhere", "type": "Pooling"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(CheckpointError, match="elsewhere"):
        choose_task(ModelSettings(), spec(), {}, tmp_path)


@pytest.mark.parametrize(
    ("config", "given", "wanted"),
    [
        ({}, {}, ()),
        ({}, {"matryoshka": True}, None),
        ({"is_matryoshka": True}, {}, None),
        ({"matryoshka_dimensions": [32, 8]}, {}, (8, 32, 64)),
    ],
)
def test_dimensions(tmp_path: Path, config: Any, given: Any, wanted: Any) -> None:
    assert choose_task(ModelSettings(**given), spec(task="embed"), config, tmp_path)[0].dimensions == wanted


def test_dimensions_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="matryoshka_dimensions"):
        choose_task(ModelSettings(), spec(), {"matryoshka_dimensions": [65]}, tmp_path)


@pytest.mark.parametrize(
    ("labels", "config", "wanted"),
    [
        (("a",), {}, "sigmoid"),
        (("a", "b"), {}, "softmax"),
        (("a", "b"), {"problem_type": "multi_label_classification"}, "sigmoid"),
    ],
)
def test_activations(tmp_path: Path, labels: Any, config: Any, wanted: str) -> None:
    plan, _ = choose_task(ModelSettings(), spec(task="classify", labels=labels), config, tmp_path)
    assert plan.activation == wanted
