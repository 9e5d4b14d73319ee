from __future__ import annotations

import queue
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as multiprocessing

from core.distributed.single import SingleProcess
from core.distributed.torch_group import TorchCommunicator
from core.interfaces.build import Communicator
from core.interfaces.errors import ConfigError, EngineError


def test_one_process_changes_nothing() -> None:
    group: Communicator = SingleProcess()
    x = torch.arange(6.0).view(2, 3)
    assert (group.rank, group.size) == (0, 1)
    assert torch.equal(group.all_reduce(x), torch.arange(6.0).view(2, 3))
    assert torch.equal(group.all_gather(x), x)


def test_an_unknown_backend_and_a_wrong_rank_are_settings_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'nosuch'"):
        TorchCommunicator.connect("nosuch", 0, 1, f"file://{tmp_path}/meet")
    with pytest.raises(ConfigError, match="rank 2"):
        TorchCommunicator.connect("gloo", 2, 2, f"file://{tmp_path}/meet")


def test_a_group_of_one_over_gloo(tmp_path: Path) -> None:
    group = TorchCommunicator.connect("gloo", 0, 1, f"file://{tmp_path}/meet")
    try:
        assert (group.rank, group.size) == (0, 1)
        assert torch.equal(group.all_reduce(torch.ones(3)), torch.ones(3))
        assert torch.equal(group.all_gather(torch.ones(2, 3)), torch.ones(2, 3))
        with pytest.raises(EngineError, match="could not join"):
            TorchCommunicator.connect("gloo", 0, 1, f"file://{tmp_path}/meet2")
    finally:
        group.close()
    group.close()


def _rank(rank: int, meet: str, results: Any) -> None:
    torch.set_num_threads(1)
    group = TorchCommunicator.connect("gloo", rank, 2, meet, timeout_s=60)
    answers: dict[str, Any] = {"rank": group.rank, "size": group.size}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        mine = torch.arange(6, dtype=dtype).view(2, 3) + 10 * rank
        answers[f"gather {dtype}"] = group.all_gather(mine).float().tolist()
        answers[f"gather rows {dtype}"] = group.all_gather(mine.T, dim=0).float().tolist()
        answers[f"sum {dtype}"] = group.all_reduce(mine.T).float().tolist()  # not contiguous
    group.close()
    results.put(answers)


@pytest.mark.slow
def test_two_processes_over_gloo(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [context.Process(target=_rank, args=(n, f"file://{tmp_path}/meet", results)) for n in range(2)]
    for worker in workers:
        worker.start()
    try:
        answers = sorted((results.get(timeout=90) for _ in workers), key=lambda answer: answer["rank"])
    except queue.Empty:
        pytest.fail(f"a rank gave no answer; exit codes {[worker.exitcode for worker in workers]}")
    finally:
        for worker in workers:
            worker.join(20)
            if worker.is_alive():
                worker.kill()
    assert [answer["rank"] for answer in answers] == [0, 1]
    for answer in answers:
        assert answer["size"] == 2
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            assert answer[f"gather {dtype}"] == [[0, 1, 2, 10, 11, 12], [3, 4, 5, 13, 14, 15]]
            assert answer[f"gather rows {dtype}"] == [[0, 3], [1, 4], [2, 5], [10, 13], [11, 14], [12, 15]]
            assert answer[f"sum {dtype}"] == [[10, 16], [12, 18], [14, 20]]
