"""RunnerStats: what a runner has done, and where the time went."""

from __future__ import annotations

from dataclasses import dataclass

from core.interfaces.step import StepTimes


@dataclass(slots=True)
class RunnerStats:
    """Since the runner was built, warm-up not counted. replayed_steps, pieced_steps: of `steps`, those that
    ran as recorded, as one or in pieces.
    device_time_s: from a step's launch, or the end of the step before it if that came later, to its tokens being on
    the host. The others are sums of `StepTimes`."""

    steps: int = 0
    replayed_steps: int = 0
    pieced_steps: int = 0
    tokens: int = 0
    failed_steps: int = 0
    device_time_s: float = 0.0
    build_s: float = 0.0
    launch_s: float = 0.0
    wait_s: float = 0.0
    output_s: float = 0.0
    gpu_s: float = 0.0

    def add(self, times: StepTimes) -> None:
        """Count the times of one step."""
        self.build_s += times.build_s
        self.launch_s += times.launch_s
        self.wait_s += times.wait_s
        self.output_s += times.output_s
        self.gpu_s += times.gpu_s
