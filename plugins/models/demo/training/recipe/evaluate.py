"""Scores a checkpoint on held-out items of every skill, greedily, and prints a table.

    python -m recipe.evaluate --model FOLDER [--json FILE] [--share 0.2] [--skill NAME ...]
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from recipe.chat import Chat, render
from recipe.tasks import SKILLS, items, right


def prompt(chat: Chat) -> str:
    """Everything before the last answer."""
    pieces = [text for text, _ in render(chat)]
    return "".join(pieces[:-2])


def answers(model: Any, tokenizer: Any, prompts: list[str], max_new_tokens: int, batch: int) -> list[str]:
    """Greedy continuations, markers included, up to the end of the turn."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    out = [""] * len(prompts)
    for start in range(0, len(order), batch):
        part = order[start : start + batch]
        inputs = tokenizer([prompts[i] for i in part], return_tensors="pt", padding=True, padding_side="left")
        inputs = {name: inputs[name].to(model.device) for name in ("input_ids", "attention_mask")}
        with torch.inference_mode():
            result = model.generate(
                **inputs, max_new_tokens=max_new_tokens, do_sample=False, temperature=None, top_p=None
            )
        for i, row in zip(part, result[:, inputs["input_ids"].shape[1] :], strict=True):
            text = tokenizer.decode(row, skip_special_tokens=False)
            out[i] = text.split("<|im_end|>")[0].split("<|endoftext|>")[0]
    return out


def evaluate(folder: Path, share: float, skills: list[str], batch: int, num_shown: int) -> dict[str, Any]:
    """Scores a skill: right, items, shortest and longest prompt in tokens."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device)
    scores: dict[str, Any] = {}
    for skill in skills or SKILLS:
        started = time.monotonic()
        chats = items(skill)
        chats = chats[: max(1, round(len(chats) * share))]
        prompts = [prompt(chat) for chat in chats]
        lengths = [len(ids) for ids in tokenizer(prompts)["input_ids"]]
        limit = min(SKILLS[skill][2], model.config.max_position_embeddings - max(lengths))
        texts = answers(model, tokenizer, prompts, limit, batch)
        verdicts = [right(chat, text) for chat, text in zip(chats, texts, strict=True)]
        scores[skill] = {
            "right": sum(verdicts),
            "items": len(chats),
            "percent": round(100 * sum(verdicts) / len(chats), 1),
            "prompt_tokens": [min(lengths), max(lengths)],
        }
        row = scores[skill]
        print(f"| {skill:36} | {row['percent']:5.1f} % | {row['right']:3}/{row['items']:<3} "
              f"| {min(lengths)}–{max(lengths)} |  {time.monotonic() - started:.0f} s", flush=True)  # fmt: skip
        wrong = [(p, t, c) for p, t, c, v in zip(prompts, texts, chats, verdicts, strict=True) if not v]
        for question, text, chat in wrong[:num_shown]:
            print(f"    … {question[-150:]!r}\n    -> {text[:200]!r}\n    wanted {chat.check!r:.200}")
    return scores


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--share", type=float, default=1.0, help="share of the items")
    parser.add_argument("--skill", action="append", default=[])
    parser.add_argument("--batch", type=int, default=25)
    parser.add_argument("--show", type=int, default=0, help="wrong answers shown a skill")
    args = parser.parse_args()
    print("| skill (held-out items, greedy) | right | items | prompt tokens |\n|---|---|---|---|")
    scores = evaluate(args.model, args.share, args.skill, args.batch, args.show)
    if args.json:
        about = {
            "date": datetime.date.today().isoformat(),
            "machine": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine() + " CPU",
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "share": args.share,
        }
        args.json.write_text(json.dumps({"about": about, "scores": scores}, indent=1) + "\n")


if __name__ == "__main__":
    main()
