"""Host work of a step, phase by phase: from a message received to a message ready to send, without the model's time.

    python bench/host_step.py [--steps 500] [--rows 1,256] [--kinds greedy,drawn] [--idle-ms 0] [--percentile 50]
                              [--json FILE]

Prints microseconds of each phase (median), for the first token of a lone request that finds the engine idle and for
decode steps, on two devices of the mock kind: one with host memory, as the CPU, and one with memory of its own that
replays recorded decode steps, as a GPU. Scheduler, prefix cache, runner, sampler and message are the real ones; model,
attention and replays do nothing; what rows that are drawn take of a device is computed on the CPU. `--idle-ms` sleeps
before each step, so that the processor's caches are cold, as they are when a request comes to an idle server.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np
import torch
from torch import nn

from core.config.sections import SchedulerSettings
from core.engine.build import to_request
from core.engine.engine import Engine
from core.engine.messages import AddRequest, Hello, ToEngine
from core.interfaces.batch import BatchLayout, ForwardBatch
from core.interfaces.context import PluginContext
from core.interfaces.hardware import Between, EngineFacts, HardwareCapabilities, StepGraphs
from core.interfaces.model import CausalLM
from core.interfaces.params import SamplingParams
from core.interfaces.pooling import PoolingPlan
from core.interfaces.prefix_cache import CacheGeometry
from core.interfaces.step import StepPlan, StepResult
from core.memory.manager import MemoryManager
from core.memory.radix import RadixCache
from core.runner.executor import InProcessExecutor, StepHandle
from core.scheduler.facts import ModelFacts
from core.scheduler.scheduler import Scheduler
from core.testing.capturable_attention import CapturableAttention
from core.testing.mock_hardware import MockHardware
from core.testing.mock_model import MockConfig
from core.testing.mock_runner import build_mock_runner

PAGE_SIZE, CONTEXT, CHUNK = 16, 4096, 8192
VOCABULARY = 512
KINDS = {
    "greedy": SamplingParams(temperature=0.0, ignore_eos=True),
    "drawn": SamplingParams(temperature=0.8, ignore_eos=True),
    "filtered": SamplingParams(temperature=0.8, top_k=20, top_p=0.9, min_p=0.01, ignore_eos=True),
    "penalties": SamplingParams(temperature=0.7, presence_penalty=0.2, repetition_penalty=1.1, ignore_eos=True),
}
PHASES = ("decode message", "to launch", "build", "launch", "result", "to send", "encode", "settle")


class NoAttention(CapturableAttention):
    """Attends to nothing."""

    def plan(self, layout: BatchLayout) -> None:
        return None

    def run(self, q: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return torch.zeros_like(q)


class NoGraphs(StepGraphs):
    """Steps whose replay gives what recording gave."""

    on_demand = False

    def __init__(self, sizes: tuple[int, ...]) -> None:
        self.sizes, self.token_sizes = sizes, ()
        self._given: dict[int, tuple[torch.Tensor, ...]] = {}

    def capture(self, size: int, run: Callable[[], tuple[torch.Tensor, ...]], variants: tuple[int, ...] = ()) -> None:
        self._given[size] = run()

    def replay(self, size: int, variants: tuple[int, ...] = ()) -> tuple[torch.Tensor, ...]:
        return self._given[size]

    def capture_pieces(self, size: int, run: Callable[[Between], torch.Tensor]) -> None:
        raise AssertionError("no sizes were offered")

    def replay_pieces(self, size: int) -> torch.Tensor:
        raise AssertionError("no sizes were offered")


class NoModel(nn.Module):
    """Gives zeros that are there already."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.hidden, self.logits = torch.zeros(CHUNK, 16), torch.zeros(256, vocab_size)

    def forward(self, batch: ForwardBatch) -> torch.Tensor:
        return self.hidden[: len(batch.input_ids)]

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.logits[: len(hidden)]


class HostDevice(MockHardware):
    """Computes on the host; a forward pass takes no time."""

    name: ClassVar[str] = "host memory"

    def prepare_model(self, model: CausalLM) -> CausalLM:
        return NoModel(VOCABULARY)


class OwnMemory(HostDevice):
    """Memory of its own, of which copies are made at once, and recorded decode steps."""

    name: ClassVar[str] = "own memory, recorded decodes"
    capabilities: ClassVar[HardwareCapabilities] = HardwareCapabilities(
        async_steps=True, graphs=True, dtypes=("float32",), page_size=PAGE_SIZE, chunk_tokens=CHUNK
    )

    def shares_host_memory(self, device: torch.device) -> bool:
        return False

    def graphs(self, facts: EngineFacts) -> StepGraphs:
        return NoGraphs(tuple(size for size in (1, 256) if size <= facts.max_seqs))


@dataclass
class Marks:
    """An executor that notes when it is called. launch_s, launched_s, waited_s, result: of the last step."""

    executor: InProcessExecutor
    launch_s: float = 0.0
    launched_s: float = 0.0
    waited_s: float = 0.0
    result: StepResult | None = None
    _handle: StepHandle | None = field(default=None, repr=False)

    def launch(self, plan: StepPlan) -> Marks:
        self.launch_s = time.perf_counter()
        self._handle = self.executor.launch(plan)
        self.launched_s = time.perf_counter()
        return self

    def sample(self, masks: Any) -> None:
        raise AssertionError("nothing is masked here")

    def wait(self) -> StepResult:
        assert self._handle is not None
        self.result = self._handle.wait()
        self.waited_s = time.perf_counter()
        return self.result

    def close(self) -> None:
        self.executor.close()


class Bench:
    """One engine over one device."""

    def __init__(self, device: type[HostDevice], rows: int, steps: int) -> None:
        length = min(CONTEXT, 64 + steps + 8)
        pages = 2 + max(rows, 8) * (-(-length // PAGE_SIZE) + 2) + 5 * steps
        model = MockConfig(VOCABULARY, context_length=CONTEXT)
        runner = build_mock_runner(
            model, hardware=device(), num_pages=pages, page_size=PAGE_SIZE, max_running=max(rows, 8),
            chunk_tokens=CHUNK, attention=NoAttention,
        )  # fmt: skip
        runner.warm_up()
        facts = ModelFacts(CONTEXT, pages, PAGE_SIZE, CHUNK, max(rows, 8))
        memory = MemoryManager(
            RadixCache(CacheGeometry(PAGE_SIZE), PluginContext()), num_pages=pages, page_size=PAGE_SIZE,
            num_slots=facts.max_running, max_pages=facts.max_pages,
        )  # fmt: skip
        scheduler = Scheduler(SchedulerSettings(max_running_requests=facts.max_running), facts, memory)
        self.marks = Marks(InProcessExecutor(runner))
        plan = PoolingPlan()
        hello = Hello("Bench", VOCABULARY, CONTEXT, CONTEXT, pages, PAGE_SIZE, facts.max_running, [], {})
        self.engine = Engine(
            scheduler, self.marks, hello, lambda message: to_request(message, (1,), VOCABULARY, plan),
            max_slots=facts.max_running,
        )  # fmt: skip
        self._rng = np.random.default_rng(0)
        self._encoder, self._decoder = msgspec.msgpack.Encoder(), msgspec.msgpack.Decoder(ToEngine)
        self._next_id = 0

    def message(self, max_tokens: int, kind: str = "greedy") -> bytes:
        """A request of 64 random tokens, as it arrives."""
        tokens = self._rng.integers(2, VOCABULARY, 64).astype("<i4").tobytes()
        sampling = msgspec.structs.replace(KINDS[kind], max_tokens=max_tokens)
        self._next_id += 1
        return self._encoder.encode(AddRequest(self._next_id, tokens, sampling, seed=self._next_id, label="req-1"))

    def turn(self, raw: Sequence[bytes] = ()) -> list[float]:
        """Seconds of each phase of one step, which the messages in `raw` begin."""
        engine, marks = self.engine, self.marks
        begin_s = time.perf_counter()
        messages = [self._decoder.decode(one) for one in raw]
        decoded_s = time.perf_counter()
        for message in messages:
            engine.submit(message)
        outputs = engine.step()
        stepped_s = time.perf_counter()
        for output in outputs or ():
            self._encoder.encode(output)
        encoded_s = time.perf_counter()
        engine.settle()
        end_s = time.perf_counter()
        assert marks.result is not None
        assert marks.result.error is None
        build_s = marks.result.times.build_s
        return [
            decoded_s - begin_s, marks.launch_s - decoded_s, build_s, marks.launched_s - marks.launch_s - build_s,
            marks.waited_s - marks.launched_s, stepped_s - marks.waited_s, encoded_s - stepped_s, end_s - encoded_s,
        ]  # fmt: skip

    def first(self, steps: int, idle_s: float) -> list[list[float]]:
        """The first step of one request after the other."""
        times = []
        for _ in range(steps):
            raw = self.message(2)
            time.sleep(idle_s)
            times.append(self.turn([raw]))
            self.turn()
        return times

    def decode(self, rows: int, steps: int, idle_s: float, kind: str) -> list[list[float]]:
        """All of `rows` requests of a kind decode."""
        self.turn([self.message(CONTEXT, kind) for _ in range(rows)])
        times = []
        for _ in range(steps):
            time.sleep(idle_s)
            times.append(self.turn())
        return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--rows", default="1,256", help="of decode steps; default 1,256")
    parser.add_argument("--kinds", default="greedy,drawn", help=f"of decode steps, of {', '.join(KINDS)}")
    parser.add_argument("--idle-ms", type=float, default=0.0)
    parser.add_argument("--percentile", type=float, default=50.0, help="a low one leaves out what other processes did")
    parser.add_argument("--json", type=Path, help="where to write the medians, in microseconds")
    args = parser.parse_args()
    torch.set_num_threads(1)
    columns: dict[str, list[list[float]]] = {}
    idle_s = args.idle_ms / 1e3
    for device in (HostDevice, OwnMemory):
        kind = "host" if device is HostDevice else "own"
        columns[f"{kind}: first"] = Bench(device, 1, args.steps).first(args.steps, idle_s)
        for rows in map(int, args.rows.split(",")):
            for name in args.kinds.split(","):
                bench = Bench(device, rows, args.steps)
                gc.collect()
                column = f"{kind}: {rows} {'rows' if name == 'greedy' else name}"
                columns[column] = bench.decode(rows, args.steps, idle_s, name)
    medians = {
        name: np.percentile(times[len(times) // 10 :], args.percentile, axis=0) * 1e6 for name, times in columns.items()
    }
    print(
        f"us, percentile {args.percentile:g}; host: host memory, own: memory of its own and recorded decodes; "
        "first: first token of a request"
    )
    print(f"{'':<16}" + "".join(f"{name:>16}" for name in medians))
    for at, phase in enumerate(PHASES):
        print(f"{phase:<16}" + "".join(f"{values[at]:16.1f}" for values in medians.values()))
    print(f"{'all':<16}" + "".join(f"{values.sum():16.1f}" for values in medians.values()))
    if args.json:
        told = {name: dict(zip(PHASES, values.round(2).tolist(), strict=True)) for name, values in medians.items()}
        args.json.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
