"""Trains the model on the packed stream and exports it.

    python -m recipe.train --tokenizer FOLDER --out FOLDER --minutes 7.5      # one H200
    python -m recipe.train --tokenizer FOLDER --out FOLDER --small            # any CPU; a much smaller model

The schedule follows the elapsed time with --minutes and the step number with --steps; only the latter repeats exactly.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recipe.data import Rows
from recipe.model import SMALL, ChatModel, Shape, block_mask, dense_mask, export


class Muon:
    """Momentum with orthogonalised updates (Newton-Schulz) for the matrices, batched over equal shapes.

    The update's root mean square is 0.2 x lr, as that of AdamW about is, so both share a learning-rate scale.
    """

    def __init__(self, parameters: list[Tensor], momentum: float = 0.95, weight_decay: float = 0.05) -> None:
        shapes: dict[torch.Size, list[Tensor]] = {}
        for parameter in parameters:
            shapes.setdefault(parameter.shape, []).append(parameter)
        device = parameters[0].device
        self.groups = [(group, torch.zeros(len(group), *shape, device=device)) for shape, group in shapes.items()]
        self.momentum, self.weight_decay = momentum, weight_decay

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """One update from the .grad of the parameters."""
        for group, buffer in self.groups:
            grads = torch.stack([p.grad for p in group if p.grad is not None])
            buffer.lerp_(grads, 1 - self.momentum)
            update = _orthogonal(torch.lerp(grads, buffer, self.momentum))
            scale = 0.2 * max(group[0].shape) ** 0.5
            torch._foreach_mul_(group, 1 - lr * self.weight_decay)
            torch._foreach_add_(group, list(update.unbind()), alpha=-lr * scale)


def _orthogonal(matrices: Tensor) -> Tensor:
    """[N, r, c] -> nearly orthogonal matrices of the same singular vectors (quintic iteration)."""
    dtype = torch.bfloat16 if matrices.is_cuda else torch.float32
    x = matrices.to(dtype)
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return (x.mT if tall else x).float()


def learning_rate(fraction: float, step: int, warmup: int) -> float:
    """Factor: linear warm-up, flat, then linear decay to zero over the last 60 %."""
    return min(1.0, (step + 1) / warmup) * min(1.0, (1.0 - min(fraction, 1.0)) / 0.6)


def train(args: argparse.Namespace) -> dict[str, Any]:
    """Runs the training and returns its figures."""
    rows = Rows(args.rows, args.length, args.workers, args.seed, args.tokenizer / "tokenizer.json")
    rows.start()
    torch.manual_seed(args.seed)
    device = torch.device("cuda" if torch.cuda.is_available() and not args.small else "cpu")
    cuda = device.type == "cuda"
    torch.set_float32_matmul_precision("high")
    model = ChatModel(SMALL if args.small else Shape()).to(device)
    named = list(model.named_parameters())
    matrices = [p for n, p in named if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in named if p.ndim == 1 or "embed" in n]
    muon = Muon(matrices)
    adam = torch.optim.AdamW(others, lr=args.adam_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=cuda)
    loss_of = torch.compile(model.loss) if cuda else model.loss
    make_mask = torch.compile(block_mask) if cuda else dense_mask

    def batch(step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        start = step * args.batch % (rows.num_rows - args.batch + 1)
        for row in range(start, start + args.batch):
            rows.wait(row)
        part = slice(start, start + args.batch)
        tokens, weights, chats = (torch.from_numpy(a[part]) for a in (rows.tokens, rows.weights, rows.chats))
        if cuda:
            tokens, weights, chats = (t.pin_memory().to(device, non_blocking=True) for t in (tokens, weights, chats))
        tokens = tokens.long()
        return tokens[:, :-1], tokens[:, 1:], weights[:, 1:].float(), chats[:, :-1].int()

    losses: list[float] = []
    started = first = time.monotonic()
    seen, saved, step = 0, 0.0, 0
    running: list[Tensor] = []
    try:
        while True:
            elapsed = time.monotonic() - started
            fraction = step / args.steps if args.steps else elapsed / (args.minutes * 60)
            if fraction >= 1:
                break
            factor = learning_rate(fraction, step, args.warmup)
            tokens, targets, weights, chats = batch(step)
            with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
                loss = loss_of(tokens, targets, weights, make_mask(chats))
            loss.backward()
            torch.nn.utils.clip_grad_norm_([p for _, p in named], 1.0)
            for group in adam.param_groups:
                group["lr"] = args.adam_lr * factor
            adam.step()
            muon.step(args.lr * factor)
            model.zero_grad(set_to_none=True)
            running.append(loss.detach())
            step += 1
            if step == 1:
                print(f"first step after {time.monotonic() - started:.1f} s", flush=True)
                if cuda:
                    torch.cuda.synchronize()
                first = time.monotonic()
            else:
                seen += tokens.numel()
            if step % args.log_every == 0:
                losses.append(float(torch.stack(running).mean()))
                running.clear()
                rate = seen / max(1e-9, time.monotonic() - first)
                print(f"step {step} {100 * fraction:.0f} % loss {losses[-1]:.4f} {rate / 1e3:.0f} ktok/s "
                      f"rows {rows.num_filled()} used {step * args.batch}", flush=True)  # fmt: skip
                if not math.isfinite(losses[-1]):
                    raise RuntimeError("the loss is not finite")
                if elapsed - saved > 120:
                    saved = elapsed
                    export(model, args.out)
    finally:
        rows.stop()
    export(model, args.out)
    return {
        "steps": step,
        "tokens": step * args.batch * args.length,
        "seconds": round(time.monotonic() - started, 1),
        "tokens_per_s": round(seen / max(1e-9, time.monotonic() - first)),
        "losses": [round(loss, 4) for loss in losses],
        "parameters": sum(p.numel() for _, p in named),
        "seed": args.seed,
        "workers": args.workers,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
    }


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; --small sets sizes for a CPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--small", action="store_true", help="a small model on the CPU")
    parser.add_argument("--minutes", type=float, default=7.5)
    parser.add_argument("--steps", type=int, default=0, help="instead of --minutes")
    parser.add_argument("--batch", type=int, default=24, help="rows a step")
    parser.add_argument("--length", type=int, default=4096, help="tokens a row")
    parser.add_argument("--rows", type=int, default=240_000)
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 2))
    parser.add_argument("--lr", type=float, default=5e-3, help="of the matrices")
    parser.add_argument("--adam-lr", type=float, default=2e-3, help="of embedding and norms")
    parser.add_argument("--warmup", type=int, default=100)
    parser.add_argument("--log-every", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(argv)
    if args.small:
        args.steps = args.steps or 300
        args.batch, args.length, args.rows, args.workers = 4, 512, 4000, 1
        args.warmup, args.log_every = 10, min(10, args.log_every)
    return args


def main() -> None:
    """Command line."""
    args = arguments()
    figures = train(args)
    (args.out / "training.json").write_text(json.dumps(figures, indent=1) + "\n")
    print({k: v for k, v in figures.items() if k != "losses"})


if __name__ == "__main__":
    main()
