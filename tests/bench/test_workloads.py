from __future__ import annotations

import pytest

from core.bench.workloads import WORKLOADS, chosen


def test_prompts_differ_in_every_draw_but_for_the_common_prefix() -> None:
    work = WORKLOADS["W4"].smaller(32)
    first, again, other = work.prompts(500, 1), work.prompts(500, 1), work.prompts(500, 2)
    assert first == again
    assert len(first) == work.num_requests == 4
    assert {len(prompt) for prompt in first} == {work.prompt_len} == {128 + 4}
    prefixes = {tuple(prompt[:128]) for prompt in first + other}
    assert len(prefixes) == 1
    assert len({tuple(prompt[128:]) for prompt in first + other}) == 8
    assert {token for prompt in first for token in prompt} <= set(range(3, 500))


def test_workloads_are_those_of_the_documentation() -> None:
    assert {name: work.summary for name, work in WORKLOADS.items()} == {
        "W0": "1 x 128 in, 1 out",
        "W1": "1 x 128 in, 256 out",
        "W2": "256 x 1024 in, 256 out",
        "W3": "16 x 8192 in, 1 out",
        "W4": "128 x 4096 shared + 128 in, 64 out",
        "W5": "64 x 128 in, 512 out",
        "W5-t1": "64 x 128 in, 512 out, temperature 1",
    }


def test_choosing() -> None:
    assert [work.name for work in chosen(["W3", "W1"])] == ["W1", "W3"]
    assert [work.name for work in chosen(["all"])] == list(WORKLOADS)
    with pytest.raises(KeyError, match="W9"):
        chosen(["W9"])


@pytest.mark.parametrize("divisor", [2, 64, 10**6])
def test_smaller_ones_keep_their_kind(divisor: int) -> None:
    for work in WORKLOADS.values():
        small = work.smaller(divisor)
        assert (small.num_requests == 1) == (work.num_requests == 1)
        assert (small.output_len == 1) == (work.output_len == 1)
        assert (small.prefix_len == 0) == (work.prefix_len == 0)
        assert small.input_len >= 2


def test_rates_count_what_the_figure_says() -> None:
    assert WORKLOADS["W2"].rate(2.0) == 256 * 256 / 2
    assert WORKLOADS["W3"].rate(4.0) == 16 * 8192 / 4
