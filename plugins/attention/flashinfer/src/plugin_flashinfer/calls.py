"""One kind of call: FlashInfer's wrapper with what it has to be protected from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from core.interfaces.attention import AttentionConfig
from plugin_flashinfer.pages import PagedRows

# Of the plan that FlashInfer copies to the device; what it recommends.
PLAN_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Rule:
    """What FlashInfer fixes in a plan, so that layers which share it share plans."""

    window: int | None
    softcap: float | None
    head_dim: int


class Workspaces:
    """Device memory that calls share. Partial results: all of them, since one runs after the other. A plan: those of
    which a step has one at most, such as the recorded steps of all sizes; it is copied there before each."""

    def __init__(self, device: torch.device, partial_mib: int) -> None:
        self._device = device
        self.partial = self._zeros(partial_mib << 20)
        self._plans: dict[tuple[str, Rule], torch.Tensor] = {}

    def plan(self, what: str, rule: Rule) -> torch.Tensor:
        """what: calls of the same name and rule are never planned in one step."""
        if (what, rule) not in self._plans:
            self._plans[what, rule] = self._zeros(PLAN_BYTES)
        return self._plans[what, rule]

    def _zeros(self, size: int) -> torch.Tensor:
        return torch.zeros(size, dtype=torch.uint8, device=self._device)


class PagedCall:
    """Attention over pages for a number of sequences that changes from step to step, or, if `rows` is given, for a
    recorded step of that many rows, whose buffers keep their addresses. partial, plan: of `Workspaces`."""

    def __init__(
        self,
        wrapper: Any,
        config: AttentionConfig,
        rule: Rule,
        partial: torch.Tensor,
        plan: torch.Tensor,
        kernels: str,
        rows: int | None = None,
    ) -> None:
        self._config = config
        self._rule = rule
        self._cuda = config.device.type == "cuda"
        self._planned: torch.cuda.Event | None = None
        fixed: dict[str, Any] = {}
        if rows is not None:
            most = rows * -(-config.context_length // config.page_size)

            def zeros(size: int) -> torch.Tensor:
                return torch.zeros(size, dtype=torch.int32, device=config.device)

            fixed = {
                "use_cuda_graph": True,
                "qo_indptr_buf": zeros(rows + 1),
                "paged_kv_indptr_buf": zeros(rows + 1),
                "paged_kv_indices_buf": zeros(most),
                "paged_kv_last_page_len_buf": zeros(rows),
            }
        self._wrapper = wrapper(partial, "NHD", backend=kernels, **fixed)
        self._wrapper.reset_workspace_buffer(partial, plan)

    def plan(self, rows: PagedRows) -> None:
        if self._planned is not None:
            # FlashInfer writes the next plan to the host memory that the last one is copied from.
            self._planned.synchronize()
        config, rule = self._config, self._rule
        pages = self._on_host(rows.pages).to(config.device, non_blocking=True)
        self._wrapper.plan(
            self._on_host(rows.q_starts),
            self._on_host(rows.page_starts),
            pages,
            self._on_host(rows.last_lens),
            config.num_heads,
            config.num_kv_heads,
            rule.head_dim,
            config.page_size,
            causal=True,
            sm_scale=1.0,
            window_left=-1 if rule.window is None else rule.window - 1,
            logits_soft_cap=rule.softcap,
            q_data_type=config.dtype,
            kv_data_type=config.dtype,
            max_token_per_sequence=rows.max_q,
        )
        if self._cuda:
            if self._planned is None:
                self._planned = torch.cuda.Event()
            self._planned.record()

    def run(self, q: torch.Tensor, kv: Sequence[torch.Tensor], out: torch.Tensor, scale: float) -> None:
        """q [T, H, D] -> out [T, H, D], of the planned rows alone; kv: K and V pages."""
        self._wrapper.run(q, tuple(kv), out=out, q_scale=scale)

    def _on_host(self, array: np.ndarray) -> torch.Tensor:
        """Pinned, so that copies to the device do not wait; torch keeps the memory until they are done."""
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        return tensor.pin_memory() if self._cuda else tensor
