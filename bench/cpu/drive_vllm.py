"""Driver for vLLM's CPU build, in its own environment."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def main() -> None:
    from bench.cpu.workloads import arguments, measure

    args = arguments()
    import torch
    import vllm
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=args.folder, load_format="dummy", skip_tokenizer_init=True, dtype=args.dtype, max_model_len=4096, seed=0
    )

    def run(prompts: list[list[int]], output_len: int) -> int:
        params = SamplingParams(temperature=0.0, max_tokens=output_len, ignore_eos=True, detokenize=False)
        outputs = llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
        return sum(len(output.outputs[0].token_ids) for output in outputs)

    measure(args, run, {"vllm": vllm.__version__, "torch": torch.__version__})


if __name__ == "__main__":
    main()
