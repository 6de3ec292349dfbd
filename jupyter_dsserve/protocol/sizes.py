"""Amounts of memory, as people write and read them."""

from __future__ import annotations

import re

from jupyter_dsserve.protocol.errors import InvalidRequest

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def bytes_of(text: str) -> int:
    """``4GiB``, ``1.5G``, ``800 MB`` or ``1000000`` as bytes; a unit with a B and no i counts in thousands, and an
    empty text is 0. Raises `InvalidRequest` for anything else."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)(B?)\s*", text, re.IGNORECASE)
    if not text.strip():
        return 0
    if not found or (found[3] and not found[2]):
        raise InvalidRequest(f"{text!r} is no amount of memory: write one such as 4GiB, 512MiB or 2000000000")
    unit = found[2].upper()
    is_thousands = bool(found[4]) and not found[3]
    size = 1000 ** list(_UNITS).index(unit) if is_thousands else _UNITS[unit]
    return int(float(found[1]) * size)


def shown(num_bytes: float) -> str:
    """``11.2 GiB``, ``512 MiB``, ``900 B``."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(num_bytes) >= size:
            value = num_bytes / size
            return f"{value:.0f} {unit}" if value >= 100 else f"{value:.1f} {unit}"
    return f"{num_bytes:.0f} B"
