"""What this process has of its machine. Needs no torch."""

from __future__ import annotations

import os
import resource
import sys
import threading
from pathlib import Path

_PIECE_BYTES = 1 << 20
_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")


def num_cores() -> int:
    """Cores this process may use: those it is bound to, or fewer if its cgroups' quota of time fills only those.

    At least 1. macOS knows neither, and has all.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(bound, int(_quota())))


def _quota() -> float:
    """The least quota of our cgroup (version 2) and those above it, in cores; no end of them if there is none.

    A container often sees its own cgroup as the root, where ``cpu.max`` lies in its sight only.
    """
    try:
        own = next(line[3:] for line in _OWN_CGROUP.read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return sys.maxsize
    folder = _CGROUPS / own.strip("/")
    return min(_quota_of(one / "cpu.max") for one in (folder, *folder.parents) if one.is_relative_to(_CGROUPS))


def _quota_of(file: Path) -> float:
    """``150000 100000`` are one and a half cores; ``max 100000`` is no quota."""
    try:
        quota, period = file.read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError):
        return sys.maxsize


def start_reading_ahead(path: str) -> threading.Thread:
    """Have the system read a directory's weights into its page cache, in a thread, while we import what loads them.

    A mapped file is read as it is touched, in small pieces; a disk gives more in large ones.
    """
    thread = threading.Thread(target=_read, args=(sorted(Path(path).glob("*.safetensors")),), daemon=True)
    thread.start()
    return thread


def _read(files: list[Path]) -> None:
    piece = bytearray(_PIECE_BYTES)
    for file in files:
        try:
            with file.open("rb", buffering=0) as opened:
                while opened.readinto(piece):
                    pass
        except OSError:  # the loader says it better
            return


def resident_bytes(pid: str | int = "self") -> int:
    """Memory of a process that lies in RAM (where the system does not say, the most this one ever had)."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
