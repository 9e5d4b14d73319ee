"""HooksContract: the suite of hook plugins.

    class TestMine(HooksContract):
        name = "mine"

It calls every hook that the plugin implements with made-up values, then lets it listen to a real engine behind a real
server, next to a listener of its own. How long a hook takes is not measured here; keep in mind that the engine waits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import prometheus_client
import pytest

from core.config.sections import Settings
from core.engine.client import EngineRequest
from core.hooks import HookManager, public_settings
from core.interfaces.context import PluginContext
from core.interfaces.errors import RequestError
from core.interfaces.hooks import (
    HOOK_NAMES,
    EngineStarted,
    HookPlugin,
    RequestAdmitted,
    RequestFinished,
    StepDone,
    WeightsLoaded,
    hookimpl,
)
from core.interfaces.params import SamplingParams
from core.registry.records import PluginRecord
from core.registry.select_listeners import listener_problem
from core.testing.contracts.base import Contract
from core.testing.server import MemoryServer, memory_server, plugin


class Witness(HookPlugin):
    """Listens beside the plugin under test."""

    def __init__(self, ctx: PluginContext) -> None:
        super().__init__(ctx)
        self.admitted: list[int] = []
        self.finished: list[int] = []
        self.stopped: list[str] = []

    @hookimpl
    def core_request_admitted(self, request: RequestAdmitted) -> None:
        self.admitted.append(request.id)

    @hookimpl
    def core_request_finished(self, request: RequestFinished) -> None:
        self.finished.append(request.id)

    @hookimpl
    def core_engine_stopping(self, reason: str) -> None:
        self.stopped.append(reason)


class HooksContract(Contract):
    """See the module. Nothing but `name` (and `settings`, if the plugin needs any) has to be given."""

    kind = "hooks"

    def made_up(self) -> Mapping[str, tuple[Mapping[str, Any], ...]]:
        """Hook -> the arguments of some calls, unusual ones among them. Override it to add cases."""
        step = StepDone(7, 3, 2, 130, 0.001, 0.02)
        settings = public_settings(Settings())
        effective = MappingProxyType({"device": "mock", "hooks": "mine"})
        return {
            "core_configure": (
                {"settings": settings, "process": "server"},
                {"settings": settings, "process": "engine"},
            ),
            "core_weights_loaded": (
                {"report": WeightsLoaded("MadeUpForCausalLM", 291, 1 << 34, 12.5, (("lm_head.bias", "unused"),))},
                {"report": WeightsLoaded("MadeUpForCausalLM", 0, 0, 0.0)},
            ),
            "core_engine_started": ({"info": EngineStarted("MadeUpForCausalLM", effective, 1000, 16, 3.5)},),
            "core_request_admitted": (
                {"request": RequestAdmitted(1, 100, 96, 0, 0.01)},
                {"request": RequestAdmitted(2, 1, 0, -(2**31), 0.0)},
            ),
            "core_request_finished": (
                {"request": RequestFinished(1, "stop", 100, 20)},
                {"request": RequestFinished(2, "length", 1, 1)},
                {"request": RequestFinished(3, "abort", 5, 0)},  # never admitted
                {"request": RequestFinished(4, "error", 5, 3, "the logits are not finite")},
            ),
            "core_steps_done": (
                {"steps": (step,)},
                {"steps": tuple(replace(step, step=number, failed=number % 2 == 0) for number in range(8, 500))},
            ),
            "core_engine_stopping": ({"reason": "shutdown"},),
        }

    # The plugin by itself

    def test_implementations_match_the_hooks(self) -> None:
        """Names, arguments, marks: what core refuses at start."""
        record, target = self.record(), self.plugin()
        problem = listener_problem(target) or listener_problem(self._made(target))
        assert not problem, f"{record.title}: {problem}"

    def test_listens_to_something(self) -> None:
        heard = self._heard(self._manager())
        assert heard, f"{self.record().title} implements none of {', '.join(HOOK_NAMES)}"

    def test_is_constructed_in_each_process(self) -> None:
        """Server and engine have one each; a test or an embedder may have several in one process."""
        target = self.plugin()
        assert self._made(target) is not self._made(target)

    def test_every_hook_takes_what_it_is_told(self) -> None:
        """Raises nothing, returns nothing."""
        made = self._made(self.plugin())
        for hook, calls in self.made_up().items():
            for values in calls:
                for implementation in _implementations(made, hook):
                    given = [values[name] for name in implementation.argnames]
                    returned = implementation.function(*given)
                    assert returned is None, f"{hook} returned {returned!r}; hooks return nothing"

    def test_metrics(self) -> None:
        """Registered where core says, under names of the plugin's own, and readable."""
        manager = self._manager()
        self.require(manager.has("core_metrics"), "core_metrics")
        before = _names(prometheus_client.REGISTRY)
        text = manager.metrics().render().decode()
        assert manager.has("core_metrics"), "core_metrics raised"
        assert text, "core_metrics registered nothing with the registry that it was given"
        extra = _names(prometheus_client.REGISTRY) - before
        assert not extra, f"core_metrics registered {sorted(extra)} with prometheus' global registry; use the one given"

    # With an engine

    def test_listens_to_a_run(self, caplog: pytest.LogCaptureFixture) -> None:
        """Whatever requests do: the plugin does not fail, and those beside it hear everything."""
        with self._server() as server:
            before = self._heard(server.hooks)
            witness = _instance(server.hooks, Witness)
            self._run(server)
            metrics = server.client.get("/metrics")
            assert metrics.status_code == 200
            assert metrics.text.count("# HELP core_engine_ready ") == 1
        assert self._heard(server.hooks) == before, f"a hook raised and was switched off: {caplog.text}"
        assert witness.stopped == ["shutdown"]
        assert len(witness.finished) == len(set(witness.finished))
        assert set(witness.admitted) <= set(witness.finished)
        assert len(witness.finished) == len(witness.admitted) + 1 == 5

    def _run(self, server: MemoryServer) -> None:
        """Requests that end in different ways."""
        body = {"prompt": "Once upon a time", "max_tokens": 8, "ignore_eos": True}
        assert server.client.post("/v1/completions", json=body).status_code == 200
        assert server.client.post("/v1/completions", json=body | {"n": 2, "stop": "a"}).status_code == 200
        with server.client.stream("POST", "/v1/completions", json=body | {"max_tokens": 1500, "stream": True}) as reply:
            next(reply.iter_bytes())

        async def refused() -> None:
            """Only the engine sees what is wrong: it finishes without having been admitted."""
            empty = EngineRequest(np.empty(0, np.int32), SamplingParams(max_tokens=1))
            with contextlib.suppress(RequestError):
                async for _ in server.engine.generate(empty):
                    pass

        server.run(refused)

    # Helpers

    def _made(self, target: Any) -> Any:
        return target(self.context())

    def _manager(self) -> HookManager:
        return HookManager([(self.record(), self._made(self.plugin()))])

    def _heard(self, manager: HookManager) -> list[str]:
        """Hooks that the plugin under test listens to."""
        own = self.record().full_name
        return [hook for hook in HOOK_NAMES if any(record.full_name == own for record in manager.listeners(hook))]

    def _server(self) -> MemoryServer:
        record: PluginRecord = replace(self.record(), loaded=self.plugin())
        witness = plugin("hooks", "witness", Witness, distribution="core-contract")
        return memory_server(
            plugins=[record, witness],
            hooks=[record.full_name, "core-contract:witness"],
            plugin_settings={record.full_name: dict(self.settings)} if self.settings else {},
        )


def _implementations(made: Any, hook: str) -> list[Any]:
    import pluggy

    from core.interfaces.hooks import PROJECT, HookSpecs

    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(HookSpecs)
    manager.register(made)
    return list(getattr(manager.hook, hook).get_hookimpls())


def _instance(manager: HookManager, kind: type[Witness]) -> Witness:
    return next(plugin for plugin in manager.plugins if isinstance(plugin, kind))


def _names(registry: prometheus_client.CollectorRegistry) -> set[str]:
    return {metric.name for metric in registry.collect()}
