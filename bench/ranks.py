"""Tensor parallel on a machine with several devices: `python -m bench.ranks [--ranks 1 2 4]`.

1. Parity: a bundled model and a random mixture of experts give the same greedy tokens and log-probabilities over 1, 2,
   ... ranks, in float32 and bfloat16, with decodes replayed where the device records steps.
2. Speed of a dense model of 8 billion parameters with random weights: W1 (one stream) and W5 (64 streams), and how long
   a plan's broadcast takes the host.
3. A rank is killed under load: how soon the requests end, and with which error.

Each part runs in a process of its own with a time limit, and prints one line of JSON per result; a table comes last.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np

LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256,
    "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "hidden_act": "silu",
    "tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False, "torch_dtype": "bfloat16",
    "bos_token_id": 128000, "eos_token_id": 128001,
}  # fmt: skip
MOE = {
    "num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 128, "head_dim": 64, "hidden_size": 256,
    "intermediate_size": 512, "num_attention_heads": 8, "num_key_value_heads": 4, "num_hidden_layers": 4,
    "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [], "max_position_embeddings": 2048,
}  # fmt: skip
DTYPES = {"demo": ("float32", "bfloat16"), "moe": ("float32",)}
SMALL = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "head_dim": 8,
    "vocab_size": 2048,
}  # to try this on a CPU


def make(model: str | None, ranks: int, dtype: str, **settings: Any) -> Any:
    """An engine. Its weights are random where the model is a folder without any."""
    from core.config.loading import load_settings
    from core.engine.build import build_engine
    from core.engine.offline import OfflineEngine
    from core.registry import Catalog
    from core.registry.resolve import resolve

    given = {"tensor_parallel_size": ranks, "dtype": dtype, "random_seed": 0, **settings}
    if model is not None:
        given["model"] = model
    loaded = load_settings(given, os.environ, origin="argument").settings
    resolution = resolve(loaded, Catalog.scan())
    start_s = time.perf_counter()
    engine = build_engine(loaded, resolution)
    tell(
        part="start", ranks=ranks, dtype=dtype, seconds=round(time.perf_counter() - start_s, 2),
        phases={name: round(seconds, 2) for name, seconds in engine.hello.phases.items()},
        attention=resolution.effective["attention_backend"], device=resolution.effective["device"],
        model=resolution.effective["architecture"],
    )  # fmt: skip
    return OfflineEngine(engine, random_seed=0)


def requests(count: int, prompt: int, output: int, vocab: int, *, greedy: bool = True, seed: int = 0) -> list[Any]:
    from core.engine.client import EngineRequest
    from core.interfaces.params import SamplingParams

    rng = np.random.default_rng(seed)
    return [
        EngineRequest(
            rng.integers(10, vocab - 10, size=prompt + (17 * index) % 64, dtype=np.int32),
            SamplingParams(max_tokens=output, temperature=0.0 if greedy else 1.0, ignore_eos=True, logprobs=1),
            seed=index,
        )
        for index in range(count)
    ]


def parity(ranks: int, folder: str) -> None:
    """Tokens and log-probabilities, written to `folder`; two engines one after another in this process."""
    for name, model in (("demo", None), ("moe", str(Path(folder) / "moe"))):
        for dtype in DTYPES[name]:
            try:
                engine = make(model, ranks, dtype, max_running_requests=16, context_length=1024, max_total_tokens=32768)
                vocab = engine.engine.hello.vocab_size
                some = requests(12, 40, 32, vocab) + requests(4, 300, 32, vocab, greedy=False, seed=1)
                done = engine.generate(some)
                out = [
                    {"tokens": chunk.tokens, "logprobs": [top.logprob for top in chunk.logprobs], "error": chunk.error}
                    for chunk in done
                ]
                Path(folder, f"{name}-{dtype}-{ranks}.json").write_text(json.dumps(out))
                engine.engine.close()
            except Exception as error:
                traceback.print_exc()
                tell(
                    part="parity", ranks=ranks, model=name, dtype=dtype, error=f"{type(error).__name__}: {error}"[:300]
                )


def speed(ranks: int, folder: str) -> None:
    """W1 and W5 of the 8B shape; then, with several ranks, one is killed."""
    engine = make(
        str(Path(folder) / "llama"), ranks, "bfloat16", load_format="dummy", context_length=2048,
        max_running_requests=64, memory_fraction=0.5, grammar_backend="none",
    )  # fmt: skip
    vocab = engine.engine.hello.vocab_size
    for name, count, prompt, output in (("W1", 1, 128, 256), ("W5", 64, 128, 512)):
        engine.generate(requests(count, prompt, 32, vocab, seed=3))
        times = broadcast_times(engine)
        first: list[float] = []
        begin = time.perf_counter()

        def took(index: int, chunk: Any, first: list[float] = first, begin: float = begin) -> bool:
            if not first:
                first.append(time.perf_counter() - begin)
            return False

        wanted = [_plain(one) for one in requests(count, prompt, output, vocab, seed=4)]
        done = engine.generate(wanted, took)
        wall_s = time.perf_counter() - begin
        num = sum(len(chunk.tokens) for chunk in done)
        tell(
            part="speed", ranks=ranks, name=name, tokens=num, wall_s=round(wall_s, 3), tok_s=round(num / wall_s),
            ttft_ms=round(first[0] * 1e3, 2), tpot_ms=round((wall_s - first[0]) / (output - 1) * 1e3, 3),
            broadcast_us=round(float(np.median(times)) * 1e6, 1) if times else None,
            errors=[chunk.error for chunk in done if chunk.error][:1],
        )  # fmt: skip
    if ranks > 1:
        kill(engine, ranks)
    else:
        engine.engine.close()


def _plain(request: Any) -> Any:
    from dataclasses import replace

    import msgspec

    return replace(request, sampling=msgspec.structs.replace(request.sampling, logprobs=None))


def broadcast_times(engine: Any) -> list[float]:
    """Fills up with the seconds that sending each plan takes; empty with one rank."""
    times: list[float] = []
    ranks = getattr(engine.engine._executor, "_ranks", None)
    if ranks is None:
        return times
    launch = type(ranks).launch

    def timed(plan: Any) -> None:
        begin = time.perf_counter()
        launch(ranks, plan)
        times.append(time.perf_counter() - begin)

    ranks.launch = timed
    return times


def kill(engine: Any, ranks: int) -> None:
    """SIGKILL for the last rank under load."""
    vocab = engine.engine.hello.vocab_size
    victim = engine.engine._executor._ranks._members[-1].process.pid
    killed: list[float] = []

    def shoot() -> None:
        time.sleep(1.0)
        killed.append(time.perf_counter())
        os.kill(victim, signal.SIGKILL)

    threading.Thread(target=shoot, daemon=True).start()
    try:
        engine.generate([_plain(one) for one in requests(32, 128, 1800, vocab, seed=5)])
        tell(part="kill", ranks=ranks, error="none: the requests finished before")
    except Exception as error:
        tell(
            part="kill", ranks=ranks, noticed_s=round(time.perf_counter() - killed[0], 2),
            error=f"{type(error).__name__}: {error}",
        )  # fmt: skip
    begin = time.perf_counter()
    engine.engine.close()
    tell(part="close after a kill", ranks=ranks, seconds=round(time.perf_counter() - begin, 2))


def tell(**values: Any) -> None:
    print("@" + json.dumps(values), flush=True)


def compare(folder: Path, ranks: list[int]) -> None:
    """Against one rank: share of equal tokens, and the largest difference of log-probabilities while texts agree."""
    print(f"{'model':8} {'dtype':9} {'ranks':>5} {'equal texts':>12} {'equal tokens':>13} {'max |dlogprob|':>15}")
    for name in ("demo", "moe"):
        for dtype in DTYPES[name]:
            files = {n: folder / f"{name}-{dtype}-{n}.json" for n in ranks}
            if not files[ranks[0]].exists():
                print(f"{name:8} {dtype:9} {ranks[0]:5} failed")
                continue
            want = json.loads(files[ranks[0]].read_text())
            for n in ranks[1:]:
                if not files[n].exists():
                    print(f"{name:8} {dtype:9} {n:5} failed")
                    continue
                same = tokens = total = 0
                worst = 0.0
                for a, b in zip(want, json.loads(files[n].read_text()), strict=True):
                    agree = 0
                    while agree < min(len(a["tokens"]), len(b["tokens"])) and a["tokens"][agree] == b["tokens"][agree]:
                        worst = max(worst, abs(a["logprobs"][agree] - b["logprobs"][agree]))
                        agree += 1
                    same += a["tokens"] == b["tokens"]
                    tokens += agree
                    total += len(a["tokens"])
                print(f"{name:8} {dtype:9} {n:5} {same:5} of {len(want):3} {tokens:6} of {total:4} {worst:15.2e}")


def main() -> None:
    """All of it, or one part for one number of ranks in this process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4], help="numbers of ranks; 1 comes first")
    parser.add_argument("--part", choices=["parity", "speed"])
    parser.add_argument("--folder")
    parser.add_argument("--small", action="store_true", help="a small model for the speeds")
    parser.add_argument("--limit", type=float, default=75.0, help="seconds that one part may take")
    given = parser.parse_args()
    if given.part:
        {"parity": parity, "speed": speed}[given.part](given.ranks[0], given.folder)
        return
    folder = Path(given.folder or tempfile.mkdtemp(prefix="core-bench-ranks-"))
    try:
        from core.testing.checkpoint import write_tiny_checkpoint

        write_tiny_checkpoint(folder / "moe", "qwen3_moe", **MOE)
    except Exception:
        traceback.print_exc()
    (folder / "llama").mkdir(exist_ok=True)
    (folder / "llama" / "config.json").write_text(json.dumps(LLAMA_8B | (SMALL if given.small else {})))
    jobs = [("parity", n) for n in given.ranks] + [("speed", n) for n in given.ranks if n > 1]
    for group in together(jobs, num_devices()):
        for part, n, process in [(part, n, start(part, n, folder, at)) for part, n, at in group]:
            finish(part, n, folder, process, given.limit)
    compare(folder, given.ranks)


def num_devices() -> int:
    """That this process sees; 0 without a GPU."""
    try:
        import torch
    except ImportError:
        return 0
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def together(jobs: list[tuple[str, int]], devices: int) -> list[list[tuple[str, int, int]]]:
    """Jobs that run side by side, each (part, ranks, first device): what fits onto the devices. One rank alone takes
    little and shares its device."""
    groups: list[list[tuple[str, int, int]]] = []
    for part, n in sorted(jobs, key=lambda job: job[1]):
        need = 0 if n == 1 else n
        for group in groups:
            used = sum(0 if m == 1 else m for _, m, _ in group)
            if used + need <= devices:
                group.append((part, n, used if need else 0))
                break
        else:
            groups.append([(part, n, 0)])
    return groups


def log_of(part: str, ranks: int, folder: Path) -> Path:
    """What a part writes."""
    return folder / f"{part}-{ranks}.log"


def start(part: str, ranks: int, folder: Path, first: int) -> subprocess.Popen[bytes]:
    """One part in a process of its own, which sees its devices alone."""
    environment = dict(os.environ)
    if num_devices() >= first + ranks:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(str(first + index) for index in range(ranks))
    return subprocess.Popen(
        [sys.executable, "-m", "bench.ranks", "--part", part, "--ranks", str(ranks), "--folder", str(folder)],
        env=environment, stdout=log_of(part, ranks, folder).open("w"), stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


def finish(part: str, ranks: int, folder: Path, process: subprocess.Popen[bytes], limit_s: float) -> None:
    """Wait for a part, end it after `limit_s`, and show what it told."""
    try:
        process.wait(limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        print(f"{part}, {ranks} ranks: stopped after {limit_s} s")
    lines = log_of(part, ranks, folder).read_text(errors="replace").splitlines()
    for line in lines:
        if line.startswith("@"):
            print(line[1:])
    if process.returncode or not any(line.startswith("@") for line in lines):
        print(f"{part}, {ranks} ranks: exit code {process.returncode}; the end of its output:")
        print("\n".join(line for line in lines if not line.startswith("@"))[-3000:])


if __name__ == "__main__":
    main()
