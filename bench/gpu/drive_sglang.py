"""Driver for SGLang, in an environment that has it."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def main() -> None:
    from bench.gpu.drivers import arguments, measure

    args = arguments()
    import sglang
    import torch

    engine = sglang.Engine(
        model_path=args.folder, load_format="dummy", skip_tokenizer_init=True, random_seed=0, log_level="warning",
        quantization=args.quantization or None,
    )  # fmt: skip

    def generate(prompts: list[list[int]], output_len: int, temperature: float) -> int:
        params = {"temperature": temperature, "max_new_tokens": output_len, "ignore_eos": True}
        outputs = engine.generate(input_ids=prompts, sampling_params=params)
        return sum(output["meta_info"]["completion_tokens"] for output in outputs)

    measure(args, generate, {"sglang": sglang.__version__, "torch": torch.__version__})
    engine.shutdown()


if __name__ == "__main__":
    main()
