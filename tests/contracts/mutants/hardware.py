"""Broken devices."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from core.interfaces.batch import ForwardBatch
from core.interfaces.errors import CapacityError
from core.interfaces.hardware import EngineFacts, HardwareCapabilities, MemoryInfo, ProbeResult
from core.ops.reference import REFERENCES
from core.testing.contracts.hardware import HardwareContract
from core.testing.mock_graphs import MockGraphHardware, MockGraphs
from core.testing.mock_hardware import MockAsyncHardware, MockEvent, MockHardware


class _Mutant(HardwareContract):
    light_probe = False
    caught_by: ClassVar[tuple[str, ...]] = ()


class TestProbeRaises(_Mutant):
    caught_by = ("test_probe_says_whether_and_why",)

    class implementation(MockHardware):  # noqa: N801
        @classmethod
        def probe(cls) -> ProbeResult:
            raise OSError("no driver")


class TestAbsentWithoutReason(_Mutant):
    caught_by = ("test_probe_says_whether_and_why",)

    class implementation(MockHardware):  # noqa: N801
        @classmethod
        def probe(cls) -> ProbeResult:
            return ProbeResult(False)


class TestProbeSetsVariables(_Mutant):
    caught_by = ("test_probe_leaves_no_trace",)

    class implementation(MockHardware):  # noqa: N801
        @classmethod
        def probe(cls) -> ProbeResult:
            os.environ["MOCK_MUTANT"] = "1"
            return super().probe()


class TestImportsTorch(_Mutant):
    light_probe = True
    caught_by = ("test_probe_needs_no_torch",)

    class implementation(MockHardware):  # noqa: N801
        pass


class TestInitializeGivesAName(_Mutant):
    caught_by = ("test_initialize_gives_a_device_that_computes",)

    class implementation(MockHardware):  # noqa: N801
        def initialize(self, local_rank: int) -> Any:
            return "cpu"


class TestClaimsATypeThatIsNone(_Mutant):
    caught_by = ("test_capabilities_can_be_read_by_core",)

    class implementation(MockHardware):  # noqa: N801
        capabilities = HardwareCapabilities(dtypes=("float32", "float17"))


class TestMoreFreeThanThereIs(_Mutant):
    caught_by = ("test_memory_is_sane",)

    class implementation(MockHardware):  # noqa: N801
        def memory(self) -> MemoryInfo:
            return MemoryInfo(1000, 1001)


class TestMemoryThatNeverChanges(_Mutant):
    sees_allocations = True
    caught_by = ("test_memory_follows_allocations",)

    class implementation(MockHardware):  # noqa: N801
        pass


class TestBudgetIgnoresTheRequest(_Mutant):
    caught_by = ("test_kv_budget",)

    class implementation(MockHardware):  # noqa: N801
        def kv_budget_bytes(self, fraction: float, requested_bytes: int | None) -> int:
            return super().kv_budget_bytes(fraction, None)


class TestBudgetWithoutLimit(_Mutant):
    caught_by = ("test_a_budget_that_does_not_fit_is_refused_with_numbers",)

    class implementation(MockHardware):  # noqa: N801
        def kv_budget_bytes(self, fraction: float, requested_bytes: int | None) -> int:
            return requested_bytes or int(self.memory_bytes * fraction)


class TestRefusalWithoutNumbers(_Mutant):
    caught_by = ("test_a_budget_that_does_not_fit_is_refused_with_numbers",)

    class implementation(MockHardware):  # noqa: N801
        def kv_budget_bytes(self, fraction: float, requested_bytes: int | None) -> int:
            try:
                return super().kv_budget_bytes(fraction, requested_bytes)
            except CapacityError:
                raise CapacityError("out of memory") from None


class TestEventTooEarly(_Mutant):
    """Its events do not mark the copies before them."""

    caught_by = ("test_results_are_readable_after_their_event", "test_copies_round_trip")

    class implementation(MockAsyncHardware):  # noqa: N801
        def record_event(self) -> MockEvent:
            queued, self._queued = self._queued, []
            event = super().record_event()
            self._queued = queued
            return event


class TestWaitsForOneEventOnly(_Mutant):
    caught_by = ("test_a_copy_takes_what_was_there_when_it_was_queued",)

    class implementation(MockAsyncHardware):  # noqa: N801
        def wait_event(self, event: Any) -> None:
            with torch.inference_mode():
                for host, values in event.copies:
                    host.copy_(values)


class TestCopiesTooLate(_Mutant):
    """The copy takes what stands there when the host waits."""

    caught_by = ("test_a_copy_takes_what_was_there_when_it_was_queued",)

    class implementation(MockAsyncHardware):  # noqa: N801
        def to_host(self, tensor: torch.Tensor) -> torch.Tensor:
            host = super().to_host(tensor)
            self._queued[-1] = (host, tensor)
            return host


class TestOneStagingBuffer(_Mutant):
    """Given out again while the copy from it is under way."""

    caught_by = ("test_many_copies_may_be_under_way",)

    class implementation(MockAsyncHardware):  # noqa: N801
        buffer: torch.Tensor | None = None

        def staging(self, num_bytes: int) -> torch.Tensor:
            if self.buffer is None or len(self.buffer) < num_bytes:
                self.buffer = super().staging(num_bytes)
            return self.buffer[:num_bytes]

        def to_device(self, staged: torch.Tensor, device: torch.device) -> torch.Tensor:
            return staged


class TestLosesTheLastByte(_Mutant):
    caught_by = ("test_copies_round_trip",)

    class implementation(MockAsyncHardware):  # noqa: N801
        def to_device(self, staged: torch.Tensor, device: torch.device) -> torch.Tensor:
            copy = super().to_device(staged, device)
            copy[: max(0, len(copy) // 8 * 8 - 15)][-1:] = 0
            return copy


class TestUnknownOperation(_Mutant):
    caught_by = ("test_operations_are_those_of_core",)

    class implementation(MockHardware):  # noqa: N801
        def ops(self) -> Mapping[str, Callable[..., Any]]:
            return {"rmsnorm": REFERENCES["rms_norm"]}


class TestWrongOperations(_Mutant):
    caught_by = ("test_operations_give_what_the_references_give", "test_a_tiny_model_answers_as_the_references_do")

    class implementation(MockHardware):  # noqa: N801
        def ops(self) -> Mapping[str, Callable[..., Any]]:
            return {"silu_and_mul": lambda x: REFERENCES["gelu_and_mul"](x)}


class TestNoiseOfItsOwn(_Mutant):
    """A seed would give another text on this device."""

    caught_by = ("test_operations_give_what_the_references_give", "test_drawn_answers_are_those_of_the_references")

    class implementation(MockHardware):  # noqa: N801
        def ops(self) -> Mapping[str, Callable[..., Any]]:
            return {"gumbel_argmax": lambda x, spread, keys: REFERENCES["gumbel_argmax"](x, spread, keys + 1)}


class TestThresholdWithoutTies(_Mutant):
    caught_by = ("test_operations_give_what_the_references_give",)

    class implementation(MockHardware):  # noqa: N801
        def ops(self) -> Mapping[str, Callable[..., Any]]:
            return {"sampling_threshold": lambda *a, **k: REFERENCES["sampling_threshold"](*a, **k) * 1.001}


class TestLayerOfNothing(_Mutant):
    caught_by = ("test_layers_are_subclasses_of_cores", "test_an_engine_answers_what_can_be_computed_by_hand")

    class implementation(MockHardware):  # noqa: N801
        def layers(self) -> Mapping[str, type]:
            return {"GatedMlp": nn.Linear}


class _Doubled(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: ForwardBatch) -> torch.Tensor:
        return self.model.forward(batch).flip(-1)

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.model.compute_logits(hidden)


class TestSpoilsTheModel(_Mutant):
    caught_by = ("test_a_tiny_model_answers_as_the_references_do",)

    class implementation(MockHardware):  # noqa: N801
        def prepare_model(self, model: Any) -> Any:
            return _Doubled(model)


class TestPlansOnlyOnce(_Mutant):
    caught_by = ("test_an_engine_answers_what_can_be_computed_by_hand",)

    class implementation(MockHardware):  # noqa: N801
        def forward_runner(self, model: Any, facts: EngineFacts) -> Any:
            planned: list[int] = []

            def forward(batch: ForwardBatch) -> torch.Tensor:
                if not planned:
                    batch.plan_attention()
                    planned.append(1)
                return model.forward(batch)

            return forward


class TestFrozenGraphs(_Mutant):
    """A replay gives what was computed when the step was recorded."""

    caught_by = ("test_recorded_steps_give_the_same_tokens",)

    class implementation(MockGraphHardware):  # noqa: N801
        def graphs(self, facts: EngineFacts) -> MockGraphs:
            made = super().graphs(facts)
            made.replay = lambda size, variants: made._recorded[size, variants][1]  # type: ignore[method-assign]
            return made


class TestClaimsGraphsAndHasNone(_Mutant):
    caught_by = ("test_recorded_steps_give_the_same_tokens",)

    class implementation(MockHardware):  # noqa: N801
        capabilities = HardwareCapabilities(graphs=True, dtypes=("float32",), page_size=4, chunk_tokens=64)


class TestVariablesOfNumbers(_Mutant):
    caught_by = ("test_variables_are_text_and_only_named",)

    class implementation(MockHardware):  # noqa: N801
        def environment(self) -> Any:
            return {"MOCK_MUTANT": 2}


class TestSetsVariablesItself(_Mutant):
    caught_by = ("test_variables_are_text_and_only_named",)

    class implementation(MockHardware):  # noqa: N801
        def environment(self) -> Any:
            os.environ["MOCK_MUTANT"] = str(time.monotonic_ns())
            return {}


class TestPrefersWhatIsNowhere(_Mutant):
    caught_by = ("test_preferred_attention_is_installed",)

    class implementation(MockHardware):  # noqa: N801
        def preferred_attention(self, spec: Any) -> Any:
            return ("flash_attention_99",)


class TestUnknownCommunicator(_Mutant):
    caught_by = ("test_communicator_is_known",)

    class implementation(MockHardware):  # noqa: N801
        def communicator(self) -> str:
            return "pigeon"


class TestRejectsWithTrue(_Mutant):
    caught_by = ("test_rejections_say_why",)

    class implementation(MockHardware):  # noqa: N801
        def rejects(self, facts: EngineFacts) -> Any:
            return facts.tensor_parallel_size > 1 or None


class TestRejectsEverything(_Mutant):
    caught_by = ("test_rejections_say_why", "test_core_chooses_it_when_asked")

    class implementation(MockHardware):  # noqa: N801
        def rejects(self, facts: EngineFacts) -> str:
            return "this device is switched off; use --device cpu"


class TestLeavesAThread(_Mutant):
    caught_by = ("test_nothing_is_left_running",)

    class implementation(MockHardware):  # noqa: N801
        def initialize(self, local_rank: int) -> torch.device:
            threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
            return super().initialize(local_rank)
