"""Core's contracts of listeners, routes and commands, and of the package."""

from __future__ import annotations

from core.testing.contracts.commands import CommandsContract
from core.testing.contracts.distribution import DistributionContract
from core.testing.contracts.hooks import HooksContract
from core.testing.contracts.routes import Example, RoutesContract


class TestRequestLog(HooksContract):
    name = "request_log"


class TestTitles(RoutesContract):
    name = "titles"
    examples = (Example("POST", "/titles", {"text": "Once upon a time."}, generates=True),)


class TestCommand(CommandsContract):
    name = "request-log"


class TestPackage(DistributionContract):
    package = "example_hooks"
