"""Collectives over torch.distributed, for any of its backends."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from core.interfaces.errors import ConfigError, EngineError

logger = logging.getLogger("core.engine")
_GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"
# Its name from torch 2.13 on; the old one warns there.
_gather_into = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class TorchCommunicator:
    """Communicator over the process's default torch.distributed group: one a process.

    A model can be built, and its weights loaded, before `join`: rank and size are known from the start. All ranks must
    call the same collectives in the same order with equal shapes and dtypes.

    backend: what `HardwareBackend.communicator()` says. Raises ConfigError for one that this build of torch lacks, and
    for a rank outside the group.
    """

    def __init__(self, backend: str, rank: int, size: int) -> None:
        if not 0 <= rank < size:
            raise ConfigError(
                f"rank {rank} is not in a group of {size}",
                field="engine.tensor_parallel_size",
                value=size,
                hint=f"ranks are 0 to {size - 1}",
            )
        if not dist.is_available() or not dist.is_backend_available(backend):
            raise ConfigError(
                f"this build of torch has no {backend!r} collectives",
                field="engine.tensor_parallel_size",
                value=size,
                hint="install a torch build that has them, or set --tensor-parallel-size 1",
            )
        self.backend = backend
        self.rank = rank
        self.size = size
        self._group: dist.ProcessGroup | None = None

    @classmethod
    def connect(
        cls, backend: str, rank: int, size: int, init_method: str, *, timeout_s: float = 600.0
    ) -> TorchCommunicator:
        """Make one and `join`."""
        made = cls(backend, rank, size)
        made.join(init_method, timeout_s=timeout_s)
        return made

    def join(self, init_method: str, device: torch.device | None = None, *, timeout_s: float = 600.0) -> None:
        """Wait for all ranks.

        init_method: "tcp://host:port" or "file:///path". device: where this rank's tensors are, so that what
        collectives need there is allocated now. timeout_s: how long to wait for the others, here and in each
        collective. Raises EngineError when they do not come.
        """
        if dist.is_initialized():
            raise EngineError(
                f"rank {self.rank} of {self.size} could not join its group: this process is in a torch.distributed "
                "group already",
                hint="a process holds one engine of several ranks at a time: close the other, or destroy its group",
            )
        try:
            with _local_only(self.backend, init_method):
                dist.init_process_group(
                    self.backend,
                    init_method=init_method,
                    rank=self.rank,
                    world_size=self.size,
                    timeout=timedelta(seconds=timeout_s),
                    device_id=device if device is not None and device.index is not None else None,
                )
        except (RuntimeError, ValueError) as error:
            raise EngineError(
                f"rank {self.rank} of {self.size} could not join its group at {init_method}: {error}",
                hint="see whether another rank ended early and whether the address is reachable and free",
            ) from error
        self._group = dist.group.WORLD
        self.all_reduce(torch.zeros(1, device=device))  # connections are made with the first collective

    @property
    def group(self) -> dist.ProcessGroup:
        """Raises EngineError before `join` and after `close`."""
        if self._group is None:
            raise EngineError(f"rank {self.rank} of {self.size} is in no group", hint="call join() first")
        return self._group

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """Sum over the ranks. May write to `x`: use only what is returned."""
        x = x.contiguous()
        dist.all_reduce(x, group=self.group)
        return x

    def all_gather(self, x: torch.Tensor, dim: int = -1) -> torch.Tensor:
        """The ranks' tensors joined along `dim`, in rank order."""
        x = x.contiguous()
        joined = x.new_empty(self.size * x.shape[0], *x.shape[1:])
        _gather_into(joined, x, group=self.group)
        dim %= x.dim()
        if dim == 0:
            return joined
        return torch.cat(joined.chunk(self.size), dim)

    def broadcast(self, x: torch.Tensor) -> torch.Tensor:
        """Rank 0's `x` on every rank. Writes to the others' `x`, which give shape and dtype."""
        x = x.contiguous()
        dist.broadcast(x, src=0, group=self.group)
        return x

    def abort(self) -> None:
        """From any thread: end collectives that wait for ranks which will never come, where the backend can. What they
        give is garbage, and the group is of no more use."""
        if self._group is not None:
            self._group.abort()

    def close(self, timeout_s: float = 10.0) -> None:
        """Leave the group, as all ranks do. Recorded steps with collectives must be gone by then. Collectives fail
        afterwards; closing again does nothing. A library that waits for a rank which has died is left to wait, in a
        thread of its own, after `timeout_s`."""
        group, self._group = self._group, None
        if group is None or not dist.is_initialized():
            return
        leaving = threading.Thread(target=_leave, args=(group,), name="core-leave-ranks", daemon=True)
        leaving.start()
        leaving.join(timeout_s)
        if leaving.is_alive():
            logger.warning("the group of %d ranks could not be left within %.0f s", self.size, timeout_s)


def _leave(group: dist.ProcessGroup) -> None:
    try:
        dist.destroy_process_group(group)
    except Exception as error:  # it may be broken, which is why it is left
        logger.warning("leaving the group of ranks failed: %s", error)


@contextmanager
def _local_only(backend: str, init_method: str) -> Iterator[None]:
    """Ranks that meet in a file are on one machine: Gloo, which listens on the host's outer address by default, is told
    to stay on the loopback interface, unless the operator chose another."""
    name = next((name for name in ("lo", "lo0") if os.path.exists(f"/sys/class/net/{name}")), None)
    if backend != "gloo" or not init_method.startswith("file:") or name is None or _GLOO_INTERFACE in os.environ:
        yield
        return
    os.environ[_GLOO_INTERFACE] = name
    try:
        yield
    finally:
        del os.environ[_GLOO_INTERFACE]
