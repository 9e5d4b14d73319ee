"""`core plugins new`: every kind's package is complete, passes the contract suite of its kind, and is tidy."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ElementTree
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from core.cli import main as cli
from core.cli.plugins_new import MAX_NAME, TEMPLATES, NewPackage, find_kind, render, singular
from core.interfaces.errors import ConfigError
from core.interfaces.kinds import KINDS
from core.registry.manifest import read_manifest

ARCHITECTURE = "OurModelForCausalLM"  # of the package that is made for models


def made(kind: str, name: str) -> NewPackage:
    return render(kind, name, ARCHITECTURE if kind == "checkpoints" else None)


def name_of(kind: str) -> str:
    """Different for each kind, so that all packages can be installed side by side."""
    return f"our-{singular(kind)}".replace("_", "-")


@dataclass
class Suite:
    """What the tests of one package did. problems: test -> what pytest said."""

    num_passed: int = 0
    skipped: list[str] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Site:
    """One package of each kind, importable and with metadata as an installer would write it."""

    folder: Path
    packages: dict[str, NewPackage]

    def path(self, kind: str) -> Path:
        return self.folder / self.packages[kind].distribution

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        inherited = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("CORE_")} | {
            "PYTHONPATH": os.pathsep.join([str(self.folder / "site"), *inherited]),
            "OMP_NUM_THREADS": "1",
            "TMPDIR": str(self.folder),
        }
        return subprocess.run(
            [sys.executable, *words], cwd=self.folder, env=environment, capture_output=True, text=True, check=False
        )


def install(project: Path, site: Path) -> None:
    """What an installer makes of the project's wheel, without building one."""
    described = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    shutil.copytree(project / "src", site, dirs_exist_ok=True)
    info = site / f"{described['name'].replace('-', '_')}-{described['version']}.dist-info"
    info.mkdir(parents=True)
    lines = ["Metadata-Version: 2.4", f"Name: {described['name']}", f"Version: {described['version']}"]
    lines += [f"License-Expression: {described['license']}"]
    lines += [f"Requires-Dist: {text}" for text in described["dependencies"]]
    (info / "METADATA").write_text("\n".join(lines) + "\n")
    lines = []
    for group, points in described["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {target}" for name, target in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    files = [path.relative_to(project / "src") for path in (project / "src").rglob("*") if path.is_file()]
    (info / "RECORD").write_text("".join(f"{path.as_posix()},,\n" for path in files))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    folder = tmp_path_factory.mktemp("packages")
    packages = {kind: made(kind, name_of(kind)) for kind in KINDS}
    for package in packages.values():
        package.write(folder / package.distribution)
        install(folder / package.distribution, folder / "site")
    return Site(folder, packages)


@pytest.fixture(scope="module")
def suites(site: Site) -> dict[str, Suite]:
    """The tests of all packages in one process, since most of the time of one alone is spent on importing torch."""
    report = site.folder / "report.xml"
    done = site.run(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--import-mode=importlib", "-c", os.devnull,
        "--rootdir", str(site.folder), f"--junitxml={report}", "--contract-examples=0.3",
        "--continue-on-collection-errors", "-k", "not test_scan_imports_nothing",
        *(str(site.path(kind) / "tests") for kind in KINDS),
    )  # fmt: skip
    assert report.exists(), done.stdout + done.stderr
    found = {kind: Suite() for kind in KINDS}
    owner = {package.distribution: kind for kind, package in site.packages.items()}
    for case in ElementTree.parse(report).iter("testcase"):
        place = f"{case.get('classname')}.{case.get('name')}".lstrip(".")  # no class where a module has an error
        suite = found[next(kind for name, kind in owner.items() if place.startswith(f"{name}.tests"))]
        problem = next((element for element in case if element.tag in ("failure", "error")), None)
        skip = case.find("skipped")
        if problem is not None:
            suite.problems[place] = problem.text or ""
        elif skip is not None:
            suite.skipped.append(f"{place}: {skip.get('message')}")
        else:
            suite.num_passed += 1
    return found


class TestEveryKind:
    def test_has_a_template_and_no_template_is_left_over(self) -> None:
        folders = {path.parent.name for path in TEMPLATES.glob("*/template.toml")}
        assert folders == set(KINDS)

    def test_templates_are_part_of_core_s_wheel(self, tmp_path: Path) -> None:
        root = TEMPLATES.parents[2]
        done = subprocess.run(
            [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(root)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        (wheel,) = tmp_path.iterdir()
        with zipfile.ZipFile(wheel) as archive:
            held = set(archive.namelist())
        needed = {path.relative_to(root).as_posix() for path in TEMPLATES.rglob("*") if path.is_file()}
        assert needed <= held, f"not in the wheel: {sorted(needed - held)}"

    @pytest.mark.parametrize("kind", KINDS)
    def test_is_complete(self, kind: str) -> None:
        package = made(kind, name_of(kind))
        source = f"src/{package.package}"
        assert {
            "pyproject.toml", "README.md", "LICENSE", ".gitignore", ".github/workflows/test.yml",
            f"{source}/__init__.py", f"{source}/core_plugin.toml", f"{source}/py.typed",
            "tests/test_contract.py", "tests/test_package.py",
        } <= set(package.files)  # fmt: skip
        for path, text in package.files.items():
            assert "TODO" not in text, path
            assert "NotImplemented" not in text, path
            assert "{{" not in text.replace("${{", ""), path
            assert not text or text.endswith("\n"), path
        readme = package.files["README.md"]
        for path in package.files:
            if path.startswith(source) and path.endswith(".py") and not path.endswith("__init__.py"):
                assert f"`{Path(path).name}`" in readme, f"README.md does not say what {path} is"

    @pytest.mark.parametrize("kind", KINDS)
    def test_entry_point_manifest_and_target_agree(self, kind: str, tmp_path: Path) -> None:
        package = made(kind, name_of(kind))
        package.write(tmp_path / "package")
        (entry,) = read_manifest(tmp_path / "package" / "src" / package.package / "core_plugin.toml").plugin
        assert (entry.kind, entry.name) == (kind, package.entry_name)
        assert entry.api == (KINDS[kind].api, KINDS[kind].api)
        project = tomllib.loads(package.files["pyproject.toml"])["project"]
        assert project["name"] == package.distribution
        assert project["dependencies"] == ["core"]
        assert project["optional-dependencies"]["test"] == ["core[testing]"]
        (target,) = project["entry-points"][KINDS[kind].group].values()
        module = target.partition(":")[0].replace(".", "/")
        assert {f"src/{module}.py", f"src/{module}/__init__.py"} & set(package.files)

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", KINDS)
    def test_passes_its_own_tests(self, kind: str, suites: dict[str, Suite]) -> None:
        suite = suites[kind]
        assert not suite.problems, "\n\n".join(f"{place}\n{text}" for place, text in suite.problems.items())
        assert suite.num_passed >= 5, (suite.num_passed, suite.skipped)

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", ["models", "hardware", "checkpoints", "commands", "grammar"])
    def test_is_ready_for_release(self, kind: str, site: Site) -> None:
        """`core plugins validate` finds nothing, but that a draft kind is a draft."""
        done = site.run("-m", "core.cli.main", "plugins", "validate", str(site.path(kind)), "--json")
        report = json.loads(done.stdout)
        assert (done.returncode, report["ok"], report["built"], report["plugins"]) == (0, True, True, 1)
        wanted = ["draft"] if KINDS[kind].stage == "draft" else []
        assert [finding["check"] for finding in report["findings"]] == wanted

    def test_is_listed_as_available(self, site: Site) -> None:
        done = site.run("-m", "core.cli.main", "plugins", "list", "--json")
        assert done.returncode == 0, done.stderr
        listed = {(entry["kind"], entry["name"]): entry for entry in json.loads(done.stdout)["plugins"]}
        for kind, package in site.packages.items():
            entry = listed[kind, package.entry_name]
            assert (entry["distribution"], entry["state"], entry["reason"]) == (package.distribution, "available", "")

    @pytest.mark.slow
    def test_all_of_them_serve_together_what_core_alone_serves(self, site: Site) -> None:
        """The packaged checkpoint of the new architecture, greedily: once with core's own parts, once with ours."""
        choices = {
            "device": "hardware", "attention-backend": "attention", "prefix-cache": "prefix_cache",
            "schedule-policy": "schedule_policies", "moe-backend": "moe", "tool-call-parser": "tool_parsers",
            "reasoning-parser": "reasoning_parsers", "hooks": "hooks",
        }  # fmt: skip
        ours = [f"--{flag}={site.packages[kind].entry_name}" for flag, kind in choices.items()]
        model = f"--model={site.packages['checkpoints'].entry_name}"
        texts = []
        for words in (["--attention-backend=torch_native", "--device=cpu", "--hooks=none"], ours):
            done = site.run(
                "-m", "core.cli.main", "generate", "Hello there", "--temperature=0", "--max-tokens=12", "--json", model,
                *words,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            made = json.loads(done.stdout)
            assert made["completion_tokens"] == 12
            texts.append(made["text"])
        assert texts[0] == texts[1]
        counted = site.folder / f"{site.packages['hooks'].package}.json"
        assert json.loads(counted.read_text()) == {"length": 1}

    def test_is_clean(self, site: Site) -> None:
        """As its own CI asks."""
        for words in (("check", "--no-cache"), ("format", "--check", "--no-cache")):
            done = site.run("-m", "ruff", *words, *(str(site.path(kind)) for kind in KINDS))
            assert done.returncode == 0, done.stdout + done.stderr

    @pytest.mark.parametrize("name", ["a", "b" * MAX_NAME, "abc-def-ghi-jkl-mno-pqr-stu-vw"])
    def test_is_clean_under_any_name(self, name: str, tmp_path: Path) -> None:
        """Line lengths and the order of imports depend on it."""
        for kind in KINDS:
            made(kind, name).write(tmp_path / kind)
        for words in (("check", "--no-cache"), ("format", "--check", "--no-cache")):
            done = subprocess.run(
                [sys.executable, "-m", "ruff", *words, str(tmp_path)], capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stdout + done.stderr

    @pytest.mark.parametrize("kind", ["checkpoints", "tool_parsers"])
    def test_its_wheel_is_whole(self, kind: str, site: Site) -> None:
        out = site.folder / "wheels" / kind
        done = site.run("-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(site.path(kind)))
        assert done.returncode == 0, done.stdout + done.stderr
        (wheel,) = out.iterdir()
        with zipfile.ZipFile(wheel) as archive:
            held = set(archive.namelist())
        source = site.path(kind) / "src"
        files = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
        assert {name for name in files if "__pycache__" not in name} <= held
        assert any(name.endswith(".dist-info/licenses/LICENSE") for name in held)

    @pytest.mark.slow
    def test_types_are_right(self, site: Site) -> None:
        """With the strict settings of its own pyproject.toml, all packages in one run."""
        cache = TEMPLATES.parents[2] / ".mypy_cache" / "packages"  # what they import does not change between runs
        done = site.run(
            "-m", "mypy", "--config-file", str(site.path("models") / "pyproject.toml"), "--cache-dir", str(cache),
            *(str(site.path(kind) / "src") for kind in KINDS),
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr


class TestNames:
    @pytest.mark.parametrize("kind", KINDS)
    def test_kinds_in_singular_and_with_dashes(self, kind: str) -> None:
        for word in (kind, singular(kind), kind.replace("_", "-"), singular(kind).replace("_", "-"), kind.upper()):
            assert find_kind(word) == kind

    def test_kind_unknown(self) -> None:
        with pytest.raises(ConfigError) as caught:
            find_kind("modle")
        assert "did you mean 'models'?" in str(caught.value)
        assert ", ".join(KINDS) in str(caught.value)

    @pytest.mark.parametrize(
        ("bad", "way_out"),
        [
            ("My Model", "my-model"), ("9lives", "my-plugin"), ("a--b", "a-b"), ("plugin-x", "x"), ("", "my-plugin"),
            ("x" * 31, "x" * 30), ("../up", "up"), ("naïve", "na-ve"), ("-a-", "a"),
        ],
    )  # fmt: skip
    def test_name_bad(self, bad: str, way_out: str) -> None:
        with pytest.raises(ConfigError) as caught:
            render("ops", bad)
        assert repr(bad) in str(caught.value)
        assert f"for example {way_out!r}" in str(caught.value)

    def test_names_made_of_the_name(self) -> None:
        package = render("models", "my-model")
        assert (package.distribution, package.package) == ("plugin-my-model", "plugin_my_model")
        assert package.entry_name == "MyModelForCausalLM"
        assert render("models", "my_model").files == package.files
        assert render("models", "mymodel").entry_name == "MymodelForCausalLM"
        assert render("models", "x", "OtherForCausalLM").entry_name == "OtherForCausalLM"
        assert render("commands", "my_command").entry_name == "my-command"
        assert render("attention", "my-kernel").entry_name == "my_kernel"

    def test_architecture_only_where_there_is_one(self) -> None:
        with pytest.raises(ConfigError, match="leave --architecture out"):
            render("attention", "mine", "MineForCausalLM")
        with pytest.raises(ConfigError, match="--architecture NAME"):
            render("checkpoints", "mine")
        with pytest.raises(ConfigError, match="class name"):
            render("models", "mine", "no name")


class TestCommand:
    def run(self, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
        code = cli.main(["plugins", "new", *words])
        out = capsys.readouterr()
        return code, out.out, out.err

    def test_writes_the_package_and_says_how_to_go_on(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        code, out, err = self.run(capsys, "tool-parser", "our-format", "--path", str(tmp_path))
        assert (code, err) == (0, "")
        folder = tmp_path / "plugin-our-format"
        assert (folder / "src" / "plugin_our_format" / "parser.py").exists()
        steps = out.partition("Next steps:\n")[2].split("\n")
        assert steps[0] == f"  cd {folder}"
        assert [step.split()[0] for step in steps if step] == ["cd", "pip", "pytest", "core", "core"]
        assert "--tool-call-parser our_format" in out

    def test_json(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        code, out, _ = self.run(capsys, "hook", "ours", "--path", str(tmp_path), "--json")
        assert code == 0
        report = json.loads(out)
        assert (report["kind"], report["name"], report["distribution"]) == ("hooks", "ours", "plugin-ours")
        folder = Path(report["folder"])
        assert folder == tmp_path / "plugin-ours"
        on_disk = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        assert set(report["files"]) == on_disk
        assert report["next_steps"][0] == f"cd {folder}"

    def test_same_arguments_same_files(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        words = ("checkpoint", "ours", "--architecture", ARCHITECTURE)
        contents = []
        for place in ("one", "two"):
            assert self.run(capsys, *words, "--path", str(tmp_path / place))[0] == 0
            root = tmp_path / place
            contents.append(
                {path.relative_to(root): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
            )
        assert contents[0] == contents[1]
        assert any(path.name == "model.safetensors" for path in contents[0])

    def test_nothing_is_overwritten(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        folder = tmp_path / "plugin-ours"
        folder.mkdir()
        assert self.run(capsys, "op", "ours", "--path", str(tmp_path))[0] == 0  # an empty folder holds nothing
        (folder / "README.md").write_text("mine")
        code, _, err = self.run(capsys, "op", "ours", "--path", str(tmp_path))
        assert code == 2
        assert str(folder) in err
        assert "nothing is overwritten" in err
        assert (folder / "README.md").read_text() == "mine"

    @pytest.mark.parametrize(
        ("kind", "name", "owner"), [("attention", "torch-native", "core"), ("command", "serve", "core")]
    )
    def test_name_taken(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path, kind: str, name: str, owner: str
    ) -> None:
        code, _, err = self.run(capsys, kind, name, "--path", str(tmp_path))
        assert code == 2
        assert f"is taken by {owner}" in err
        assert not list(tmp_path.iterdir())

    def test_mistakes_write_nothing(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        for words in (("modle", "ours"), ("model", "Ours!"), ("checkpoint", "ours")):
            code, out, err = self.run(capsys, *words, "--path", str(tmp_path))
            assert (code, out) == (2, "")
            assert "hint:" in err
        assert not list(tmp_path.iterdir())

    def test_imports_no_torch(self) -> None:
        code = (
            "import sys, tempfile, core.cli.main as m\n"
            "assert m.main(['plugins', 'new', 'model', 'ours', '--path', tempfile.mkdtemp()]) == 0\n"
            "assert not {'torch', 'pydantic', 'transformers'} & set(sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
