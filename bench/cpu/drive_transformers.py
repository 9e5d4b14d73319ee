"""Driver for transformers' `generate`: one padded batch at a time, no prefix cache."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def main() -> None:
    from bench.cpu.workloads import arguments, measure

    args = arguments()
    import torch
    import transformers
    from transformers import AutoConfig, AutoModelForCausalLM

    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(args.folder)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, args.dtype)).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0

    @torch.inference_mode()
    def run(prompts: list[list[int]], output_len: int) -> int:
        ids = torch.tensor(prompts)
        mask = torch.ones_like(ids)
        out = model.generate(
            ids, attention_mask=mask, do_sample=False, min_new_tokens=output_len, max_new_tokens=output_len
        )
        return (out.shape[1] - ids.shape[1]) * out.shape[0]

    measure(args, run, {"transformers": transformers.__version__, "torch": torch.__version__})


if __name__ == "__main__":
    main()
