"""A vendor's chip does everything through typed interfaces: one test for each seam, through a whole engine.

The list of seams is that of a vendor's out-of-tree plugin for another engine, which had to replace functions of that
engine at import for each of them.
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from core.engine.client import EngineRequest, TokenChunk
from core.engine.offline import OfflineEngine
from core.interfaces.batch import ForwardBatch
from core.interfaces.build import BuildContext
from core.interfaces.errors import ConfigError, PluginError, PluginLoadError
from core.interfaces.hardware import EngineFacts
from core.interfaces.model import CausalLM
from core.interfaces.params import SamplingParams
from core.interfaces.spec import ModelSpec
from core.registry.records import PluginRecord
from core.testing.mock_engine import build_in_process, catalog_with, generate, resolve_in_process, write_config
from core.testing.mock_hardware import MockHardware
from core.testing.mock_vendor import NAME, QUEUE_VARIABLE, MockVendorHardware, VendorAttention, vendor_records
from core.testing.tiny_model import TinyModel

DRAWN = SamplingParams(
    temperature=0.8, top_k=20, top_p=0.9, min_p=0.01, presence_penalty=0.3, logprobs=2, max_tokens=6, ignore_eos=True
)


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    monkeypatch.setenv(QUEUE_VARIABLE, "set by the test, so that nothing is left behind")
    MockVendorHardware.calls.clear()
    return MockVendorHardware.calls


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("tiny") / "checkpoint")


def prompts(count: int = 6) -> list[list[int]]:
    rng = random.Random(1)
    return [[rng.randrange(64) for _ in range(rng.randint(1, 30))] for _ in range(count)]


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, list[list[int]]]:
    """What core's own CPU backend answers, greedy and drawn."""
    engine = build_in_process(folder, catalog_with(), device="cpu")
    answers = {"greedy": generate(engine, prompts()), "drawn": generate(engine, prompts(), DRAWN)}
    engine.engine.close()
    return answers


@pytest.fixture
def vendor(folder: Path, calls: Counter[str]) -> Iterator[OfflineEngine]:
    engine = build_in_process(folder, catalog_with(vendor_records()), device=NAME)
    yield engine
    engine.engine.close()


def test_the_whole_vendor_gives_the_same_answers(vendor: OfflineEngine, expected: dict[str, Any]) -> None:
    assert generate(vendor, prompts()) == expected["greedy"]
    assert generate(vendor, prompts(), DRAWN) == expected["drawn"]


# Scheduler and engine-core class selection


def test_seam_scheduler(folder: Path, calls: Counter[str], expected: dict[str, Any]) -> None:
    settings = {"device": NAME, "schedule_policy": "newest-first", "max_running_requests": 1, "overlap": "off"}
    engine = build_in_process(folder, catalog_with(vendor_records()), **settings)
    finished: list[int] = []

    def note(index: int, chunk: TokenChunk) -> None:
        if chunk.finish_reason:
            finished.append(index)

    greedy = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
    asked = [EngineRequest(np.array(prompt, np.int32), greedy) for prompt in prompts(2)]
    answers = engine.generate(asked, note)
    engine.engine.close()
    assert finished == [1, 0], "the vendor's policy takes the newest first"
    assert [chunk.tokens for chunk in answers] == expected["greedy"][:2]
    assert calls["rank"]
    assert calls["step_tokens"]


def test_seam_scheduler_of_another_device_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="newest-first"):
        resolve_in_process(folder, catalog_with(vendor_records()), device="cpu", schedule_policy="newest-first")


# Config validation


def test_seam_validation(folder: Path, calls: Counter[str]) -> None:
    catalog = catalog_with(vendor_records())
    with pytest.raises(ConfigError, match="4 or 8 tokens, not 16; use --page-size 8") as error:
        resolve_in_process(folder, catalog, device=NAME, page_size=16)
    assert error.value.field == "engine.device"
    facts = resolve_in_process(folder, catalog, device=NAME)[1].facts
    assert (facts.page_size, facts.attention, facts.moe, facts.prefix_cache) == (8, (NAME,), NAME, "radix")
    assert resolve_in_process(folder, catalog, device="cpu", page_size=16)[1].page_size == 16, "nobody else's rule"


# KV cache: specs, page sizes, slot types


def test_seam_kv_cache(vendor: OfflineEngine, calls: Counter[str], folder: Path) -> None:
    """A layout that takes more than its elements is counted as it is, and gets slots of the type that it names."""
    hello = vendor.engine.hello
    assert hello.page_size == 8, "preferred by the device"
    group = TinyModel.spec({"vocab_size": 64, "max_position_embeddings": 128}).cache_groups[0]
    page = VendorAttention.page_bytes(group, 8, 4, 1)
    assert page > group.elements_per_token() * 8 * 4
    assert calls["kv bytes"] == page * hello.num_pages, "what is allocated is what was planned"
    generate(vendor, prompts())
    assert calls["attention"], "its run() asserts that slots are int32"


def test_seam_kv_cache_the_memory_plan_divides_by_page_bytes(folder: Path) -> None:
    group = TinyModel.spec({"vocab_size": 64, "max_position_embeddings": 128}).cache_groups[0]
    page = VendorAttention.page_bytes(group, 8, 4, 1)
    settings = {"max_total_tokens": None, "kv_cache_bytes": 20 * page}
    engine = build_in_process(folder, catalog_with(vendor_records()), device=NAME, **settings)
    assert engine.engine.hello.num_pages == 20
    engine.engine.close()


# Op dispatch


def test_seam_ops(vendor: OfflineEngine, calls: Counter[str], expected: dict[str, Any]) -> None:
    """Of the model, of the sampler, and the copies."""
    assert generate(vendor, prompts(), DRAWN) == expected["drawn"]
    of_the_model = {"embedding", "linear", "fused_linear", "add_rms_norm", "qk_norm_rope", "topk_softmax"}
    of_the_sampler = {"gumbel_argmax", "sampling_threshold", "penalize", "token_logprobs"}
    for name in of_the_model | of_the_sampler | {"pack_linear_weight"}:
        assert calls[f"op {name}"], name
    assert calls["to_device"]
    assert calls["to_host"]


# Model forward bodies


def test_seam_layers(vendor: OfflineEngine, calls: Counter[str], expected: dict[str, Any]) -> None:
    assert generate(vendor, prompts()) == expected["greedy"]
    assert calls["layer GatedMlp"]


@pytest.mark.parametrize("layers", [{"GatedMlp": dict}, {"Unheard": MockHardware}, {"RmsNorm": "RmsNorm"}])
def test_a_layer_that_replaces_nothing_is_an_error(
    folder: Path, layers: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MockVendorHardware, "layers", lambda self: layers)
    with pytest.raises(PluginError, match=r"layers\(\) has .* for '" + next(iter(layers))):
        build_in_process(folder, catalog_with(vendor_records()), device=NAME)


class _Override(TinyModel):
    """The vendor's own body of the whole model."""

    @classmethod
    def build(cls, spec: ModelSpec, ctx: BuildContext) -> CausalLM:
        MockVendorHardware.calls["model override"] += 1
        return super().build(spec, ctx)


def test_seam_model_override(folder: Path, calls: Counter[str], expected: dict[str, Any]) -> None:
    """The same architecture name, for this device only."""
    catalog = catalog_with(vendor_records(TinyForCausalLM=_Override))
    engine = build_in_process(folder, catalog, device=NAME)
    assert generate(engine, prompts()) == expected["greedy"]
    engine.engine.close()
    assert calls["model override"] == 1
    plain = build_in_process(folder, catalog, device="cpu")
    plain.engine.close()
    assert calls["model override"] == 1, "other devices get the general one"


# Work on weights after loading


def test_seam_after_loading(vendor: OfflineEngine, calls: Counter[str], expected: dict[str, Any]) -> None:
    assert calls["prepare_model"] == 1
    assert calls["op pack_linear_weight"], "a layout of its own for every linear layer"
    assert generate(vendor, prompts()) == expected["greedy"]
    assert calls["prepared forward"]
    assert calls["prepared logits"]


def test_a_device_that_loses_the_model_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MockVendorHardware, "prepare_model", lambda self, model: None)
    with pytest.raises(PluginError, match=r"MockVendorHardware: prepare_model\(\) returned None"):
        build_in_process(folder, catalog_with(vendor_records()), device=NAME)


# Experts


def test_seam_moe(vendor: OfflineEngine, calls: Counter[str], expected: dict[str, Any], folder: Path) -> None:
    assert vendor.engine.hello.effective["moe_backend"] == NAME
    assert generate(vendor, prompts()) == expected["greedy"]
    assert calls["moe"]
    other = resolve_in_process(folder, catalog_with(vendor_records()), device="cpu")[1]
    assert other.moe.name == "torch_native", "other devices do not see it"


# Graph capture and replay


def test_seam_graphs(vendor: OfflineEngine, calls: Counter[str], expected: dict[str, Any]) -> None:
    assert generate(vendor, prompts()) == expected["greedy"]
    assert calls["replay"], "decode steps are replayed"
    assert calls["forward_runner"], "prefills are not"
    forwards = calls["prepared forward"]
    generate(vendor, prompts(1))
    replays = calls["replay"]
    generate(vendor, prompts(1))
    assert calls["replay"] > replays
    assert calls["prepared forward"] - forwards <= 3, "a replay calls no code of the model"


# Device memory and process start


def test_seam_device_memory(vendor: OfflineEngine, calls: Counter[str], folder: Path) -> None:
    hello = vendor.engine.hello
    assert calls["initialize 0"] >= 1
    assert hello.device_total_bytes == 1 << 26
    assert hello.device_free_bytes == (1 << 26) - calls["kv bytes"], "asked when everything is allocated"


def test_seam_device_memory_is_logged(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "core.engine"):
        build_in_process(folder, catalog_with(vendor_records()), device=NAME).engine.close()
    assert any("of 0.06 GiB of device memory free" in record.getMessage() for record in caplog.records)


# Process start (environment): tests/engine/test_environment.py, with real child processes.


# Hand-off of tokens from step to step


def test_seam_token_hand_off(vendor: OfflineEngine, calls: Counter[str], expected: dict[str, Any]) -> None:
    """There is no pipeline parallelism here, and so no relay of tokens between its stages. What there is: with overlap,
    a step's input ids are the tokens that the step before left on the device; the host, which plans ahead, has not seen
    them. Results reach the host one step late, by the vendor's own copies and events."""
    assert vendor.engine.hello.effective["overlap"] == "on"
    assert generate(vendor, prompts()) == expected["greedy"]
    assert generate(vendor, prompts(), DRAWN) == expected["drawn"]


def test_forward_runner_gets_batches_that_nobody_planned(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a runner which pads or splits plans what it really runs, and core plans nothing twice."""
    planned: list[int] = []
    plan = VendorAttention.plan
    monkeypatch.setattr(VendorAttention, "plan", lambda self, layout: (planned.append(1), plan(self, layout))[1])
    monkeypatch.setattr(MockVendorHardware, "graphs", lambda self, facts: None)
    steps: list[int] = []

    def forward_runner(self: MockVendorHardware, model: CausalLM, facts: EngineFacts) -> Any:
        def forward(batch: ForwardBatch) -> torch.Tensor:
            before = len(planned)
            batch.plan_attention()
            assert len(planned) == before + 1 == len(steps) + 1
            steps.append(1)
            return model.forward(batch)

        return forward

    monkeypatch.setattr(MockVendorHardware, "forward_runner", forward_runner)
    engine = build_in_process(folder, catalog_with(vendor_records()), device=NAME)
    generate(engine, prompts(2))
    engine.engine.close()
    assert len(planned) == len(steps) > 8


def test_a_second_vendor_may_be_installed_beside_the_first(folder: Path, expected: dict[str, Any]) -> None:
    other = type("OtherHardware", (MockHardware,), {"name": "other"})
    record = PluginRecord("hardware", "other", "plugin-other", "1.0", target="other:Other", loaded=other)
    catalog = catalog_with([*vendor_records(), record])
    for device in (NAME, "other", "cpu"):
        engine = build_in_process(folder, catalog, device=device)
        assert generate(engine, prompts(3)) == expected["greedy"][:3]
        engine.engine.close()


class _Refusing:
    """A plugin whose constructor fails."""

    def __init__(self, *args: Any) -> None:
        raise KeyError("license")


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("moe", {"moe_backend": "broken"}), ("schedule_policies", {"schedule_policy": "broken"})],
)
def test_a_plugin_that_cannot_be_constructed_is_named(folder: Path, kind: str, settings: dict[str, str]) -> None:
    record = PluginRecord(kind, "broken", "plugin-broken", "1.0", target="broken:Broken", loaded=_Refusing)
    with pytest.raises(
        PluginLoadError, match=r"plugin 'broken' \(distribution plugin-broken 1.0\) could not be set up"
    ):
        build_in_process(folder, catalog_with([record]), device="cpu", **settings)


def test_a_device_that_cannot_be_initialized_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def initialize(self: MockVendorHardware, local_rank: int) -> torch.device:
        raise RuntimeError("firmware 3 is too old")

    monkeypatch.setattr(MockVendorHardware, "initialize", initialize)
    with pytest.raises(PluginLoadError, match=r"plugin-mock-vendor 1.0\) could not be set up: .*firmware 3 is too old"):
        build_in_process(folder, catalog_with(vendor_records()), device=NAME)
