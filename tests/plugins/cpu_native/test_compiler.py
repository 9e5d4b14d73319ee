"""The cache of compiled kernels: shared by processes, private to a user, with a reason whenever it cannot serve."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import plugin_cpu_native.compiler as compiling
from bench.cpu.workloads import write_config
from core.config.sections import EngineSettings, ModelSettings, Settings
from core.registry.catalog import Catalog
from core.registry.resolve import resolve
from plugin_cpu_native.compiler import KernelsUnavailable, build, cache_folder, find_compiler
from plugin_cpu_native.library import Kernels

needs_compiler = pytest.mark.skipif(
    not any(shutil.which(name) for name in ("cc", "gcc", "clang")), reason="needs a C compiler"
)


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A source that compiles in no time."""
    folder = tmp_path / "kernels"
    folder.mkdir()
    (folder / "one.c").write_text("int one(void) { return 1; }\n")
    return folder


def environment(tmp_path: Path, **changes: str) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "XDG_CACHE_HOME": str(tmp_path / "cache"), **changes}


def fake_compiler(folder: Path, body: str) -> str:
    path = folder / "fake-cc"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def test_without_a_compiler(tmp_path: Path, sources: Path) -> None:
    with pytest.raises(KernelsUnavailable, match=r"no C compiler is found \(cc, gcc, clang\).*PyTorch"):
        build(environment(tmp_path, PATH=str(tmp_path)), sources)
    with pytest.raises(KernelsUnavailable, match="no-such-compiler"):
        find_compiler(environment(tmp_path, CC="no-such-compiler"))


@needs_compiler
def test_compiled_once_and_private(tmp_path: Path, sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build(environment(tmp_path), sources)
    assert first.parent.stat().st_mode & 0o777 == 0o700
    assert {path.suffix for path in first.parent.iterdir()} <= {".so", ""}
    monkeypatch.setattr(compiling, "_compile", lambda *_: pytest.fail("compiled again"))
    assert build(environment(tmp_path), sources) == first


@needs_compiler
def test_another_source_is_another_library(tmp_path: Path, sources: Path) -> None:
    first = build(environment(tmp_path), sources)
    (sources / "one.c").write_text("int one(void) { return 2; }\n")
    assert build(environment(tmp_path), sources) != first


def test_a_compiler_that_fails(tmp_path: Path, sources: Path) -> None:
    path = fake_compiler(tmp_path, 'test "$1" = --version && exit 0; echo "one.c:1: error: no room" >&2; exit 1')
    with pytest.raises(KernelsUnavailable, match=r"fake-cc cannot compile the kernels: one.c:1: error: no room"):
        build(environment(tmp_path, CC=path), sources)
    left = list(cache_folder(environment(tmp_path)).glob("*.so"))
    assert left == []


def test_a_compiler_that_cannot_run(tmp_path: Path, sources: Path) -> None:
    path = tmp_path / "fake-cc"
    path.write_text("#!/no/such/interpreter\n")
    path.chmod(0o755)
    with pytest.raises(KernelsUnavailable, match="cannot be run"):
        build(environment(tmp_path, CC=str(path)), sources)


def test_a_compiler_that_knows_no_march(tmp_path: Path, sources: Path) -> None:
    body = """
    test "$1" = --version && exit 0
    case "$*" in *-march=native*) echo "error: unknown -march" >&2; exit 1;; esac
    while [ "$1" != -o ]; do shift; done; echo library > "$2"
    """
    target = build(environment(tmp_path, CC=fake_compiler(tmp_path, body)), sources)
    assert target.read_text() == "library\n"


def test_a_cache_that_cannot_be_written(tmp_path: Path, sources: Path) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")
    path = fake_compiler(tmp_path, "exit 0")
    with pytest.raises(KernelsUnavailable, match=r"cannot be kept in .*cache.*set XDG_CACHE_HOME"):
        build(environment(tmp_path, CC=path), sources)


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_cache_without_write_permission(tmp_path: Path, sources: Path) -> None:
    (tmp_path / "cache").mkdir(mode=0o500)
    path = fake_compiler(tmp_path, "exit 0")
    with pytest.raises(KernelsUnavailable, match="Permission denied"):
        build(environment(tmp_path, CC=path), sources)


def test_a_cache_that_others_can_write_is_not_trusted(tmp_path: Path, sources: Path) -> None:
    folder = cache_folder(environment(tmp_path))
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    path = fake_compiler(tmp_path, "exit 0")
    with pytest.raises(KernelsUnavailable, match="can be written by others"):
        build(environment(tmp_path, CC=path), sources)


def test_concurrent_processes_compile_once(tmp_path: Path, sources: Path) -> None:
    log = tmp_path / "log"
    body = f"""
    test "$1" = --version && exit 0
    echo run >> {log}; sleep 0.3
    while [ "$1" != -o ]; do shift; done; echo half > "$2"; sleep 0.3; echo library > "$2"
    """
    program = (
        "import sys, pathlib, plugin_cpu_native.compiler as c;"
        "print(c.build(sources=pathlib.Path(sys.argv[1])).read_text())"
    )
    changes = environment(tmp_path, CC=fake_compiler(tmp_path, body))
    path = os.pathsep.join(entry for entry in sys.path if entry)
    running = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(sources)],
            env=changes | {"PYTHONPATH": path},
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    assert [process.communicate()[0].strip() for process in running] == ["library"] * 3
    assert log.read_text() == "run\n"


def test_what_is_no_library_is_not_loaded(tmp_path: Path) -> None:
    path = tmp_path / "broken.so"
    path.write_text("no library")
    with pytest.raises(KernelsUnavailable, match="cannot be loaded"):
        Kernels(path)


RESOLVE = """
import sys
from core.config.sections import EngineSettings, ModelSettings, Settings
from core.registry.catalog import Catalog
from core.registry.resolve import resolve
model = ModelSettings(model=sys.argv[1], load_format="dummy")
settings = Settings(model=model, engine=EngineSettings(device="cpu", attention_backend=sys.argv[2]))
resolution = resolve(settings, Catalog.scan())
print([choice.name for choice in resolution.attention], [choice.name for choice in resolution.ops])
for choice in resolution.attention:
    print(choice.rejected)
"""


def resolve_without_compiler(tmp_path: Path, asked: str) -> subprocess.CompletedProcess[str]:
    """What core chooses in a process that finds no compiler."""
    write_config("tiny8m", tmp_path / "model")
    return subprocess.run(
        [sys.executable, "-c", RESOLVE, str(tmp_path / "model"), asked],
        env=environment(tmp_path, PATH=str(tmp_path), PYTHONPATH=os.pathsep.join(path for path in sys.path if path)),
        capture_output=True,
        text=True,
        check=False,
    )


def test_core_falls_back_when_it_chooses(tmp_path: Path) -> None:
    shown = resolve_without_compiler(tmp_path, "auto")
    assert shown.returncode == 0, shown.stderr
    names, rejected = shown.stdout.splitlines()
    assert names == "['torch_native'] []"
    assert "no C compiler is found" in rejected


def test_core_stops_when_the_operator_chose(tmp_path: Path) -> None:
    shown = resolve_without_compiler(tmp_path, "cpu_native")
    assert shown.returncode != 0
    assert "PluginLoadError" in shown.stderr
    assert "no C compiler is found" in shown.stderr


def test_manifest_and_entry_points_agree() -> None:
    catalog = Catalog.scan()
    for kind in ("attention", "ops"):
        record = catalog.lookup(kind, "cpu_native")
        assert record.state == "available"
        assert record.priority == 10
        assert record.requires_hardware == ("cpu",)


def test_core_chooses_the_kernels_for_the_cpu(tmp_path: Path, library: Kernels) -> None:
    write_config("tiny8m", tmp_path)
    settings = Settings(
        model=ModelSettings(model=str(tmp_path), load_format="dummy"), engine=EngineSettings(device="cpu")
    )
    resolution = resolve(settings, Catalog.scan())
    assert [choice.name for choice in resolution.attention] == ["cpu_native"]
    assert [choice.name for choice in resolution.ops] == ["cpu_native"]
