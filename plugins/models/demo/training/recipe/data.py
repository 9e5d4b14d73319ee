"""Packs the training stream into rows, by several processes into one block of shared memory.

Row r holds chats of worker r % W only and worker w makes chats w, w + W, …; so the rows, and their order, depend on
the seed and on W alone, never on timing.
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from recipe.chat import Chat, render, training_chat

_PENDING = 24  # chats kept at hand to fill the ends of rows


def encode(tokenizer: Tokenizer, chats: list[Chat]) -> list[tuple[NDArray[np.int16], NDArray[np.uint8]]]:
    """Token ids [n] and loss weights [n] of each chat."""
    pieces = [render(chat) for chat in chats]
    encoded = iter(tokenizer.encode_batch_fast([t for piece in pieces for t, _ in piece], add_special_tokens=False))
    out = []
    for piece in pieces:
        ids = [next(encoded).ids for _ in piece]
        tokens = np.concatenate([np.asarray(i, np.int16) for i in ids])
        weights = np.repeat(np.asarray([w for _, w in piece], np.uint8), [len(i) for i in ids])
        out.append((tokens, weights))
    return out


class Rows:
    """Rows of `length` + 1 tokens (int16), loss weights (uint8) and chat numbers in the row (uint8, 255: padding)."""

    def __init__(self, num_rows: int, length: int, num_workers: int, seed: int, tokenizer_file: Path) -> None:
        self.num_rows, self.length, self.num_workers, self.seed = num_rows, length, num_workers, seed
        self._tokenizer_file = tokenizer_file
        width = length + 1
        # Anonymous shared mappings survive fork and need no /dev/shm.
        self.tokens = np.frombuffer(mmap.mmap(-1, num_rows * width * 2), np.int16).reshape(num_rows, width)
        self.weights = np.frombuffer(mmap.mmap(-1, num_rows * width), np.uint8).reshape(num_rows, width)
        self.chats = np.frombuffer(mmap.mmap(-1, num_rows * width), np.uint8).reshape(num_rows, width)
        self._done = np.frombuffer(mmap.mmap(-1, num_workers * 8), np.int64)
        self._workers: list[BaseProcess] = []

    def start(self) -> None:
        """Start the workers. Before any CUDA call: they are forked."""
        context = multiprocessing.get_context("fork")
        for worker in range(self.num_workers):
            process = context.Process(target=self.fill, args=(worker,), daemon=True)
            process.start()
            self._workers.append(process)

    def stop(self) -> None:
        """End the workers."""
        for process in self._workers:
            process.terminate()
            process.join()

    def wait(self, row: int) -> bool:
        """Wait until `row` is filled; whether there was a wait."""
        waited = False
        while self._done[row % self.num_workers] <= row // self.num_workers:
            waited = True
            time.sleep(0.01)
        return waited

    def num_filled(self) -> int:
        """Rows filled so far."""
        return int(self._done.sum())

    def fill(self, worker: int) -> None:
        """Fill this worker's rows, one after the other."""
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        tokenizer = Tokenizer.from_file(str(self._tokenizer_file))
        pending: list[tuple[NDArray[np.int16], NDArray[np.uint8]]] = []
        index = worker
        for row in range(worker, self.num_rows, self.num_workers):
            at = chat = 0
            width = self.length + 1
            self.chats[row] = 255
            while at < width and chat < 255:
                if len(pending) < _PENDING:
                    numbers = range(index, index + 64 * self.num_workers, self.num_workers)
                    made = encode(tokenizer, [training_chat(self.seed, number, self.length) for number in numbers])
                    pending += [item for item in made if len(item[0]) <= width]
                    index = numbers[-1] + self.num_workers
                room = width - at
                fitting = next((i for i, (tokens, _) in enumerate(pending[:_PENDING]) if len(tokens) <= room), None)
                if fitting is None:
                    break
                tokens, weights = pending.pop(fitting)
                end = at + len(tokens)
                self.tokens[row, at:end], self.weights[row, at:end], self.chats[row, at:end] = tokens, weights, chat
                at, chat = end, chat + 1
            self._done[worker] += 1
