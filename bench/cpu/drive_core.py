"""Driver for core's engine in process, without a tokenizer, like the peers."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def main() -> None:
    from bench.cpu.workloads import arguments, measure

    args = arguments()
    import os

    from core.engine.spinning import spin_briefly

    spin_briefly(os.environ)  # as `core` and `LLM` do
    import numpy as np

    from core import SamplingParams, __version__
    from core.config.loading import load_settings
    from core.engine.build import build_engine
    from core.engine.client import EngineRequest
    from core.engine.offline import OfflineEngine
    from core.registry import Catalog
    from core.registry.resolve import resolve

    given = {
        "model": args.folder, "load_format": "dummy", "dtype": args.dtype, "context_length": 4096,
        "kv_cache_bytes": 2 << 30, "log_interval_s": 0.0,
    }  # fmt: skip
    if args.threads:
        given["cpu_threads"] = args.threads
    settings = load_settings(given, {}, origin="argument").settings
    engine = OfflineEngine(build_engine(settings, resolve(settings, Catalog.scan())), random_seed=0)

    def run(prompts: list[list[int]], output_len: int) -> int:
        params = SamplingParams(temperature=0.0, max_tokens=output_len, ignore_eos=True)
        requests = [EngineRequest(np.array(prompt, np.int32), params) for prompt in prompts]
        return sum(len(chunk.tokens) for chunk in engine.generate(requests))

    import torch

    measure(args, run, {"core": __version__, "torch": torch.__version__})


if __name__ == "__main__":
    main()
