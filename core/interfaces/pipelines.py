"""Pipeline (draft): a diffusion model, cut into stages so that core can batch, queue and cancel between steps.

A request goes through `encode` once, `denoise` once for each of its steps, and `decode` once. Requests with the same
shape key may share a call, wherever each stands in its own schedule; the result of a request must not depend on which
others share its calls.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from core.interfaces.context import PluginContext

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

Task = Literal["text_to_image", "image_to_image", "text_to_video"]


@dataclass(frozen=True, slots=True)
class PipelineSpec:
    """tasks: offered. size_multiple: width and height must be multiples of it, within min_size .. max_size pixels.
    default_steps, default_guidance: where a request says nothing. max_frames: 1 for images."""

    tasks: tuple[Task, ...]
    size_multiple: int
    min_size: int
    max_size: int
    default_steps: int
    default_guidance: float
    max_frames: int = 1


@dataclass(frozen=True, slots=True)
class PictureRequest:
    """seed: resolved; the same request gives the same picture. image: [H, W, 3] uint8 for "image_to_image", fetched and
    decoded by core. strength: how far to leave it, in (0, 1]."""

    task: Task
    prompt: str
    negative_prompt: str
    width: int
    height: int
    num_steps: int
    guidance: float
    seed: int
    num_frames: int = 1
    image: npt.NDArray[np.uint8] | None = None
    strength: float = 1.0


@dataclass(slots=True)
class PictureState:
    """One request under way. latents: of this request alone, no batch dimension. step: how many steps are done.
    num_steps: to do in all. extra: the pipeline's own (conditioning, schedule)."""

    latents: torch.Tensor
    num_steps: int
    step: int = 0
    extra: dict[str, Any] = field(default_factory=dict)


class Pipeline(ABC):
    """One model. Called from one thread."""

    @classmethod
    @abstractmethod
    def recognises(cls, model_index: Mapping[str, Any]) -> bool:
        """Whether this pipeline serves a folder with that model_index.json."""

    @abstractmethod
    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype, ctx: PluginContext) -> None:
        """Load the weights. Raises CheckpointError or WeightError."""

    @property
    @abstractmethod
    def spec(self) -> PipelineSpec:
        """What may be asked."""

    @abstractmethod
    def shape_key(self, request: PictureRequest) -> tuple[int, ...]:
        """Requests with equal keys may share calls."""

    @abstractmethod
    def encode(self, requests: Sequence[PictureRequest]) -> list[PictureState]:
        """Text to conditioning, seeds to first latents. Raises RequestError for one that cannot be served."""

    @abstractmethod
    def denoise(self, states: Sequence[PictureState]) -> None:
        """One step of each, in place; `step` grows by one. The states have equal shape keys."""

    @abstractmethod
    def decode(self, states: Sequence[PictureState]) -> list[npt.NDArray[np.uint8]]:
        """Pictures [frames, H, W, 3] of finished states."""
