"""Layer: a module that is cheap to call. WeightModule: one that knows which checkpoint tensors fill it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from core.interfaces.errors import WeightError

# Number of an expert in a slot of a module that has none.
NO_EXPERT = -1
Slot = tuple[str, str, int]

_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class Layer(nn.Module):
    """Calling it runs `forward` and nothing else, and its submodules are found like plain attributes.

    nn.Module's call (hooks) and attribute look-up cost about a microsecond each time. A decode step of a small model
    on a CPU makes hundreds of both and takes about a millisecond. Hooks do not run.
    """

    def __call__(self, *args: Any) -> Any:
        return self.forward(*args)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if isinstance(value, nn.Module):
            self.__dict__[name] = value


def after_norm(
    module: nn.Module, norm: Any, x: torch.Tensor, residual: torch.Tensor | None, *args: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """The module of the normed sum x + residual, and that sum; without a residual x is the sum. norm: an RmsNorm.

    A layer that begins with a product has a method of this name, which takes the norm into the product where the device
    can do that.
    """
    if residual is None:
        return module(norm(x), *args), x
    x, residual = norm.add(x, residual)
    return module(x, *args), residual


def entry_after_norm(module: nn.Module) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """The module's own `after_norm`, or the function, where it has none or is of a subclass that has a `forward` of its
    own, which must not be passed by."""
    for cls in type(module).__mro__:
        if "after_norm" in vars(cls):
            own: Callable[..., tuple[torch.Tensor, torch.Tensor]] = getattr(module, "after_norm")  # noqa: B009
            return own
        if "forward" in vars(cls):
            break
    return partial(after_norm, module)


class WeightModule(Layer):
    """A leaf that owns parameters. Life: construct, `load` each tensor (any order, any thread), `finish` once.

    A slot is (suffix, part, expert): suffix is the last segment of a checkpoint name ("weight", "bias", ...), part
    the piece of a stacked module ("q", "gate", ...; "" if there is one only), expert its number or NO_EXPERT.
    """

    def expected(self) -> set[Slot]:
        """Slots that a checkpoint must fill; nothing may be left out."""
        raise NotImplementedError

    def covers(self, suffix: str, part: str, expert: int = NO_EXPERT) -> set[Slot]:
        """Slots that one checkpoint tensor fills. More than one where a format stacks what others split. Slots that
        `expected` does not name make the tensor unexpected; the empty set takes the tensor without needing it."""
        return {(suffix, part, expert)}

    def load(self, suffix: str, part: str, tensor: torch.Tensor, expert: int | None = None) -> None:
        """Copy this rank's share of one checkpoint tensor into place. Raises WeightError on a wrong shape or dtype.
        Loads of different slots may run in parallel."""
        raise NotImplementedError

    def finish(self) -> None:
        """After the last tensor: repack, bind what the forward pass needs."""
        return None


def empty_parameter(*shape: int, dtype: torch.dtype, device: torch.device) -> nn.Parameter:
    """An uninitialised parameter that wants no gradient."""
    return nn.Parameter(torch.empty(*shape, dtype=dtype, device=device), requires_grad=False)


def check_tensor(tensor: torch.Tensor, shape: tuple[int, ...]) -> None:
    """Raise WeightError unless `tensor` is a plain floating-point tensor of `shape`."""
    if tensor.dtype not in _FLOATS:
        name = str(tensor.dtype).removeprefix("torch.")
        raise WeightError(
            f"dtype {name}, expected one of float32, bfloat16, float16",
            hint="quantized weights need a quantization plugin (--quantization)",
        )
    if tuple(tensor.shape) != shape:
        raise WeightError(
            f"shape {list(tensor.shape)}, expected {list(shape)}",
            hint="config.json and the weight files are of different models",
        )
