from __future__ import annotations

from pathlib import Path

import pytest

from core.hardware.host_memory import host_memory, usable_cores

GIB = 1 << 30


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path / "proc/meminfo", f"MemTotal: {16 * GIB // 1024} kB\nMemAvailable: {10 * GIB // 1024} kB\n")
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_without_control_groups_it_is_the_machine(root: Path) -> None:
    info = host_memory(root)
    assert (info.total_bytes, info.free_bytes) == (16 * GIB, 10 * GIB)


def test_version_2_takes_the_tightest_group_on_the_way_up(root: Path) -> None:
    write(root / "proc/self/cgroup", "0::/outer/inner\n")
    group = root / "sys/fs/cgroup"
    write(group / "outer/inner/memory.max", "max\n")
    write(group / "outer/inner/memory.current", f"{GIB}\n")
    write(group / "outer/memory.max", f"{4 * GIB}\n")
    write(group / "outer/memory.current", f"{3 * GIB}\n")
    write(group / "outer/memory.stat", f"anon {GIB}\ninactive_file {2 * GIB}\n")
    info = host_memory(root)
    assert (info.total_bytes, info.free_bytes) == (4 * GIB, 3 * GIB)  # page cache counts as free


def test_version_2_in_a_container_that_sees_only_the_root(root: Path) -> None:
    write(root / "proc/self/cgroup", "0::/../../docker/abc\n")
    write(root / "sys/fs/cgroup/memory.max", f"{2 * GIB}\n")
    write(root / "sys/fs/cgroup/memory.current", f"{3 * GIB}\n")
    info = host_memory(root)
    assert (info.total_bytes, info.free_bytes) == (2 * GIB, 0)


def test_version_1(root: Path) -> None:
    write(root / "proc/self/cgroup", "3:cpu,cpuacct:/x\n2:memory:/x\n")
    group = root / "sys/fs/cgroup/memory/x"
    write(group / "memory.limit_in_bytes", f"{8 * GIB}\n")
    write(group / "memory.usage_in_bytes", f"{5 * GIB}\n")
    write(group / "memory.stat", f"total_inactive_file {GIB}\n")
    info = host_memory(root)
    assert (info.total_bytes, info.free_bytes) == (8 * GIB, 4 * GIB)


def test_a_limit_above_the_machine_changes_nothing(root: Path) -> None:
    write(root / "proc/self/cgroup", "0::/\n")
    write(root / "sys/fs/cgroup/memory.max", str(1 << 62))
    write(root / "sys/fs/cgroup/memory.current", "0")
    assert host_memory(root).total_bytes == 16 * GIB


def test_this_machine_and_one_without_proc(tmp_path: Path) -> None:
    for info in (host_memory(), host_memory(tmp_path)):
        assert 0 <= info.free_bytes <= info.total_bytes
        assert info.total_bytes > 0


def test_a_cpu_quota_cuts_the_cores(tmp_path: Path) -> None:
    everything = usable_cores(tmp_path)
    write(tmp_path / "sys/fs/cgroup/cpu.max", "50000 100000\n")
    assert usable_cores(tmp_path) == 1
    write(tmp_path / "sys/fs/cgroup/cpu.max", "max 100000\n")
    assert usable_cores(tmp_path) == everything
