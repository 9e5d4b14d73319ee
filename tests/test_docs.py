"""The documentation keeps up with the code."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from core.cli.commands import COMMANDS
from core.config.fields import by_name
from core.interfaces.kinds import KINDS
from core.registry.manifest import read_manifest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md")])


@pytest.mark.parametrize("script", ["configuration-page", "parameters-page"])
def test_pages_are_generated_from_the_code(script: str) -> None:
    done = subprocess.run([sys.executable, str(ROOT / "scripts" / script), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_commands_and_flags_exist(page: Path) -> None:
    commands = {spec.name for spec in COMMANDS}
    for line in re.findall(r"^(?:    |.*`)(core [a-z][^`\n#]*)", page.read_text(), flags=re.MULTILINE):
        words = line.split()
        if words[1] == "plugin-llama" or not words[1].isidentifier():
            continue
        assert words[1] in commands, line
        if words[1] in ("serve", "config"):
            for flag in (word for word in words if word.startswith("--")):
                name = flag[2:].split("=")[0].replace("-", "_")
                assert name in by_name() or name in ("help", "config", "set", "json"), line


def test_modules_that_pages_name_exist() -> None:
    for page in PAGES:
        for path in re.findall(r"`(core/[a-z_/]+\.py)`", page.read_text()):
            assert (ROOT / path).exists(), f"{page.name}: {path}"


def test_manifests_in_pages_are_manifests(tmp_path: Path) -> None:
    found = 0
    for page in PAGES:
        for block in re.findall(r"```toml\n(# core_plugin\.toml\n.*?)```", page.read_text(), flags=re.DOTALL):
            (tmp_path / "core_plugin.toml").write_text(block)
            assert read_manifest(tmp_path / "core_plugin.toml").plugin
            found += 1
    assert found


def test_the_pages_of_plugins_show_what_is_generated() -> None:
    """Tables of methods and capabilities, and the examples: rendered templates, which have tests of their own."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "plugin-pages"), "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_pages_of_plugins_say_the_same_things_in_the_same_order() -> None:
    headings = [
        "When core calls what", "Interface", "Manifest", "Selection and settings", "Contract suite", "Example",
    ]  # fmt: skip
    for kind in KINDS:
        page = (ROOT / "docs" / "plugins" / f"{kind}.md").read_text()
        found = [line[3:] for line in page.splitlines() if line.startswith("## ")]
        assert [heading for heading in found if heading in headings] == headings, kind
        suite = page.split("## Contract suite")[1]
        module, _, name = re.search(r"`(core\.testing\.contracts\.\w+\.\w+)`", suite)[1].rpartition(".")  # type: ignore[index]
        path = ROOT / (module.replace(".", "/") + ".py")
        assert f"class {name}(" in path.read_text(), f"{kind}: {module}.{name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_python_blocks_with_an_engine_in_process_run(page: Path) -> None:
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL):
        if "LLM(" not in block:
            continue
        done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip()
