"""Every workload on a tiny shape, as a user starts them; and what is said when one does not work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from core.bench.first_token import cold_environment, start_once
from core.bench.session import WorkloadSession
from core.bench.workloads import WORKLOADS, chosen
from core.cli.bench import command as bench
from core.config.loading import load_settings
from core.interfaces.errors import EngineError

TINY = Path(__file__).parents[2] / "bench" / "shapes" / "tiny"
FLAGS = ["--model", str(TINY), "--load-format", "dummy", "--context-length", "512", "--device", "cpu"]
WORK = [name for name in WORKLOADS if name != "W0"]


def run(*words: str) -> Any:
    return CliRunner().invoke(bench, list(words), catch_exceptions=False, standalone_mode=False)


def test_every_workload_runs(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    done = run("workload", *WORK, *FLAGS, "--divide", "64", "--repeat", "2", "--kernels", "3", "--out", str(out))
    assert done.return_value == 0, done.output
    found = json.loads(out.read_text())
    assert list(found["workloads"]) == WORK
    assert found["failed"] == {}
    assert found["divisor"] == 64
    assert {"core", "torch"} <= set(found["versions"])
    assert found["settings"]["architecture"] == "Qwen3MoeForCausalLM"
    assert found["when"]
    for name, item in found["workloads"].items():
        assert len(item["runs"]) == 2
        assert min(item["runs"]) <= item["figure"] <= max(item["runs"])
        assert item["limit"] > 0
        assert item["share"] > 0
        work, steps = WORKLOADS[name].smaller(64), item["steps"]
        # Decodes of all requests go together; prompts take one step or a few.
        assert 2 * work.output_len <= steps["steps"] <= 2 * (work.output_len + work.num_requests)
        assert 0 < steps["schedule_ms"] < steps["step_ms"]
        assert steps["device_ms"] > 0
        assert found["profiles"][name]["busy_ms"] > 0
        assert f"{name} " in done.output
    assert found["workloads"]["W1"]["ttft_ms"] > 0
    assert found["counts"]["weight_bits"] == 32
    assert found["ceilings"]["copy_bytes_per_s"] > 0


def test_the_prefix_is_warm_when_it_is_timed() -> None:
    """Without a cache the same work computes the whole prompts: more tokens a step."""
    settings = load_settings(
        {"model": str(TINY), "load_format": "dummy", "context_length": 512, "device": "cpu"}, {}, origin="argument"
    ).settings
    from core.bench.offline import OfflineBench
    from core.bench.workload_run import WorkloadBench

    work = WORKLOADS["W4"].smaller(32)
    with OfflineBench(settings) as made:
        ready = WorkloadBench(made)
        ready.run(work, repeat=1)
        records, _ = ready._once(work, 5, 2)
    # Whole pages of the prefix, which is 128 tokens.
    assert all(record.cached_tokens >= 112 for record in records)


def test_json_alone_goes_to_standard_output(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        bench, ["workload", "W1", *FLAGS, "--divide", "64", "--repeat", "1", "--json"], catch_exceptions=False
    )
    assert list(json.loads(done.stdout)["workloads"]) == ["W1"]
    assert "ms/token" in done.stderr


def test_a_workload_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    flags = [*FLAGS[:4], "--device", "cpu", "--context-length", "64"]
    done = run("workload", "W1", "W3", *flags, "--divide", "64", "--repeat", "1", "--out", str(out))
    assert done.return_value == 1
    found = json.loads(out.read_text())
    assert list(found["workloads"]) == ["W1"]
    assert "W3: a request failed" in found["failed"]["W3"]
    assert "failed" in done.output


def test_repetitions_end_with_their_time() -> None:
    done = run("workload", "W5", *FLAGS, "--divide", "64", "--repeat", "50", "--limit-s", "0.001", "--json")
    assert len(json.loads(done.stdout)["workloads"]["W5"]["runs"]) == 1


def test_a_start_is_timed_from_outside() -> None:
    done = run("workload", "W0", *FLAGS, "--disable-plugins", "cpu_native", "--divide", "8", "--json")
    assert done.return_value == 0, done.output
    found = json.loads(done.stdout)
    assert set(found["starts"]) == {"cold", "warm"}
    for start in found["starts"].values():
        assert sum(start["phases"].values()) < start["ready_s"] <= start["first_token_s"]
    assert found["ceilings"] is None


def test_cold_caches_are_in_a_home_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KERNELS_CACHE_DIR", "/somewhere/warm")
    monkeypatch.setenv("KEPT", "yes")
    environment = cold_environment(tmp_path)
    assert "SOME_KERNELS_CACHE_DIR" not in environment
    assert environment["KEPT"] == "yes"
    assert environment["HOME"] == str(tmp_path)
    assert Path(environment["TMPDIR"]).parent == tmp_path


def test_a_start_that_fails_says_why(tmp_path: Path) -> None:
    settings = load_settings({"model": str(tmp_path / "nowhere")}, {}, origin="argument").settings
    with pytest.raises(EngineError, match="did not start") as caught:
        start_once(settings, WORKLOADS["W0"].smaller(8), cold_environment(tmp_path))
    assert "nowhere" in caught.value.message


def test_w0_that_fails_is_kept_as_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings({"model": str(TINY), "load_format": "dummy"}, {}, origin="argument").settings
    told: list[str] = []
    session = WorkloadSession(settings, divisor=8, tell=told.append)

    def refuse(*args: object) -> None:
        raise EngineError("no process today")

    monkeypatch.setattr("core.bench.session.measure_starts", refuse)
    session.run(chosen(["W0"], 8), repeat=1, limit_s=None, kernels=0)
    assert "no process today" in session.failed["W0"]
    assert "failed" in told[0]
