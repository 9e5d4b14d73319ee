"""The parent's handle of one engine process: spawn, watch, end, reap."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping

from core.engine.spinning import spin_briefly
from core.engine.start import PrepareProcess, StartEngine, write_message
from core.tracing.log_lines import LogFormat

POLL_S = 0.1
MAX_IPC_PATH = 100


class EngineProcess:
    """One child. `spawn` it early and `prepare` it as soon as the device is known: it imports its factory while the
    parent resolves settings, and waits.

    folder: private (0700) folder of its socket.
    """

    def __init__(self, process: subprocess.Popen[bytes], factory: str, folder: str) -> None:
        self._process = process
        self._folder = folder
        self._pidfd: int | None = None
        self._poll: asyncio.TimerHandle | None = None
        self._prepared = False
        self.factory = factory
        self.address = f"ipc://{folder}/engine"

    @classmethod
    def spawn(cls, factory: str) -> EngineProcess:
        """Start a child for the factory "module:attribute". Call it from a thread that lives as long as the engine:
        Linux counts the end of the spawning thread as the parent's death."""
        folder = tempfile.mkdtemp(prefix="core-")
        if len(folder) > MAX_IPC_PATH - len("/engine"):  # a socket's path has a short limit
            shutil.rmtree(folder)
            folder = tempfile.mkdtemp(prefix="core-", dir="/tmp")
        # -P as the child needs no folder of the caller in front of the standard library; the parent's own path
        # is handed down so that it finds what the parent finds.
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        spin_briefly(environment)
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "core.engine.process", factory, str(os.getpid())],
            stdin=subprocess.PIPE,
            start_new_session=True,
            env=environment,
        )
        return cls(process, factory, folder)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative for a signal."""
        return self._process.poll()

    def prepare(self, environment: Mapping[str, str]) -> None:
        """Variables for it to set before it imports its factory, unless they are set. Once; `configure` does it with
        none if it has not been done."""
        self._prepared = True
        self._write(PrepareProcess(dict(environment)))

    def configure(self, settings: bytes, lock: bytes, log_level: str, log_format: LogFormat = "text") -> None:
        """Hand over what it waits for. The pipe stays open: its end is the parent's end."""
        if not self._prepared:
            self.prepare({})
        self._write(StartEngine(self.factory, self.address, settings, lock, log_level, log_format))

    def _write(self, message: PrepareProcess | StartEngine) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # its death is reported by the watch
            write_message(self._process.stdin, message)  # type: ignore[arg-type]

    def remove_folder(self) -> None:
        """Once both ends are connected the socket needs its name no more; so nobody else finds it, and nothing is
        left on disk should this process be killed."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def watch(self, loop: asyncio.AbstractEventLoop, on_exit: Callable[[], None]) -> None:
        """Call `on_exit` once, at once, when the process ends; what it had started is killed by then."""
        if hasattr(os, "pidfd_open"):
            try:
                self._pidfd = os.pidfd_open(self._process.pid)
            except OSError:
                self._pidfd = None
        if self._pidfd is not None:
            loop.add_reader(self._pidfd, self._exited, loop, on_exit)
        else:
            self._poll = loop.call_later(POLL_S, self._check, loop, on_exit)

    def _check(self, loop: asyncio.AbstractEventLoop, on_exit: Callable[[], None]) -> None:
        # WNOWAIT: not reaped yet, so that its process group can still be named.
        if os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            self._poll = loop.call_later(POLL_S, self._check, loop, on_exit)
        else:
            self._exited(loop, on_exit)

    def _exited(self, loop: asyncio.AbstractEventLoop, on_exit: Callable[[], None]) -> None:
        self.unwatch(loop)
        self.kill()
        on_exit()

    def unwatch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Forget `on_exit`."""
        if self._pidfd is not None:
            loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None
        if self._poll is not None:
            self._poll.cancel()
            self._poll = None

    async def wait(self, timeout_s: float) -> bool:
        """Wait for its end; False if it still runs after `timeout_s`."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + timeout_s
        while self._process.poll() is None:
            if loop.time() >= deadline_s:
                return False
            await asyncio.sleep(0.01)
        return True

    def kill(self) -> None:
        """SIGKILL for the process and everything in its session; remove its folder. Idempotent. Reap it with `wait`."""
        # The child ignores SIGTERM by design, so this is the only hard way. Not once it is reaped: its number may
        # be somebody else's then.
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.kill()
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        self.remove_folder()
