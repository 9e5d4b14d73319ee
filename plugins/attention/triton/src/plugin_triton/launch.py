"""Launching kernels with little work on the host.

Triton's own launch looks at every argument anew to find the compiled kernel, which takes several times as long as the
driver takes to start it. A `Launch` is one kernel with its constants for one set of argument types; what it was
compiled to is found once, and a function is made for it that takes addresses, looks at what could change the choice,
and calls Triton's compiled entry.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Callable
from typing import Any

import torch
from triton.tools.tensor_descriptor import TensorDescriptor

FLOATS = (torch.bfloat16, torch.float16, torch.float32)  # what the kernels compute with
_ALIGNED = 15  # Triton compiles for pointers that 16 divides, and for others, apart
_MOST_KINDS = 4  # of calls that one Launch knows
_BUFFER_BYTES = (1 << 31) - 1  # on AMD's GPUs also for tensors of no more than this


class Launch:
    """kernel: a `triton.jit` function whose constants come last. Arguments that are not constants are tensors, None,
    floats, integers or tensor descriptors. Types (and which are None) must be the same in every call, so whoever caches
    a Launch has them in its key. Everything else that Triton compiles for is looked at in each call: whether 16 divides
    pointers, and integers that the kernel does not list in do_not_specialize, or these are 1; that integers have 32
    bits; that a descriptor is the same. A call that differs goes through Triton, which is slow and right, and is from
    then on one more kind that is known, up to a few.

    constants: values of the constants, in their order. options: num_warps, num_stages, ...

    `start(device, x, y, z, *arguments)` starts the kernel with the grid (x, y, z) on the current stream of the current
    device, whose number is `device`.
    """

    __slots__ = ("_keywords", "_kinds", "constants", "kernel", "start")

    def __init__(self, kernel: Any, constants: tuple[Any, ...], **options: Any) -> None:
        self.kernel = kernel
        self.constants = constants
        if options.pop("pdl", False):
            options["launch_pdl"] = True
        options.setdefault("enable_fp_fusion", True)  # what Triton does unasked changes with its versions
        names = kernel.arg_names[-len(constants) :] if constants else []
        self._keywords = dict(zip(names, constants, strict=True)) | options
        self.start: Callable[..., None] = self._through_triton
        self._kinds = 0

    def _through_triton(self, device: int, x: int, y: int, z: int, *args: Any) -> None:
        """Later calls that agree with this one go past it."""
        compiled = self.kernel[(x, y, z)](*args, **self._keywords)
        if compiled is None or self._kinds == _MOST_KINDS:  # None: in the interpreter
            return
        made = self._made(device, compiled, args)
        if made is not None:
            self.start = made
            self._kinds += 1

    def _made(self, device: int, compiled: Any, args: tuple[Any, ...]) -> Callable[..., None] | None:
        """The function for calls that choose `compiled`, as these arguments do; None if they are no usual ones."""
        guards = _Guards(device)
        holes: list[Any] = []
        for index, (value, parameter) in enumerate(zip(args, self.kernel.params, strict=False)):
            if not guards.add(f"a{index}", value, parameter):
                return None
            constant = value is None or isinstance(value, TensorDescriptor)
            holes.append(value if constant else _Hole(f"p{index}" if isinstance(value, torch.Tensor) else f"a{index}"))
        entry, given = _entry(compiled, [*holes, *self.constants])
        names = ", ".join(f"a{index}" for index in range(len(args)))
        known: dict[str, Any] = {"entry": entry, "stream": torch._C._cuda_getCurrentRawStream, "other": self.start}
        known |= guards.known
        lines = [
            f"def start(device, x, y, z, {names}):",
            *(f" {line}" for line in guards.addresses),
            f" if {guards.condition}:",
            f"  other(device, x, y, z, {names})",
            "  return",
            f" entry({', '.join(_source(item, known) for item in given)})",
        ]
        exec("\n".join(lines), known)  # as Triton makes its own look-up
        return known["start"]  # type: ignore[no-any-return]


class _Guards:
    """What must hold for the compiled kernel to be the right one. condition: that it does not."""

    def __init__(self, device: int) -> None:
        self.addresses: list[str] = []
        self.known: dict[str, Any] = {}
        self._checks = [f"device != {device}"]
        self._aligned: list[str] = []
        self._narrow: list[str] = []

    def add(self, name: str, value: Any, parameter: Any) -> bool:
        """Whether a call with this value can be an example."""
        if isinstance(value, torch.Tensor):
            address = f"p{name[1:]}"
            self.addresses.append(f"{address} = {name}.data_ptr()")
            if not (parameter.do_not_specialize or parameter.do_not_specialize_on_alignment):
                self._aligned.append(address)
                if value.data_ptr() & _ALIGNED:
                    return False
            if torch.version.hip is not None:
                small = value.untyped_storage().nbytes() <= _BUFFER_BYTES
                self._checks.append(f"({name}.untyped_storage().nbytes() <= {_BUFFER_BYTES}) is not {small}")
        elif isinstance(value, TensorDescriptor):
            self.known[f"d{name}"] = value
            self._checks.append(f"{name} is not d{name}")
        elif isinstance(value, int) and not isinstance(value, bool):
            self._narrow.append(name)
            if parameter.do_not_specialize:
                pass
            elif value == 1:
                self._checks.append(f"{name} != 1")
            elif parameter.do_not_specialize_on_alignment:
                self._checks.append(f"{name} == 1")
            elif value & _ALIGNED:
                self._checks.append(f"({name} == 1 or not {name} & {_ALIGNED})")
            else:
                self._aligned.append(name)
            return not value >> 31
        return True

    @property
    def condition(self) -> str:
        checks = list(self._checks)
        if self._aligned:
            checks.append(f"({' | '.join(self._aligned)}) & {_ALIGNED}")
        if self._narrow:  # Triton gives larger numbers 64 bits; negative ones do not come
            checks.append(f"({' | '.join(self._narrow)}) >> 31")
        return " or ".join(checks)


class _Hole:
    """Where a call's own value goes. source: the expression for it."""

    def __init__(self, source: str) -> None:
        self.source = source


def _entry(compiled: Any, values: list[Any]) -> tuple[Any, tuple[Any, ...]]:
    """(what starts the kernel, its arguments, with holes): the compiled function under Triton's launcher, called as the
    launcher does it, which is watched once. The launcher itself where it has something to do for each launch, or is
    built in another way."""
    head = (_Hole("x"), _Hole("y"), _Hole("z"), _Hole("stream(device)"), compiled.function, compiled.packed_metadata)
    given = (*head, None, None, None, *values)
    run = compiled.run
    recorded: list[tuple[Any, ...]] = []

    def record(*args: Any) -> None:
        recorded.append(args)

    try:
        under, watched = _under(run.launch, record)
        probe = copy.copy(run)
        probe.launch = watched
        probe(*given)
    except (AttributeError, TypeError, ValueError):
        return run, given
    return (under, recorded[0]) if len(recorded) == 1 else (run, given)


def _under(launch: Any, record: Callable[..., None]) -> tuple[Any, Callable[..., None]]:
    """(the compiled function that `launch` ends in, `launch` with `record` in its place). Kernels with descriptors have
    a Python function around theirs, which makes of each descriptor what the driver takes."""
    code = getattr(launch, "__code__", None)
    if code is None:
        return launch, record
    cells = dict(zip(code.co_freevars, launch.__closure__, strict=True))
    under = cells["launcher"].cell_contents if "launcher" in cells else None
    if under is None:
        raise ValueError("built in another way")
    cells["launcher"] = types.CellType(record)
    return under, types.FunctionType(code, launch.__globals__, closure=tuple(cells.values()))


def _source(item: Any, known: dict[str, Any]) -> str:
    """An expression for one argument; constants get names in `known`."""
    if isinstance(item, _Hole):
        return item.source
    if isinstance(item, (tuple, list)) and _has_hole(item):
        return f"({''.join(f'{_source(each, known)}, ' for each in item)})"
    if item is None or item is True or item is False or type(item) is int:
        return repr(item)
    name = f"c{len(known)}"
    known[name] = item
    return name


def _has_hole(items: tuple[Any, ...] | list[Any]) -> bool:
    return any(isinstance(item, _Hole) or (isinstance(item, (tuple, list)) and _has_hole(item)) for item in items)


def empty_as(x: torch.Tensor) -> torch.Tensor:
    """A contiguous tensor of the shape and type of x."""
    if x.is_contiguous():
        return torch.empty_like(x)  # a third of what `torch.empty` takes
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)
