"""The suite of diffusion pipelines: a toy passes, broken ones do not."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from core.interfaces.context import PluginContext
from core.interfaces.errors import CheckpointError, RequestError
from core.interfaces.pipelines import PictureRequest, PictureState, Pipeline, PipelineSpec
from core.testing.contracts.pipelines import PipelineContract

from .running import failures

INDEX = {"_class_name": "ToyPipeline"}


class Toy(Pipeline):
    """Noise pulled step by step towards a colour that the prompt names by its hash. `fault`: how it is broken."""

    fault: ClassVar[str] = ""

    @classmethod
    def recognises(cls, model_index: Mapping[str, Any]) -> bool:
        return cls.fault == "takes anything" or model_index.get("_class_name") == "ToyPipeline"

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype, ctx: PluginContext) -> None:
        if not self.recognises(json.loads((folder / "model_index.json").read_text())):
            raise CheckpointError(f"{folder} is of another pipeline")
        self.device, self.dtype = device, dtype
        self.calls = 0

    @property
    def spec(self) -> PipelineSpec:
        return PipelineSpec(("text_to_image",), 8, 16, 64, 4, 1.0)

    def shape_key(self, request: PictureRequest) -> tuple[int, ...]:
        return (request.height, request.width)

    def encode(self, requests: Sequence[PictureRequest]) -> list[PictureState]:
        states = []
        for i, request in enumerate(requests):
            if request.task not in self.spec.tasks and self.fault != "takes any task":
                raise RequestError(f"task {request.task!r} is not offered")
            seed = {"one seed": 0, "seeds by row": request.seed + 1000 * i}.get(self.fault, request.seed)
            generator = torch.Generator().manual_seed(seed)
            sides = (request.width, request.height) if self.fault == "swaps sides" else (request.height, request.width)
            colour = b"" if self.fault == "ignores the prompt" else request.prompt.encode()
            tint = zlib.crc32(colour)
            target = torch.tensor([tint & 255, tint >> 8 & 255, tint >> 16 & 255], dtype=self.dtype) / 255
            latents = torch.rand(*sides, 3, generator=generator).to(self.device, self.dtype)
            states.append(PictureState(latents, request.num_steps, extra={"target": target.to(self.device)}))
        return states

    def denoise(self, states: Sequence[PictureState]) -> None:
        batch = torch.stack([state.latents for state in states])
        target = torch.stack([state.extra["target"] for state in states])[:, None, None]
        if self.fault == "averages the batch":
            target = target.mean(0, keepdim=True)
        steps = torch.tensor([state.step for state in states], dtype=self.dtype, device=self.device)
        if self.fault == "one clock":
            steps[:] = steps.max()
        weight = (0.5 / (steps + 1))[:, None, None, None]
        batch = batch + weight * (target - batch)
        for state, latents in zip(states, batch, strict=True):
            state.latents = latents
            state.step += self.fault != "does not count"

    def decode(self, states: Sequence[PictureState]) -> list[Any]:
        pictures = []
        for state in states:
            self.calls += 1
            shade = self.calls if self.fault == "remembers calls" else 0
            picture = (state.latents.float().clamp(0, 1) * 255).round().cpu().numpy().astype(np.uint8) + np.uint8(shade)
            pictures.append(picture if self.fault == "no frames" else picture[None])
        return pictures


class TestToy(PipelineContract):
    implementation = Toy

    def write_model(self, folder: Path) -> None:
        (folder / "model_index.json").write_text(json.dumps(INDEX))

    def model_index(self) -> Mapping[str, Any]:
        return INDEX


FAULTS = ("takes anything", "takes any task", "one seed", "seeds by row", "swaps sides", "ignores the prompt",
          "averages the batch", "one clock", "does not count", "remembers calls", "no frames")  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_broken_pipelines_fail(fault: str, tmp_path: Path) -> None:
    broken = type("Broken", (Toy,), {"fault": fault})
    suite = type("Suite", (TestToy,), {"implementation": broken, "num_steps": 3})

    def make(instance: Any) -> Toy:
        instance.write_model(tmp_path)
        return broken(tmp_path, torch.device("cpu"), torch.float32, PluginContext())

    def limited(self: Toy, states: Sequence[PictureState]) -> None:
        self.turns = getattr(self, "turns", 0) + 1
        assert self.turns < 100, "steps never end"
        Toy.denoise(self, states)

    broken.denoise = limited
    assert failures(suite, {"pipeline": make})
