"""No process outlives its parent: a signal from the kernel where there is one, and a pipe whose end is the parent's."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import BinaryIO

EXIT_ORPHANED = 5
PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Call first thing in a child: SIGKILL when the process `parent` dies (Linux). Leaves at once if it has already.

    An engine's own workers call it too, so that one death takes the whole chain along.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked
        os._exit(EXIT_ORPHANED)


def watch_parent(pipe: BinaryIO) -> None:
    """Body of a daemon thread: block until the pipe that the parent holds open ends, then leave at once, with the
    process group if it is this process's own."""
    while pipe.read(1):
        pass
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(EXIT_ORPHANED)
