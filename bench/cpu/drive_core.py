"""Driver for core's offline `LLM`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def main() -> None:
    from bench.cpu.workloads import arguments, measure

    args = arguments()
    from core import LLM, SamplingParams, __version__

    llm = LLM(
        model=args.folder, load_format="dummy", dtype=args.dtype, context_length=4096, kv_cache_bytes=2 << 30,
        cpu_threads=args.threads or None, skip_tokenizer=True,
    )  # fmt: skip

    def run(prompts: list[list[int]], output_len: int) -> int:
        params = SamplingParams(temperature=0.0, max_tokens=output_len, ignore_eos=True)
        return sum(len(output.token_ids) for output in llm.generate(prompts, params))

    import torch

    measure(args, run, {"core": __version__, "torch": torch.__version__})


if __name__ == "__main__":
    main()
