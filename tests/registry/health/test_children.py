"""Imports in child processes: whatever a plugin does to its interpreter, this one goes on and knows who it was."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from registry_fakes import MakeDist

from core.registry.health.children import import_in_children

RUNNER = "from core.interfaces.moe import MoeRunner\nclass R(MoeRunner):\n    def run(self, *a):\n        return a\n"
GROUP = "core.moe"


def dist(make_dist: MakeDist, letter: str, modules: dict[str, str]) -> list[tuple[str, str]]:
    """A distribution plugin-LETTER with one plugin for each module."""
    entries = "".join(f'[[plugin]]\nkind = "moe"\nname = "{name}"\napi = [1, 1]\n' for name in modules)
    points = {name: f"plugin_{letter}.{name}:R" for name in modules}
    package = make_dist(f"plugin-{letter}", {GROUP: points}, "schema = 1\n" + entries)
    for name, code in modules.items():
        (package / f"{name}.py").write_text(code)
    return [("moe", f"plugin-{letter}:{name}") for name in modules]


def test_each_way_to_end_an_interpreter_is_told_apart_and_neighbours_live(make_dist: MakeDist, site: Path) -> None:
    ways = {
        "good": RUNNER,
        "leaves": "import os, sys\nprint('last words', file=sys.stderr, flush=True)\nos._exit(7)",
        "exits": "import sys\nsys.exit(3)",
        "crashes": "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)",
        "raises": "raise RuntimeError('no driver')",
        "late": RUNNER,
    }
    keys = dist(make_dist, "a", ways)
    outcomes = import_in_children(keys, timeout_s=30)
    by_name = {name.partition(":")[2]: outcome for (_, name), outcome in outcomes.items()}
    assert by_name["good"].error == by_name["late"].error == ""
    assert "ended the interpreter (exit code 7)" in by_name["leaves"].error
    assert (by_name["leaves"].ended, by_name["leaves"].output) == (True, "last words")
    assert "SystemExit: 3" in by_name["exits"].error
    assert not by_name["exits"].ended
    assert "SIGSEGV" in by_name["crashes"].error
    assert "RuntimeError: no driver" in by_name["raises"].error
    assert not {name for name in sys.modules if name.startswith("plugin_a")}


def test_one_that_hangs_is_killed_with_what_it_started(make_dist: MakeDist, site: Path, tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    hangs = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(mark)!r}, 'w').write(str(child.pid))\ntime.sleep(600)\n"
    )
    keys = dist(make_dist, "a", {"hangs": hangs, "late": RUNNER})
    outcomes = import_in_children(keys, timeout_s=2)
    assert outcomes[keys[0]].error == "its import did not end within 2 s"
    assert outcomes[keys[1]].error == ""
    stat = Path(f"/proc/{mark.read_text()}/stat")
    assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


def test_threads_left_behind_do_not_hold_it_up(make_dist: MakeDist, site: Path) -> None:
    thread = "import threading, time\nthreading.Thread(target=time.sleep, args=(600,)).start()\n" + RUNNER
    keys = dist(make_dist, "a", {"threads": thread})
    assert import_in_children(keys, timeout_s=30)[keys[0]].error == ""


def test_loader_errors_and_heavy_packages(make_dist: MakeDist, site: Path) -> None:
    broken = "raise ImportError('/x/_C.so: undefined symbol: _ZN3c104impl')"
    keys = dist(make_dist, "a", {"ext": broken})
    (site / "plugin_h").mkdir()
    (site / "plugin_h" / "__init__.py").write_text("import torch")
    (site / "torch.py").write_text("")  # any module of that name will do
    outcomes = import_in_children(keys, packages=["plugin_h", "plugin_a"], timeout_s=30)
    assert outcomes[keys[0]].loader == "/x/_C.so: undefined symbol: _ZN3c104impl"
    assert outcomes["package", "plugin_h"].heavy == ("torch",)
    assert outcomes["package", "plugin_a"].heavy == ()


def test_paths_are_looked_at_instead_of_the_environment(
    make_dist: MakeDist, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = dist(make_dist, "a", {"good": RUNNER})
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(site)])
    assert "no moe plugin" in import_in_children(keys, timeout_s=30)[keys[0]].error
    assert import_in_children(keys, paths=[str(site)], timeout_s=30)[keys[0]].error == ""
