"""HardwareEngine: the part of the hardware contract in which engines run, and the engines that it needs."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from core.interfaces.context import PluginContext
from core.interfaces.hardware import EngineFacts, HardwareBackend
from core.interfaces.params import SamplingParams
from core.interfaces.spec import ModelSpec
from core.registry.catalog import Catalog
from core.registry.records import PluginRecord
from core.testing.capturable_attention import CapturableAttention
from core.testing.contracts.base import Contract
from core.testing.contracts.hardware_steps import decode_all
from core.testing.mock_engine import build_in_process, catalog_with, generate, resolve_in_process, write_config
from core.testing.mock_hardware import MockHardware
from core.testing.mock_model import MockConfig, reference_greedy
from core.testing.mock_runner import build_mock_runner
from core.testing.tiny_model import TinyModel, tiny_config

_GREEDY = SamplingParams(temperature=0.0, max_tokens=10, ignore_eos=True)
_DRAWN = SamplingParams(
    temperature=0.8, top_k=20, top_p=0.9, min_p=0.01, presence_penalty=0.3, frequency_penalty=0.1,
    repetition_penalty=1.1, logprobs=3, max_tokens=10, ignore_eos=True,
)  # fmt: skip
_MOCK = MockConfig(vocab_size=97, windows=(None, 5), context_length=64)


class HardwareEngine(Contract):
    """Engines on the device under test, with every installed plugin, core's test models and `companions`."""

    def companions(self) -> Iterable[PluginRecord]:
        """Plugins that the device needs and that have no entry point yet, such as its attention backend."""
        return ()

    # The device

    def runs_on(self, hardware: str) -> str:
        return "" if hardware == self.record().name else f"this is {self.record().name}"

    def backend(self) -> HardwareBackend:
        """A new instance, as core makes it, that nothing was asked of yet."""
        made: HardwareBackend = self.plugin()(self.context())
        return made

    def context(
        self, device: torch.device | None = None, settings: Mapping[str, Any] = MappingProxyType({})
    ) -> PluginContext:
        return super().context(device, {**self._threads(), **self.settings, **settings})

    def _threads(self) -> Mapping[str, Any]:
        """Tests share the machine with others: a device that computes on host threads keeps the number it finds."""
        return {"threads": torch.get_num_threads()} if self.plugin().capabilities.threads else {}

    def ready(self) -> tuple[HardwareBackend, torch.device]:
        """An instance and its device. Skips the test on a machine that has none."""
        found = self.plugin().probe()
        self.require(found.available, f"the device, which this machine lacks ({found.reason})")
        backend = self.backend()
        return backend, backend.initialize(0)

    # Engines

    def engine_catalog(self) -> Catalog:
        """What engines of these tests are chosen from."""
        record = self.record()
        installed = [other for other in Catalog.scan().records if other.distribution != "core"]
        return catalog_with([*installed, *self.companions(), record])

    def tiny(self, folder: Path) -> Path:
        """A checkpoint of the tiny model."""
        return write_config(folder / "tiny", tiny_config())

    def spec(self) -> ModelSpec:
        """The tiny model's."""
        return TinyModel.spec(tiny_config())

    def facts(self) -> EngineFacts:
        """Of the plainest engine on this device."""
        caps = self.plugin().capabilities
        return EngineFacts(
            spec=self.spec(), dtype=caps.dtypes[0], attention=("torch_native",), quantization="none",
            moe="torch_native", page_size=caps.page_size, context_length=128, max_seqs=4, max_tokens=caps.chunk_tokens,
            tensor_parallel_size=1, overlap=caps.async_steps, prefix_cache="radix", schedule_policy="fcfs",
        )  # fmt: skip

    def options(self) -> dict[str, Any]:
        """Settings of every engine of these tests."""
        record = self.record()
        return {
            "device": record.full_name,
            "dtype": "float32",
            "plugins": {record.full_name: {**self._threads(), **self.settings}},
        }

    def require_float32(self) -> None:
        """Answers are compared token by token, which takes a type that rounds little."""
        self.require("float32" in self.plugin().capabilities.dtypes, "float32")

    def prompts(self, vocab_size: int, count: int) -> list[list[int]]:
        rng = random.Random(1)
        return [[rng.randrange(vocab_size) for _ in range(rng.randint(1, 30))] for _ in range(count)]

    def answers(
        self, folder: Path, params: SamplingParams = _GREEDY, *, count: int = 6, vocab_size: int = 64, **options: Any
    ) -> list[list[int]]:
        """What an engine on this device answers."""
        self.ready()
        engine = build_in_process(folder, self.engine_catalog(), **{**self.options(), **options})
        try:
            return generate(engine, self.prompts(vocab_size, count), params)
        finally:
            engine.engine.close()

    def references(self, folder: Path, params: SamplingParams = _GREEDY, *, count: int = 6) -> list[list[int]]:
        """What core's references answer, with nothing replaced."""
        plain = PluginRecord("hardware", "plain", "core-testing", "1.0", target="core.testing:plain", loaded=_Plain)
        engine = build_in_process(
            folder, catalog_with([plain]), device="plain", attention_backend="core:torch_native",
            moe_backend="core:torch_native",
        )  # fmt: skip
        try:
            return generate(engine, self.prompts(64, count), params)
        finally:
            engine.engine.close()

    # Tests

    def test_core_chooses_it_when_asked(self, tmp_path: Path) -> None:
        self.ready()
        resolution = resolve_in_process(
            self.tiny(tmp_path), self.engine_catalog(), **{**self.options(), "dtype": "auto"}
        )[1]
        assert resolution.hardware.record == self.record()
        assert resolution.dtype in self.plugin().capabilities.dtypes

    def test_an_engine_answers_what_can_be_computed_by_hand(self, tmp_path: Path) -> None:
        """The mock model, two cache groups, more requests than slots: a wrong page or position gives other tokens."""
        self.require_float32()
        folder = write_config(tmp_path / "mock", _MOCK.hf_config())
        for overlap in ("auto", "off"):
            got = self.answers(folder, vocab_size=_MOCK.vocab_size, count=9, overlap=overlap)
            for prompt, tokens in zip(self.prompts(_MOCK.vocab_size, 9), got, strict=True):
                assert tokens == reference_greedy(_MOCK, prompt, 10), f"overlap {overlap}, prompt {prompt}"

    def test_a_tiny_model_answers_as_the_references_do(self, tmp_path: Path) -> None:
        """Operations, layers, what is done to the weights and how steps run, all together."""
        self.require_float32()
        folder = self.tiny(tmp_path)
        assert self.answers(folder) == self.references(folder)

    def test_drawn_answers_are_those_of_the_references(self, tmp_path: Path) -> None:
        """A seed gives the same text on every device."""
        self.require_float32()
        folder = self.tiny(tmp_path)
        assert self.answers(folder, _DRAWN) == self.references(folder, _DRAWN)

    def test_a_second_engine_in_the_same_process(self, tmp_path: Path) -> None:
        self.require_float32()
        folder = self.tiny(tmp_path)
        assert self.answers(folder, count=3) == self.answers(folder, count=3)

    def test_recorded_steps_give_the_same_tokens(self) -> None:
        """Claimed: graphs. Whatever the null page holds, which padding rows use, replays give the eager tokens."""
        self.require(self.plugin().capabilities.graphs, "graphs")
        self.require_float32()
        backend, _ = self.ready()
        runner = build_mock_runner(_MOCK, hardware=backend, max_running=6, attention=CapturableAttention)
        runner.warm_up()
        for count in (1, 2, 3, 6):
            prompts = [[7 * i + 1, 3, i] * (i + 1) for i in range(count)]
            assert decode_all(runner, prompts, 9) == [reference_greedy(_MOCK, prompt, 9) for prompt in prompts]
        assert runner.stats.replayed_steps, "graphs is claimed, and no step of 1, 2, 3 or 6 rows was replayed"

    def test_steps_recorded_in_pieces_give_the_same_tokens(self) -> None:
        """If its recorder has token_sizes: prefills, and prefills beside decodes, padded to the next size."""
        backend, _ = self.ready()
        graphs = backend.graphs(self.facts()) if backend.capabilities.graphs else None
        self.require(graphs is not None and graphs.token_sizes, "steps recorded in pieces")
        self.require_float32()
        runner = build_mock_runner(_MOCK, hardware=backend, max_running=6, attention=CapturableAttention)
        runner.warm_up()
        for lengths in ((1,), (3, 2), (7, 1, 5), (4, 4, 4, 4, 4)):
            prompts = [[(5 * i + j) % 97 for j in range(length)] for i, length in enumerate(lengths)]
            assert decode_all(runner, prompts, 4) == [reference_greedy(_MOCK, prompt, 4) for prompt in prompts]
        assert runner.stats.pieced_steps, "token_sizes is not empty, and no prefill was replayed"


class _Plain(MockHardware):
    """Nothing of its own."""

    name = "plain"
