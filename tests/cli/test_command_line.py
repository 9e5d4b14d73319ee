"""The command line: lazy, one message and an exit code for every mistake, options made from the settings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from core.cli import main as cli
from core.cli.commands import COMMANDS, CommandSpec
from core.cli.group import LazyGroup
from core.cli.options import settings_command
from core.config.fields import setting_fields
from core.config.loading import ResolvedSettings
from core.interfaces.errors import CoreError


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("CORE_"):
            monkeypatch.delenv(name)


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    code = cli.main(list(args))
    out = capsys.readouterr()
    return code, out.out, out.err


def process(*args: str, code: str | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """core in its own process; `code` instead runs Python."""
    command = [sys.executable, "-c", code] if code is not None else [sys.executable, "-m", "core.cli.main"]
    clean = {k: v for k, v in os.environ.items() if not k.startswith("CORE_")}
    return subprocess.run([*command, *args], capture_output=True, text=True, env={**clean, **env}, check=False)


def install(site: Path, name: str, group: str, kind: str, point: str, code: str) -> None:
    """A distribution `name` with one plugin, importable from `site`."""
    module = name.replace("-", "_")
    package = site / module
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(code)
    (package / "core_plugin.toml").write_text(
        f'schema = 1\n[[plugin]]\nkind = "{kind}"\nname = "{point}"\napi = [1, 1]\nsummary = "made for a test"\n'
    )
    info = site / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{point} = {module}:thing\n")


class TestHelp:
    def test_lists_every_command_without_importing_it(self) -> None:
        code = (
            "import sys, core.cli.main as m; m.main(['--help'])\n"
            "heavy = ('torch', 'pydantic', 'numpy', 'transformers', 'yaml', 'rich', 'fastapi')\n"
            "parts = ('plugin_',)\n"  # a plugin's command is installed here: its help line is in a manifest
            "print([n for n in sys.modules if n.split('.')[0] in heavy or n.startswith(parts)])"
        )
        done = process(code=code)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip().splitlines()[-1] == "[]"
        for spec in COMMANDS:
            assert f"  {spec.name} " in done.stdout

    def test_every_command_in_the_table_exists(self) -> None:
        group = cli.build()
        ctx = click.Context(group)
        for spec in COMMANDS:
            command = group.get_command(ctx, spec.name)
            assert isinstance(command, click.Command)
            assert command.name == spec.name

    def test_no_arguments_shows_help(self, capsys: pytest.CaptureFixture[str]) -> None:
        _, out, err = run(capsys)
        assert "Commands:" in out + err

    def test_serve_help_groups_every_setting_by_section(self, capsys: pytest.CaptureFixture[str]) -> None:
        code, out, _ = run(capsys, "serve", "--help")
        assert code == 0
        for field in setting_fields():
            for flag in (field.flag, *("--" + alias for alias in field.aliases)):
                assert flag in out
        headings = [line.split(":")[0] for line in out.splitlines() if line and line[0] != " " and ":" in line]
        assert headings == ["Usage", "Options", "Model", "Cache", "Scheduler", "Engine", "Server"]

    def test_version(self, capsys: pytest.CaptureFixture[str]) -> None:
        from core import __version__

        assert run(capsys, "--version")[1] == f"core {__version__}\n"
        report = json.loads(run(capsys, "version", "--json")[1])
        assert report["core"] == __version__
        assert report["torch"][0].isdigit()


class TestMistakes:
    @pytest.mark.parametrize(
        ("given", "suggested"),
        [
            ("--max-runing-requests", "--max-running-requests"),
            ("--max_num_seqs", "--max-num-seqs (same as --max-running-requests)"),
            ("--no-chat-pge", "--no-chat-page"),
        ],
    )
    def test_unknown_option_suggests_across_aliases(
        self, capsys: pytest.CaptureFixture[str], given: str, suggested: str
    ) -> None:
        code, _, err = run(capsys, "serve", given, "3")
        assert code == 2
        assert f"there is no option {given}" in err
        assert f"did you mean {suggested}?" in err

    def test_unknown_command(self, capsys: pytest.CaptureFixture[str]) -> None:
        code, _, err = run(capsys, "srve")
        assert (code, "did you mean 'serve'?" in err) == (2, True)
        code, _, err = run(capsys, "zzzzz")
        assert (code, "commands: serve" in err) == (2, True)

    def test_config_error_is_a_message_not_a_traceback(self, capsys: pytest.CaptureFixture[str]) -> None:
        code, out, err = run(capsys, "config", "show", "--page-size", "0")
        assert (code, out) == (2, "")
        assert "page_size is '0' (flag --page-size)" in err
        assert "hint:" in err
        assert "Traceback" not in err

    def test_debug_shows_the_traceback(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for args in (["--debug", "config", "show", "--port", "x"], ["config", "show", "--debug", "--port", "x"]):
            with pytest.raises(CoreError):
                cli.main(args)
        monkeypatch.setenv("CORE_DEBUG", "1")
        with pytest.raises(CoreError):
            cli.main(["config", "show", "--port", "x"])
        monkeypatch.setenv("CORE_DEBUG", "0")
        assert cli.main(["config", "show", "--port", "x"]) == 2

    def test_interrupt_is_quiet(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupted(*args: Any, **kwargs: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("core.config.loading.load_settings", interrupted)
        monkeypatch.setattr("core.cli.options.load_settings", interrupted)
        code, out, err = run(capsys, "config", "show")
        assert (code, out, err.strip()) == (130, "", "")

    def test_reader_that_goes_away(self) -> None:
        command = f"{sys.executable} -m core.cli.main config show | true"
        done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
        assert done.stderr == ""


class TestSettingsCommand:
    def call(self, *args: str, sections: tuple[str, ...] = ("cache", "server")) -> Any:
        got: list[Any] = []

        def callback(resolved: ResolvedSettings, **own: Any) -> int:
            got.append((resolved, own))
            return 7

        command = settings_command(
            "x", callback, help="h", sections=sections, params=[click.Option(["--own"], default="o")]
        )
        assert command.main(list(args), standalone_mode=False) == 7
        return got[0]

    def test_only_what_was_typed_counts_as_given(self) -> None:
        resolved, own = self.call("--block-size", "32", "--no-chat-page")
        assert own == {"own": "o"}
        assert resolved.settings.cache.page_size == 32
        assert resolved.settings.server.chat_page is False
        assert dict(resolved.sources) == {"cache.page_size": "flag --page-size", "server.chat_page": "flag --chat-page"}

    def test_boolean_aliases_and_lists(self) -> None:
        resolved, _ = self.call(
            "--no-enable-prefix-caching", "--cors-allow-origins", "a,b", "--cors-allow-origins", "c"
        )
        assert resolved.settings.cache.prefix_cache == "none"
        assert resolved.settings.server.cors_allow_origins == ("a", "b", "c")

    def test_config_file_environment_and_set(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "c.yaml"
        path.write_text("port: 1\npage_size: 4\n")
        monkeypatch.setenv("CORE_PAGE_SIZE", "8")
        resolved, _ = self.call("--config", str(path), "--set", "fast.splits=4", "--set", "fast.kind=a")
        assert resolved.settings.server.port == 1
        assert resolved.settings.cache.page_size == 8
        assert resolved.settings.plugins == {"fast": {"splits": 4, "kind": "a"}}

    def test_sections_limit_the_options(self) -> None:
        with pytest.raises(click.NoSuchOption):
            self.call("--page-size", "3", sections=("server",))

    def test_completion_of_choices(self) -> None:
        done = process(_CORE_COMPLETE="bash_complete", COMP_WORDS="core serve --dtype f", COMP_CWORD="3")
        assert done.stdout.split() == ["plain,float32", "plain,float16"]


class TestCompletion:
    def test_commands(self) -> None:
        done = process(_CORE_COMPLETE="bash_complete", COMP_WORDS="core p", COMP_CWORD="1")
        assert done.stdout.split() == ["plain,plugins"]

    def test_options_and_aliases(self) -> None:
        done = process(_CORE_COMPLETE="bash_complete", COMP_WORDS="core serve --max-num", COMP_CWORD="2")
        assert done.stdout.split() == ["plain,--max-num-seqs", "plain,--max-num-batched-tokens"]

    @pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
    def test_script(self, capsys: pytest.CaptureFixture[str], shell: str) -> None:
        code, out, _ = run(capsys, "completion", shell)
        assert code == 0
        assert "_CORE_COMPLETE" in out


class TestConfigShow:
    def test_value_and_who_decided(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CORE_PORT", "1234")
        code, out, _ = run(capsys, "config", "show", "--max-num-seqs", "9", "--api-key", "s3cret", "--json")
        assert code == 0
        shown = json.loads(out)
        assert shown["scheduler.max_running_requests"] == {"value": 9, "source": "flag --max-running-requests"}
        assert shown["server.port"] == {"value": 1234, "source": "environment CORE_PORT"}
        assert shown["model.dtype"] == {"value": "auto", "source": "default"}
        assert "s3cret" not in out
        assert len(shown) == len(setting_fields())

    def test_table(self, capsys: pytest.CaptureFixture[str]) -> None:
        _, out, _ = run(capsys, "config", "show", "--set", "fast.a=1", "--cors-allow-origins", "x")
        lines = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line}
        assert lines["cache.page_size"] == ["-", "default"]
        assert lines["plugins.fast.a"] == ["1", "-", "-", "flag", "--set"]
        assert lines["server.cors_allow_origins"][0] == "x"
        assert lines["server.chat_page"][0] == "true"


class TestPlugins:
    def test_broken_and_clashing_plugins_are_named(self, tmp_path: Path) -> None:
        install(tmp_path, "plugin-bad", "core.moe", "moe", "bad", "raise RuntimeError('no driver')")
        install(tmp_path, "plugin-odd", "core.moe", "moe", "bad", "")
        (tmp_path / "plugin_odd" / "core_plugin.toml").write_text("schema = ")
        listed = process("plugins", "list", "--kind", "moe", PYTHONPATH=str(tmp_path))
        assert listed.returncode == 0
        assert "not valid TOML" in listed.stdout
        assert "use it as plugin-bad:bad" in listed.stdout
        assert "no driver" not in listed.stdout  # nothing was imported
        checked = process("plugins", "list", "--kind", "moe", "--check", PYTHONPATH=str(tmp_path))
        assert checked.returncode == 1
        assert "RuntimeError: no driver" in checked.stdout
        assert "distribution plugin-bad 1.0" in checked.stdout

    def test_explain_without_a_model_says_the_way_out(self, tmp_path: Path) -> None:
        done = process("plugins", "explain", "--model", str(tmp_path))
        assert done.returncode == 2
        assert "no config.json" in done.stderr
        assert "Traceback" not in done.stderr


class TestPluginCommands:
    APP = (
        "import typer\nfrom core.interfaces.errors import ConfigError\nthing = typer.Typer()\n"
        "@thing.command()\ndef hello(name: str, fail: bool = False):\n"
        "    if fail: raise ConfigError('bad wish', hint='wish again')\n    print('hello', name)\n"
        "@thing.command()\ndef other(): pass\n"
    )

    def test_attached_lazily(self, tmp_path: Path) -> None:
        install(tmp_path, "plugin-greet", "core.commands", "commands", "greet", self.APP)
        env = {"PYTHONPATH": str(tmp_path)}
        shown = process("--help", **env)
        assert "greet" in shown.stdout
        assert "made for a test" in shown.stdout
        assert process("greet", "hello", "you", **env).stdout == "hello you\n"
        assert "hello" in process("greet", "--help", **env).stdout
        assert process("greet", "nothing", **env).returncode == 2
        failed = process("greet", "hello", "you", "--fail", **env)
        assert failed.returncode == 2
        assert "core: error: bad wish\n  hint: wish again" in failed.stderr
        lazy = process(
            code="import sys, core.cli.main as m; m.main(['--help']); print('plugin_greet' in sys.modules)", **env
        )
        assert lazy.stdout.splitlines()[-1] == "False"

    def test_broken_and_shadowing(self, tmp_path: Path) -> None:
        install(tmp_path, "plugin-greet", "core.commands", "commands", "greet", "1/0")
        install(tmp_path, "plugin-mine", "core.commands", "commands", "version", self.APP)
        env = {"PYTHONPATH": str(tmp_path)}
        assert process("--help", **env).returncode == 0
        failed = process("greet", **env)
        assert failed.returncode == 2
        assert "distribution plugin-greet 1.0" in failed.stderr
        assert process("version", **env).stdout.startswith("core ")
        assert process("plugin-mine:version", "hello", "me", **env).stdout == "hello me\n"


def test_a_table_with_a_missing_module_is_noticed() -> None:
    group = LazyGroup([CommandSpec("x", "core.cli.not_there:command", "s")], name="g")
    with pytest.raises(ModuleNotFoundError):
        group.get_command(click.Context(group), "x")
