"""Memory as the system counts it: what this process holds, and what it may still take."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch

from jupyter_dsserve.engine.host import resident_bytes

_CGROUP = Path("/sys/fs/cgroup")
_LIBC = ctypes.CDLL(None)


def held_bytes(device: torch.device) -> int:
    """Bytes of ``device``'s memory (RAM for a CPU) that this process holds now."""
    return torch.cuda.memory_reserved(device) if device.type == "cuda" else resident_bytes()


def available_bytes(device: torch.device) -> int:
    """Bytes of ``device``'s memory that nobody uses; for a CPU the less of what machine and cgroup have left."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # macOS: half of a small machine
        return 4 << 30
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    return min(free, _cgroup_left())


def return_freed() -> None:
    """Give memory that was freed back to the system, which glibc else keeps for the thread that had it."""
    if hasattr(_LIBC, "malloc_trim"):
        _LIBC.malloc_trim(0)


def _cgroup_left() -> int:
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
    except (OSError, ValueError):
        return 1 << 62
    return (1 << 62) if limit == "max" else max(0, int(limit) - used)
