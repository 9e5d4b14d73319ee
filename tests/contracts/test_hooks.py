"""The suite of hook plugins: a good one passes, and each mistake is caught by the test that is there for it."""

from __future__ import annotations

from typing import Any

import prometheus_client
import pytest

from core.interfaces.hooks import HookPlugin, hookimpl
from core.testing.contracts.hooks import HooksContract


class Good(HookPlugin):
    """Listens to everything, with some of the arguments."""

    def __init__(self, ctx: Any) -> None:
        super().__init__(ctx)
        self.running: set[int] = set()
        self.tokens: Any = None

    @hookimpl
    def core_configure(self, process: str) -> None:
        assert process in ("server", "engine")

    @hookimpl
    def core_weights_loaded(self, report: Any) -> None:
        assert report.num_bytes >= 0

    @hookimpl
    def core_engine_started(self, info: Any) -> None:
        assert info.effective["device"]

    @hookimpl
    def core_engine_stopping(self) -> None: ...

    @hookimpl
    def core_request_admitted(self, request: Any) -> None:
        self.running.add(request.id)

    @hookimpl
    def core_request_finished(self, request: Any) -> None:
        self.running.discard(request.id)
        if self.tokens is not None:
            self.tokens.inc(request.num_output_tokens)

    @hookimpl
    def core_steps_done(self, steps: Any) -> None:
        assert all(step.num_tokens >= step.num_seqs for step in steps)

    @hookimpl
    def core_metrics(self, registry: Any) -> None:
        self.tokens = prometheus_client.Counter("good_tokens", "Tokens.", registry=registry)


class OneHook(HookPlugin):
    @hookimpl
    def core_engine_started(self) -> None: ...


class TestGood(HooksContract):
    implementation = Good


class TestOneHook(HooksContract):
    implementation = OneHook


class Unmarked(Good):
    def core_engine_started(self, info: Any) -> None: ...


class Misspelt(Good):
    @hookimpl
    def core_engine_start(self, info: Any) -> None: ...


class Deaf(HookPlugin):
    pass


class NeverAdmitted(Good):
    @hookimpl
    def core_request_finished(self, request: Any) -> None:
        self.running.remove(request.id)


class Writes(Good):
    @hookimpl
    def core_configure(self, settings: Any) -> None:
        settings["server"]["port"] = 1


class Returns(Good):
    @hookimpl
    def core_steps_done(self, steps: Any) -> Any:
        return len(steps)


class NoContext(Good):
    def __init__(self) -> None:
        super().__init__(None)


class OnlyOnce(Good):
    made: list[Any] = []  # noqa: RUF012 - the mistake

    def __init__(self, ctx: Any) -> None:
        super().__init__(ctx)
        if self.made:
            raise RuntimeError("there is one already")
        self.made.append(self)


class Global(Good):
    @hookimpl
    def core_metrics(self, registry: Any) -> None:
        self.tokens = prometheus_client.Counter("global_tokens", "Tokens.")


class Both(Good):
    @hookimpl
    def core_metrics(self, registry: Any) -> None:
        prometheus_client.Counter("both_here", "Tokens.", registry=registry)
        prometheus_client.Counter("both_global", "Tokens.")


class CoreNames(Good):
    @hookimpl
    def core_metrics(self, registry: Any) -> None:
        prometheus_client.Counter("core_tokens", "Tokens.", registry=registry)


class FailsInARun(Good):
    """Only a real run has requests of this size."""

    @hookimpl
    def core_request_admitted(self, request: Any) -> None:
        if request.num_prompt_tokens == len("Once upon a time") + 1:
            raise RuntimeError("no")


MUTANTS = [
    (Unmarked, "test_implementations_match_the_hooks"),
    (Misspelt, "test_implementations_match_the_hooks"),
    (Deaf, "test_listens_to_something"),
    (NeverAdmitted, "test_every_hook_takes_what_it_is_told"),
    (NeverAdmitted, "test_listens_to_a_run"),
    (Writes, "test_every_hook_takes_what_it_is_told"),
    (Returns, "test_every_hook_takes_what_it_is_told"),
    (NoContext, "test_implementations_match_the_hooks"),
    (OnlyOnce, "test_is_constructed_in_each_process"),
    (Global, "test_metrics"),
    (Both, "test_metrics"),
    (CoreNames, "test_metrics"),
    (FailsInARun, "test_listens_to_a_run"),
]


@pytest.mark.parametrize(("mutant", "test"), MUTANTS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_mutants_are_caught(mutant: type, test: str, caplog: pytest.LogCaptureFixture) -> None:
    suite = type("Suite", (HooksContract,), {"implementation": mutant})()
    arguments = (caplog,) if test == "test_listens_to_a_run" else ()
    before = set(prometheus_client.REGISTRY._collector_to_names)
    try:
        getattr(suite, test)(*arguments)
    except pytest.skip.Exception:
        caught = False
    except BaseException:
        caught = True
    else:
        caught = False
    finally:
        for collector in set(prometheus_client.REGISTRY._collector_to_names) - before:
            prometheus_client.REGISTRY.unregister(collector)
    assert caught, f"{test} does not notice what is wrong with {mutant.__name__}"
