"""ModelRunner: one rank's model, KV buffers and sampler. Turns a StepPlan into a StepResult."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from core.interfaces.attention import AttentionBackend, AttentionConfig
from core.interfaces.build import BuildContext
from core.interfaces.context import PluginContext
from core.interfaces.errors import ConfigError, EngineError, PluginError
from core.interfaces.hardware import EngineFacts, Forward, HardwareBackend
from core.interfaces.model import CausalLM
from core.interfaces.params import PoolingParams, SamplingParams
from core.interfaces.step import Admission, StepPlan, StepResult, TokenMasks
from core.runner import inputs, logprobs
from core.runner.config import RunnerConfig
from core.runner.extras import RowWishes
from core.runner.graphs import CapturedSteps
from core.runner.processors import LogitProcessors, ProcessedRows
from core.runner.running_step import Computed, Pending, RunningStep
from core.runner.sampler import Sampler
from core.runner.state import RunnerState
from core.runner.transfer import Transfer

if TYPE_CHECKING:
    from core.runner.weights import LoadReport, Progress

_WARM_UP_TOKENS = 8

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class RunnerStats:
    """Since the runner was built, warm-up not counted. replayed_steps: of `steps`, those that ran as recorded.
    device_time_s: from a step's launch, or the end of the step before it if that came later, to its tokens being on
    the host."""

    steps: int = 0
    replayed_steps: int = 0
    tokens: int = 0
    failed_steps: int = 0
    device_time_s: float = 0.0


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
        self._kv: tuple[tuple[torch.Tensor, ...], ...] = ()
        self._last_end_s = 0.0
        self._state = self._new_state()

    @property
    def model(self) -> CausalLM:
        """The loaded module. Raises EngineError before `load`."""
        if self._model is None:
            raise EngineError("the model is not loaded", hint="call load() first")
        return self._model

    def load(self, progress: Progress | None = None) -> LoadReport | None:
        """Build the model and fill its weights; None for random weights. Raises CheckpointError, WeightError."""
        from core.runner.weights import dummy_weights, load_weights
        from core.runner.weights_rules import HEADS, RuleTable, leaving_out, without_head

        config = self.config
        rules = leaving_out(config.arch.weights(config.spec), config.quant.ignored())
        ctx = BuildContext(
            dtype=config.dtype,
            device=self.device,
            ops=config.ops,
            quant=config.quant,
            moe=config.moe,
            tp=config.tp,
            max_tokens=config.max_step_tokens,
            context_length=config.context_length,
            layers=_checked_layers(self._hardware),
            sources=RuleTable(rules).sources,
        )
        model: Any = config.arch.build(config.spec, ctx)
        report = None
        if config.spec.task == "embed" and all(getattr(model, name, None) is None for name in HEADS):
            rules = without_head(rules)
        if config.load_format == "dummy" or config.checkpoint is None:
            dummy_weights(model, config.seed)
        else:
            report = load_weights(model, rules, config.checkpoint, threads=config.load_threads, progress=progress)
        self._model = self._hardware.prepare_model(model)
        if self._model is None:
            raise PluginError(f"device {type(self._hardware).__qualname__}: prepare_model() returned None")
        return report

    def kv_bytes_per_page(self) -> int:
        """Bytes of one page in every cache group together, on this rank."""
        config = self.config
        return sum(
            backend.page_bytes(group, config.page_size, config.dtype.itemsize, config.tp.size)
            for backend, group in zip(config.attention, config.spec.cache_groups, strict=True)
        )

    def allocate(self, num_pages: int) -> None:
        """Make the KV buffers: `num_pages` pages in each cache group, page 0 (the null page) included.

        Raises ConfigError if a backend finds that it cannot serve its group after all.
        """
        config, tp_size = self.config, self.config.tp.size
        kv: list[tuple[torch.Tensor, ...]] = [()] * len(config.spec.layers)
        backends = []
        contexts = config.attention_contexts or tuple(PluginContext(device=self.device) for _ in config.attention)
        for group, backend_class, ctx in zip(config.spec.cache_groups, config.attention, contexts, strict=True):
            specs = {layer: spec for layer in group.layers if (spec := config.spec.layers[layer].attention) is not None}
            num_heads = max((spec.num_heads for spec in specs.values()), default=0)
            attention = AttentionConfig(
                group=group,
                layers=specs,
                num_heads=num_heads // tp_size,
                num_kv_heads=max(1, group.num_kv_heads // tp_size),
                page_size=config.page_size,
                num_pages=num_pages,
                dtype=config.dtype,
                device=self.device,
                max_seqs=config.max_running,
                max_tokens=config.max_step_tokens,
                context_length=config.context_length,
            )
            reason = backend_class.rejects(attention)
            if reason is not None:
                raise ConfigError(
                    f"attention backend {backend_class.__name__} cannot serve cache group {group.name!r}: {reason}",
                    field="engine.attention_backend",
                    value=backend_class.__name__,
                    hint="choose another with --attention-backend",
                )
            backend = backend_class(attention, ctx)
            for layer, buffers in backend.allocate().items():
                kv[layer] = buffers
            backends.append(backend)
        self._attention, self._kv = tuple(backends), tuple(kv)
        facts = self._facts()
        self._forward = self._hardware.forward_runner(self.model, facts)
        self._captured = self._captured_steps(facts)

    def _captured_steps(self, facts: EngineFacts) -> CapturedSteps | None:
        graphs = self._hardware.graphs(facts) if self._hardware.capabilities.graphs else None
        if graphs is None or not graphs.sizes:
            return None
        for backend in self._attention:
            if not backend.capabilities.graph:
                name = type(backend).__name__
                logger.info("steps are not recorded: attention backend %s does not work in a recorded step", name)
                return None
        config = self.config
        return CapturedSteps(
            graphs,
            self.model,
            self._attention,
            self._kv,
            max_seqs=config.max_running,
            max_pages=config.max_pages_per_seq,
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
        running.compute()
        if not plan.masked:
            running.sample(None)
        return running

    def warm_up(self) -> None:
        """A short prefill and decodes, greedy and drawn, into the null page, so that the first request does not pay
        for what happens once; then the device records steps, if it can. Raises EngineError if that does not work. Call
        it before the first request."""
        tokens = np.zeros(min(_WARM_UP_TOKENS, self.config.context_length), np.int32)
        # A model that generates nothing may have no head to warm up, and never decodes.
        generates = self.config.spec.task == "generate"
        head: Literal["none", "scores"] = "scores" if self.config.spec.task == "classify" else "none"
        pooling = None if generates else PoolingParams(head=head)
        for params in (SamplingParams(temperature=0.0), SamplingParams(top_k=8, top_p=0.9, logprobs=1)):
            admission = Admission(0, -1, tokens, len(tokens), params, 0, pooling=pooling)
            for step in range(2 if generates else 1):
                plan = StepPlan(
                    step=-1,
                    slots=np.zeros(1, np.int32),
                    num_decodes=step,
                    q_lens=np.array([1 if step else len(tokens)], np.int32),
                    seq_lens=np.array([len(tokens) + step], np.int32),
                    samples=np.ones(1, np.bool_),
                    admissions=[] if step else [admission],
                )
                error = self.launch(plan).wait().error
                if error is not None:
                    raise EngineError(f"the warm-up step failed: {error}")
        if self._captured is not None:
            with torch.inference_mode(), self._hardware.stream():
                self._captured.capture()
        self._state = self._new_state()
        self.stats = RunnerStats()

    def _new_state(self) -> RunnerState:
        config = self.config
        sampler = Sampler(config.max_running, config.spec.vocab_size, self._transfer, config.ops)
        groups = len(config.spec.cache_groups)
        wishes = RowWishes(config.max_running, config.spec.vocab_size, self._transfer, config.ops)
        processed = ProcessedRows(config.max_running, self.processors, self._transfer)
        return RunnerState(
            groups, config.max_running, config.max_pages_per_seq, sampler, self._transfer, wishes, processed
        )

    def compute(self, plan: StepPlan) -> Computed:
        """Queue a step up to the hidden states of the rows that get a token. Called by the step's handle."""
        with torch.inference_mode(), self._hardware.stream():
            return self._compute(plan)

    def _compute(self, plan: StepPlan) -> Computed:
        if self._forward is None:
            raise EngineError("there are no KV buffers", hint="call allocate() first")
        state = self._state
        state.apply(plan)
        pad_to = self._captured.size_for(plan) if self._captured is not None else 0
        step = inputs.build(plan, state, self._transfer, self.config.page_size, self._attention, self._kv, pad_to)
        if self._captured is not None and pad_to:
            hidden = self._captured.run(step.batch)[: len(plan.slots)]
            self.stats.replayed_steps += 1
        else:
            hidden = self._forward(step.batch)
        extras = state.wishes.collect(plan, hidden, state.tokens, self.model)
        generating = state.wishes.generating(step.slots)
        if generating is not None:
            if len(generating):
                (index,) = self._transfer.upload(generating)
                hidden = hidden.index_select(0, step.batch.logits_rows.index_select(0, index))
        elif len(step.slots) and not step.every_row:
            hidden = hidden.index_select(0, step.batch.logits_rows)
        return Computed(step, hidden, generating, extras)

    def sample(self, computed: Computed, masks: TokenMasks | None) -> Pending:
        """Queue the rest of a step: logits, tokens, and their way to the host. Called by the step's handle."""
        with torch.inference_mode(), self._hardware.stream():
            pending = self._sample(computed, masks)
            if self._hardware.capabilities.async_steps:
                pending.event = self._hardware.record_event()
        return pending

    def _sample(self, computed: Computed, masks: TokenMasks | None) -> Pending:
        step, generating, extras = computed.step, computed.generating, computed.extras
        given = extras.tensors if extras is not None else []
        if not len(step.slots if generating is None else generating):  # chunks that are not the last, pooled rows
            host = self._transfer.download(given) if given else []
            return Pending(step.slots, None, host, generating, extras)
        slots, positions, device_slots = step.slots, step.positions, step.device_slots
        if generating is not None:
            slots, positions = slots[generating], positions[generating]
            (device_slots,) = self._transfer.upload(slots.astype(np.int64))
            if masks is not None:
                masks = TokenMasks(np.searchsorted(generating, masks.rows).astype(np.int32), masks.words)
        logits = self.model.compute_logits(computed.hidden)
        edits = self._state.processed.of(slots)
        sampled = self._state.sampler.sample(logits, slots, positions, masks, edits)
        self._state.last_tokens.index_copy_(0, device_slots, sampled.tokens)
        tensors = [sampled.tokens, sampled.best.float()]
        if sampled.logprobs is not None:
            tensors += [sampled.logprobs.chosen, sampled.logprobs.top_ids, sampled.logprobs.top]
        if edits is not None:
            tensors += edits.tensors
        host = self._transfer.download([*tensors, *given])
        return Pending(step.slots, sampled, host, generating, extras, edits=edits)

    def count_failure(self) -> None:
        """A step went wrong."""
        self.stats.failed_steps += 1

    @property
    def async_steps(self) -> bool:
        """Whether steps are queued on the device, and not done when they are launched."""
        return self._hardware.capabilities.async_steps

    def finish(self, plan: StepPlan, pending: Pending, started_s: float) -> StepResult:
        """Wait for a queued step and read its result. Called by the step's handle."""
        if pending.event is not None:
            self._hardware.wait_event(pending.event)
        now = time.perf_counter()
        elapsed_s = now - max(started_s, self._last_end_s)
        self._last_end_s = now
        self.stats.steps += 1
        self.stats.tokens += plan.num_tokens
        self.stats.device_time_s += elapsed_s
        num_rows, generating, sampled = len(pending.slots), pending.generating, pending.sampled
        tokens, failed = np.zeros((num_rows, 1), np.int32), np.zeros(num_rows, np.bool_)
        host, values, errors = list(pending.host), None, dict[int, str]()
        if sampled is not None:
            mine = slice(None) if generating is None else generating
            drawn, best = host.pop(0).numpy(), host.pop(0).numpy()
            tokens[mine, 0] = drawn
            failed[mine] = ~np.isfinite(best)
            if sampled.asking is not None and sampled.wanted is not None:
                asking = sampled.asking if generating is None else generating[sampled.asking]
                asked = logprobs.LogprobTensors(host.pop(0), host.pop(0), host.pop(0))
                values = logprobs.spread(asked, asking, sampled.wanted, num_rows)
            if pending.edits is not None:
                errors = pending.edits.read(host, drawn, best)
                failed |= np.isin(pending.slots, list(errors))
        extras = pending.extras.read(host) if pending.extras is not None else {}
        if generating is not None:
            for row in np.setdiff1d(np.arange(num_rows), generating).tolist():
                vector = extras[int(pending.slots[row])].pooled
                failed[row] = vector is None or not np.isfinite(vector).all()
        return StepResult(
            step=plan.step,
            slots=pending.slots,
            tokens=tokens,
            counts=np.ones(num_rows, np.int32),
            failed=failed,
            logprobs=values,
            device_time_s=elapsed_s,
            extras=extras,
            errors=errors,
        )


def _checked_layers(hardware: HardwareBackend) -> Mapping[str, type]:
    """The device's layer classes. Raises PluginError for one that replaces nothing of core's: it would be ignored."""
    layers = dict(hardware.layers())
    for name, cls in layers.items():
        bases = cls.__mro__[1:] if isinstance(cls, type) else ()
        if not any(base.__name__ == name and base.__module__.startswith("core.layers.") for base in bases):
            raise PluginError(
                f"device {type(hardware).__qualname__}: layers() has {cls!r} for {name!r}, which is no subclass of a "
                f"class of that name in core.layers",
                hint="name one of core's layer classes and derive from it",
            )
    return layers
