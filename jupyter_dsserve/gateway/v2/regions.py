"""`Regions`: shared memory that clients on this machine have registered, to have tensors read from it and written to.

A region is a stretch of a file in ``/dev/shm``. It is read and written with `os.pread` and `os.pwrite`, not mapped: its
owner can cut the file at any time, and touching a page that is gone would end the gateway (SIGBUS). That is one copy
each way, which the stream to the worker needs in any case; and nobody can change what was checked.
"""

from __future__ import annotations

import os
import re
import stat
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from jupyter_dsserve.protocol.errors import Conflict, Forbidden, InvalidRequest, NotFound, TooManyRequests

DIRECTORY = Path("/dev/shm")
MAX_REGIONS = 64  # of a key
MAX_ALL_REGIONS = 512
_KEY = re.compile(r"/?(?!\.{1,2}$)[A-Za-z0-9._-]{1,200}")


@dataclass(frozen=True, slots=True)
class Region:
    """``byte_size`` bytes of the shared memory ``key``, from ``offset`` on."""

    name: str
    key: str
    offset: int
    byte_size: int


def file_name(key: str) -> str:
    """Of a key as `shm_open` takes it. Raises `InvalidRequest` for what could leave the directory."""
    if not _KEY.fullmatch(key):
        raise InvalidRequest(
            f"key is {key[:80]!r}: give the name of a shared memory object, of letters, digits, '.', '_' and '-', with "
            "at most one '/' before it",
            param="key",
        )
    return key.removeprefix("/")


def check_within(region: Region, offset: int, num_bytes: int) -> None:
    """Raises `InvalidRequest` for bytes beyond the region's end."""
    if offset < 0 or num_bytes < 0 or offset + num_bytes > region.byte_size:
        raise InvalidRequest(
            f"region {region.name!r} has {region.byte_size} bytes: {num_bytes} from {offset} on go beyond its end",
            param="shared_memory_byte_size",
        )


class Regions:
    """By the key that registered them (``owner``; empty is the admin key): nobody else reads, writes or sees them.

    Any thread may `read` and `write`; the rest is for the event loop's.
    """

    def __init__(self, directory: Path = DIRECTORY) -> None:
        self._directory = directory
        self._regions: dict[tuple[str, str], tuple[Region, int]] = {}  # with its open file
        self._lock = threading.Lock()  # held where one of them comes or goes, and where another thread looks for one

    def register(self, owner: str, region: Region) -> None:
        """Raises `InvalidRequest`, `NotFound`, `Forbidden` (somebody else's), `Conflict` (the name stands for one
        already) or `TooManyRequests`."""
        if (owner, region.name) in self._regions:
            raise Conflict(f"region {region.name!r} is registered already: unregister it first", param="name")
        num_own = sum(1 for each, _ in self._regions if each == owner)
        if num_own >= MAX_REGIONS or len(self._regions) >= MAX_ALL_REGIONS:
            raise TooManyRequests(f"{num_own} regions of this key are registered: unregister some first")
        file = self._opened(region)
        with self._lock:
            self._regions[owner, region.name] = (region, file)

    def _opened(self, region: Region) -> int:
        path = self._directory / file_name(region.key)
        try:
            file = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotFound(
                f"there is no shared memory {region.key!r} on this machine: create it before it is registered",
                param="key",
            ) from None
        except OSError as fault:
            raise Forbidden(f"shared memory {region.key!r} cannot be opened: {fault.strerror}", param="key") from None
        try:
            found = os.fstat(file)
            if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
                raise Forbidden(f"shared memory {region.key!r} is not of the gateway's own user", param="key")
            if region.offset + region.byte_size > found.st_size:
                raise InvalidRequest(
                    f"shared memory {region.key!r} has {found.st_size} bytes: {region.byte_size} from {region.offset} "
                    "on go beyond its end",
                    param="byte_size",
                )
        except BaseException:
            os.close(file)
            raise
        return file

    def of(self, owner: str) -> list[Region]:
        return [region for (each, _), (region, _) in self._regions.items() if each == owner]

    def one(self, owner: str, name: str) -> Region:
        """Raises `NotFound`."""
        return self._found(owner, name)[0]

    def unregister(self, owner: str, name: str = "") -> None:
        """Without a ``name`` all of the owner's; one that is not there is no fault, as in Triton."""
        for key in [key for key in self._regions if key[0] == owner and name in ("", key[1])]:
            with self._lock:
                os.close(self._regions.pop(key)[1])

    def keep(self, owners: Collection[str]) -> None:
        """Unregister what belongs to others: their keys were revoked."""
        for owner in {owner for owner, _ in self._regions} - {*owners}:
            self.unregister(owner)

    def close(self) -> None:
        self.keep(())

    def read(self, owner: str, name: str, offset: int, num_bytes: int) -> bytes:
        """Raises `NotFound`, and `InvalidRequest` beyond its end, or if its file was cut meanwhile."""
        with self._held(owner, name, offset, num_bytes) as (region, file):
            # pread gives at most 2 GiB at once.
            start, parts = region.offset + offset, []
            while num_bytes and (part := os.pread(file, num_bytes, start)):
                parts.append(part)
                start, num_bytes = start + len(part), num_bytes - len(part)
        if num_bytes:
            raise _cut(region)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write(self, owner: str, name: str, offset: int, data: bytes) -> None:
        """As `read`. The file never grows."""
        with self._held(owner, name, offset, len(data)) as (region, file):
            start, rest = region.offset + offset, memoryview(data)
            if os.fstat(file).st_size < start + len(rest):
                raise _cut(region)
            while rest:
                num_written = os.pwrite(file, rest, start)
                start, rest = start + num_written, rest[num_written:]

    def check(self, owner: str, name: str, offset: int, num_bytes: int) -> None:
        """Whether so much could be read or written. Raises as `read` does."""
        check_within(self.one(owner, name), offset, num_bytes)

    @contextmanager
    def _held(self, owner: str, name: str, offset: int, num_bytes: int) -> Iterator[tuple[Region, int]]:
        """With a file of its own: once the region is unregistered, the number of its file may be another's."""
        with self._lock:
            region, registered = self._found(owner, name)
            check_within(region, offset, num_bytes)
            file = os.dup(registered)
        try:
            yield region, file
        finally:
            os.close(file)

    def _found(self, owner: str, name: str) -> tuple[Region, int]:
        found = self._regions.get((owner, name))
        if found is None:
            known = ", ".join(region.name for region in self.of(owner)) or "none"
            raise NotFound(f"region {name!r} is not registered with this key: there are {known}", param="name")
        return found


def _cut(region: Region) -> InvalidRequest:
    return InvalidRequest(
        f"the file of region {region.name!r} is shorter than when it was registered: register it anew",
        param="shared_memory_region",
    )
