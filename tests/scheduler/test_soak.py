"""Long seeded runs; what the state machine is for must really happen in them."""

import random
from collections import Counter

import numpy as np
from scheduler_fakes import Bench

from core.interfaces.errors import RequestError


def soak(seed: int) -> Counter[str]:
    rng = random.Random(seed)
    bench = Bench(
        cache=rng.choice(["radix", "radix", "none"]),
        eviction=rng.choice(["lru", "lfu", "fifo", "priority"]),
        policy=rng.choice(["fcfs", "lpm", "dfs-weight", "lof", "random"]),
        num_pages=rng.randint(6, 24),
        page_size=rng.randint(1, 8),
        num_groups=rng.randint(1, 2),
        chunk_tokens=rng.choice([1, 3, 8, 64]),
        max_running=rng.randint(1, 6),
        context_length=rng.choice([16, 40, 80]),
        shuffle=seed,
    )
    depth = rng.randint(0, 2)
    seen: Counter[str] = Counter()
    for _ in range(150):
        if rng.random() < 0.3:
            start = rng.randint(0, 2)
            prompt = [(start + i) % 6 + 1 for i in range(rng.randint(0, 20))]
            if bench.finish and rng.random() < 0.4:
                former = rng.choice(sorted(bench.finish))
                prompt = bench.prompts[former] + bench.output[former]
            try:
                bench.add(
                    prompt + [rng.randint(1, 6) for _ in range(rng.randint(0, 4))],
                    namespace=rng.choice([b"", b"a"]),
                    priority=rng.choice([0, 0, 1]),
                    max_tokens=rng.choice([None, 1, 5, 20]),
                    ignore_eos=rng.random() < 0.5,
                )
            except RequestError:
                seen["refused"] += 1
        if bench.requests and rng.random() < 0.03:
            bench.scheduler.cancel(rng.choice(sorted(bench.requests)))
        failed = {rng.choice(sorted(bench.requests))} if bench.requests and rng.random() < 0.02 else set()
        bench.step(depth, failed)
        bench.memory.check_all()
    bench.drain(depth)
    for request_id in bench.finish:
        bench.check_output(request_id)
    seen.update({name: int(value) for name, value in bench.scheduler.stats().items() if name.endswith("_total")})
    seen.update(finish.name for finish in bench.finish.values())
    seen["waited for a leader"] += sum(r.leader_id is not None for r in bench.requests.values())
    if depth:
        sampled = sum(int(np.count_nonzero(plan.samples)) for plan in bench.plans)
        seen["late tokens dropped"] += sampled - sum(len(output) for output in bench.output.values())
    return seen


def test_soak_is_right_and_reaches_the_corners() -> None:
    seen: Counter[str] = Counter()
    for seed in range(16):
        seen += soak(seed)
    for name in (
        "refused",
        "preemptions_total",
        "hit_tokens_total",
        "aborted_total",
        "STOP",
        "LENGTH",
        "ABORT",
        "ERROR",
        "waited for a leader",
        "late tokens dropped",
    ):
        assert seen[name] > 0, name
