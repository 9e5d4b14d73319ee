"""What a model computes, compared with its reference: whole, in pieces, among others, over pages and over ranks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from core.interfaces.errors import ConfigError
from core.interfaces.spec import StateKind
from core.testing.contracts.model_driver import ModelDriver, run_ranks
from core.testing.contracts.model_driver import Sequence as Row
from core.testing.contracts.model_setup import ModelCase, ModelSetup


class ModelNumbers(ModelSetup):
    """Runs a model through core's runner, with its plain-PyTorch attention, on the CPU in float32."""

    def test_whole_prompt(self, case: ModelCase) -> None:
        driver = self.driver(case)
        for length in (1, 2, 19):
            seq = driver.start(driver.tokens(length))
            self.expect(case, driver.run(seq, [length]), seq)

    def test_prompt_in_chunks(self, case: ModelCase) -> None:
        driver = self.driver(case)
        for chunks in ([5, 1, 9, 4], [1] * 7, [8, 8]):
            seq = driver.start(driver.tokens(sum(chunks)))
            self.expect(case, driver.run(seq, chunks), seq)

    def test_token_by_token(self, case: ModelCase) -> None:
        """Decoding after a prompt, each token the model's own."""
        driver = self.driver(case)
        seq = driver.start(driver.tokens(6))
        self.expect(case, driver.run(seq, [6] + [1] * 12), seq)

    def test_mixed_steps(self, case: ModelCase) -> None:
        """Some sequences decode while others are in the middle of their prompts."""
        self.check_mixed(case, self.driver(case))

    def check_mixed(self, case: ModelCase, driver: ModelDriver) -> None:
        running: list[tuple[Row, list[int]]] = []
        logits: dict[int, list[torch.Tensor]] = {}
        for chunks in ([7], [2, 5, 1], [1], [3, 9], [], [], []):
            if chunks:
                seq = driver.start(driver.tokens(sum(chunks)))
                running.append((seq, list(chunks)))
            rows = [(seq, left.pop(0) if left else 1) for seq, left in running]
            for (seq, _), piece in zip(rows, driver.step(rows), strict=True):
                logits.setdefault(seq.slot, []).append(piece)
        for seq, _ in running:
            self.expect(case, torch.cat(logits[seq.slot]), seq)

    def test_after_a_prefix_hit(self, case: ModelCase) -> None:
        """The pages of a prefix were written by another sequence, which goes on using them."""
        driver = self.driver(case)
        for shared_pages, tail in ((1, 1), (3, 5)):
            prefix = driver.tokens(shared_pages * driver.options.page_size)
            parent = driver.start(prefix + driver.tokens(4))
            parent_logits = [driver.run(parent, [len(parent.tokens)])]
            child = driver.start(prefix + driver.tokens(tail), parent=parent, shared_pages=shared_pages)
            child_logits = [driver.run(child, [tail])]
            for _ in range(4):
                first, second = driver.step([(child, 1), (parent, 1)])
                child_logits.append(first)
                parent_logits.append(second)
            self.expect(case, torch.cat(child_logits), child)
            self.expect(case, torch.cat(parent_logits), parent)

    def test_page_sizes(self, case: ModelCase) -> None:
        for page_size in self.page_sizes:
            self.check_mixed(case, self.driver(case, page_size=page_size))

    def test_other_sequences_do_not_matter(self, case: ModelCase) -> None:
        """The same sequence alone, and between others."""
        alone = self.driver(case)
        prompt = alone.tokens(9)
        seq = alone.start(prompt)
        wanted = alone.run(seq, [9, 1, 1, 1])
        driver = self.driver(case, seed=1)
        others = [driver.start(driver.tokens(n)) for n in (13, 2, 5)]
        driver.step([(other, len(other.tokens)) for other in others])
        again = driver.start(prompt)
        got = [driver.step([(others[0], 1), (again, 9), (others[1], 1)])[1]]
        for _ in range(3):
            got.append(driver.step([(others[2], 1), (again, 1), (others[0], 1)])[1])
        assert again.tokens == seq.tokens, "greedy tokens depend on what else is in the batch"
        torch.testing.assert_close(torch.cat(got), wanted, atol=self.logits_tolerance / 10, rtol=self.logits_tolerance)

    def test_tokens_behind_all_windows_do_not_matter(self, case: ModelCase) -> None:
        groups = case.spec.cache_groups
        windows = [layer.attention.window for layer in case.spec.layers if layer.attention is not None]
        sliding = all(group.kind is StateKind.SLIDING_WINDOW for group in groups)
        reach = 1 + sum(window - 1 for window in windows if window is not None)
        self.require(sliding and reach + 2 <= min(case.spec.context_length, 256), "only layers with small windows")
        driver = self.driver(case)
        prompt = driver.tokens(reach + 2)
        other = [(prompt[0] + 1) % case.spec.vocab_size, *prompt[1:]]
        first, second = (driver.run(driver.start(tokens), [len(tokens)]) for tokens in (prompt, other))
        torch.testing.assert_close(first[-1], second[-1], atol=1e-6, rtol=1e-6)

    def test_ranks_equal_one(self, case: ModelCase) -> None:
        """Each rank loads its share; sums and gathers over the ranks give what one rank computes."""
        self.require(self.record().capabilities.get("tensor_parallel"), "tensor_parallel")
        whole = self.driver(case)
        prompt = whole.tokens(11)
        seq = whole.start(prompt)
        wanted = whole.run(seq, [11, 1, 1, 1])
        for size in self.tensor_parallel_sizes:

            def work(rank: Any) -> torch.Tensor:
                driver = self.driver(case, tp=rank)
                return driver.run(driver.start(prompt), [11, 1, 1, 1])

            try:
                results = run_ranks(size, work)
            except ConfigError as error:
                pytest.skip(f"refused with {size} ranks: {error.message}")
            for logits in results:
                torch.testing.assert_close(logits, wanted, atol=self.logits_tolerance, rtol=self.logits_tolerance)
