"""Logit processors in a step: whose rows they edit, the texts that they look at, and what becomes of their mistakes.

The runner keeps the texts of requests with processors on the host: what a request was admitted with, and each token
when its step is complete. Nothing comes from outside of plans and steps, so every rank of a model sees the same texts.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from core.interfaces.errors import CoreError, EngineError, RequestError
from core.interfaces.logit_processors import LogitProcessor, RowState
from core.interfaces.params import ProcessorParams, SamplingParams
from core.interfaces.step import Admission, Int32
from core.runner.transfer import Transfer

_ROOM = 64  # tokens that a text's buffer has room for at first, beside what it begins with
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Opened:
    """One processor of one request."""

    name: str
    processor: LogitProcessor
    state: Any


class LogitProcessors:
    """The processors that the operator enabled. made: by name, in the operator's order; distribution:name -> name."""

    def __init__(
        self, made: Mapping[str, LogitProcessor] | None = None, full_names: Mapping[str, str] | None = None
    ) -> None:
        self._made = dict(made or {})
        self._names = {**{name: name for name in self._made}, **(full_names or {})}

    def open(self, sampling: SamplingParams) -> list[Opened]:
        """The request's processors in its order, without those that cannot change its text. Raises RequestError for
        names that are not enabled and for arguments that a processor refuses, EngineError if one breaks."""
        opened = [self._open(params) for params in sampling.processors]
        while sampling.greedy and opened and opened[-1].processor.keeps_order:
            opened.pop()
        return opened

    def _open(self, params: ProcessorParams) -> Opened:
        name = self._names.get(params.name)
        if name is None:
            enabled = ", ".join(self._made)
            raise RequestError(
                f"{params.param} asks for the logit processor {params.name!r}, which this server has not enabled",
                param=params.param,
                code="logit_processor_not_enabled",
                hint=f"enabled are {enabled}" if enabled else "none is enabled; the operator names processors with "
                f"--logit-processors, as in --logit-processors {params.name}",
            )  # fmt: skip
        arguments = _object(params)
        try:
            state = self._made[name].open(arguments)
        except CoreError:
            raise
        except ValueError as error:
            told = " ".join(str(error).split())
            raise RequestError(f"{params.param}: {name} refuses its arguments: {told}", param=params.param) from error
        except Exception as error:
            raise _broken(name, error) from error
        return Opened(name, self._made[name], state)


def _object(params: ProcessorParams) -> dict[str, Any]:
    try:
        arguments = json.loads(params.arguments)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{params.param}: arguments are no JSON: {error}", param=params.param) from error
    if not isinstance(arguments, dict):
        raise RequestError(f"{params.param}: arguments must be an object", param=params.param)
    return arguments


def _broken(name: str, error: Exception) -> EngineError:
    return EngineError(f"logit processor {name!r} failed: {type(error).__name__}: {error}")


class _Text:
    """One request in a slot: its tokens so far, and its processors. problem: why they cannot be used."""

    def __init__(self, admission: Admission, opened: Sequence[Opened], problem: str = "") -> None:
        tokens = admission.token_ids
        self.opened = opened
        self.problem = problem
        self._num_prompt = admission.num_prompt
        self._length = len(tokens)
        self._buffer = np.empty(len(tokens) + _ROOM, np.int32)
        self._buffer[: len(tokens)] = tokens

    def append(self, token: int) -> None:
        """The next token."""
        if self._length == len(self._buffer):
            self._buffer = np.concatenate([self._buffer, np.empty(self._length, np.int32)])
        self._buffer[self._length] = token
        self._length += 1

    def row(self, opened: Opened) -> RowState:
        """As one of its processors sees it."""
        tokens = self._buffer[: self._length]
        tokens.flags.writeable = False  # of this view alone
        return RowState(tokens[: self._num_prompt], tokens[self._num_prompt :], opened.state)


class ProcessedRows:
    """The slots whose requests have processors. transfer: of the device that the logits are on."""

    def __init__(self, num_slots: int, processors: LogitProcessors, transfer: Transfer) -> None:
        self._processors = processors
        self._transfer = transfer
        self._texts: dict[int, _Text] = {}
        self._has = np.zeros(num_slots, np.bool_)

    def admit(self, admission: Admission) -> None:
        """A request enters a slot; what the slot held is gone."""
        self._texts.pop(admission.slot, None)
        if admission.sampling.processors:
            opened, problem = list[Opened](), ""
            try:
                opened = self._processors.open(admission.sampling)
            except CoreError as error:  # it was fine when the request was checked: the others go on
                problem = error.message
            if opened or problem:
                self._texts[admission.slot] = _Text(admission, opened, problem)
        self._has[admission.slot] = admission.slot in self._texts

    def of(self, slots: Int32) -> RowEdits | None:
        """The edits of a step that samples these slots [S]; None if no row has a processor."""
        if not self._texts:
            return None
        rows = np.flatnonzero(self._has[slots])
        if not len(rows):
            return None
        return RowEdits(rows, slots[rows], [self._texts[int(slot)] for slot in slots[rows]], self._transfer)


@dataclass(slots=True)
class _Applied:
    """What a processor left: peaks [n] float32 on the device, the largest logit of each of `members` (among the edited
    rows). It is finite exactly if a token can be drawn."""

    name: str
    members: list[int]
    peaks: torch.Tensor


@dataclass(slots=True)
class RowEdits:
    """One step's rows with processors. rows [M]: among the step's S sampled ones; slots, texts: of these."""

    rows: npt.NDArray[np.int64]
    slots: Int32
    texts: Sequence[_Text]
    transfer: Transfer
    errors: dict[int, str] = field(default_factory=dict)  # by row of M
    _applied: list[_Applied] = field(default_factory=list)

    def apply(self, work: torch.Tensor) -> None:
        """Let the processors edit their rows of work [S, V] float32, in place. Those of a request act in its order;
        each gets all rows of a turn at once. Never raises for what a processor does."""
        for index, text in enumerate(self.texts):
            if text.problem:
                self.errors[index] = text.problem
        for turn in range(max(len(text.opened) for text in self.texts)):
            groups: dict[int, list[int]] = {}
            for index, text in enumerate(self.texts):
                if turn < len(text.opened) and index not in self.errors:
                    groups.setdefault(id(text.opened[turn].processor), []).append(index)
            for members in groups.values():
                self._one(work, turn, members)

    def _one(self, work: torch.Tensor, turn: int, members: list[int]) -> None:
        opened = [self.texts[index].opened[turn] for index in members]
        name = opened[0].name
        (index,) = self.transfer.upload(self.rows[members])
        before = work.index_select(0, index)
        edited = before.clone()
        states = [self.texts[member].row(mine) for member, mine in zip(members, opened, strict=True)]
        try:
            opened[0].processor.apply(states, edited)
        except Exception as error:
            logger.error("logit processor %r failed", name, exc_info=True)
            self.errors.update(dict.fromkeys(members, _broken(name, error).message))
            return
        peaks = edited.amax(dim=1)  # NaN if there is one
        # A row that came broken from the model stays what it is and blames nobody.
        blame = torch.where(before.amax(dim=1).isfinite(), peaks, torch.zeros_like(peaks))
        work.index_copy_(0, index, torch.where(peaks.isfinite()[:, None], edited, before))
        self._applied.append(_Applied(name, members, blame))

    @property
    def tensors(self) -> list[torch.Tensor]:
        """What `read` needs on the host, in the order in which it takes it."""
        return [applied.peaks for applied in self._applied]

    def read(self, host: list[torch.Tensor], tokens: npt.NDArray[np.int32], best: npt.NDArray[Any]) -> dict[int, str]:
        """The step is complete: each text gets its token. host: `tensors`, taken off the front; tokens [S]; best [S]:
        the largest logit that each row was drawn with. Returns slot -> why its request ends."""
        for applied in self._applied:
            for member, peak in zip(applied.members, host.pop(0).numpy(), strict=True):
                if not np.isfinite(peak) and member not in self.errors:
                    self.errors[member] = f"logit processor {applied.name!r} {_mistake(float(peak))}"
        for member, (row, text) in enumerate(zip(self.rows.tolist(), self.texts, strict=True)):
            if member not in self.errors and best[row] == -np.inf:
                names = ", ".join(repr(opened.name) for opened in text.opened)
                self.errors[member] = (
                    f"no token is left: the logit processors ({names}), min_tokens and the grammar exclude each other"
                )
            text.append(int(tokens[row]))
        return {int(self.slots[member]): why for member, why in self.errors.items()}


def _mistake(peak: float) -> str:
    if np.isnan(peak):
        return "wrote NaN into its logits"
    return "wrote an infinity into its logits" if peak > 0 else "left no token"
