"""CommandsContract: extra sub-commands of `core`.

class TestMine(CommandsContract):
    name = "mine"
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from core.cli.commands import COMMANDS
from core.testing.contracts.base import Contract

_IMPORT = """
import importlib, sys
importlib.import_module(sys.argv[1])
print(",".join(name for name in ("torch", "transformers") if name in sys.modules))
"""


class CommandsContract(Contract):
    """A typer application that is light to import, explains itself and hides none of core's commands."""

    kind = "commands"

    def test_is_a_typer_application(self) -> None:
        import typer

        app = self.plugin()
        assert isinstance(app, typer.Typer), f"{self.record().target} is a {type(app).__name__}, not a typer.Typer"

    def test_name_is_not_core_s(self) -> None:
        """A plugin cannot replace a command of core: its own would only answer to the long name."""
        assert self.record().name not in {spec.name for spec in COMMANDS}
        others = self.catalog().clashes(self.record())
        assert not others, f"the command is also brought by {', '.join(other.distribution for other in others)}"

    def test_help_of_every_command(self) -> None:
        """--help of the application and of each command below it, with a line of text and without side effects."""
        import typer.main

        def check(command: Any, words: list[str]) -> None:
            done = _invoke(self.plugin(), [*words, "--help"])
            where = " ".join([f"core {self.record().name}", *words, "--help"])
            assert done.exit_code == 0, f"{where} left with {done.exit_code}:\n{done.output}"
            assert "usage" in done.output.lower(), f"{where} shows no usage:\n{done.output}"
            for name, child in getattr(command, "commands", {}).items():
                assert (child.help or child.short_help or "").strip(), (
                    f"{where.removesuffix(' --help')} {name}: no help"
                )
                check(child, [*words, name])

        check(typer.main.get_command(self.plugin()), [])

    def test_wrong_use_is_an_error_for_people(self) -> None:
        done = _invoke(self.plugin(), ["--no-such-option-as-this"])
        assert done.exit_code == 2, f"an unknown option leaves with {done.exit_code}"
        assert done.exception is None or isinstance(done.exception, SystemExit), f"it raised {done.exception!r}"

    def test_core_hands_over_to_it(self, capsys: pytest.CaptureFixture[str]) -> None:
        from core.cli.main import main

        if self.implementation is not None:
            pytest.skip("not installed: only `implementation` is given")
        try:
            code = main([self.record().name, "--help"])
        except SystemExit as left:  # typer's standalone mode
            code = int(left.code or 0)
        assert code == 0
        assert "usage" in capsys.readouterr().out.lower()

    def test_import_is_light(self) -> None:
        """Every `core NAME` waits for this import: what is heavy belongs inside the commands."""
        if self.implementation is not None:
            pytest.skip("not installed: only `implementation` is given")
        module = self.record().target.partition(":")[0]
        done = subprocess.run([sys.executable, "-c", _IMPORT, module], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"importing {module} failed:\n{done.stderr}"
        assert not done.stdout.strip(), f"importing {module} imports {done.stdout.strip()}"


def _invoke(app: Any, words: list[str]) -> Any:
    from typer.testing import CliRunner

    return CliRunner().invoke(app, words)
