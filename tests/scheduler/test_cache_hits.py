"""Cached tokens as counted by hand: n clients, k turns."""

import pytest
from scheduler_fakes import Bench


@pytest.mark.parametrize("page_size", [1, 4, 7])
@pytest.mark.parametrize("depth", [0, 1])
def test_every_turn_finds_the_whole_conversation_before_it(page_size: int, depth: int) -> None:
    clients, turns, answer = 4, 4, 6
    bench = Bench(page_size=page_size, num_pages=600, context_length=400, max_running=clients)
    shared = [1, 2, 3, 4, 5, 6] * 4
    history = {client: [*shared, client + 1] for client in range(clients)}
    expected = measured = prompt_tokens = 0
    for turn in range(turns):
        ids = {}
        for client in range(clients):
            if turn == 0:
                bench.drain(depth)  # one after another: the next finds the shared beginning
            ids[client] = bench.add(history[client], max_tokens=answer)
        bench.drain(depth)
        for client, request in ids.items():
            if turn == 0:
                known = 0 if client == 0 else len(shared)
            else:  # KV of an answer's last token is never computed
                known = len(history[client]) - 2 - 1
            assert bench.cached[request] == known // page_size * page_size, (turn, client)
            measured += bench.cached[request]
            expected += known // page_size * page_size
            prompt_tokens += len(history[client])
            history[client] = [*history[client], *bench.output[request], turn + 1, 5]
            bench.check_output(request)
    stats = bench.scheduler.stats()
    assert stats["hit_tokens_total"] == measured == expected
    assert stats["prompt_tokens_total"] == prompt_tokens
    assert measured > prompt_tokens / 2


def test_other_namespaces_find_nothing() -> None:
    bench = Bench()
    first = bench.add([1] * 16, namespace=b"one")
    bench.drain()
    other = bench.add([1] * 16, namespace=b"two")
    same = bench.add([1] * 16, namespace=b"one")
    bench.drain()
    assert (bench.cached[first], bench.cached[other], bench.cached[same]) == (0, 0, 12)


def test_no_cache_finds_nothing() -> None:
    bench = Bench(cache="none")
    ids = []
    for _ in range(2):
        ids.append(bench.add([1] * 16))
        bench.drain()
    assert [bench.cached[i] for i in ids] == [0, 0]


def test_a_prompt_is_shared_as_soon_as_it_is_computed() -> None:
    bench = Bench()
    bench.add([1] * 16, max_tokens=50)
    bench.step()
    late = bench.add([1] * 16, max_tokens=2)
    bench.step()
    assert bench.cached[late] == 12
    bench.drain()
