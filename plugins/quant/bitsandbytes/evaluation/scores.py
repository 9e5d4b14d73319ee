"""The bundled demo model in each format: bytes of its weights, scores on held-out items, tokens a second.

python evaluation/scores.py [--share 0.2] [--threads 2] [--format "nf4 nested"] ...   from a checkout of core

Items and judge are those of the demo model's own recipe (plugins/models/demo/training/recipe).
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

TRAINING = Path(__file__).resolve().parents[3] / "models" / "demo" / "training"
FORMATS: dict[str, dict[str, Any] | None] = {
    "bf16": None,
    "nf4": {"format": "nf4"},
    "nf4 nested": {"format": "nf4", "nested": True},
    "nf4 nested, not fused": {"format": "nf4", "nested": True, "fused": False},
    "fp4": {"format": "fp4"},
    "int8": {"format": "int8"},
}


def weight_bytes(model: Any) -> int:
    """Bytes of all parameters, each storage once."""
    seen = {parameter.data_ptr(): parameter.nbytes for parameter in model.parameters()}
    return sum(seen.values())


def measure(options: dict[str, Any] | None, share: float, threads: int) -> dict[str, Any]:
    from recipe.evaluate import prompt
    from recipe.tasks import SKILLS, items, right

    from core.llm import LLM
    from plugin_demo import checkpoint

    chosen = {} if options is None else {"quantization": "bitsandbytes", "plugins": {"bitsandbytes": options}}
    row: dict[str, Any] = {"right": 0, "items": 0}
    with LLM(dtype="bfloat16", cpu_threads=threads, max_running_requests=16, **chosen) as llm:
        # The device lays unquantized weights out anew, out of sight: those are counted in the file.
        loaded = weight_bytes(llm._engine.engine._executor._runner.model)
        row["bytes"] = loaded if chosen else (checkpoint() / "model.safetensors").stat().st_size
        for skill, (_, _, limit) in SKILLS.items():
            chats = items(skill)
            chats = chats[: max(1, round(len(chats) * share))]
            texts = [prompt(chat) for chat in chats]
            longest = max(len(llm.tokenizer.encode(text)) for text in texts)
            sampling = {"temperature": 0, "max_new_tokens": min(limit, 4096 - longest), "skip_special_tokens": False}
            answers = [output.text.split("<|im_end|>")[0] for output in llm.generate(texts, sampling)]
            verdicts = [right(chat, answer) for chat, answer in zip(chats, answers, strict=True)]
            row[skill] = 100 * sum(verdicts) / len(verdicts)
            row["right"] += sum(verdicts)
            row["items"] += len(verdicts)
        for width in (1, 8):
            sampling = {"temperature": 0, "max_new_tokens": 192, "ignore_eos": True}
            started = time.perf_counter()
            llm.generate(["Tell me about the sea."] * width, sampling)
            row[f"tokens/s x {width}"] = round(192 * width / (time.perf_counter() - started))
    return row


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--format", action="append", choices=[*FORMATS])
    args = parser.parse_args()
    sys.path.insert(0, str(TRAINING))
    for name in args.format or FORMATS:
        row = measure(FORMATS[name], args.share, args.threads)
        score = f"{100 * row['right'] / row['items']:.1f} % ({row['right']}/{row['items']})"
        speed = ", ".join(f"{key} {value}" for key, value in row.items() if key.startswith("tokens/s"))
        print(f"| {name} | {row['bytes'] / 2**20:.2f} MiB | {score} | {speed} |")
        skills = {key: value for key, value in row.items() if isinstance(value, float)}
        print("   ", "; ".join(f"{skill} {value:.0f}" for skill, value in skills.items()), flush=True)


if __name__ == "__main__":
    main()
