"""HardwareContract: a device probes lightly, tells the truth about memory and order, copies what it is given, and what
it puts in place of core's own gives the same answers, through the runner or a whole engine as core builds them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from core.interfaces.errors import CapacityError
from core.interfaces.hardware import EngineFacts, HardwareBackend, MemoryInfo, ProbeResult
from core.ops.table import build_ops
from core.runner.transfer import Transfer
from core.testing.contracts.hardware_engine import HardwareEngine
from core.testing.contracts.ops import OpsContract, Table

# What a vendor needs, and the methods through which it is done.
SEAMS: Mapping[str, tuple[str, ...]] = {
    "validation of what it is asked to run": ("rejects",),
    "variables of its processes": ("environment",),
    "operations": ("ops",),
    "layers": ("layers",),
    "work on weights after loading": ("prepare_model",),
    "running the model": ("forward_runner",),
    "recorded steps": ("graphs",),
    "choice of attention": ("preferred_attention",),
    "copies": ("staging", "to_device", "to_buffer", "to_host"),
    "streams": ("stream", "record_event", "wait_event"),
    "collectives": ("communicator",),
}

_PROBE = """
import importlib, json, os, sys, threading
before = dict(os.environ), os.getcwd(), threading.active_count()
module, _, path = sys.argv[1].partition(":")
target = importlib.import_module(module)
for part in path.split("."):
    target = getattr(target, part)
found = target.probe()
after = dict(os.environ), os.getcwd(), threading.active_count()
print("\\n" + json.dumps({"available": found.available, "torch": "torch" in sys.modules, "same": before == after}))
"""


class HardwareContract(HardwareEngine):
    """A kind of device, on the device of it that this machine has.

    light_probe: whether the module that the entry point names can be imported without torch.
    sees_allocations: whether `memory` follows every allocation at once: so on a device that nobody else uses.
    other_attention: names in `preferred_attention` that other distributions provide and that may be missing.
    """

    kind = "hardware"
    light_probe: ClassVar[bool] = True
    sees_allocations: ClassVar[bool] = False
    other_attention: ClassVar[frozenset[str]] = frozenset()

    # Being found

    def test_probe_says_whether_and_why(self) -> None:
        first, second = self.plugin().probe(), self.plugin().probe()
        for found in (first, second):
            assert isinstance(found, ProbeResult), f"probe() returned {found!r}"
            assert found.available or found.reason, "an absent device says why it is absent"
        assert first.available == second.available
        assert first.priority == second.priority

    def test_probe_leaves_no_trace(self) -> None:
        """In a process of its own: variables, folder and threads are as before."""
        assert self.probed()["same"], "probe() changes its process"

    def test_probe_needs_no_torch(self) -> None:
        """Every start probes every installed device, chosen or not."""
        self.require(self.light_probe, "a probe without torch")
        assert not self.probed()["torch"], "importing and probing imports torch: import it inside the methods"

    def probed(self) -> dict[str, Any]:
        """What another process finds when it imports the class and probes."""
        cls = self.plugin()
        self.require("<" not in cls.__qualname__, "a class that another process can import")
        done = subprocess.run(
            [sys.executable, "-c", _PROBE, f"{cls.__module__}:{cls.__qualname__}"],
            capture_output=True, text=True, check=False, timeout=120,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )  # fmt: skip
        assert done.returncode == 0, f"probe() raised in a fresh process:\n{done.stderr[-2000:]}"
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    def test_capabilities_can_be_read_by_core(self) -> None:
        caps, name = self.plugin().capabilities, self.plugin().name
        if self.implementation is None:
            assert name == self.record().name, f"the class says {name!r}, its entry point {self.record().name!r}"
        assert caps.dtypes, "dtypes is empty: nothing could be computed"
        assert all(isinstance(getattr(torch, dtype, None), torch.dtype) for dtype in caps.dtypes), caps.dtypes
        assert caps.page_size >= 1
        assert caps.chunk_tokens >= 1
        assert all(isinstance(flag, bool) for flag in (caps.async_steps, caps.graphs, caps.threads))

    def test_initialize_gives_a_device_that_computes(self) -> None:
        backend, device = self.ready()
        assert isinstance(device, torch.device), f"initialize() returned {device!r}"
        assert backend.initialize(0) == device, "a second engine in a process gets the same device"
        for dtype in backend.capabilities.dtypes:
            ones = torch.ones(3, 3, dtype=getattr(torch, dtype), device=device)
            assert (ones @ ones).sum().item() == 27, dtype

    # Memory

    def test_memory_is_sane(self) -> None:
        backend, _ = self.ready()
        found = backend.memory()
        assert isinstance(found, MemoryInfo)
        assert isinstance(found.total_bytes, int)
        assert isinstance(found.free_bytes, int)
        assert 0 <= found.free_bytes <= found.total_bytes, found
        assert found.total_bytes > 0, found

    def test_memory_follows_allocations(self) -> None:
        self.require(self.sees_allocations, "memory that is seen at once")
        backend, device = self.ready()
        before = backend.memory().free_bytes
        num_bytes = min(before // 4, 256 << 20)
        block = torch.ones(num_bytes, dtype=torch.uint8, device=device)
        after = backend.memory().free_bytes
        assert before - after >= 0.9 * block.nbytes, f"{block.nbytes} bytes were taken, memory() saw {before - after}"

    def test_kv_budget(self) -> None:
        backend, _ = self.ready()
        total = backend.memory().total_bytes
        budget = backend.kv_budget_bytes(0.9, None)
        assert isinstance(budget, int)
        assert 0 < budget <= total, f"a budget of {budget} of {total} bytes"
        small = min(budget, 1 << 20)
        assert backend.kv_budget_bytes(0.9, small) == small, "what the operator asks for is what it gets"
        with contextlib.suppress(CapacityError):
            assert 0 < backend.kv_budget_bytes(0.45, None) <= budget, "half the fraction gives no more"

    def test_a_budget_that_does_not_fit_is_refused_with_numbers(self) -> None:
        backend, _ = self.ready()
        asked = 1000 * backend.memory().total_bytes
        with pytest.raises(CapacityError) as error:
            backend.kv_budget_bytes(0.9, asked)
        assert str(asked) in error.value.message, f"the text does not say how much was asked for: {error.value}"
        assert len(re.findall(r"\d+", error.value.message)) >= 2, f"nor how much there is: {error.value}"

    # Order

    def test_results_are_readable_after_their_event(self) -> None:
        """Real work, a result of a hundred products in a row, copied behind it."""
        backend, device = self.ready()
        start = torch.eye(256) + self.random(256, 256, dtype=torch.float32, device=torch.device("cpu"), scale=1e-3)
        want = torch.linalg.matrix_power(start.double(), 101)
        with torch.inference_mode():
            with backend.stream():
                x = start.to(device)
                y = x.clone()
                for _ in range(100):
                    y = y @ x
                host = backend.to_host(y)
                event = backend.record_event()
            assert event is not None or not backend.capabilities.async_steps, "async_steps needs events"
            backend.wait_event(event)
        assert host.device.type == "cpu"
        self.assert_close(host, want, "float32", "the result of a queued step")

    def test_a_copy_takes_what_was_there_when_it_was_queued(self) -> None:
        """The next step overwrites buffers while the host still reads the last one's results."""
        backend, device = self.ready()
        with torch.inference_mode():
            kept, events = [], []
            with backend.stream():
                x = torch.zeros(1000, device=device)
                for _ in range(20):
                    x += 1
                    kept.append(backend.to_host(x))
                    events.append(backend.record_event())
            for index in (19, 3, 3, 0):  # a later event first, one of them twice
                backend.wait_event(events[index])
                assert kept[index].eq(index + 1).all(), f"result {index} is not what step {index} computed"
            backend.wait_event(events[10])
            assert all(host.eq(index + 1).all() for index, host in enumerate(kept)), "a stream is in order"

    # Copies

    def transfer(self) -> tuple[HardwareBackend, Transfer]:
        """As the runner makes it."""
        backend, device = self.ready()
        return backend, Transfer(device, backend, direct=backend.shares_host_memory(device))

    def test_copies_round_trip(self) -> None:
        """Any dtype, odd sizes, nothing at all, arrays that are not contiguous."""
        backend, transfer = self.transfer()
        dtypes = st.sampled_from(["int64", "int32", "float32", "float64", "uint8", "bool"])
        arrays = st.lists(
            st.tuples(dtypes, st.lists(st.integers(0, 7), min_size=1, max_size=3)), min_size=1, max_size=6
        )

        def check(shapes: list[tuple[str, list[int]]]) -> None:
            rng = np.random.default_rng(0)
            given = [(rng.random(shape) * 100).astype(dtype) for dtype, shape in shapes]
            given.append(np.arange(12)[::-3])
            with torch.inference_mode():
                with backend.stream():
                    there = transfer.upload(*given)
                    back = transfer.download(there)
                    event = backend.record_event()
                backend.wait_event(event)
            for array, tensor, host in zip(given, there, back, strict=True):
                assert tensor.device == transfer.device
                assert tensor.shape == array.shape
                np.testing.assert_array_equal(host.numpy(), array)

        self.for_all(arrays, check, examples=30)

    def test_copies_into_memory_that_is_there(self) -> None:
        """Each takes what was staged when it was queued, though the host goes on at once."""
        backend, device = self.ready()
        self.require(not backend.shares_host_memory(device), "copies between host and device")
        with torch.inference_mode():
            target = torch.zeros(1 << 16, dtype=torch.uint8, device=device)
            with backend.stream():
                seen = []
                for number in range(40):
                    staged = backend.staging(60_000 + number)
                    staged.fill_(number)
                    backend.to_buffer(staged, target[: len(staged)])
                    seen.append(backend.to_host(target[:60_000]))
                    event = backend.record_event()
            backend.wait_event(event)
        for number, host in enumerate(seen):
            assert host.eq(number).all(), f"copy {number} brought {host.unique().tolist()}"

    def test_many_copies_may_be_under_way(self) -> None:
        """A staging buffer is not given out again before its copy has finished."""
        backend, transfer = self.transfer()
        self.require(not transfer.direct, "copies between host and device")
        with torch.inference_mode():
            with backend.stream():
                there = [transfer.upload(np.full(50_001, number, np.int32))[0] for number in range(64)]
                sums = transfer.download([torch.stack([tensor.sum() for tensor in there])])
                event = backend.record_event()
            backend.wait_event(event)
        assert sums[0].tolist() == [50_001 * number for number in range(64)]

    def test_host_memory_is_shared_if_it_says_so(self) -> None:
        backend, device = self.ready()
        if backend.shares_host_memory(device):
            assert device.type == "cpu", f"tensors of {device} are not the host's arrays"
        else:
            staged = backend.staging(3)
            assert staged.dtype is torch.uint8
            assert staged.shape == (3,)
            assert staged.device.type == "cpu"

    # What it replaces

    def test_operations_are_those_of_core(self) -> None:
        """Names that core knows, and pairs that belong together."""
        build_ops(self.backend().ops())

    def test_operations_give_what_the_references_give(self) -> None:
        """Each one that it replaces, in every dtype that it claims, by the checks of `OpsContract`."""
        backend, device = self.ready()
        own = backend.ops()
        self.require(own, "operations of its own")

        class DeviceOps(OpsContract):
            tolerance = self.tolerance

            def table(self) -> Table:
                return own

            def device(self) -> torch.device:
                return device

        suite = DeviceOps()
        for name in own:
            for dtype in backend.capabilities.dtypes:
                suite.test_it_gives_what_the_reference_gives(name, getattr(torch, dtype))
                suite.test_no_rows(name, getattr(torch, dtype))

    def test_layers_are_subclasses_of_cores(self) -> None:
        layers = dict(self.backend().layers())
        self.require(layers, "layers")
        for name, cls in layers.items():
            bases = cls.__mro__[1:] if isinstance(cls, type) else ()
            assert any(base.__name__ == name and base.__module__.startswith("core.layers.") for base in bases), (
                f"layers()[{name!r}] is {cls!r}, no subclass of core's {name}"
            )

    # Names and facts

    def test_variables_are_text_and_only_named(self) -> None:
        backend, before = self.backend(), dict(os.environ)
        first, second = dict(backend.environment()), dict(backend.environment())
        assert dict(os.environ) == before, "environment() names variables; core sets them, in the right process"
        assert first == second
        for name, value in first.items():
            assert isinstance(name, str), name
            assert name
            assert "=" not in name, name
            assert isinstance(value, str), f"{name} is {value!r}, not text"

    def test_preferred_attention_is_installed(self) -> None:
        names = self.backend().preferred_attention(self.spec())
        assert isinstance(names, tuple), f"preferred_attention() returned {names!r}"
        catalog = self.engine_catalog()
        missing = [name for name in names if name not in self.other_attention and not catalog.has("attention", name)]
        assert not missing, f"no attention plugin is called {', '.join(missing)}"

    def test_communicator_is_known(self) -> None:
        name = self.backend().communicator()
        known = {backend.lower() for backend in torch.distributed.Backend.backend_list}
        parts = [part.rpartition(":")[2].lower() for part in name.split(",")]
        assert set(parts) <= known, f"torch.distributed knows {', '.join(sorted(known))}, not {name!r}"

    def test_rejections_say_why(self) -> None:
        """It accepts the plainest engine, and whatever it does not accept it explains."""
        backend, facts = self.backend(), self.facts()
        assert backend.rejects(facts) is None, backend.rejects(facts)
        odd: list[EngineFacts] = [
            replace(facts, page_size=1), replace(facts, page_size=3), replace(facts, tensor_parallel_size=64),
            replace(facts, overlap=not facts.overlap), replace(facts, quantization="unheard_of"),
        ]  # fmt: skip
        for asked in odd:
            why = backend.rejects(asked)
            assert why is None or (isinstance(why, str) and len(why) > 10), f"rejects() returned {why!r}"

    def test_nothing_is_left_running(self, tmp_path: Path) -> None:
        before = threading.active_count()
        self.answers(self.tiny(tmp_path), count=2)
        assert threading.active_count() <= before, "an engine that was closed leaves threads behind"

    @pytest.mark.parametrize("seam", SEAMS)
    def test_seam(self, seam: str) -> None:
        """What the device does its own way; what it leaves to core is listed. The results are tested above."""
        cls = self.plugin()
        own = [name for name in SEAMS[seam] if getattr(cls, name) is not getattr(HardwareBackend, name)]
        self.require(own, f"its own {seam}")
