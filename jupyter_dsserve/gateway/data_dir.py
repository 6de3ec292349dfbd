"""The data directory: one gateway at a time, and the admin key that opens it."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from pathlib import Path

from jupyter_dsserve.protocol.errors import Conflict


class DataDir:
    """Held from construction to `release`. Raises `Conflict` naming the holder if another gateway has it.

    ``gateway.lock`` carries the holder's address for those who want to attach; the lock itself is the kernel's, so it
    is free the moment its holder dies, however it dies.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = os.open(path / "gateway.lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as fault:
            raise Conflict(f"the data directory {path} cannot be used ({fault.strerror}): give another") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(self._lock, 4096).decode()
            os.close(self._lock)
            raise Conflict(
                f"the data directory {path} is held by another gateway{_described(holder)}: use that one, stop it, or "
                "give another --data-dir"
            ) from None

    def announce(self, url: str) -> None:
        """Write down where we answer."""
        text = json.dumps({"pid": os.getpid(), "url": url}).encode()
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, text, 0)

    def release(self) -> None:
        os.ftruncate(self._lock, 0)
        os.close(self._lock)

    def admin_key(self) -> str:
        """The key in ``admin.key``; made on first use, readable by its owner only."""
        path = self.path / "admin.key"
        if not path.exists():
            # Written aside and then moved: a crash in between must not leave an empty key.
            new = path.with_suffix(".new")
            with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                file.write(f"dsk_{secrets.token_urlsafe(32)}\n")
            new.rename(path)
        key = path.read_text().strip()
        if not key:
            raise Conflict(f"{path} is empty: delete it to have a new key made, or put a key into it")
        return key


def _described(holder: str) -> str:
    try:
        known = json.loads(holder)
        return f" (process {known['pid']} at {known['url']})"
    except (ValueError, KeyError):
        return ""  # it is still starting
