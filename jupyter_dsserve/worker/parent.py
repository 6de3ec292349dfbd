"""A worker never outlives the process that started it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading

_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Die when the parent does, even by SIGKILL: at once through the kernel (Linux), and when stdin closes.

    Both, because a call that holds the interpreter delays the thread, and the kernel's signal follows the parent's
    *thread* and exists on Linux only. Call it after the first line of stdin was read.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    threading.Thread(target=_exit_at_eof, name="parent-watch", daemon=True).start()


def _exit_at_eof() -> None:
    # os.read and not sys.stdin: a blocked buffered reader would hold up the interpreter's end.
    while os.read(0, 4096):
        pass
    os._exit(0)
