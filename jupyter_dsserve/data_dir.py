"""The data directory: one gateway at a time, the admin key that opens it, and where it answers. Secrets in files."""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from jupyter_dsserve.protocol.errors import Conflict

# Those who look for the holder take a shared lock for microseconds: try that often before the directory counts as held.
_TRIES = 5


@dataclass(frozen=True, slots=True)
class Holder:
    """The gateway that holds a data directory; while it starts, ``pid`` is 0 and ``url`` empty. ``grpc`` is where gRPC
    answers, ``host:port``; empty: nowhere."""

    pid: int = 0
    url: str = ""
    grpc: str = ""

    def __str__(self) -> str:
        return f"process {self.pid} at {self.url}" if self.url else "it is just starting"


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
        if not _take(self._lock):
            os.close(self._lock)
            raise Conflict(
                f"the data directory {path} is held by another gateway ({holder(path)}): use that one, stop it, or "
                "give another --data-dir"
            )
        os.ftruncate(self._lock, 0)  # where a killed one answered is not where we do

    def announce(self, url: str, grpc: str = "") -> None:
        """Write down where we answer."""
        os.pwrite(self._lock, json.dumps(asdict(Holder(os.getpid(), url, grpc))).encode(), 0)

    def release(self) -> None:
        os.ftruncate(self._lock, 0)
        os.close(self._lock)

    def admin_key(self) -> str:
        """The key in ``admin.key``; made on first use, readable by its owner only."""
        self._made_once("admin.key", f"dsk_{secrets.token_urlsafe(32)}")
        return read_admin_key(self.path)

    def id(self) -> str:
        """What tells this directory's gateway from others, whatever its address and its keys: 16 hexadecimal digits in
        ``gateway.id``, made on first use. Raises `Conflict` if they cannot be read, or are none."""
        self._made_once("gateway.id", secrets.token_hex(8))
        found = _read(self.path / "gateway.id")
        if not re.fullmatch("[0-9a-f]{16}", found):
            raise Conflict(
                f"{self.path / 'gateway.id'} holds no 16 hexadecimal digits: delete it to have new ones made"
            )
        return found

    def _made_once(self, name: str, content: str) -> None:
        path = self.path / name
        if not path.exists():
            write_private(path, f"{content}\n".encode())


def kept_secret(path: Path) -> bytes:
    """256 bits that nobody guesses, the same at every start: in the file ``path``, made on first use. Raises `Conflict`
    if they cannot be read, or are none."""
    if not path.exists():
        write_private(path, f"{secrets.token_hex(32)}\n".encode())
    found = _read(path)
    if not re.fullmatch("[0-9a-f]{64}", found):
        raise Conflict(f"{path} holds no 64 hexadecimal digits: delete it to have new ones made")
    return bytes.fromhex(found)


def write_private(path: Path, content: bytes) -> None:
    """For its owner only. Written aside and then moved: a crash in between must not leave half of it."""
    new = path.with_suffix(".new")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)
    new.rename(path)


def read_admin_key(path: Path) -> str:
    """The admin key of the data directory ``path``. Raises `Conflict` if its file is empty or cannot be read."""
    file = path / "admin.key"
    key = _read(file)
    if not key:
        raise Conflict(f"{file} is empty: delete it to have a new key made, or put a key into it")
    return key


def told_or_read(given: str) -> str:
    """``given``, or for ``@FILE`` what stands in there, so that a password is in no list of processes. Raises
    `Conflict` if it cannot be read."""
    return _read(Path(given[1:]).expanduser()) if given.startswith("@") else given


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except (OSError, ValueError) as fault:
        why = getattr(fault, "strerror", None) or "it is no text"
        raise Conflict(f"{file} cannot be read ({why}): check its permissions") from None


def holder(path: Path) -> Holder | None:
    """The gateway that holds the data directory ``path`` now; None if none does, whatever a killed one left there."""
    text, is_held = _read_lock(path)
    return _parsed(text) if is_held else None


def killed_holder(path: Path) -> Holder | None:
    """The gateway that held ``path`` last and was killed: one that ends by itself takes its address away."""
    text, is_held = _read_lock(path)
    return _parsed(text) if text and not is_held else None


def _read_lock(path: Path) -> tuple[bytes, bool]:
    """What stands in the lock file, and whether the lock is held."""
    try:
        lock = os.open(path / "gateway.lock", os.O_RDONLY)
    except OSError:
        return b"", False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.read(lock, 4096), True
    else:
        return os.read(lock, 4096), False
    finally:
        os.close(lock)


def _parsed(text: bytes) -> Holder:
    try:
        return Holder(**json.loads(text))
    except (ValueError, TypeError):  # nothing yet, or half of it
        return Holder()


def _take(lock: int) -> bool:
    """Whether the lock is ours now."""
    for _ in range(_TRIES):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.01)
        else:
            return True
    return False
