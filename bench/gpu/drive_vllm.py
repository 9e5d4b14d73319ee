"""Driver for vLLM, in an environment that has it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def main() -> None:
    from bench.gpu.drivers import arguments, measure

    args = arguments()
    import torch
    import vllm
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=args.folder, load_format="dummy", skip_tokenizer_init=True, seed=0,
        quantization=args.quantization or None,
    )  # fmt: skip

    def generate(prompts: list[list[int]], output_len: int, temperature: float) -> int:
        params = SamplingParams(temperature=temperature, max_tokens=output_len, ignore_eos=True, detokenize=False)
        outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
        return sum(len(output.outputs[0].token_ids) for output in outputs)

    measure(args, generate, {"vllm": vllm.__version__, "torch": torch.__version__})


if __name__ == "__main__":
    main()
