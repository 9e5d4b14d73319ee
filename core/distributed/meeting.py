"""Where the ranks of one engine find each other, on one machine: a file that only they can open."""

from __future__ import annotations

import contextlib
import os
import tempfile


class Meeting:
    """A rendezvous file. Linux gives one without a name, which is gone with the last process that has it open: nobody
    else can join, no port is opened, and nothing is left however the processes end. Elsewhere it is a private file that
    `close` removes.

    fd: to be handed down to the other ranks (`pass_fds`); -1 where there is none. path: what a process that has `fd`,
    or can see the file, opens.
    """

    def __init__(self, fd: int, path: str) -> None:
        self.fd = fd
        self.path = path

    @classmethod
    def make(cls) -> Meeting:
        """A new one."""
        if hasattr(os, "memfd_create"):
            fd = os.memfd_create("core-ranks")
            return cls(fd, f"/proc/self/fd/{fd}")
        fd, path = tempfile.mkstemp(prefix="core-ranks-")
        os.close(fd)
        return cls(-1, path)

    def close(self) -> None:
        """Nobody joins any more. Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        else:
            with contextlib.suppress(OSError):
                os.unlink(self.path)
