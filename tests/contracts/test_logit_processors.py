"""The repository's logit processors through their suite; broken ones do not pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pytest
import torch

from core.interfaces.logit_processors import LogitProcessor, RowState
from core.testing.contracts.logit_processors import LogitProcessorContract

from .running import failures


class TestThinkingBudget(LogitProcessorContract):
    name = "thinking_budget"
    arguments = ({"budget": 0}, {"budget": 5}, {"budget": 3, "start": "", "end": "xy"})
    wrong_arguments = ({}, {"budget": -1}, {"budget": "1"}, {"budget": 1, "end": ""}, {"budget": 1, "more": 2})
    prompts = ("<think>", "no reasoning", "<think>done</think>")
    answer = "hm <think>so be it</thin"


class Repeats(LogitProcessor):
    """`amount` more for the last token, unless it is broken by `fault`."""

    fault: ClassVar[str] = ""

    def open(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        if self.fault != "takes anything" and not isinstance(arguments.get("amount"), float):
            raise ValueError("amount must be a number")
        if self.fault == "changes its arguments":
            arguments["opened"] = True  # type: ignore[index]
        return {"amount": 1.0, **arguments, "steps": 0}

    def apply(self, rows: Sequence[RowState], logits: torch.Tensor) -> Any:
        for index, row in enumerate(rows):
            state = row.state
            state["steps"] += 1
            if not len(row.generated):
                continue
            amount = state["amount"]
            match self.fault:
                case "counts its calls":
                    amount += state["steps"]
                case "looks at its neighbours":
                    amount += len(rows)
                case "spills":
                    logits[:, 3] += 1.0
                case "writes NaN":
                    logits[index, 5] = float("nan")
                case "leaves nothing":
                    logits[index] = float("-inf")
                case "writes histories":
                    row.generated[0] = 0
                case "fails behind the end" if int(row.generated[-1]) >= 256:
                    raise RuntimeError("this text is over")
                case "draws":
                    logits[index] += torch.rand(logits.shape[1])
                case "does nothing":
                    continue
            logits[index, int(row.generated[-1])] += amount
        return logits if self.fault == "returns them" else None


def broken(name: str, **members: Any) -> type[LogitProcessorContract]:
    implementation = type("Broken", (Repeats,), {"fault": name, **members})
    return type("Suite", (LogitProcessorContract,), {
        "implementation": implementation, "arguments": ({"amount": 2.0}, {"amount": 0.5}),
        "wrong_arguments": ({"amount": "much"},),
    })  # fmt: skip


class TestRepeats(LogitProcessorContract):
    implementation = Repeats
    arguments = ({"amount": 2.0},)
    wrong_arguments = ({},)


@pytest.mark.parametrize(
    ("fault", "caught_by"),
    [
        ("takes anything", "test_wrong_arguments_are_refused"),
        ("changes its arguments", "test_opening_changes_nothing"),
        ("counts its calls", "test_a_state_that_was_opened_later_knows_as_much"),
        ("looks at its neighbours", "test_a_row_does_not_depend_on_the_others"),
        ("spills", "test_a_row_does_not_depend_on_the_others"),
        ("writes NaN", "test_logits_stay_fit_to_draw_from"),
        ("leaves nothing", "test_logits_stay_fit_to_draw_from"),
        ("writes histories", "test_it_does_something"),
        ("fails behind the end", "test_one_token_more_than_the_text_has"),
        ("draws", "test_two_engines_agree"),
        ("does nothing", "test_it_does_something"),
        ("returns them", "test_it_does_something"),
    ],
)
def test_broken_ones_are_caught(fault: str, caught_by: str) -> None:
    assert caught_by in failures(broken(fault))


def test_an_order_that_is_not_kept_is_caught() -> None:
    assert failures(broken("", keeps_order=True)) == {"test_the_order_is_kept_where_it_is_claimed"}
