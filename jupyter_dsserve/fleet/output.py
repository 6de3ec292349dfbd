"""What a worker writes: its standard output and error in a file of its own, which is kept within bounds.

The worker holds the file, so none can be put in its place while it runs: what is too much goes aside, into a second
file, and the first is emptied (`bound`). What is written in between is lost, which is some microseconds' worth.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import BinaryIO

MAX_BYTES = 5_000_000  # of each of the two
_KEPT_BYTES = 64_000  # of what went before, when a worker starts anew
_SHOWN_BYTES = 256_000


def opened(path: Path) -> BinaryIO:
    """To add to, for a worker that starts: one that crashes and comes back for days must not fill the disk, so of what
    went before the end is kept. A model's code may write anything there, which is not for all to read."""
    before = _end(path, _KEPT_BYTES)
    if _aside(path).exists() or len(before) < _size(path):
        path.write_bytes(before)
        _aside(path).unlink(missing_ok=True)
    return _private(path, os.O_APPEND)


def bound(path: Path) -> None:
    """Put aside what is over `MAX_BYTES`, in the place of what was put aside before. Takes a while if it is."""
    with path.open("r+b") as log, _private(_aside(path), os.O_TRUNC) as old:
        log.seek(max(0, _size(path) - MAX_BYTES))
        shutil.copyfileobj(log, old)
        log.truncate(0)


def is_too_large(path: Path) -> bool:
    return _size(path) > MAX_BYTES


def forget(path: Path) -> None:
    for each in (path, _aside(path)):
        each.unlink(missing_ok=True)


def was_put_aside(path: Path) -> bool:
    """Whether `path` began anew while its worker ran."""
    return _aside(path).exists()


def tail(path: Path, num_lines: int) -> list[str]:
    """The last lines of a worker's output, from its last `_SHOWN_BYTES`; empty if it never wrote any."""
    return _end(path, _SHOWN_BYTES).decode(errors="replace").splitlines()[-num_lines:] if num_lines else []


def _private(path: Path, how: int) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | how, 0o600), "wb")


def _end(path: Path, num_bytes: int) -> bytes:
    found = b""
    for each in (path, _aside(path)):
        if (wanted := num_bytes - len(found)) > 0 and each.exists():
            with each.open("rb") as log:
                log.seek(max(0, _size(each) - wanted))
                found = log.read(wanted) + found
    return found


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _aside(path: Path) -> Path:
    return path.with_name(f"{path.name}.1")
