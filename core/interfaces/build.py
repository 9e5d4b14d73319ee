"""BuildContext: what a model is built with. Handed down through constructors; there is no global."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

    from core.interfaces.moe import MoeRunner
    from core.interfaces.quant import QuantMethod


class Communicator(Protocol):
    """Collectives among the ranks of one group. With size 1 each is the identity."""

    rank: int
    size: int

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor: ...

    def all_gather(self, x: torch.Tensor, dim: int = -1) -> torch.Tensor: ...


@dataclass(frozen=True, slots=True)
class BuildContext:
    """dtype, device, parallel group and the chosen implementations.

    ops: name -> callable; the chosen hardware's table over core's plain-PyTorch references. Layers take what
        they need when they are constructed, so that a step looks nothing up.
    """

    dtype: torch.dtype
    device: torch.device
    ops: Mapping[str, Callable[..., Any]]
    quant: QuantMethod
    moe: MoeRunner
    tp: Communicator
    max_tokens: int
    context_length: int

    def replace(self, **changes: Any) -> BuildContext:
        return replace(self, **changes)
