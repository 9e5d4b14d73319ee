"""LogitProcessorContract: a row depends on its own request alone, and on nothing but arguments and tokens.

Subclass it in a test module, name the plugin and give arguments:

    class TestMine(LogitProcessorContract):
        name = "mine"
        arguments = ({"strength": 2.0}, {})
        wrong_arguments = ({"strength": "much"},)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from core.interfaces.errors import RequestError
from core.interfaces.logit_processors import LogitProcessor, RowState
from core.testing.byte_codec import byte_tokenizer
from core.testing.contracts.base import Contract

STEPS = 24


class ByteVocabulary:
    """A token a byte, special tokens behind them, and a few ids that stand for nothing."""

    def __init__(self, extra: int = 5) -> None:
        self._tokenizer = byte_tokenizer()
        self.size = self._tokenizer.vocab_size + extra
        self.eos_token_ids = tuple(self._tokenizer.eos_token_ids)

    def token_bytes(self, token_id: int) -> bytes:
        return self._tokenizer.bytes_of(token_id)

    def id_of(self, text: str) -> int | None:
        ids = self.encode(text)
        return ids[0] if len(ids) == 1 else None

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))


class LogitProcessorContract(Contract):
    """The tokens of the tests are bytes (`ByteVocabulary`).

    arguments: of requests, at least one that does something. wrong_arguments: each must be refused. prompts: texts
    that requests begin with; an `arguments` entry acts on at least one of them, within 24 tokens that `answer` says.
    answer: what is generated, cut or repeated to 24 tokens.
    """

    kind = "logit_processors"

    arguments: ClassVar[Sequence[Mapping[str, Any]]] = ({},)
    wrong_arguments: ClassVar[Sequence[Mapping[str, Any]]] = ()
    prompts: ClassVar[Sequence[str]] = ("a prompt", "xx")
    answer: ClassVar[str] = "ab ba ab ab, and so on. "

    def processor(self) -> LogitProcessor:
        """A new one, made as core makes it."""
        made = self.plugin()(ByteVocabulary(), self.context(self.device()))
        assert isinstance(made, LogitProcessor), f"{type(made).__name__} is no LogitProcessor"
        return made

    def requests(self) -> list[tuple[Mapping[str, Any], np.ndarray, np.ndarray]]:
        """(arguments, prompt, answer) of each."""
        vocabulary = ByteVocabulary()
        answer = vocabulary.encode(self.answer)
        tokens = np.array((answer * STEPS)[:STEPS], np.int32)
        prompts = [np.array(vocabulary.encode(prompt), np.int32) for prompt in self.prompts]
        return [(given, prompt, tokens) for given in self.arguments for prompt in prompts]

    def logits(self, rows: int, seed: int = 0) -> torch.Tensor:
        """[rows, V] float32."""
        made = torch.randn(rows, ByteVocabulary().size, generator=torch.Generator().manual_seed(seed))
        return made.to(self.device())

    def run_alone(self, processor: LogitProcessor, request: Any, state: Any = None, first: int = 0) -> list[Any]:
        """What it makes of one request's logits, step by step from step `first` on."""
        given, prompt, answer = request
        state = processor.open(dict(given)) if state is None else state
        made = []
        for step in range(first, STEPS):
            logits = self.logits(1, step)
            result = processor.apply([RowState(frozen(prompt), frozen(answer[:step]), state)], logits)
            assert result is None, f"apply() returned {type(result).__name__}; logits are changed in place"
            made.append(logits.cpu())
        return made

    # Arguments

    def test_wrong_arguments_are_refused(self) -> None:
        processor = self.processor()
        for given in self.wrong_arguments:
            with pytest.raises((RequestError, ValueError), match=r"."):
                processor.open(given)

    def test_opening_changes_nothing(self) -> None:
        """Neither what it was given, nor other states."""
        processor = self.processor()
        for request in self.requests():
            wanted, given = self.run_alone(processor, request), dict(request[0])
            processor.open(given)
            assert given == dict(request[0]), "open() changed its arguments"
            same(wanted, self.run_alone(processor, request), "a second request with the same arguments")

    # Rows

    def test_it_does_something(self) -> None:
        processor = self.processor()
        plain = [self.logits(1, step).cpu() for step in range(STEPS)]
        for given in self.arguments:
            runs = [self.run_alone(processor, request) for request in self.requests() if request[0] is given]
            if any(not torch.equal(a, b) for run in runs for a, b in zip(run, plain, strict=True)):
                return
        raise AssertionError(
            "none of `arguments` changes any logits; give arguments, prompts and an answer that show it"
        )

    def test_logits_stay_fit_to_draw_from(self) -> None:
        processor = self.processor()
        for request in self.requests():
            for step, logits in enumerate(self.run_alone(processor, request)):
                peak = float(logits.amax())
                assert np.isfinite(peak), f"{request[0]}, step {step}: the largest logit is {peak}"

    def test_a_row_does_not_depend_on_the_others(self) -> None:
        """Alone, in a batch, and in the batch turned round."""
        requests = self.requests() * 2
        alone = [self.run_alone(self.processor(), request) for request in requests]
        for order in (range(len(requests)), range(len(requests) - 1, -1, -1)):
            processor = self.processor()
            states = [processor.open(dict(given)) for given, _, _ in requests]
            for step in range(STEPS):
                one = self.logits(1, step)
                logits = one.repeat(len(requests), 1)
                rows = [RowState(frozen(requests[i][1]), frozen(requests[i][2][:step]), states[i]) for i in order]
                processor.apply(rows, logits)
                for at, i in enumerate(order):
                    same([alone[i][step]], [logits[at : at + 1].cpu()], f"{requests[i][0]} in a batch, step {step}")

    def test_a_state_that_was_opened_later_knows_as_much(self) -> None:
        """After a preemption a request goes on with a fresh state and all of its tokens."""
        for request in self.requests():
            processor = self.processor()
            wanted = self.run_alone(processor, request)
            for first in (1, STEPS // 2, STEPS - 1):
                made = self.run_alone(processor, request, first=first)
                same(wanted[first:], made, f"{request[0]}, opened again at token {first}")

    def test_two_engines_agree(self) -> None:
        for request in self.requests():
            same(
                self.run_alone(self.processor(), request), self.run_alone(self.processor(), request), "another instance"
            )

    def test_one_token_more_than_the_text_has(self) -> None:
        """Core may ask once more behind the end of a text; it must not fail."""
        processor = self.processor()
        ends = np.array(ByteVocabulary().eos_token_ids[:1], np.int32)
        for given, prompt, answer in self.requests():
            state, logits = processor.open(dict(given)), self.logits(1)
            processor.apply([RowState(frozen(prompt), frozen(np.concatenate([answer, ends])), state)], logits)

    def test_ids_that_stand_for_nothing(self) -> None:
        """Tokens of prompts may be any id of the model."""
        processor, last = self.processor(), ByteVocabulary().size - 1
        for given, _, _ in self.requests():
            tokens = np.array([last, last - 1], np.int32)
            processor.apply([RowState(frozen(tokens), frozen(tokens), processor.open(dict(given)))], self.logits(1))

    def test_the_order_is_kept_where_it_is_claimed(self) -> None:
        processor = self.processor()
        self.require(processor.keeps_order, "keeps_order")
        for request in self.requests():
            for step, logits in enumerate(self.run_alone(processor, request)):
                before = self.logits(1, step).cpu()[0].argsort(stable=True)
                after = logits[0][before]
                assert bool((after[1:] >= after[:-1]).all()), f"{request[0]}, step {step}: the order is another"

    def test_the_manifest_says_what_the_class_says(self) -> None:
        stated = getattr(self.record().stated, "keeps_order", None)
        assert stated in (None, self.plugin().keeps_order), f"the manifest states keeps_order = {stated}"


def frozen(tokens: np.ndarray) -> np.ndarray:
    """As core hands it over: not to be written."""
    view = tokens.view()
    view.flags.writeable = False
    return view


def same(wanted: Sequence[torch.Tensor], got: Sequence[torch.Tensor], what: str) -> None:
    """Bit for bit."""
    for a, b in zip(wanted, got, strict=True):
        assert torch.equal(a, b), f"{what}: the logits are others"
