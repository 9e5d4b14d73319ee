"""Operator signatures as the libraries register them, read out of the published binaries (`strings`, spaces joined)."""

from __future__ import annotations

import re


def _joined(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


# sglang-kernel 0.4.5, sgl_kernel/flash_ops.abi3.so
SGLANG = {
    "fwd": _joined("""
        fwd(Tensor q, Tensor k, Tensor v, Tensor? k_new, Tensor? v_new, Tensor? q_v, Tensor(a!)? out,
        Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, Tensor? cu_seqlens_k_new, Tensor? seqused_q, Tensor? seqused_k,
        int? max_seqlen_q, int? max_seqlen_k, Tensor? page_table, Tensor? kv_batch_idx, Tensor? leftpad_k,
        Tensor? rotary_cos, Tensor? rotary_sin, Tensor? seqlens_rotary, Tensor? q_descale, Tensor? k_descale,
        Tensor? v_descale, float? softmax_scale, bool is_causal, int window_size_left, int window_size_right,
        int attention_chunk, float softcap, bool is_rotary_interleaved, Tensor? scheduler_metadata, int num_splits,
        bool? pack_gqa, int sm_margin, Tensor? sinks, Tensor? sparse_mask_fine, bool only_qv)
        -> (Tensor(a!), Tensor, Tensor, Tensor)"""),
    "get_scheduler_metadata": _joined("""
        get_scheduler_metadata(int batch_size, int max_seqlen_q, int max_seqlen_k, int num_heads, int num_heads_k,
        int headdim, int headdim_v, ScalarType qkv_dtype, Tensor seqused_k, Tensor? cu_seqlens_q,
        Tensor? cu_seqlens_k, Tensor? cu_seqlens_k_new, Tensor? seqused_q, Tensor? leftpad_k, int? page_size,
        int max_seqlen_k_new = 0, bool is_causal = False, int window_size_left = -1, int window_size_right = -1,
        int attention_chunk = 0, bool has_softcap = False, int num_splits = 0, bool? pack_gqa = None,
        int sm_margin = 0) -> Tensor"""),
}

# vllm 0.25.1, vllm/vllm_flash_attn/_vllm_fa3_C.abi3.so
VLLM = {
    "fwd": _joined("""
        fwd(Tensor! q, Tensor k, Tensor v, Tensor? k_new, Tensor? v_new, Tensor? q_v, Tensor!? out,
        Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, Tensor? cu_seqlens_k_new, Tensor? seqused_q, Tensor? seqused_k,
        int? max_seqlen_q, int? max_seqlen_k, Tensor? page_table, Tensor? kv_batch_idx, Tensor? leftpad_k,
        Tensor? rotary_cos, Tensor? rotary_sin, Tensor? seqlens_rotary, Tensor? q_descale, Tensor? k_descale,
        Tensor? v_descale, float softmax_scale, bool is_causal, int window_size_left, int window_size_right,
        float softcap, bool is_rotary_interleaved, Tensor? scheduler_metadata, int num_splits, bool? pack_gqa,
        int sm_margin, Tensor? s_aux, int cp_world_size, int cp_rank, Tensor? cp_tot_seqused_k) -> Tensor[]"""),
    "get_scheduler_metadata": _joined("""
        get_scheduler_metadata(int batch_size, int max_seqlen_q, int max_seqlen_k, int num_heads, int num_heads_k,
        int headdim, int headdim_v, ScalarType qkv_dtype, Tensor seqused_k, Tensor? cu_seqlens_q,
        Tensor? cu_seqlens_k, Tensor? cu_seqlens_k_new, Tensor? seqused_q, Tensor? leftpad_k, int? page_size,
        int max_seqlen_k_new, bool is_causal, int window_size_left, int window_size_right, bool has_softcap,
        int num_splits, bool? pack_gqa, int sm_margin) -> Tensor"""),
}

# flash-attention's repository, hopper/flash_api.cpp (no binary is published on PyPI)
UPSTREAM = {
    "fwd": _joined("""
        fwd(Tensor q, Tensor k, Tensor v, Tensor(k_new!)? k_new = None, Tensor(v_new!)? v_new = None,
        Tensor? q_v = None, Tensor(out!)? out = None, Tensor? cu_seqlens_q = None, Tensor? cu_seqlens_k = None,
        Tensor? cu_seqlens_k_new = None, Tensor? seqused_q = None, Tensor? seqused_k = None,
        int? max_seqlen_q = None, int? max_seqlen_k = None, Tensor? page_table = None, Tensor? kv_batch_idx = None,
        Tensor? leftpad_k = None, Tensor? rotary_cos = None, Tensor? rotary_sin = None,
        Tensor? seqlens_rotary = None, Tensor? q_descale = None, Tensor? k_descale = None,
        Tensor? v_descale = None, float? softmax_scale = None, bool is_causal = False, int window_size_left = -1,
        int window_size_right = -1, int attention_chunk = 0, float softcap = 0.0,
        bool is_rotary_interleaved = False, Tensor? scheduler_metadata = None, int num_splits = 0,
        bool? pack_gqa = None, int sm_margin = 0) -> (Tensor(out!), Tensor, Tensor, Tensor)"""),
    "get_scheduler_metadata": _joined("""
        get_scheduler_metadata(int batch_size, int max_seqlen_q, int max_seqlen_k, int num_heads, int num_heads_k,
        int headdim, int headdim_v, ScalarType qkv_dtype, Tensor seqused_k, Tensor? cu_seqlens_q = None,
        Tensor? cu_seqlens_k = None, Tensor? cu_seqlens_k_new = None, Tensor? seqused_q = None,
        Tensor? leftpad_k = None, int? page_size = None, int max_seqlen_k_new = 0, bool is_causal = False,
        int window_size_left = -1, int window_size_right = -1, int attention_chunk = 0, bool has_softcap = False,
        int num_splits = 0, bool? pack_gqa = None, int sm_margin = 0) -> Tensor"""),
}
