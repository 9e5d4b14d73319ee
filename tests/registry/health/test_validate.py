"""`core plugins validate`: a good package passes, and each kind of mistake is found where it is."""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from core.cli import main as cli
from core.interfaces.errors import ConfigError
from core.interfaces.kinds import KINDS
from core.registry.health.findings import Finding, healthy
from core.registry.health.validate import SUITES, Report, validate_package

PYPROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "plugin-a"
version = "1.0"
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["core"]
[project.entry-points."core.moe"]
fast = "plugin_a.run:Runner"
"""
MANIFEST = """schema = 1
[[plugin]]
kind = "moe"
name = "fast"
api = [1, 1]
summary = "fast"
stability = "beta"
config = "plugin_a.options:Options"
[plugin.capabilities]
priority = 1
"""
RUN = "from core.interfaces.moe import MoeRunner\nclass Runner(MoeRunner):\n    def run(self, *a):\n        return a\n"
OPTIONS = "from pydantic import BaseModel\nclass Options(BaseModel):\n    splits: int = 1\n"
TEST = "from core.testing.contracts.moe import MoeContract\nclass TestFast(MoeContract):\n    name = 'fast'\n"
FILES = {
    "pyproject.toml": PYPROJECT,
    "README.md": "# A plugin",
    "src/plugin_a/__init__.py": "",
    "src/plugin_a/core_plugin.toml": MANIFEST,
    "src/plugin_a/run.py": RUN,
    "src/plugin_a/options.py": OPTIONS,
    "tests/test_fast.py": TEST,
}
Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """make(**changed): a good package as a source folder, with files replaced (None: left out)."""

    def write(changed: dict[str, str | None] | None = None) -> Path:
        folder = tmp_path / "plugin-a"
        for name, text in {**FILES, **(changed or {})}.items():
            if text is not None:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_text(text)
        return folder

    return write


@pytest.fixture
def unbuilt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.registry.health.package._cannot_build", lambda tool: "'build' is not installed")


def findings(path: Path, *, but: tuple[str, ...] = ("build",)) -> list[Finding]:
    report = validate_package(path, timeout_s=30)
    for finding in report.findings:
        assert finding.what
        assert finding.why
        assert finding.fix or finding.severity == "info"
    return [finding for finding in report.findings if finding.check not in but]


def only(path: Path) -> Finding:
    (finding,) = findings(path)
    return finding


class TestBuilt:
    def test_good_package_is_built_from_a_copy(self, make: Make) -> None:
        folder = make()
        before = sorted(folder.rglob("*"))
        assert validate_package(folder) == Report("plugin-a", "1.0", True, 1, [])
        assert sorted(folder.rglob("*")) == before
        assert not any(name.startswith("plugin_a") for name in sys.modules)

    def test_manifest_that_the_build_leaves_out(self, make: Make) -> None:
        left_out = '[tool.hatch.build]\nexclude = ["*.toml"]\n'
        reason, missing = findings(make({"pyproject.toml": PYPROJECT + left_out}))
        assert missing.what == "plugin_a/core_plugin.toml is not in the wheel"
        assert "core_plugin.toml is missing" in reason.why

    def test_build_that_fails(self, make: Make) -> None:
        bad = PYPROJECT.replace('version = "1.0"', 'version = "one"')
        report = validate_package(make({"pyproject.toml": bad}))
        build = next(f for f in report.findings if f.check == "build")
        assert (report.built, build.severity) == (False, "error")
        assert "one" in build.why


def test_wheel(tmp_path: Path) -> None:
    wheel = tmp_path / "plugin_a-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in FILES.items():
            if name.startswith("src/"):
                archive.writestr(name.removeprefix("src/"), text)
        info = (
            "Metadata-Version: 2.1\nName: plugin-a\nVersion: 1.0\nRequires-Python: >=3.11\nRequires-Dist: core\n\n# A"
        )
        archive.writestr("plugin_a-1.0.dist-info/METADATA", info + "\n# A")
        archive.writestr("plugin_a-1.0.dist-info/entry_points.txt", "[core.moe]\nfast = plugin_a.run:Runner\n")
    assert validate_package(wheel) == Report("plugin-a", "1.0", True, 1, [])


@pytest.mark.usefixtures("unbuilt")
class TestMistakes:
    def test_nothing_is_wrong_but_that_it_was_not_built(self, make: Make) -> None:
        report = validate_package(make())
        assert not report.built
        (build,) = report.findings
        assert (build.severity, build.check) == ("warning", "build")
        assert "pip install build hatchling" in build.fix

    @pytest.mark.parametrize(
        ("old", "new", "check", "text"),
        [
            ('dependencies = ["core"]', "dependencies = []", "dependencies", "does not depend on core"),
            ('["core"]', '["core>=99"]', "dependencies", "it needs core>=99"),
            ('["core"]', '["core", "torch==2.9"]', "dependencies", "limits torch from above"),
            ('["core"]', '["core", "no requirement!"]', "dependencies", "no requirement!"),
            ('requires-python = ">=3.11"', "", "metadata", "which Python"),
            (">=3.11", "<3.0", "metadata", "excludes this Python"),
            ('readme = "README.md"', "", "readme", "no description"),
        ],
    )
    def test_metadata(self, make: Make, old: str, new: str, check: str, text: str) -> None:
        finding = only(make({"pyproject.toml": PYPROJECT.replace(old, new)}))
        assert finding.check == check
        assert finding.what.startswith("pyproject.toml: project.")
        assert text in finding.why

    @pytest.mark.parametrize(
        ("old", "new", "check", "text"),
        [
            ("[1, 1]", "[7, 8]", "api", "needs a newer core"),
            ('summary = "fast"', "", "manifest", "lists of plugins show nothing"),
            ('stability = "beta"', "", "manifest", "counts as stable"),
            ("priority = 1", 'priority = "high"', "manifest", "it must be a whole number"),
            ("priority = 1", "priorities = 1", "manifest", "did you mean 'priority'?"),
            ('name = "fast"', 'name = "slow"', "manifest", "no entry for moe 'fast'"),
            ("schema = 1", "schema = ", "manifest", "not valid TOML"),
            ("options:Options", "options:Missing", "settings", "Missing"),
            ("options:Options", "run:Runner", "settings", "no pydantic model"),
        ],
    )
    def test_manifest(self, make: Make, old: str, new: str, check: str, text: str) -> None:
        found = findings(make({"src/plugin_a/core_plugin.toml": MANIFEST.replace(old, new)}))
        assert any(f.check == check and text in f.why for f in found), found

    def test_requirement_that_is_not_installed_here_is_no_error(self, make: Make) -> None:
        needs = MANIFEST + '[plugin.requires]\npackages = ["surely-not-installed>=2"]\n'
        finding = only(make({"src/plugin_a/core_plugin.toml": needs}))
        assert (finding.severity, finding.check) == ("warning", "requirement")

    def test_no_manifest_and_no_entry_points(self, make: Make) -> None:
        assert "core_plugin.toml is missing" in only(make({"src/plugin_a/core_plugin.toml": None})).why

    def test_groups(self, make: Make) -> None:
        wrong, none = findings(
            make({"pyproject.toml": PYPROJECT.replace("core.moe", "core.meo")}), but=("build", "manifest")
        )
        assert "did you mean 'core.moe'?" in wrong.fix
        assert "core will not find anything" in none.why

    @pytest.mark.parametrize(
        ("code", "text"),
        [
            ("class Runner: pass", "no subclass of core.interfaces.moe.MoeRunner"),
            ("", "AttributeError"),
            ("import os; os._exit(4)", "exit code 4"),
        ],
    )
    def test_imports(self, make: Make, code: str, text: str) -> None:
        finding = only(make({"src/plugin_a/run.py": code}))
        assert (finding.check, finding.what) == ("import", "entry point core.moe:fast = plugin_a.run:Runner")
        assert text in finding.why

    def test_sources_with_file_and_line(self, make: Make) -> None:
        run = RUN + "def f(x):\n    import core.registry\n    import pickle\n    return pickle.loads(x)\n"
        private, pickle = findings(make({"src/plugin_a/run.py": run}))
        assert (private.severity, private.what) == ("error", "plugin_a/run.py:6: import of core.registry")
        assert (pickle.severity, pickle.what) == ("warning", "plugin_a/run.py:8: call of pickle.loads")

    def test_heavy_import(self, make: Make) -> None:
        heavy = {"src/plugin_a/__init__.py": "'''A.'''\nimport scipy\n", "src/scipy.py": ""}
        finding = only(make(heavy))
        assert (finding.check, finding.what) == ("heavy", "plugin_a/__init__.py:2: import of scipy")

    def test_no_contract_suite(self, make: Make) -> None:
        finding = only(make({"tests/test_fast.py": "def test(): pass"}))
        assert (finding.severity, finding.check) == ("warning", "tests")
        assert "from core.testing.contracts.moe import MoeContract" in finding.fix

    def test_setuptools_without_package_data(self, make: Make) -> None:
        plain = PYPROJECT.replace('["hatchling"]', '["setuptools"]').replace("hatchling.build", "setuptools.build_meta")
        assert "nothing tells setuptools to include core_plugin.toml" in only(make({"pyproject.toml": plain})).why
        data = plain + '[tool.setuptools.package-data]\n"*" = ["core_plugin.toml"]\n'
        assert findings(make({"pyproject.toml": data})) == []

    def test_draft_kind(self, make: Make) -> None:
        text = PYPROJECT.replace("core.moe", "core.speculative")
        draft = {"pyproject.toml": text, "src/plugin_a/core_plugin.toml": MANIFEST.replace('"moe"', '"speculative"')}
        found = findings(make(draft))
        assert any(f.check == "draft" and f.severity == "info" for f in found)


def test_suites_of_every_kind() -> None:
    assert set(SUITES) == set(KINDS)
    import core.testing.contracts

    folder = Path(core.testing.contracts.__file__).parent
    for module, suite in SUITES.values():
        path = folder / f"{module}.py"
        if path.exists():
            assert f"class {suite}(" in path.read_text()


@pytest.mark.parametrize("name", ["nothing", "empty", "bad.whl"])
def test_no_package(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.whl").write_text("no zip")
    with pytest.raises(ConfigError):
        validate_package(tmp_path / name)


@pytest.mark.usefixtures("unbuilt")
def test_command(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(make())
    assert cli.main(["plugins", "validate", folder]) == 0
    assert "plugin-a 1.0, 1 plugins: ready" in capsys.readouterr().out
    (Path(folder) / "src/plugin_a/run.py").write_text("")
    assert cli.main(["plugins", "validate", folder, "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert set(report) == {"core", "path", "distribution", "version", "built", "plugins", "ok", "findings"}
    assert (report["ok"], report["distribution"], report["plugins"]) == (False, "plugin-a", 1)
    assert set(report["findings"][0]) == {"severity", "check", "plugin", "what", "why", "fix"}
    assert cli.main(["plugins", "validate", folder + "/nowhere"]) == 2


@pytest.mark.parametrize(
    "folder", sorted(Path(__file__).parents[3].glob("plugins/*/*/pyproject.toml")), ids=lambda p: p.parent.name
)
@pytest.mark.usefixtures("unbuilt")
def test_plugins_of_this_repository(folder: Path) -> None:
    assert healthy(validate_package(folder.parent).findings)
