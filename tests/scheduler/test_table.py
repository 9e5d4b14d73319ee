import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.engine.messages import FINISH_REASONS
from core.interfaces.params import SamplingParams
from core.scheduler.facts import Finish, ModelFacts
from core.scheduler.request import Request
from core.scheduler.table import MAX_STOP_COLUMNS, RequestTable


def table(num_slots: int = 3, max_tokens: int = 5000) -> RequestTable:
    return RequestTable(num_slots, np.zeros((1, num_slots, 4), np.int32), max_tokens)


def request(request_id: int, num_tokens: int = 3, **sampling: object) -> Request:
    made = Request(request_id, np.arange(num_tokens), SamplingParams(**sampling), 0, eos_token_ids=(1,))
    made.max_len = 5000
    return made


def test_finish_codes_are_indices_into_the_reasons() -> None:
    assert list(FINISH_REASONS) == ["", *(f.name.lower() for f in list(Finish)[1:])]


def test_a_slot_is_reused_only_after_its_last_step() -> None:
    rows = table(1)
    slot = rows.take(request(1), 0, step=4)
    epoch = int(rows.epoch[slot])
    rows.release(slot, passed=3)
    assert (rows.num_free, rows.num_running) == (0, 0)
    assert rows.epoch[slot] == epoch + 1
    rows.fence_passed(3)
    assert rows.num_free == 0
    rows.fence_passed(4)
    assert rows.num_free == 1
    rows.release(rows.take(request(2), 0, step=5), passed=5)
    assert rows.num_free == 1


def test_tokens_grow_with_the_longest_text() -> None:
    rows = table(max_tokens=5000)
    one, two = rows.take(request(1, 10), 0, 0), rows.take(request(2, 1000), 0, 0)
    assert rows.tokens.shape[1] == 1024
    for token in range(100):
        rows.append(np.array([one, two]), np.array([token, token + 1]))
    assert rows.tokens.shape[1] == 2048
    assert rows.known(one).tolist() == [*range(10), *range(100)]
    assert rows.known(two).tolist() == [*range(1000), *range(1, 101)]
    assert rows.num_output[[one, two]].tolist() == [100, 100]
    rows.take(request(3, 4990), 0, 0)
    assert 4990 < rows.tokens.shape[1] <= 5000
    assert rows.known(one).tolist() == [*range(10), *range(100)]


@pytest.mark.parametrize("num_stops", [0, 1, 3, MAX_STOP_COLUMNS, MAX_STOP_COLUMNS + 5])
def test_stop_ids_of_any_number(num_stops: int) -> None:
    rows = table()
    stops = tuple(range(100, 100 + num_stops))
    plain = rows.take(request(1, ignore_eos=True), 0, 0)
    stopping = rows.take(request(2, stop_token_ids=stops), 0, 0)
    slots = np.array([plain, stopping], np.int32)
    for token in (1, *stops, 99):
        rows.append(slots, np.array([token, token]))
        assert rows.stopped(slots, np.array([token, token], np.int32)).tolist() == [False, token != 99]
    rows.release(stopping, 0)
    again = rows.take(request(3, ignore_eos=True), 0, 0)
    assert again == stopping
    assert not rows.stopped(np.array([again]), np.array([100], np.int32)).any()


def test_stop_ids_are_ignored_before_min_tokens() -> None:
    rows = table()
    slot = np.array([rows.take(request(1, min_tokens=2), 0, 0)])
    token = np.array([1], np.int32)
    answers = []
    for _ in range(3):
        rows.append(slot, token)
        answers.append(bool(rows.stopped(slot, token)[0]))
    assert answers == [False, True, True]


@given(st.integers(1, 200), st.integers(1, 16), st.integers(2, 50))
def test_a_row_holds_what_context_and_memory_allow(context: int, page_size: int, num_pages: int) -> None:
    facts = ModelFacts(context, num_pages, page_size, 8, 1)
    longest = min(context, (num_pages - 1) * page_size)
    assert facts.max_pages * page_size >= longest
    assert facts.max_pages <= num_pages - 1
