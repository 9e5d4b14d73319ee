"""The C kernels as a shared library: compiled once per source, compiler and processor, and kept for the user.

What lives here: finding a compiler, the cache. What does not: loading the library and calling it (`library`).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

_SOURCES = Path(__file__).parent / "kernels"
_COMPILERS = ("cc", "gcc", "clang")
_FLAGS = ("-std=gnu11", "-O3", "-fPIC", "-shared", "-fvisibility=hidden", "-Wno-psabi")
# Which of the two a compiler takes depends on the processor's family.
_PROCESSOR_FLAGS = ("-march=native", "-mcpu=native")
_COMPILE_TIMEOUT_S = 120


class KernelsUnavailable(ImportError):
    """The kernels cannot be compiled or loaded; the message says why and what helps."""


def cache_folder(environment: Mapping[str, str]) -> Path:
    """Where this user's compiled kernels are: $XDG_CACHE_HOME or ~/.cache, then core/cpu_native."""
    base = environment.get("XDG_CACHE_HOME", "")
    root = Path(base) if base and Path(base).is_absolute() else Path.home() / ".cache"
    return root / "core" / "cpu_native"


def find_compiler(environment: Mapping[str, str]) -> str:
    """Path of the C compiler: $CC, else the first of cc, gcc, clang. Raises KernelsUnavailable."""
    asked = environment.get("CC", "").split()
    names = tuple(asked[:1]) or _COMPILERS
    for name in names:
        path = shutil.which(name, path=environment.get("PATH"))
        if path is not None:
            return path
    raise KernelsUnavailable(
        f"no C compiler is found ({', '.join(names)}); install gcc or clang, or set CC to one, or do without: "
        "core's own PyTorch attention and operations serve"
    )


def build(environment: Mapping[str, str] | None = None, sources: Path = _SOURCES) -> Path:
    """Path of the shared library, compiled if it is not in the cache yet. Safe among concurrent processes.

    Raises KernelsUnavailable if there is no compiler, the compiler fails, or the cache cannot be written.
    """
    environment = os.environ if environment is None else environment
    compiler = find_compiler(environment)
    files = sorted(sources.glob("*.[ch]"))
    folder = cache_folder(environment)
    target = folder / f"{_key(compiler, files)}.so"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_private(folder)
        if target.exists():
            return target
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # others wait for the one that compiles
            if not target.exists():
                _compile(compiler, [str(file) for file in files if file.suffix == ".c"], folder, target)
    except OSError as error:
        raise KernelsUnavailable(
            f"compiled kernels cannot be kept in {folder}: {error.strerror or error}; "
            "set XDG_CACHE_HOME to a folder that this user may write"
        ) from error
    return target


def _check_private(folder: Path) -> None:
    """A library that somebody else may replace must not be loaded."""
    stat = folder.stat()
    if stat.st_uid != os.getuid() or stat.st_mode & 0o022:
        raise KernelsUnavailable(
            f"{folder} belongs to another user or can be written by others, so nothing is loaded from it; "
            "remove it, or set XDG_CACHE_HOME to a folder of your own"
        )


def _compile(compiler: str, sources: list[str], folder: Path, target: Path) -> None:
    """Compile into a temporary file and rename it, so that no one ever sees half a library."""
    handle, name = tempfile.mkstemp(suffix=".so", dir=folder)
    os.close(handle)
    failures = []
    try:
        for processor in _PROCESSOR_FLAGS:
            command = [compiler, *_FLAGS, processor, "-o", name, *sources, "-lm"]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=_COMPILE_TIMEOUT_S, check=False)
            except (OSError, subprocess.SubprocessError) as error:
                failures.append(str(error))
                continue
            if done.returncode == 0:
                Path(name).chmod(0o700)
                Path(name).replace(target)
                return
            failures.append(done.stderr.strip() or f"exit status {done.returncode}")
    finally:
        Path(name).unlink(missing_ok=True)
    first = failures[0].splitlines()
    reason = next((line for line in first if "error" in line), first[0] if first else "")
    raise KernelsUnavailable(f"{compiler} cannot compile the kernels: {reason}; set CC to another C compiler")


def _key(compiler: str, files: list[Path]) -> str:
    """What a compiled library depends on: sources, compiler, flags and the processor that it was tuned for."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    try:
        version = subprocess.run(
            [compiler, "--version"], capture_output=True, timeout=_COMPILE_TIMEOUT_S, check=False
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise KernelsUnavailable(f"{compiler} cannot be run: {error}; set CC to another C compiler") from error
    digest.update(compiler.encode() + b"\0" + version + b"\0" + " ".join(_FLAGS).encode())
    digest.update(_processor())
    return digest.hexdigest()[:32]


def _processor() -> bytes:
    """The processor's model and instruction sets; caches are shared between machines through home folders."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}".encode()
    wanted = ("flags", "Features", "model name", "CPU part", "CPU implementer")
    facts = {line.split(":", 1)[0].strip(): line for line in lines if line.split(":", 1)[0].strip() in wanted}
    return f"{platform.machine()} {sorted(facts.values())}".encode()
