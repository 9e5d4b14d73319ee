"""PipelineContract: the laws of diffusion pipelines (draft kind)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from core.interfaces.errors import RequestError
from core.interfaces.pipelines import PictureRequest, PictureState, Pipeline
from core.testing.contracts.base import Contract


class PipelineContract(Contract):
    """A request's picture depends on the request alone: not on its batch, not on when it joined, not on the process."""

    kind = "pipelines"

    dtype: ClassVar[str] = "float32"
    """Compute type of the tests."""

    num_steps: ClassVar[int] = 3

    @abstractmethod
    def write_model(self, folder: Path) -> None:
        """Write a tiny model, with its model_index.json, to `folder`."""

    @abstractmethod
    def model_index(self) -> Mapping[str, Any]:
        """A model_index.json that the pipeline serves."""

    @pytest.fixture
    def pipeline(self, tmp_path: Path) -> Pipeline:
        import torch

        self.write_model(tmp_path)
        made = self.plugin()(tmp_path, self.device(), getattr(torch, self.dtype), self.context(self.device()))
        assert isinstance(made, Pipeline)
        return made

    def request(self, pipeline: Pipeline, **changes: Any) -> PictureRequest:
        spec = pipeline.spec
        side = -(-spec.min_size // spec.size_multiple) * spec.size_multiple
        base = PictureRequest(
            task=spec.tasks[0], prompt="a red square", negative_prompt="", width=side, height=side,
            num_steps=self.num_steps, guidance=spec.default_guidance, seed=1,
            image=np.zeros((side, side, 3), np.uint8) if spec.tasks[0] == "image_to_image" else None,
        )  # fmt: skip
        return replace(base, **changes)

    def test_it_knows_its_own_models(self) -> None:
        assert self.plugin().recognises(self.model_index())
        assert not self.plugin().recognises({})
        assert not self.plugin().recognises({"_class_name": "NoSuchPipeline"})

    def test_what_may_be_asked_is_sane(self, pipeline: Pipeline) -> None:
        spec = pipeline.spec
        assert spec.tasks
        assert spec.default_steps >= 1
        assert spec.max_frames >= 1
        assert spec.size_multiple >= 1
        assert 1 <= spec.min_size <= spec.max_size

    def test_a_picture_has_the_size_asked_for(self, pipeline: Pipeline) -> None:
        multiple = pipeline.spec.size_multiple
        for wider in (0, multiple):
            base = self.request(pipeline)
            if base.width + wider > pipeline.spec.max_size:
                continue
            request = replace(base, width=base.width + wider)
            [picture] = run(pipeline, [request])
            assert picture.dtype == np.uint8
            assert picture.shape == (1, request.height, request.width, 3)

    def test_same_request_same_picture(self, pipeline: Pipeline) -> None:
        [first], [second] = run(pipeline, [self.request(pipeline)]), run(pipeline, [self.request(pipeline)])
        assert (first == second).all()

    def test_seed_and_prompt_count(self, pipeline: Pipeline) -> None:
        base = self.request(pipeline)
        pictures = run(pipeline, [base, replace(base, seed=2), replace(base, prompt="a blue circle")])
        assert (pictures[0] != pictures[1]).any(), "the seed has no effect"
        assert (pictures[0] != pictures[2]).any(), "the prompt has no effect"

    def test_company_does_not_count(self, pipeline: Pipeline) -> None:
        """Alone, in a batch, and joining others in the middle of their work. Rounding may differ by one level."""
        base = self.request(pipeline)
        others = [replace(base, seed=9, prompt="something else"), replace(base, seed=10)]
        [alone] = run(pipeline, [base])
        together = run(pipeline, [others[0], base, others[1]])[1]
        assert close(alone, together), "in a batch"
        assert len({pipeline.shape_key(request) for request in (base, *others)}) == 1
        early = pipeline.encode(others)
        pipeline.denoise(early)
        late = pipeline.encode([base])
        for _ in range(self.num_steps - 1):
            pipeline.denoise([*early, *late])
        pipeline.denoise(late)
        assert all(state.step == self.num_steps for state in (*early, *late))
        assert close(alone, pipeline.decode(late)[0]), "joining later"

    def test_steps_are_counted(self, pipeline: Pipeline) -> None:
        [state] = pipeline.encode([self.request(pipeline)])
        assert isinstance(state, PictureState)
        assert state.step == 0
        assert state.num_steps == self.num_steps
        pipeline.denoise([state])
        assert state.step == 1

    def test_what_it_does_not_offer_is_refused(self, pipeline: Pipeline) -> None:
        missing = {"text_to_image", "image_to_image", "text_to_video"} - set(pipeline.spec.tasks)
        for task in sorted(missing):
            with pytest.raises(RequestError):
                pipeline.encode([self.request(pipeline, task=task)])


def run(pipeline: Pipeline, requests: Sequence[PictureRequest]) -> list[np.ndarray]:
    """Pictures of requests that start together."""
    states = pipeline.encode(requests)
    while any(state.step < state.num_steps for state in states):
        pipeline.denoise([state for state in states if state.step < state.num_steps])
    return pipeline.decode(states)


def close(first: np.ndarray, second: np.ndarray) -> bool:
    """Equal but for the last level of each colour."""
    return bool((np.abs(first.astype(int) - second.astype(int)) <= 1).all())
