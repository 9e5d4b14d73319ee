"""CpuNativeAttention against the float64 oracle, over memory that starts as not-a-number."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from parity import ParityCase
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

import core.attention.plan as planning
from core.interfaces.context import PluginContext
from core.ops.table import build_ops
from plugin_cpu_native.library import Kernels
from plugin_llama.arch import LlamaArch
from plugin_qwen.arch import Qwen3Arch
from tests.attention.oracle import World, make_config, relative_error

pytestmark = pytest.mark.usefixtures("library")
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1.5e-2}


def world(seed: int = 0, **config: object) -> World:
    from plugin_cpu_native.attention import CpuNativeAttention

    return World(CpuNativeAttention, make_config(**{"num_pages": 600, **config}), seed)  # type: ignore[arg-type]


def check(made: World, work: list[tuple[int, int]], **how: object) -> None:
    got, want = made.step(work, **how)  # type: ignore[arg-type]
    assert relative_error(got, want) < TOLERANCE[made.config.dtype]


@st.composite
def worlds(draw: st.DrawFn) -> World:
    group, num_kv_heads = draw(st.sampled_from([1, 2, 3, 4, 7])), draw(st.sampled_from([1, 2]))
    return world(
        draw(st.integers(0, 10_000)),
        num_heads=group * num_kv_heads,
        num_kv_heads=num_kv_heads,
        head_dim=draw(st.sampled_from([16, 32, 48, 64])),
        v_head_dim=draw(st.sampled_from([0, 0, 16, 80])),
        page_size=draw(st.integers(1, 33)),
        window=draw(st.sampled_from([None, None, 1, 3, 7, 20])),
        softcap=draw(st.sampled_from([None, None, 0.7, 20.0])),
        has_sinks=draw(st.booleans()),
        dtype=draw(st.sampled_from([torch.float32, torch.bfloat16])),
    )


@given(worlds(), st.data())
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_random_mixed_steps(made: World, data: st.DataObject) -> None:
    """Both ways to attend for several new tokens: a few are the kernel's, many PyTorch's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("plugin_cpu_native.attention._MAX_NEW_TOKENS", data.draw(st.sampled_from([1, 5, 16, 100])))
        for _ in range(data.draw(st.integers(1, 4))):
            for _ in range(data.draw(st.integers(0 if made.sequences else 1, 3))):
                made.new()
            known = [n for n, sequence in enumerate(made.sequences) if sequence.k]
            decodes = [n for n in known if data.draw(st.booleans())]
            work = [(n, 1) for n in decodes]
            for n in range(len(made.sequences)):
                if n not in decodes and data.draw(st.booleans()):
                    work.append((n, data.draw(st.integers(1, 24))))
            if work:
                check(made, work, padding_rows=data.draw(st.integers(0, 2)), stored_before=data.draw(st.booleans()))


@given(st.data())
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])
def test_any_family_of_prefixes(data: st.DataObject) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "MIN_SHARED_SAVING", data.draw(st.sampled_from([1, 5, 20])))
        made = world(data.draw(st.integers(0, 999)), page_size=data.draw(st.integers(1, 6)), dtype=torch.float32)
        for _ in range(data.draw(st.integers(2, 7))):
            if made.sequences and data.draw(st.integers(0, 3)):
                parent = data.draw(st.integers(0, len(made.sequences) - 1))
                pages = len(made.sequences[parent].k) // made.config.page_size
                number = made.fork(parent, data.draw(st.integers(0, pages)))
            else:
                number = made.new()
            check(made, [(number, data.draw(st.integers(1, 20)))])
        for _ in range(2):
            check(made, [(n, 1) for n in data.draw(st.permutations(range(len(made.sequences))))])


@pytest.mark.parametrize("num_threads", [1, 2, 3])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_long_sequences_are_spread_over_threads(dtype: torch.dtype, num_threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        made = world(dtype=dtype, page_size=16)
        made.new()
        check(made, [(0, 1500)])
        check(made, [(0, 1)])
        made.new()
        check(made, [(1, 40)])
        check(made, [(0, 1), (1, 1)])
        check(made, [(0, 1), (1, 9)])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("has_sinks", [False, True])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_many_rows_share_a_prefix(dtype: torch.dtype, has_sinks: bool) -> None:
    """More query heads than one job takes."""
    made = world(dtype=dtype, has_sinks=has_sinks, num_heads=8, num_kv_heads=2, page_size=8)
    made.new()
    check(made, [(0, 70)])
    family = [made.fork(0, 8) for _ in range(37)]
    check(made, [(n, 1 + n % 5) for n in family])
    check(made, [(n, 1) for n in family])


def test_scores_beyond_what_exp_takes() -> None:
    made = world(dtype=torch.float32)
    plain = made.random
    made.random = lambda *shape: plain(*shape) * 30  # type: ignore[method-assign]
    made.new()
    made.step([(0, 70)])
    got, _ = made.step([(0, 1)])
    assert got.isfinite().all()


def test_not_a_number_stays_with_its_sequence() -> None:
    made = world(dtype=torch.bfloat16)
    made.new(), made.new()
    check(made, [(0, 20), (1, 20)])
    made.kv[3][0][made.sequences[0].pages[0] * made.config.page_size] = float("nan")
    got, _ = made.step([(0, 1), (1, 1)])
    assert got[0].isnan().all()
    assert got[1].isfinite().all()


def test_views_of_a_joint_projection() -> None:
    made, plain = world(dtype=torch.float32), world(dtype=torch.float32)
    for each in (made, plain):
        each.new()
    take = made.random

    def views(*shape: int) -> torch.Tensor:
        x = take(*shape)
        return torch.cat((x, x), 1)[:, : shape[1]]

    made.random = views  # type: ignore[method-assign]
    for count in (9, 1, 1):
        assert torch.equal(made.step([(0, count)])[0], plain.step([(0, count)])[0])


SIZES = {
    "vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 256, "attn_implementation": "eager",
}  # fmt: skip


@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_parity_of_small_models(tmp_path: Path, library: Kernels, family: str) -> None:
    from plugin_cpu_native.attention import CpuNativeAttention
    from plugin_cpu_native.ops import CpuNativeOps

    how = {"backend": CpuNativeAttention, "ops": build_ops(CpuNativeOps(PluginContext()).ops())}
    if family == "qwen3":
        case = ParityCase(Qwen3ForCausalLM(Qwen3Config(**SIZES)), tmp_path, Qwen3Arch, **how)
    else:
        case = ParityCase(LlamaForCausalLM(LlamaConfig(**SIZES)), tmp_path, LlamaArch, **how)
    case.check_prefill(19)
    case.check_chunked([5, 1, 9, 4])
    case.check_shared_prefix(2, 3)
    case.check_mixed([7, 2, 1, 11])
    case.check_greedy(17)
