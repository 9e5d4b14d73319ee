"""A StepPlan as a message to the ranks that follow it: what their mirror of the request table needs, and no more.

Rank 0 alone samples, so that sampling parameters, grammars, processors and seeds stay with it.
"""

from __future__ import annotations

import msgspec
import numpy as np

from core.interfaces.params import PoolingParams, SamplingParams
from core.interfaces.step import Admission, Int32, StepPlan

_PLAIN = SamplingParams(temperature=0.0)


class AdmissionMessage(msgspec.Struct, array_like=True, frozen=True):
    """tokens: int32 bytes. sampling: what the request asks for beside tokens, which all ranks compute."""

    slot: int
    tokens: bytes
    num_prompt: int
    sampling: SamplingParams = _PLAIN
    pooling: PoolingParams | None = None


class PlanMessage(msgspec.Struct, array_like=True, frozen=True, tag="step"):
    """Arrays as little-endian bytes, int32 but for `samples` (bool). page_ids: [num_groups, K]."""

    step: int
    num_decodes: int
    slots: bytes
    q_lens: bytes
    seq_lens: bytes
    samples: bytes
    num_groups: int = 1
    page_slots: bytes = b""
    page_index: bytes = b""
    page_ids: bytes = b""
    admissions: list[AdmissionMessage] = []

    @classmethod
    def of(cls, plan: StepPlan) -> PlanMessage:
        """What the other ranks are told of `plan`."""
        return cls(
            plan.step,
            plan.num_decodes,
            _raw(plan.slots),
            _raw(plan.q_lens),
            _raw(plan.seq_lens),
            plan.samples.tobytes(),
            plan.page_ids.shape[0],
            _raw(plan.page_slots),
            _raw(plan.page_index),
            _raw(plan.page_ids),
            [_admission(admission) for admission in plan.admissions],
        )

    def plan(self) -> StepPlan:
        """The plan, as a following rank runs it: never masked, for it samples nothing."""
        return StepPlan(
            step=self.step,
            slots=_int32(self.slots),
            num_decodes=self.num_decodes,
            q_lens=_int32(self.q_lens),
            seq_lens=_int32(self.seq_lens),
            samples=np.frombuffer(self.samples, np.bool_),
            admissions=[
                Admission(one.slot, -1, _int32(one.tokens), one.num_prompt, one.sampling, 0, pooling=one.pooling)
                for one in self.admissions
            ],
            page_slots=_int32(self.page_slots),
            page_index=_int32(self.page_index),
            page_ids=_int32(self.page_ids).reshape(self.num_groups, -1),
        )


def _admission(admission: Admission) -> AdmissionMessage:
    asked = admission.sampling
    wishes = _PLAIN
    if asked.prompt_logprobs is not None or asked.hidden_states is not None:
        wishes = SamplingParams(
            temperature=0.0,
            prompt_logprobs=asked.prompt_logprobs,
            prompt_logprobs_start=asked.prompt_logprobs_start,
            hidden_states=asked.hidden_states,
        )
    return AdmissionMessage(
        admission.slot, _raw(admission.token_ids), admission.num_prompt, wishes, admission.pooling
    )  # fmt: skip


def _raw(values: Int32) -> bytes:
    return values.astype("<i4", copy=False).tobytes()


def _int32(raw: bytes) -> Int32:
    return np.frombuffer(raw, np.dtype("<i4"))
