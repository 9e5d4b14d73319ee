"""The suite of command plugins, on applications made here."""

from __future__ import annotations

from typing import Any

import pytest
import typer

from core.registry import Catalog, PluginRecord
from core.testing.contracts.commands import CommandsContract


def application(*, helpful: bool = True) -> typer.Typer:
    app = typer.Typer(help="Tools of the test.")

    @app.callback()
    def main() -> None:
        """Tools of the test."""

    @app.command(help="Print a word." if helpful else None)
    def word(text: str) -> None:
        typer.echo(text)

    return app


class TestApplication(CommandsContract):
    name = "tools"
    implementation = application()


def suite(found: Any, called: str = "tools", target: str = "") -> CommandsContract:
    class Suite(CommandsContract):
        name = called

        @classmethod
        def catalog(cls) -> Catalog:
            return Catalog.from_records([PluginRecord("commands", called, "a", target=target, loaded=found)])

    return Suite()


def test_no_application() -> None:
    with pytest.raises(AssertionError, match="not a typer"):
        suite(print).test_is_a_typer_application()


def test_name_of_core_s_own_command() -> None:
    with pytest.raises(AssertionError):
        suite(application(), called="serve").test_name_is_not_core_s()


def test_command_without_help() -> None:
    with pytest.raises(AssertionError, match="no help"):
        suite(application(helpful=False)).test_help_of_every_command()


def test_heavy_import() -> None:
    with pytest.raises(AssertionError, match="imports torch"):
        suite(application(), target="core.testing.mock_model:app").test_import_is_light()


def test_application_that_swallows_mistakes() -> None:
    app = typer.Typer()

    @app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
    def anything() -> None:
        """Takes anything."""

    with pytest.raises(AssertionError, match="leaves with 0"):
        suite(app).test_wrong_use_is_an_error_for_people()
