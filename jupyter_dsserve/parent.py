"""Between a process of ours and the one that started it: the launch line on stdin, ending when the parent does, and how
long the parent waits before it starts one again."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1
# Of the Jupyter server, of JupyterHub and its proxy.
_OTHERS_KEYS = {"JUPYTER_TOKEN", "JUPYTERHUB_API_TOKEN", "JPY_API_TOKEN", "CONFIGPROXY_AUTH_TOKEN"}


def launch_line(advice: str) -> str:
    """The first line of stdin: what the parent wants of us. Without one the process ends, with ``advice``.

    Read byte by byte, so that nothing after the line is buffered away from the thread that waits for the end.
    """
    line = bytearray()
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            sys.exit(f"stdin ended before the launch line: {advice}")
        line += byte
    return line.decode()


def childs_environment() -> dict[str, str]:
    """Ours, without what opens other doors than ours: a process that loads models has no business with them.

    And without the folder that we were started in as a place for modules, from Python 3.11 on: notebooks lie there, and
    a ``random.py`` of theirs is not the one that a worker means.
    """
    kept = {name: value for name, value in os.environ.items() if name not in _OTHERS_KEYS}
    return {**kept, "PYTHONSAFEPATH": "1"}


def backoff_s(num_failures: int) -> float:
    """Seconds to wait before the start after failure number ``num_failures`` (from 1): 0.5, doubling, at most 30."""
    return min(0.25 * 2.0**num_failures, 30.0)


def end_with_parent() -> None:
    """Die when the parent does, even by SIGKILL: at once through the kernel (Linux), and when stdin closes.

    Both, because a call that holds the interpreter delays the thread, and the kernel's signal follows the parent's
    *thread* and exists on Linux only. Call it after `launch_line`.
    """
    die_by(signal.SIGKILL)
    on_parent_end(lambda: os._exit(0))


def die_by(number: signal.Signals) -> None:
    """Have the kernel send us a signal when the thread that started us ends. Linux only; kept across `exec`."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def on_parent_end(act: Callable[[], None]) -> None:
    """Call ``act``, in a thread of its own, when stdin closes. Call it after `launch_line`."""

    def wait_for_eof() -> None:
        # os.read and not sys.stdin: a blocked buffered reader would hold up the interpreter's end.
        while os.read(0, 4096):
            pass
        act()

    threading.Thread(target=wait_for_eof, name="parent-watch", daemon=True).start()
