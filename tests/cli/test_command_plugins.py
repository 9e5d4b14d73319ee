"""Commands of plugins: shown without import, apart where names clash, with a clear word where they are broken."""

from __future__ import annotations

from pathlib import Path

from test_command_line import install, process

APP = (
    "import typer\nprint('IMPORTED')\nthing = typer.Typer()\n"
    "@thing.command()\ndef leave(code: int):\n    raise typer.Exit(code)\n"
    "@thing.command()\ndef hello(name: str = 'you'):\n    print('hello', name)\n"
)


def add(site: Path, dist: str, name: str, code: str = APP) -> None:
    install(site, dist, "core.commands", "commands", name, code)


def test_exit_codes_are_those_of_the_command(tmp_path: Path) -> None:
    add(tmp_path, "plugin-greet", "greet")
    env = {"PYTHONPATH": str(tmp_path)}
    assert process("greet", "leave", "7", **env).returncode == 7
    assert process("greet", "hello", **env).returncode == 0
    assert process("greet", "hello", "--nme", "x", **env).returncode == 2
    code = "import core.cli.main as m; print('code', m.main(['greet', 'leave', '7']))"
    assert process(code=code, **env).stdout.splitlines()[-1] == "code 7"


def test_one_that_is_turned_off(tmp_path: Path) -> None:
    add(tmp_path, "plugin-greet", "greet")
    env = {"PYTHONPATH": str(tmp_path), "CORE_DISABLE_PLUGINS": "plugin-greet"}
    assert "unavailable: disable_plugins names 'plugin-greet'" in " ".join(process("--help", **env).stdout.split())
    used = process("greet", "hello", **env)
    assert used.returncode == 2
    assert "IMPORTED" not in used.stdout
    assert "disable_plugins" in used.stderr


def test_two_of_one_name_are_an_error_that_names_both_when_used(tmp_path: Path) -> None:
    add(tmp_path, "plugin-one", "greet")
    add(tmp_path, "plugin-two", "greet")
    env = {"PYTHONPATH": str(tmp_path)}
    shown = process("--help", **env)
    assert shown.returncode == 0
    text = " ".join(shown.stdout.split())
    assert "plugin-one:greet made for a test ('greet' is also claimed by plugin-two)" in text
    assert "plugin-two:greet made for a test ('greet' is also claimed by plugin-one)" in text
    used = process("greet", "hello", **env)
    assert used.returncode == 2
    assert "plugin-one 1.0 and plugin-two 1.0" in used.stderr
    assert "IMPORTED" not in shown.stdout + used.stdout
    assert process("plugin-two:greet", "hello", **env).stdout.splitlines()[-1] == "hello you"
    assert process("version", **env).returncode == 0, "the others are not in the way"


def test_a_name_of_core_stays_core_and_the_other_is_shown_in_full(tmp_path: Path) -> None:
    add(tmp_path, "plugin-mine", "serve")
    env = {"PYTHONPATH": str(tmp_path)}
    shown = process("--help", **env)
    text = " ".join(shown.stdout.split())
    assert "plugin-mine:serve made for a test ('serve' is also claimed by core)" in text
    assert "IMPORTED" not in shown.stdout
    assert "OpenAI routes" in process("serve", "--help", **env).stdout
    assert process("plugin-mine:serve", "hello", **env).stdout.splitlines()[-1] == "hello you"


def test_what_is_no_application_is_told_with_its_distribution(tmp_path: Path) -> None:
    add(tmp_path, "plugin-odd", "odd", "def thing(**kwargs): pass")
    failed = process("odd", PYTHONPATH=str(tmp_path))
    assert failed.returncode == 2
    assert "distribution plugin-odd 1.0) cannot be used: plugin_odd:thing is a function" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_an_import_that_fails_is_told_with_its_distribution(tmp_path: Path) -> None:
    add(tmp_path, "plugin-odd", "odd", "import not_there_at_all")
    env = {"PYTHONPATH": str(tmp_path)}
    failed = process("odd", "--help", **env)
    assert failed.returncode == 2
    assert "distribution plugin-odd 1.0) cannot be used" in failed.stderr
    assert "No module named 'not_there_at_all'" in failed.stderr
    assert "odd" in process("--help", **env).stdout


def test_one_for_another_core_is_shown_as_unavailable(tmp_path: Path) -> None:
    add(tmp_path, "plugin-new", "newer")
    manifest = tmp_path / "plugin_new" / "core_plugin.toml"
    manifest.write_text(manifest.read_text().replace("[1, 1]", "[9, 9]"))
    env = {"PYTHONPATH": str(tmp_path)}
    assert "unavailable: it is built for version 9" in " ".join(process("--help", **env).stdout.split())
    failed = process("newer", "hello", **env)
    assert failed.returncode == 2
    assert "it needs a newer core" in failed.stderr
    assert "IMPORTED" not in failed.stdout
