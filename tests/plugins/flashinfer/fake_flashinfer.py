"""A stand-in for FlashInfer's wrapper: its signatures and checks, computing in plain PyTorch.

What FlashInfer keeps in memory that calls share is kept there here too: a plan is written into the plan buffer and read
back from it, so that a plan that was overwritten before its call shows.
"""

from __future__ import annotations

from typing import Any

import torch

# Parameters of BatchPrefillWithPagedKVCacheWrapper in flashinfer-python 0.6.13, as `inspect.signature` gives them.
INIT = (
    "float_workspace_buffer kv_layout use_cuda_graph qo_indptr_buf paged_kv_indptr_buf paged_kv_indices_buf "
    "paged_kv_last_page_len_buf custom_mask_buf mask_indptr_buf backend jit_args jit_kwargs"
).split()
RESET = "float_workspace_buffer int_workspace_buffer".split()
PLAN = (
    "qo_indptr paged_kv_indptr paged_kv_indices paged_kv_last_page_len num_qo_heads num_kv_heads head_dim_qk page_size "
    "head_dim_vo custom_mask packed_custom_mask causal pos_encoding_mode use_fp16_qk_reduction sm_scale window_left "
    "logits_soft_cap rope_scale rope_theta q_data_type kv_data_type o_data_type non_blocking prefix_len_ptr "
    "token_pos_in_items_ptr token_pos_in_items_len max_item_len_ptr seq_lens seq_lens_q block_tables "
    "max_token_per_sequence max_sequence_kv fixed_split_size disable_split_kv"
).split()
RUN = (
    "q paged_kv_cache args q_scale k_scale v_scale out lse return_lse enable_pdl window_left sinks kv_cache_sf "
    "skip_softmax_threshold_scale_factor"
).split()


def _bind(names: list[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    unknown = set(kwargs) - set(names)
    assert not unknown, f"flashinfer takes no {unknown}"
    values = dict(zip(names, args, strict=False))
    assert not set(values) & set(kwargs)
    return {**values, **kwargs}


class FakeWrapper:
    """Recorded mode copies into the given buffers; `run` reads nothing else of a step."""

    made: list[FakeWrapper] = []  # noqa: RUF012

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        v = _bind(INIT, args, kwargs)
        assert v["kv_layout"] == "NHD"
        assert v["backend"] in ("auto", "fa2", "fa3")
        self.fixed = bool(v.get("use_cuda_graph"))
        self.buffers: list[torch.Tensor] = []
        if self.fixed:
            names = ("qo_indptr_buf", "paged_kv_indptr_buf", "paged_kv_indices_buf", "paged_kv_last_page_len_buf")
            self.buffers = [v[name] for name in names]
            assert all(buffer.dtype == torch.int32 for buffer in self.buffers)
        self.plan_buffer: torch.Tensor | None = None
        self.number = len(FakeWrapper.made)
        self.plans = 0
        FakeWrapper.made.append(self)

    def reset_workspace_buffer(self, *args: Any, **kwargs: Any) -> None:
        v = _bind(RESET, args, kwargs)
        self.plan_buffer = v["int_workspace_buffer"]
        assert self.plan_buffer.dtype == torch.uint8

    def plan(self, *args: Any, **kwargs: Any) -> None:
        v = self.v = _bind(PLAN, args, kwargs)
        arrays = [v[name] for name in PLAN[:4]]
        assert all(array.dtype == torch.int32 for array in arrays)
        q_starts, page_starts, pages, last = (array.numpy() for array in arrays)
        assert q_starts[0] == page_starts[0] == 0
        assert len(q_starts) == len(page_starts) == len(last) + 1
        assert len(pages) == int(page_starts[-1])
        assert ((last >= 1) & (last <= v["page_size"])).all()
        assert v["max_token_per_sequence"] == int((q_starts[1:] - q_starts[:-1]).max())
        assert v["causal"]
        if self.fixed:
            assert len(last) == len(self.buffers[3]), "the batch size is fixed"
            assert len(pages) <= len(self.buffers[2]), "the page buffer is too small"
            for buffer, array in zip(self.buffers, arrays, strict=True):
                buffer[: len(array)].copy_(array)
        else:
            self.buffers = arrays
        self.plans += 1
        assert self.plan_buffer is not None
        stamp = torch.tensor([self.number, self.plans, int(q_starts[-1])], dtype=torch.int32)
        self.plan_buffer[:12].copy_(stamp.view(torch.uint8))

    def run(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        given = _bind(RUN, args, kwargs)
        v, out = self.v, given["out"]
        k, value = given["paged_kv_cache"]
        fake_run(
            given["q"], k, value, out, self.plan_buffer, *self.buffers, self.number, v["sm_scale"] * given["q_scale"],
            v["window_left"], v["logits_soft_cap"] or 0.0,
        )  # fmt: skip
        return out


@torch.library.custom_op("fake_flashinfer::run", mutates_args=("out",))
def fake_run(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, plan: torch.Tensor, q_starts: torch.Tensor,
    page_starts: torch.Tensor, pages: torch.Tensor, last: torch.Tensor, number: int, scale: float, left: int,
    cap: float,
) -> None:  # fmt: skip
    planned = plan[:12].view(torch.int32)
    assert int(planned[0]) == number, "the plan was overwritten by another call's"
    assert q.shape[0] == int(q_starts[-1]) == int(planned[2])
    size, groups = k.shape[1], q.shape[1] // k.shape[2]
    for i in range(len(last)):
        mine = pages[int(page_starts[i]) : int(page_starts[i + 1])].long()
        length = (len(mine) - 1) * size + int(last[i])
        first, end = int(q_starts[i]), int(q_starts[i + 1])
        keys, values = (x[mine].flatten(0, 1)[:length].float().repeat_interleave(groups, 1) for x in (k, v))
        scores = torch.einsum("mhd,lhd->hml", q[first:end].float(), keys) * scale
        if cap > 0:
            scores = cap * torch.tanh(scores / cap)
        at, seen = torch.arange(length - (end - first), length)[:, None], torch.arange(length)[None]
        hidden = seen > at
        if left >= 0:
            hidden = hidden | (seen < at - left)
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        out[first:end] = torch.einsum("hml,lhd->mhd", weights, values).to(q.dtype)
