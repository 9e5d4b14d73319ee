"""BuildContext: what a model is built with. Handed down through constructors; there is no global."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    import torch

    from core.interfaces.moe import MoeRunner
    from core.interfaces.quant import QuantMethod


L = TypeVar("L")


def _same_name(path: str) -> tuple[str, ...]:
    return (path,)


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
    layers: name of one of core's layer classes -> the device's own subclass of it; see `layer`.
    sources: path of a module in the model -> the checkpoint modules that fill it, in the order of its parts.
    """

    dtype: torch.dtype
    device: torch.device
    ops: Mapping[str, Callable[..., Any]]
    quant: QuantMethod
    moe: MoeRunner
    tp: Communicator
    max_tokens: int
    context_length: int
    layers: Mapping[str, type] = field(default_factory=dict)
    sources: Callable[[str], tuple[str, ...]] = _same_name

    def layer(self, cls: type[L]) -> type[L]:
        """`cls`, or what the device's plugin puts in its place: `ctx.layer(SelfAttention)(path, ...)`. Models build
        core's layers this way, so that a vendor can fuse a whole layer without touching the model."""
        return self.layers.get(cls.__name__, cls)

    def replace(self, **changes: Any) -> BuildContext:
        return replace(self, **changes)
