"""Collectives over torch.distributed, for any of its backends."""

from __future__ import annotations

from datetime import timedelta

import torch
import torch.distributed as dist

from core.interfaces.errors import ConfigError, EngineError


class TorchCommunicator:
    """Communicator over one torch.distributed process group.

    All ranks must call the same collectives in the same order with equal shapes and dtypes.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)

    @classmethod
    def connect(
        cls, backend: str, rank: int, size: int, init_method: str, *, timeout_s: float = 600.0
    ) -> TorchCommunicator:
        """Join the default group, waiting for all ranks.

        backend: what `HardwareBackend.communicator()` says. init_method: "tcp://host:port" or "file:///path".
        timeout_s: how long to wait for the others, here and in each collective. Raises ConfigError for a backend
        that this build of torch lacks or a rank outside the group, EngineError when the others do not come.
        """
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
        try:
            dist.init_process_group(
                backend, init_method=init_method, rank=rank, world_size=size, timeout=timedelta(seconds=timeout_s)
            )
        except (RuntimeError, ValueError) as error:
            raise EngineError(
                f"rank {rank} of {size} could not join its group at {init_method}: {error}",
                hint="see whether another rank ended early and whether the address is reachable and free",
            ) from error
        group = dist.group.WORLD
        assert group is not None  # init_process_group has just made it
        return cls(group)

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """Sum over the ranks. May write to `x`: use only what is returned."""
        x = x.contiguous()
        dist.all_reduce(x, group=self.group)
        return x

    def all_gather(self, x: torch.Tensor, dim: int = -1) -> torch.Tensor:
        """The ranks' tensors joined along `dim`, in rank order."""
        x = x.contiguous()
        joined = x.new_empty(self.size * x.shape[0], *x.shape[1:])
        dist.all_gather_into_tensor(joined, x, group=self.group)
        dim %= x.dim()
        if dim == 0:
            return joined
        return torch.cat(joined.chunk(self.size), dim)

    def close(self) -> None:
        """Leave the group. Collectives fail afterwards; closing again does nothing."""
        if dist.is_initialized():
            dist.destroy_process_group(self.group)
