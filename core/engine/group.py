"""RankGroup: all ranks of an engine while it is built, of which this process is rank 0. One rank alone is a group too.

Every rank goes through the same phases: load its share of the weights, join the group, try the largest step, plan
memory, allocate, warm up and record steps. They begin each phase together, as most of them hold collectives.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import msgspec

from core.distributed.single import SingleProcess
from core.engine.make_runner import pages_of
from core.engine.rank_executor import MultiRankExecutor
from core.engine.ranks import TIMEOUT_S, Ranks
from core.interfaces.errors import PluginError
from core.runner.executor import Executor

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from core.config.sections import Settings
    from core.distributed.torch_group import TorchCommunicator
    from core.interfaces.build import Communicator
    from core.interfaces.hardware import HardwareBackend
    from core.registry.resolution import Resolution
    from core.runner.runner import ModelRunner


class RankGroup:
    """The group of one rank: nothing to do but rank 0's part. `start` makes the right one."""

    size = 1
    communicator: Communicator = SingleProcess()
    broadcast: Callable[[torch.Tensor], torch.Tensor] | None = None
    ranks: Ranks | None = None

    def __init__(self, settings: Settings, resolution: Resolution, hardware: HardwareBackend) -> None:
        self._settings = settings
        self._resolution = resolution
        self._hardware = hardware

    @classmethod
    def start(
        cls,
        settings: Settings,
        resolution: Resolution,
        hardware: HardwareBackend,
        *,
        own_process: bool = False,
        timeout_s: float = TIMEOUT_S,
    ) -> RankGroup:
        """Start the other ranks, if there are any; they load meanwhile."""
        if resolution.tensor_parallel_size == 1:
            return cls(settings, resolution, hardware)
        return ProcessRanks(settings, resolution, hardware, own_process=own_process, timeout_s=timeout_s)

    def loading(self, runner: ModelRunner) -> AbstractContextManager[Any]:
        """Around rank 0's loading."""
        return nullcontext()

    def join(self, runner: ModelRunner) -> None:
        """Connect the ranks."""

    def allocate(self, runner: ModelRunner) -> int:
        """Make the KV buffers, of as many pages as fit on every rank; returns their number. Raises CapacityError."""
        runner.measure()
        num_pages = pages_of(self._settings, self._resolution, self._hardware, runner)
        runner.allocate(num_pages)
        return num_pages

    def warm_up(self, runner: ModelRunner) -> None:
        """All ranks run and record the same steps."""
        runner.warm_up()

    def executor(self, executor: Executor, runner: ModelRunner) -> Executor:
        """What runs steps on all ranks, over the executor of rank 0's `runner`; its `close` ends the group."""
        return executor

    def close(self) -> None:
        """End the other ranks. Idempotent."""


class ProcessRanks(RankGroup):
    """Ranks in processes of this machine. timeout_s: longest silence of one while starting."""

    def __init__(
        self,
        settings: Settings,
        resolution: Resolution,
        hardware: HardwareBackend,
        *,
        own_process: bool = False,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        super().__init__(settings, resolution, hardware)
        from core.distributed.torch_group import TorchCommunicator

        self.size = resolution.tensor_parallel_size
        self._tp: TorchCommunicator = TorchCommunicator(hardware.communicator(), 0, self.size)
        self.communicator = self._tp
        self.broadcast = self._tp.broadcast
        self._ranks = Ranks(
            self.size,
            settings.model_dump_json().encode(),
            msgspec.msgpack.encode(resolution.lock()),
            log_format=settings.server.log_format,
            on_loss=self._tp.abort,
            leave_if_stuck=own_process,
            timeout_s=timeout_s,
        )
        self.ranks = self._ranks

    def loading(self, runner: ModelRunner) -> AbstractContextManager[Any]:
        return self._ranks.phase("weights")

    def join(self, runner: ModelRunner) -> None:
        with self._ranks.phase("join", together=True):
            meeting = f"file://{self._ranks.meeting.path}"
            self._tp.join(meeting, runner.device, timeout_s=self._ranks.timeout_s)

    def allocate(self, runner: ModelRunner) -> int:
        with self._ranks.phase("largest step", together=True):
            runner.measure()
        with self._ranks.phase("pages") as planned:
            mine = pages_of(self._settings, self._resolution, self._hardware, runner)
        num_pages = min([mine, *(answer.values["pages"] for answer in planned.answers)])
        with self._ranks.phase("KV cache", num_pages) as allocated:
            runner.allocate(num_pages)
        sizes = ",".join(map(str, runner.recorded_sizes))
        for rank, answer in enumerate(allocated.answers, 1):
            if answer.text != sizes:
                raise PluginError(
                    f"device {type(self._hardware).__qualname__} records steps of {sizes or 'no'} rows on rank 0 and "
                    f"of {answer.text or 'no'} rows on rank {rank}; recorded steps hold collectives, so all ranks "
                    "must record the same",
                    hint="make HardwareBackend.graphs depend on its EngineFacts alone",
                )
        return num_pages

    def warm_up(self, runner: ModelRunner) -> None:
        with self._ranks.phase("warm-up", together=True):
            runner.warm_up()

    def executor(self, executor: Executor, runner: ModelRunner) -> Executor:
        def leave() -> None:
            if self._ranks.lost is None:  # else nobody is there to leave with
                self._ranks.leave()
            runner.release()
            self._tp.close()

        return MultiRankExecutor(executor, self._ranks, leave)

    def close(self) -> None:
        self._ranks.close()
        self._tp.close(timeout_s=2.0)
