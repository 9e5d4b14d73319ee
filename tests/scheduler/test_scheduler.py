import numpy as np
import pytest
from scheduler_fakes import EOS, VOCAB, Bench, unloaded

from core.config.sections import SchedulerSettings
from core.interfaces.errors import EngineError, Overloaded, RequestError
from core.interfaces.params import MAX_COUNT
from core.interfaces.step import StepResult
from core.memory.pages import PageState
from core.scheduler.facts import Finish, ModelFacts
from core.scheduler.scheduler import Scheduler


def finish_after(bench: Bench, request_id: int, depth: int = 0) -> None:
    while request_id not in bench.finish:
        assert bench.step(depth)


# ---- what a request may ask for


def test_a_prompt_as_long_as_the_context_is_refused() -> None:
    bench = Bench(context_length=16)
    with pytest.raises(RequestError, match=r"16 tokens.*context length is 16") as error:
        bench.add([1] * 16)
    assert (error.value.param, error.value.code) == ("prompt", "context_length_exceeded")
    request = bench.add([1] * 15)
    bench.drain()
    assert (len(bench.output[request]), bench.finish[request]) == (1, Finish.LENGTH)


def test_a_prompt_that_memory_cannot_hold_is_refused() -> None:
    bench = Bench(num_pages=4, page_size=4)
    with pytest.raises(RequestError, match=r"12 tokens and needs 4 KV cache pages of 4 tokens; there are 3") as error:
        bench.add([1] * 12)
    assert "at most 11" in str(error.value)
    request = bench.add([1] * 11, max_tokens=None)
    bench.drain()
    assert (len(bench.output[request]), bench.finish[request]) == (2, Finish.LENGTH)
    bench.check_output(request)


def test_an_empty_prompt_and_a_used_id_are_refused() -> None:
    bench = Bench()
    with pytest.raises(RequestError, match="0 tokens"):
        bench.add([])
    request = bench.add([1])
    with pytest.raises(RequestError, match="id 0 is in use"):
        bench.scheduler.add(bench.requests[request])
    bench.drain()


def test_a_full_queue_is_overloaded() -> None:
    bench = Bench(max_queued=2)
    bench.add([1])
    bench.add([1])
    with pytest.raises(Overloaded, match="2 requests are waiting") as error:
        bench.add([1])
    assert error.value.retry_after_s >= 1
    bench.step()
    bench.add([1])
    bench.drain()


def test_settings_and_memory_must_fit() -> None:
    with pytest.raises(ValueError, match="page table of shape"):
        Scheduler(SchedulerSettings(), ModelFacts(128, 65, 4, 64, 9), Bench().memory)


# ---- what a step holds


def test_decodes_first_then_chunks_then_admissions_within_the_budget() -> None:
    bench = Bench(chunk_tokens=8)
    bench.add([1, 2], max_tokens=30)
    bench.step()
    long = bench.add([1] * 20, max_tokens=30)
    bench.step()
    plan = bench.plans[-1]
    assert (plan.num_decodes, plan.q_lens.tolist(), plan.samples.tolist()) == (1, [1, 7], [True, False])
    bench.add([3, 3, 3, 3], max_tokens=30)
    bench.step()
    assert bench.plans[-1].q_lens.tolist() == [1, 7]
    assert not bench.plans[-1].admissions
    bench.step()
    plan = bench.plans[-1]
    assert (plan.q_lens.tolist(), plan.samples.tolist()) == ([1, 6, 1], [True, True, False])
    assert plan.seq_lens.tolist() == [5, 20, 1]
    bench.step()
    plan = bench.plans[-1]
    assert (plan.num_decodes, plan.q_lens.tolist()) == (2, [1, 1, 3])
    assert not plan.page_slots.size or plan.page_ids.shape == (1, len(plan.page_slots))
    assert bench.output[long]
    bench.drain()


def test_admission_carries_prompt_and_whole_row() -> None:
    bench = Bench(page_size=4, num_groups=2)
    bench.add([1, 2, 3, 4, 5], max_tokens=3, ignore_eos=False)
    bench.step()
    plan = bench.plans[0]
    (admission,) = plan.admissions
    assert admission.token_ids.tolist() == [1, 2, 3, 4, 5]
    assert (admission.num_prompt, admission.eos_token_ids) == (5, (EOS,))
    assert plan.page_ids.tolist() == [[1, 2], [1, 2]]
    assert plan.page_index.tolist() == [0, 1]
    assert plan.page_slots.tolist() == [admission.slot] * 2
    bench.drain()


def test_ignored_eos_is_not_handed_to_the_runner() -> None:
    bench = Bench()
    bench.add([1], ignore_eos=True)
    bench.step()
    assert bench.plans[0].admissions[0].eos_token_ids == ()
    bench.drain()


def test_slots_bound_what_runs() -> None:
    bench = Bench(max_running=2)
    for _ in range(5):
        bench.add([1, 2, 3])
    bench.step()
    assert bench.scheduler.stats()["running"] == 2
    assert bench.scheduler.stats()["waiting"] == 3
    bench.drain()


def test_a_budget_below_the_slots_bounds_what_runs() -> None:
    bench = Bench(chunk_tokens=2, max_running=4)
    ids = [bench.add([i + 1], max_tokens=20) for i in range(4)]
    for _ in range(5):
        bench.step()
    assert bench.scheduler.stats()["running"] == 2
    assert all(plan.num_tokens == 2 for plan in bench.plans)
    bench.drain()
    for i in ids:
        bench.check_output(i)


def test_enormous_numbers_do_not_reach_the_arrays() -> None:
    bench = Bench(context_length=16)
    with pytest.raises(RequestError, match="priority is 4294967296"):
        bench.add([1], priority=2**32)
    with pytest.raises(RequestError, match=f"max_tokens is {2**80}"):
        bench.add([1], max_tokens=2**80)
    huge = {"max_tokens": MAX_COUNT, "min_tokens": MAX_COUNT, "stop_token_ids": (2**40, 3)}
    request = bench.add([1, 2], **huge)
    bench.drain()
    assert (len(bench.output[request]), bench.finish[request]) == (14, Finish.LENGTH)


def test_a_pure_decode_step_takes_pages_only_when_one_is_full() -> None:
    bench = Bench(page_size=4)
    bench.add([1, 2, 3], max_tokens=9)
    bench.drain()
    assert [plan.page_slots.size for plan in bench.plans] == [1, 0, 1, 0, 0, 0, 1, 0, 0]


# ---- how requests end


def test_finish_reasons() -> None:
    bench = Bench()
    prompts = [[i, j] for i in range(1, VOCAB) for j in range(1, VOCAB)]
    ids = [bench.add(prompt, ignore_eos=False, max_tokens=6) for prompt in prompts]
    bench.drain()
    assert {bench.finish[i] for i in ids} == {Finish.STOP, Finish.LENGTH}
    for i in ids:
        assert (bench.finish[i] == Finish.STOP) == (bench.output[i][-1] == EOS)
        bench.check_output(i)


def test_min_tokens_defers_the_stop() -> None:
    bench = Bench()
    request = bench.add([1, 2], max_tokens=40, min_tokens=12, stop_token_ids=tuple(range(VOCAB)))
    bench.drain()
    assert (len(bench.output[request]), bench.finish[request]) == (12, Finish.STOP)


@pytest.mark.parametrize("depth", [0, 1])
def test_length_wastes_no_step_and_a_late_stop_one(depth: int) -> None:
    bench = Bench()
    request = bench.add([1, 2], max_tokens=5)
    bench.drain(depth)
    assert len(bench.plans) == 5
    bench = Bench()
    output, reason = unloaded(bench.requests[bench.add([3, 1], ignore_eos=False, max_tokens=40)], [3, 1], 128)
    assert reason == Finish.STOP
    bench.drain(depth)
    assert len(bench.plans) == len(output) + depth
    assert bench.output[request] == output


def test_a_failed_row_ends_alone_and_publishes_nothing() -> None:
    bench = Bench(page_size=2)
    good, bad = bench.add([1, 2, 3, 4, 5]), bench.add([6, 5, 4, 3, 2])
    bench.launch()
    events = bench.complete(failed={bad})
    index = events.ids.tolist().index(bad)
    assert (events.tokens[index], events.finish[index]) == (-1, Finish.ERROR)
    assert "not finite" in events.errors[index]
    assert index not in events.first
    assert bench.memory.match(bench.requests[bad].key).num_tokens == 0
    bench.launch()  # prompts are published before the next step is planned
    assert bench.memory.match(bench.requests[good].key).num_tokens == 4
    bench.drain()
    bench.check_output(good)


def test_a_row_that_fails_later_publishes_nothing_more() -> None:
    bench = Bench(page_size=2)
    bad = bench.add([6, 5, 4, 3], max_tokens=20)
    for _ in range(6):
        bench.step()
    known = bench.prompts[bad] + bench.output[bad]
    bench.launch()
    bench.complete(failed={bad})
    again = bench.add([*known, 1])
    bench.drain()
    assert bench.cached[again] == 4


def test_rows_point_into_the_result() -> None:
    bench = Bench()
    first, second = bench.add([1, 2]), bench.add([2, 3])
    bench.launch()
    bench.scheduler.cancel(first)
    events = bench.complete()
    assert events.ids.tolist() == [second, first]
    assert events.rows.tolist() == [1, -1]
    assert events.first == {0: 0}
    bench.drain()


# ---- cancelling


def abort(bench: Bench, request: int) -> None:
    assert bench.scheduler.cancel(request)
    assert not bench.scheduler.cancel(request)
    assert bench.scheduler.has_work
    bench.take(bench.scheduler.take_events())
    assert bench.finish[request] == Finish.ABORT
    assert bench.scheduler.take_events() is None


def test_cancel_while_waiting() -> None:
    bench = Bench(max_running=1)
    running, waiting = bench.add([1]), bench.add([2])
    bench.step()
    abort(bench, waiting)
    bench.drain()
    assert bench.output[waiting] == []
    bench.check_output(running)


def test_cancel_while_running_in_prefill_and_in_flight() -> None:
    bench = Bench(chunk_tokens=4, page_size=2)
    decoding = bench.add([1, 2], max_tokens=50)
    bench.step()
    prefilling = bench.add([3] * 20)
    bench.step()
    bench.launch()
    assert bench.memory.pool.count(PageState.LEASED) > 0
    abort(bench, decoding)
    abort(bench, prefilling)
    assert bench.memory.pool.count(PageState.LEASED) == 0
    assert bench.memory.pool.count(PageState.QUARANTINED) > 0
    assert bench.scheduler.table.num_free == 6
    assert bench.scheduler.has_work
    assert not bench.launch()
    bench.complete()
    assert bench.memory.pool.count(PageState.QUARANTINED) == 0
    bench.drain()
    bench.check_output(decoding)


def test_cancel_after_preemption_and_unknown_ids() -> None:
    bench = Bench(num_pages=7, page_size=2, context_length=64)
    old, new = bench.add([1, 2, 3], max_tokens=9), bench.add([4, 5, 6], max_tokens=9)
    while not bench.requests[new].preemptions:
        bench.step()
    abort(bench, new)
    bench.drain()
    bench.check_output(old)
    bench.check_output(new)
    assert not bench.scheduler.cancel(new)
    assert not bench.scheduler.cancel(999)


# ---- preemption


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("cache", ["radix", "none"])
def test_the_newest_is_preempted_and_loses_nothing(depth: int, cache: str) -> None:
    bench = Bench(num_pages=9, page_size=2, context_length=64, cache=cache)
    ids = [bench.add([i + 1, 2, 3], max_tokens=10) for i in range(3)]
    bench.drain(depth)
    assert bench.scheduler.stats()["preemptions_total"] > 0
    assert bench.requests[ids[0]].preemptions == 0
    assert [i for i in bench.finish if i in ids] == ids
    for i in ids:
        bench.check_output(i)
        assert len(bench.output[i]) == 10


def test_the_less_important_is_preempted_first() -> None:
    bench = Bench(num_pages=9, page_size=2, context_length=64)
    low = bench.add([1, 2, 3], max_tokens=12, priority=0)
    bench.step()
    high = bench.add([3, 2, 1], max_tokens=12, priority=1)
    bench.drain()
    assert bench.requests[low].preemptions > 0
    assert bench.requests[high].preemptions == 0
    bench.check_output(low)
    bench.check_output(high)


def test_a_preempted_request_returns_with_what_it_generated() -> None:
    bench = Bench(num_pages=7, page_size=2, context_length=64)
    bench.add([1, 2, 3], max_tokens=9)
    new = bench.add([4, 5, 6], max_tokens=9)
    bench.drain()
    admissions = [a for plan in bench.plans for a in plan.admissions if a.request_id == new]
    assert len(admissions) == 1 + bench.requests[new].preemptions > 1
    assert all(a.num_prompt == 3 for a in admissions)
    generated = admissions[-1].token_ids[3:].tolist()
    assert generated
    assert generated == bench.output[new][: len(generated)]


def test_a_preempted_request_goes_before_those_that_wait() -> None:
    bench = Bench(num_pages=7, page_size=2, context_length=64, max_running=2)
    ids = [bench.add([i + 1, 2, 3], max_tokens=9) for i in range(4)]
    bench.drain()
    assert bench.requests[ids[1]].preemptions > 0
    first = [next(n for n, p in enumerate(bench.plans) for a in p.admissions if a.request_id == i) for i in ids]
    assert first == sorted(first)
    assert next(iter(bench.finish)) == ids[0]


def test_alone_a_request_gets_every_page_there_is() -> None:
    bench = Bench(num_pages=5, page_size=2, context_length=64)
    bench.add([5, 5, 5, 5, 5], max_tokens=1)
    bench.drain()
    request = bench.add([1, 2], max_tokens=None)
    bench.drain()
    assert (len(bench.output[request]), bench.finish[request]) == (7, Finish.LENGTH)
    bench.check_output(request)


def test_admission_leaves_a_page_of_growth_for_each_that_runs() -> None:
    bench = Bench(num_pages=7, page_size=2, context_length=64)
    bench.add([1, 2, 3], max_tokens=7)
    bench.step()
    large = bench.add([5, 5, 5, 5, 5, 5, 5], max_tokens=1)
    bench.step()
    assert bench.memory.available == 4
    assert bench.requests[large].slot < 0
    bench.drain()
    assert bench.scheduler.stats()["preemptions_total"] == 0


# ---- the loop's other ends


def test_steps_complete_in_order() -> None:
    bench = Bench()
    empty = np.empty(0, np.int32)
    result = StepResult(0, empty, np.empty((0, 1), np.int32), empty, np.empty(0, np.bool_))
    with pytest.raises(EngineError, match="step 0 is complete, step None was expected"):
        bench.scheduler.complete(result)
    bench.add([1, 2])
    bench.launch()
    bench.launch()
    late = bench.runner.wait()
    late.step = 1
    with pytest.raises(EngineError, match="step 1 is complete, step 0 was expected"):
        bench.scheduler.complete(late)


def test_flush_needs_quiet() -> None:
    bench = Bench()
    bench.add([1] * 9)
    bench.step()
    with pytest.raises(EngineError, match="in use"):
        bench.scheduler.flush_cache()
    bench.drain()
    assert bench.scheduler.stats()["pages_cached"] > 0
    bench.scheduler.flush_cache()
    assert bench.scheduler.stats()["pages_cached"] == 0
    assert bench.memory.stats().free == bench.memory.capacity


def test_stats_count() -> None:
    bench = Bench(max_running=1)
    assert bench.scheduler.stats()["longest_wait_s"] == 0
    one = bench.add([1, 2, 3], max_tokens=4)
    bench.add([1, 2, 3], max_tokens=4)
    bench.step()
    stats = bench.scheduler.stats()
    assert (stats["running"], stats["waiting"], stats["steps_total"]) == (1, 1, 1)
    assert stats["pages_free"] + stats["pages_leased"] == stats["pages_total"] == 64
    assert stats["longest_wait_s"] >= 0
    bench.scheduler.cancel(one)
    bench.drain()
    stats = bench.scheduler.stats()
    assert (stats["finished_total"], stats["aborted_total"], stats["generated_tokens_total"]) == (1, 1, 5)
    assert (stats["prompt_tokens_total"], stats["running"], stats["waiting"]) == (6, 0, 0)
    assert all(isinstance(value, int | float) for value in stats.values())


def test_a_request_too_large_now_is_not_overtaken() -> None:
    bench = Bench(num_pages=9, page_size=2, context_length=64)
    bench.add([1, 2, 3, 4, 5, 6], max_tokens=6)
    bench.step()
    large, small = bench.add([7 % VOCAB + 1] * 13, max_tokens=1), bench.add([2], max_tokens=1)
    finish_after(bench, small)
    assert list(bench.finish).index(large) < list(bench.finish).index(small)
    bench.drain()
