"""Time every implementation of single operations, beside what the device's memory and matrix unit allow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch

from core.bench.ceilings import Ceilings
from core.bench.kernel_cases import Case
from core.bench.timing import busy_s


@dataclass(frozen=True, slots=True)
class KernelFigure:
    """limit_us: the least time at the measured ceilings. us: implementation -> microseconds of device work.
    failed: implementation -> why it did not run."""

    kind: str
    name: str
    limit_us: float
    us: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def time_cases(cases: Iterable[Case], ceilings: Ceilings, device: torch.device) -> Iterator[KernelFigure]:
    """One figure a case. The limit of products is that of the compute type, whatever the weights' size."""
    for case in cases:
        limit_s = max(case.num_bytes / ceilings.copy_bytes_per_s, case.ops / ceilings.product_ops_per_s)
        figure = KernelFigure(case.kind, case.name, limit_s * 1e6, failed=dict(case.failed))
        with torch.inference_mode():
            for implementation, calls in case.calls.items():
                try:
                    figure.us[implementation] = busy_s(calls, device) * 1e6
                except Exception as error:  # one implementation's trouble is not the others'
                    figure.failed[implementation] = f"{type(error).__name__}: {error}"
        yield figure


def render_kernel(figure: KernelFigure) -> str:
    """One line: each implementation's time and its share of the limit, the fastest marked."""
    best = min(figure.us.values(), default=0.0)
    cells = [
        f"{name} {us:.1f}{'*' if us == best else ''} ({figure.limit_us / us:.0%})" for name, us in figure.us.items()
    ]
    cells += [f"{name} failed: {why.splitlines()[0][:80]}" for name, why in figure.failed.items()]
    return f"{figure.kind:<9} {figure.name:<52} limit {figure.limit_us:8.1f} us  " + "  ".join(cells)
