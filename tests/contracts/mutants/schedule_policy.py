"""Broken schedule policies."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import Any, ClassVar

from core.interfaces.context import PluginContext
from core.interfaces.schedule import SchedulePolicy, StepLoad
from core.testing.contracts.schedule_policy import SchedulePolicyContract


class _Mutant(SchedulePolicyContract):
    caught_by: ClassVar[tuple[str, ...]] = ()


class TestLosesOne(_Mutant):
    caught_by = ("test_everybody_comes_back_once", "test_few", "test_in_a_scheduler_everybody_is_served")

    class implementation(SchedulePolicy):  # noqa: N801
        def rank(self, waiting: Sequence[Any], match: Any) -> Sequence[Any]:
            return waiting[1:]


class TestComesTwice(_Mutant):
    caught_by = ("test_everybody_comes_back_once",)

    class implementation(SchedulePolicy):  # noqa: N801
        def rank(self, waiting: Sequence[Any], match: Any) -> Sequence[Any]:
            return [*waiting, *waiting[:1]]


class TestFailsOnNobody(_Mutant):
    caught_by = ("test_few",)

    class implementation(SchedulePolicy):  # noqa: N801
        def rank(self, waiting: Sequence[Any], match: Any) -> Sequence[Any]:
            longest = max(request.num_prompt for request in waiting)
            return sorted(waiting, key=lambda request: longest - request.num_prompt)


class TestSortsInPlace(_Mutant):
    caught_by = ("test_what_it_is_given_is_not_changed", "test_an_immutable_queue_is_enough")

    class implementation(SchedulePolicy):  # noqa: N801
        def rank(self, waiting: Sequence[Any], match: Any) -> Sequence[Any]:
            waiting.sort(key=lambda request: request.num_prompt)  # type: ignore[attr-defined]
            return waiting


class TestWritesToRequests(_Mutant):
    caught_by = ("test_what_it_is_given_is_not_changed",)

    class implementation(SchedulePolicy):  # noqa: N801
        def rank(self, waiting: Sequence[Any], match: Any) -> Sequence[Any]:
            for request in waiting:
                request.priority = 7
            return waiting


class TestReadsWhatIsNotOffered(_Mutant):
    caught_by = ("test_everybody_comes_back_once", "test_what_it_is_given_is_not_changed")

    class implementation(SchedulePolicy):  # noqa: N801
        def rank(self, waiting: Sequence[Any], match: Any) -> Sequence[Any]:
            return sorted(waiting, key=lambda request: request.preemptions)


class TestTurnsTiesRound(_Mutant):
    caught_by = ("test_equal_requests_keep_their_order",)

    class implementation(SchedulePolicy):  # noqa: N801
        def rank(self, waiting: Sequence[Any], match: Any) -> Sequence[Any]:
            return sorted(waiting, key=lambda request: request.num_prompt)[::-1]


class TestDrawsWithoutSeed(_Mutant):
    caught_by = ("test_the_same_seed_gives_the_same_orders",)
    draws = True

    class implementation(SchedulePolicy):  # noqa: N801
        def rank(self, waiting: Sequence[Any], match: Any) -> Sequence[Any]:
            return random.sample(list(waiting), len(waiting))


class TestIgnoresTheSeed(_Mutant):
    caught_by = ("test_the_same_seed_gives_the_same_orders",)
    draws = True

    class implementation(SchedulePolicy):  # noqa: N801
        def rank(self, waiting: Sequence[Any], match: Any) -> Sequence[Any]:
            return random.Random(1).sample(list(waiting), len(waiting))


class TestRemembers(_Mutant):
    caught_by = ("test_an_order_does_not_depend_on_earlier_ones",)

    class implementation(SchedulePolicy):  # noqa: N801
        def __init__(self, ctx: PluginContext, seed: int = 0) -> None:
            super().__init__(ctx, seed)
            self.seen: set[int] = set()

        def rank(self, waiting: Sequence[Any], match: Any) -> Sequence[Any]:
            ranked = sorted(waiting, key=lambda request: request.id not in self.seen)
            self.seen |= {request.id for request in waiting if request.id % 2}
            return ranked


class TestMatchesInEveryComparison(_Mutant):
    caught_by = ("test_a_long_queue_is_not_matched_again_and_again",)

    class implementation(SchedulePolicy):  # noqa: N801
        def rank(self, waiting: Sequence[Any], match: Any) -> Sequence[Any]:
            import functools

            def compare(a: Any, b: Any) -> int:
                return int(match(b.key).num_tokens - match(a.key).num_tokens)

            return sorted(waiting, key=functools.cmp_to_key(compare))


class TestQuadratic(_Mutant):
    caught_by = ("test_work_grows_about_as_the_queue",)

    class implementation(SchedulePolicy):  # noqa: N801
        def rank(self, waiting: Sequence[Any], match: Any) -> Sequence[Any]:
            for a, b in itertools.product(waiting, repeat=2):
                if a.num_prompt > b.num_prompt + 100:
                    break
            return waiting


class TestBudgetOfNothing(_Mutant):
    caught_by = ("test_step_tokens_stays_in_its_range",)

    class implementation(SchedulePolicy):  # noqa: N801
        plans_steps: ClassVar[bool] = True

        def rank(self, waiting: Sequence[Any], match: Any) -> Sequence[Any]:
            return waiting

        def step_tokens(self, load: StepLoad) -> int:
            return load.chunk_tokens - load.num_decodes


class TestBudgetInHalves(_Mutant):
    caught_by = ("test_step_tokens_stays_in_its_range",)

    class implementation(SchedulePolicy):  # noqa: N801
        plans_steps: ClassVar[bool] = True

        def rank(self, waiting: Sequence[Any], match: Any) -> Sequence[Any]:
            return waiting

        def step_tokens(self, load: StepLoad) -> Any:
            return (load.chunk_tokens + 1) / 2
