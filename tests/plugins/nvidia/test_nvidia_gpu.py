"""On a GPU only: graphs, their memory, copies, and steps that never wait for the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from core.attention.torch_native import TorchNativeAttention
from core.interfaces.context import PluginContext
from core.interfaces.hardware import Between
from core.interfaces.params import SamplingParams
from core.testing.capturable_attention import CapturableAttention
from core.testing.contracts.hardware_steps import decode_all, decode_plans
from core.testing.mock_model import MockConfig, reference_greedy
from core.testing.mock_runner import build_mock_runner
from plugin_nvidia.backend import NvidiaBackend
from plugin_nvidia.settings import Settings

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

MODEL = MockConfig(vocab_size=97, windows=(None, 5), context_length=64)


@pytest.fixture
def make() -> Iterator[Callable[..., NvidiaBackend]]:
    def made(**settings: object) -> NvidiaBackend:
        backend = NvidiaBackend(PluginContext(settings=Settings(**settings)))
        backend.initialize(0)
        return backend

    yield made
    torch.cuda.set_sync_debug_mode("default")
    torch.cuda.empty_cache()


def test_graphs_share_their_memory_and_keep_their_results_apart(make: Callable[..., NvidiaBackend]) -> None:
    from plugin_nvidia.graphs import CudaStepGraphs

    backend = make()
    graphs = CudaStepGraphs((256, 512, 1024))
    x = torch.zeros(1024, 4096, device="cuda")
    reserved = []
    with torch.inference_mode(), backend.stream():
        for size in (1024, 512, 256):
            graphs.capture(size, lambda size=size: (x[:size] * 2 + 1, (x[:size].sum(1) > 0).contiguous()))
            reserved.append(torch.cuda.memory_reserved())
        for size in (256, 1024, 512):
            x.fill_(size)
            double, positive = graphs.replay(size)
            assert double.shape == (size, 4096)
            assert double.eq(2 * size + 1).all()
            assert positive.dtype is torch.bool
            assert positive.all()
    # The first and largest takes what it needs twice, launched and recorded; the others find it there.
    assert reserved[-1] - reserved[0] < x.nbytes // 2


def test_pieces_run_what_is_between_them(make: Callable[..., NvidiaBackend]) -> None:
    from plugin_nvidia.graphs import CudaStepGraphs

    backend = make()
    graphs = CudaStepGraphs((), (8,))
    x, calls = torch.ones(8, 6, device="cuda"), []

    def between_calls(result: torch.Tensor, given: torch.Tensor) -> None:
        calls.append(tuple(given.stride()))
        result.copy_(given * 10)

    def run(between: Between) -> torch.Tensor:
        for _ in range(3):
            y = (x + 1)[:, 1:5]  # strided
            result = torch.empty(8, 4, device="cuda")
            between(between_calls, result, y)
            x[:, :4] = result
        return x.sum(1)

    with torch.inference_mode(), backend.stream():
        graphs.capture_pieces(8, run)
        assert calls == [], "recording calls nothing"
        x.fill_(1)
        expected = torch.ones(8, 6, dtype=torch.float64)
        for _ in range(3):
            expected[:, :4] = (expected + 1)[:, 1:5] * 10
        assert torch.equal(graphs.replay_pieces(8).double().cpu(), expected.sum(1))
    assert calls == [(6, 1)] * 3


def test_an_error_while_recording_leaves_the_device_usable(make: Callable[..., NvidiaBackend]) -> None:
    from plugin_nvidia.graphs import CudaStepGraphs

    backend = make()
    x, count = torch.ones(4, device="cuda"), []

    def run() -> tuple[torch.Tensor, ...]:
        count.append(1)
        if len(count) == 2:
            raise RuntimeError("not while it is recorded")
        return (x + 1,)

    with torch.inference_mode(), backend.stream():
        graphs = CudaStepGraphs((4,))
        with pytest.raises(RuntimeError, match="not while it is recorded"):
            graphs.capture(4, run)
        graphs.capture(4, run)
        assert graphs.replay(4)[0].eq(2).all()


def test_a_capture_that_the_driver_breaks_off_leaves_the_device_usable(make: Callable[..., NvidiaBackend]) -> None:
    from plugin_nvidia.graphs import CudaStepGraphs

    backend = make()
    x, looks = torch.ones(4, device="cuda"), [True]

    def run(between: Between) -> torch.Tensor:
        y = x + 1
        if looks[0]:
            y.sum().item()  # waits for the device
        return y * 2

    with torch.inference_mode(), backend.stream():
        graphs = CudaStepGraphs((), (4, 8))
        looks[0] = False
        graphs.capture_pieces(8, run)
        looks[0] = True
        with pytest.raises(RuntimeError):
            graphs.capture_pieces(4, run)
        looks[0] = False
        graphs.capture_pieces(4, run)
        x.fill_(2)
        assert graphs.replay_pieces(8).eq(6).all()
        assert graphs.replay_pieces(4).eq(6).all()


@pytest.mark.parametrize("graphs", ["start", "demand", "off"])
@pytest.mark.parametrize("tokens", [0, 24])
def test_every_way_gives_the_same_tokens(make: Callable[..., NvidiaBackend], graphs: str, tokens: int) -> None:
    backend = make(graphs=graphs, max_graph_tokens=tokens)
    runner = build_mock_runner(MODEL, hardware=backend, max_running=6, attention=CapturableAttention)
    runner.warm_up()
    for count in (1, 3, 6):
        prompts = [[7 * i + 1, 3, i] * (i + 1) for i in range(count)]
        assert decode_all(runner, prompts, 9) == [reference_greedy(MODEL, prompt, 9) for prompt in prompts]
    assert (runner.stats.replayed_steps == 24) is (graphs != "off")
    assert bool(runner.stats.pieced_steps) is (graphs != "off" and tokens > 0)


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0.0),
        SamplingParams(temperature=0.8),
        SamplingParams(temperature=0.8, top_k=5, top_p=0.9, min_p=0.01, logprobs=3),
        SamplingParams(temperature=0.7, presence_penalty=0.2, repetition_penalty=1.2, min_tokens=2),
        SamplingParams(temperature=0.0, logit_bias={3: 1.0}, prompt_logprobs=1, hidden_states="last"),
    ],
)
def test_no_step_waits_for_the_device(make: Callable[..., NvidiaBackend], params: SamplingParams) -> None:
    from dataclasses import replace

    runner = build_mock_runner(MODEL, hardware=make(), max_running=6, attention=CapturableAttention)
    runner.warm_up()
    for _ in range(2):  # the first time some things are made
        plans = decode_plans(runner, [[1, 2, 3], [4]], 6)
        plans[0].admissions[:] = [replace(admission, sampling=params) for admission in plans[0].admissions]
        handles = [runner.launch(plans[0])]
        handles[0].wait()  # this attention reads host page tables in prefills
        torch.cuda.set_sync_debug_mode("error")
        handles += [runner.launch(plan) for plan in plans[1:]]
        torch.cuda.set_sync_debug_mode("default")
        assert [handle.wait().error for handle in handles] == [None] * 6


def test_the_largest_step_fits_beside_the_cache(make: Callable[..., NvidiaBackend]) -> None:
    backend = make()
    backend.measure_step(lambda: torch.empty(64 << 20, dtype=torch.uint8, device="cuda").zero_())
    assert 64 << 20 <= backend._step_bytes < 128 << 20
    runner = build_mock_runner(MODEL, hardware=backend, max_running=6, attention=TorchNativeAttention)
    runner.measure()  # so small that it may find room in what torch holds already
    budget = backend.kv_budget_bytes(1.0, None)
    assert budget <= backend.memory().free_bytes - backend._step_bytes


def test_steps_can_be_timed(make: Callable[..., NvidiaBackend]) -> None:
    runner = build_mock_runner(MODEL, hardware=make(time_steps=True), attention=CapturableAttention)
    runner.warm_up()
    decode_all(runner, [[1, 2, 3]], 4)
    assert 0 < runner.stats.gpu_s < 1
