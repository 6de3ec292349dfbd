"""What this process has of its machine. Needs no torch."""

from __future__ import annotations

import os
import resource
from pathlib import Path


def num_cores() -> int:
    """Cores this process may use (macOS cannot say, and has all)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def resident_bytes(pid: str | int = "self") -> int:
    """Memory of a process that lies in RAM (where the system does not say, the most this one ever had)."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
