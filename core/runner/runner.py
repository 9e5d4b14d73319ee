"""ModelRunner: one rank's model, KV buffers and sampler. Turns a StepPlan into a StepResult."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from core.interfaces.attention import AttentionBackend
from core.interfaces.errors import EngineError
from core.interfaces.hardware import EngineFacts, Forward, HardwareBackend, StepGraphs
from core.interfaces.model import CausalLM
from core.interfaces.step import StepPlan, StepResult, StepTimes, TokenMasks
from core.runner.config import RunnerConfig
from core.runner.extras import RowWishes
from core.runner.graphs import CapturedSteps
from core.runner.inputs import InputBuilder
from core.runner.kv_buffers import kv_bytes_per_page, make_kv_buffers
from core.runner.pieces import PiecewiseSteps
from core.runner.processors import LogitProcessors, ProcessedRows
from core.runner.results import read_result
from core.runner.running_step import Computed, Pending, RunningStep
from core.runner.sampler import Sampled, Sampler
from core.runner.state import RunnerState
from core.runner.stats import RunnerStats
from core.runner.transfer import Transfer
from core.runner.warm_up import largest_plan, small_plans

if TYPE_CHECKING:
    from core.runner.weights import LoadReport, Progress

_MEASURED_PAGES = 2

Steps = TypeVar("Steps", CapturedSteps, PiecewiseSteps)

logger = logging.getLogger(__name__)


class ModelRunner:
    """Life: construct, `load`, `allocate`, `warm_up`, then `launch` for each step, from one thread at a time.

    device: torch device of this rank, prepared by hardware.initialize. processors: that requests may name.
    """

    def __init__(self, config: RunnerConfig, hardware: HardwareBackend) -> None:
        self.config = config
        self.stats = RunnerStats()
        self.processors = config.processors or LogitProcessors()
        self._hardware = hardware
        self.device = hardware.initialize(config.tp.rank)
        self._transfer = Transfer(self.device, hardware, direct=hardware.shares_host_memory(self.device))
        self._model: CausalLM | None = None
        self._attention: tuple[AttentionBackend, ...] = ()
        self._forward: Forward | None = None
        self._captured: CapturedSteps | None = None
        self._pieces: PiecewiseSteps | None = None
        self._kv: tuple[tuple[torch.Tensor, ...], ...] = ()
        self._inputs: InputBuilder | None = None
        self._kv_scales: Mapping[int, tuple[float, float]] = config.kv_scales or {}
        self._last_end_s = 0.0
        # Made once: recorded steps know where it stands.
        self._last_tokens = torch.zeros(config.max_running + 1, dtype=torch.int64, device=self.device)
        self._state = self._new_state()

    @property
    def model(self) -> CausalLM:
        """The loaded module. Raises EngineError before `load`."""
        if self._model is None:
            raise EngineError("the model is not loaded", hint="call load() first")
        return self._model

    @property
    def recorded_sizes(self) -> tuple[int, ...]:
        """Rows of the steps of decodes that the device is going to record, or has recorded, then tokens of those that
        it records in pieces; known after `allocate`."""
        rows = tuple(self._captured.sizes) if self._captured is not None else ()
        return rows + (tuple(self._pieces.sizes) if self._pieces is not None else ())

    def load(self, progress: Progress | None = None) -> LoadReport | None:
        """Build the model and fill its weights; None for random weights. Raises CheckpointError, WeightError."""
        from core.runner.loading import load_model

        self._model, report = load_model(self.config, self._hardware, self.device, progress)
        if report is not None and self.config.kv_scales is None:
            self._kv_scales = report.kv_scales.by_layer
        return report

    def kv_bytes_per_page(self) -> int:
        """Bytes of one page in every cache group together, on this rank."""
        return kv_bytes_per_page(self.config)

    def measure(self) -> None:
        """Let the device see the largest step there can be, if it wants to. Between `load` and `allocate`. Raises
        EngineError if the step does not work."""
        self._hardware.measure_step(self._run_largest)
        self._attention, self._kv, self._inputs, self._forward = (), (), None, None
        self._state, self.stats = self._new_state(), RunnerStats()

    def _run_largest(self) -> None:
        self._make_kv(_MEASURED_PAGES)
        self._forward = self._hardware.forward_runner(self.model, self._facts())
        error = self.launch(largest_plan(self.config)).wait().error
        if error is not None:
            raise EngineError(
                f"the largest step, of {self.config.max_step_tokens} tokens in {self.config.max_running} sequences, "
                f"failed: {error}",
                hint="if it ran out of memory, use a smaller --chunked-prefill-size or --max-running-requests",
            )

    def allocate(self, num_pages: int) -> None:
        """Make the KV buffers: `num_pages` pages in each cache group, page 0 (the null page) included.

        Raises ConfigError if a backend finds that it cannot serve its group after all.
        """
        self._make_kv(num_pages)
        facts = self._facts()
        self._forward = self._hardware.forward_runner(self.model, facts)
        if self._hardware.capabilities.graphs and (graphs := self._hardware.graphs(facts)) is not None:
            self._captured = self._captured_steps(graphs)
            self._pieces = self._piecewise_steps(graphs)

    def _make_kv(self, num_pages: int) -> None:
        self._attention, self._kv = make_kv_buffers(self.config, self.device, num_pages, self._kv_scales)
        self._inputs = InputBuilder(self._transfer, self._attention, self._kv, page_size=self.config.page_size)

    def _captured_steps(self, graphs: StepGraphs) -> CapturedSteps | None:
        config = self.config
        if config.spec.task != "generate" or not graphs.sizes:
            return None
        for backend in self._attention:
            if not backend.capabilities.graph:
                name = type(backend).__name__
                logger.info("steps are not recorded: attention backend %s does not work in a recorded step", name)
                return None
        return CapturedSteps(
            graphs,
            self.model,
            self._attention,
            self._kv,
            self._last_tokens,
            self._transfer,
            config.ops["best_token"],
            config.tp,
            page_size=config.page_size,
            max_seqs=config.max_running,
            max_pages=config.max_pages_per_seq,
        )

    def _piecewise_steps(self, graphs: StepGraphs) -> PiecewiseSteps | None:
        config = self.config
        if not graphs.token_sizes:
            return None
        return PiecewiseSteps(
            graphs,
            self.model,
            self._attention,
            self._kv,
            config.tp,
            page_size=config.page_size,
            max_tokens=config.max_step_tokens,
            max_seqs=config.max_running,
            max_pages=config.max_pages_per_seq,
            context_length=config.context_length,
            device=self.device,
        )

    def _facts(self) -> EngineFacts:
        config = self.config
        return config.facts or EngineFacts(
            spec=config.spec,
            dtype=str(config.dtype).removeprefix("torch."),
            attention=tuple(backend.__name__ for backend in config.attention),
            quantization=type(config.quant).__name__,
            moe=type(config.moe).__name__,
            page_size=config.page_size,
            context_length=config.context_length,
            max_seqs=config.max_running,
            max_tokens=config.max_step_tokens,
            tensor_parallel_size=config.tp.size,
            overlap=False,
            prefix_cache="none",
            schedule_policy="fcfs",
        )

    def launch(self, plan: StepPlan) -> RunningStep:
        """Run one step, or queue it where the hardware has asynchronous steps; the sampling of a masked step waits for
        its handle's `sample`. Never raises for a step that goes wrong: its handle then gives a result with every row
        failed and the reason."""
        running = RunningStep(self, plan)
        running.start()
        return running

    def warm_up(self) -> None:
        """A short prefill and decodes, greedy and drawn, into the null page, so that the first request does not pay
        for what happens once; then the device records steps, if it can. Raises EngineError if that does not work. Call
        it before the first request."""
        for plan in small_plans(self.config):
            error = self.launch(plan).wait().error
            if error is not None:
                raise EngineError(f"the warm-up step failed: {error}")
        self._captured = self._recorded(self._captured, "steps of decodes")
        self._pieces = self._recorded(self._pieces, "steps with prefills")
        self._state = self._new_state()
        self.stats = RunnerStats()

    def release(self) -> None:
        """Give back recorded steps and KV buffers; no step is launched any more."""
        self._captured, self._pieces, self._forward, self._inputs = None, None, None, None
        self._attention, self._kv = (), ()

    def _recorded(self, steps: Steps | None, what: str) -> Steps | None:
        """Let the device record them; None if the model, or what it is built with, cannot be recorded."""
        if steps is None:
            return None
        try:
            with torch.inference_mode(), self._hardware.stream():
                steps.capture()
        except Exception:
            logger.warning("%s cannot be recorded; they are launched, which is slower", what, exc_info=True)
            return None
        return steps

    def _new_state(self) -> RunnerState:
        config = self.config
        sampler = Sampler(config.max_running, config.spec.vocab_size, self._transfer, config.ops)
        groups = len(config.spec.cache_groups)
        wishes = RowWishes(config.max_running, config.spec.vocab_size, self._transfer, config.ops)
        processed = ProcessedRows(config.max_running, self.processors, self._transfer)
        return RunnerState(
            groups, config.max_running, config.max_pages_per_seq, self._last_tokens, sampler, self._transfer, wishes,
            processed,
        )  # fmt: skip

    def stream(self) -> AbstractContextManager[Any]:
        """Where `compute` and `sample` are called, in inference mode."""
        return self._hardware.stream()

    def compute(self, plan: StepPlan) -> Computed:
        """Queue a step up to the hidden states of the rows that get a token. Called by the step's handle."""
        if self._forward is None or self._inputs is None:
            raise EngineError("there are no KV buffers", hint="call allocate() first")
        times, started_s = StepTimes(), time.perf_counter()
        event = self._hardware.record_event() if self._hardware.times_steps() else None
        state, captured = self._state, self._captured
        state.apply(plan)
        replayed, prepared = None, None
        if captured is not None and (size := captured.size_for(plan)):
            prepared = captured.prepare(plan, state, size)
        if prepared is not None:
            step, replay = prepared
            times.build_s = time.perf_counter() - started_s
            replayed = replay()
            hidden = replayed.hidden[: len(plan.slots)]
            self.stats.replayed_steps += 1
        elif self._pieces is not None and (size := self._pieces.size_for(plan)):
            step = self._inputs.build(plan, state, self._pieces.buffer, size)
            times.build_s = time.perf_counter() - started_s
            hidden = self._pieces.run(step.batch, size)[: plan.num_tokens]
            self.stats.pieced_steps += 1
        else:
            step = self._inputs.build(plan, state)
            times.build_s = time.perf_counter() - started_s
            hidden = self._forward(step.batch)
        extras = state.wishes.collect(plan, hidden, state.tokens, self.model)
        if not step.every_row and step.num_drawn:
            hidden = hidden.index_select(0, step.batch.logits_rows)
        times.launch_s = time.perf_counter() - started_s - times.build_s
        return Computed(step, hidden, times, extras, replayed, event)

    def sample(self, computed: Computed, masks: TokenMasks | None) -> Pending:
        """Queue the rest of a step: logits, tokens, and their way to the host. Called by the step's handle."""
        started_s = time.perf_counter()
        pending = self._sample(computed, masks)
        if self._hardware.capabilities.async_steps:
            pending.event = self._hardware.record_event()
        pending.first_event = computed.event
        pending.times.launch_s += time.perf_counter() - started_s
        return pending

    def _sample(self, computed: Computed, masks: TokenMasks | None) -> Pending:
        step, extras = computed.step, computed.extras
        generating = step.generating
        given = extras.tensors if extras is not None else []
        if not step.num_drawn:  # chunks that are not the last, pooled rows
            host = self._transfer.download(given) if given else []
            return Pending(step.slots, computed.times, None, host, generating, extras)
        slots = step.slots
        if generating is not None:
            slots = slots[generating]
            if masks is not None:
                masks = TokenMasks(np.searchsorted(generating, masks.rows).astype(np.int32), masks.words)
        edits, replayed, sampler = self._state.processed.of(slots), computed.replayed, self._state.sampler
        if replayed is None:
            logits, best = self.model.compute_logits(computed.hidden), None
        else:
            count, greedy = len(slots), replayed.greedy
            if masks is None and edits is None and step.sampling is None:  # nothing is left to do
                self._tell_tokens(greedy.tokens[:count])  # not the padding: every rank gives a tensor of its own size
                host = self._transfer.download_packed(replayed.result)
                host += self._transfer.download(given) if given else []
                return Pending(step.slots, computed.times, greedy, host, None, extras)
            logits, best = replayed.logits[:count], Sampled(greedy.tokens[:count], greedy.best[:count])
        sampled = sampler.sample(logits, step.sampling, masks, edits, best)
        self._tell_tokens(sampled.tokens)
        self._state.last_tokens.index_copy_(0, step.device_slots, sampled.tokens)
        tensors = [sampled.tokens, sampled.best.float()]
        if sampled.logprobs is not None:
            tensors += [sampled.logprobs.chosen, sampled.logprobs.top_ids, sampled.logprobs.top]
        if edits is not None:
            tensors += edits.tensors
        host = self._transfer.download([*tensors, *given])
        return Pending(step.slots, computed.times, sampled, host, generating, extras, edits=edits)

    def _tell_tokens(self, tokens: torch.Tensor) -> None:
        """The other ranks decode what this one drew, see FollowingRunner."""
        if self.config.broadcast is not None:
            self.config.broadcast(tokens)

    def count_failure(self) -> None:
        """A step went wrong."""
        self.stats.failed_steps += 1

    @property
    def async_steps(self) -> bool:
        """Whether steps are queued on the device, and not done when they are launched."""
        return self._hardware.capabilities.async_steps

    def finish(self, plan: StepPlan, pending: Pending, started_s: float) -> StepResult:
        """Wait for a queued step and read its result. Called by the step's handle."""
        times, called_s = pending.times, time.perf_counter()
        if pending.event is not None:
            self._hardware.wait_event(pending.event)
        now = time.perf_counter()
        times.wait_s = now - called_s
        if pending.first_event is not None:
            times.gpu_s = self._hardware.elapsed_s(pending.first_event, pending.event) or 0.0
        elapsed_s = now - max(started_s, self._last_end_s)
        self._last_end_s = now
        self.stats.steps += 1
        self.stats.tokens += plan.num_tokens
        self.stats.device_time_s += elapsed_s
        result = read_result(plan, pending, elapsed_s)
        times.output_s = time.perf_counter() - now
        self.stats.add(times)
        return result
