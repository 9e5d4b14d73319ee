"""Wall time of `core plugins list` with many plugins installed.

    python bench/plugins_list.py [--plugins 50] [--runs 11]

Writes that many packages with manifests to a temporary folder, one of which raises when it is imported, puts the
folder on the path and times the command as a shell would start it. Prints seconds (median, fastest, slowest), and
the command alone for comparison.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MANIFEST = """schema = 1
[[plugin]]
kind = "{kind}"
name = "dummy_{number}"
api = [1, 1]
summary = "dummy number {number}"
[plugin.requires]
packages = ["torch>=2", "numpy"]
"""
KINDS = ("attention", "models", "quant", "tool_parsers", "ops")


def write(site: Path, number: int) -> None:
    """One distribution as an installer would leave it."""
    package, kind = f"plugin_dummy_{number}", KINDS[number % len(KINDS)]
    (site / package).mkdir()
    (site / package / "__init__.py").write_text("raise RuntimeError('broken')\n" if number == 0 else "")
    (site / package / "core_plugin.toml").write_text(MANIFEST.format(kind=kind, number=number))
    info = site / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: plugin-dummy-{number}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[core.{kind}]\ndummy_{number} = {package}.plugin:Dummy\n")


def seconds(arguments: list[str], path: str, runs: int) -> list[float]:
    """Wall time of each run."""
    env = {**os.environ, "PYTHONPATH": path}
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "core.cli.main", *arguments], env=env, check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plugins", type=int, default=50)
    parser.add_argument("--runs", type=int, default=11)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(args.plugins):
            write(Path(folder), number)
        seconds(["plugins", "list"], folder, 1)  # byte code is compiled once
        for title, words, path in (
            ("core --help", ["--help"], ""),
            ("core plugins list", ["plugins", "list"], ""),
            (f"core plugins list, {args.plugins} more plugins", ["plugins", "list"], folder),
            (f"core plugins list --json, {args.plugins} more", ["plugins", "list", "--json"], folder),
        ):
            times = seconds(words, path, args.runs)
            print(f"{title:42} {statistics.median(times):.3f} s ({min(times):.3f} to {max(times):.3f})")


if __name__ == "__main__":
    main()
