"""Where the registry lies: SQLite in the data directory, or PostgreSQL for a gateway without a disk of its own."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError

from jupyter_dsserve.data_dir import told_or_read
from jupyter_dsserve.protocol.errors import Conflict

# File systems on which the shared memory of SQLite's write-ahead log works: a disk, or memory, of this machine.
_LOCAL = frozenset(
    ("bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "jfs", "overlay", "ramfs", "reiserfs", "tmpfs", "xfs", "zfs")
)
# Any number will do, if it is always the same: PostgreSQL keeps advisory locks by database and number.
_LEASE = 0x6473_7365_7276_65  # "dsserve"
_TRIES, _TRY_S = 10, 0.2  # the server may not have noticed yet that a killed gateway is gone
_MAX_NAME_BYTES = 63  # of an application's name, for PostgreSQL
# A connection whose other end is silent must not hold the writing thread: seconds, and what libpq calls them.
_PATIENCE = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,  # milliseconds
}
# The server's side of the same: a gateway whose machine is gone loses its lease after as long.
_SERVER_PATIENCE = "-c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3"


def database_url(given: str, data_dir: Path) -> sa.URL:
    """The registry's place: ``given``, a ``postgresql://`` URL or ``@FILE`` with one in it; if it is empty,
    ``fleet.db`` in the data directory.

    Raises `Conflict` for what is none. No message ever holds the URL, for it may hold a password.
    """
    if not given:
        return sa.URL.create("sqlite", database=str(data_dir / "fleet.db"))
    try:
        url = sa.make_url(told_or_read(given))
    except (ArgumentError, ValueError):
        url = None
    if url is None or url.drivername not in ("postgres", "postgresql", "postgresql+psycopg"):
        raise Conflict(
            "the database URL is none that can be used: give postgresql://USER@HOST/DATABASE (the password in it, in "
            "~/.pgpass, or the whole URL in a file: @FILE), or leave it out for SQLite in the data directory"
        )
    return url.set(drivername="postgresql+psycopg")


def open_engine(url: sa.URL) -> sa.Engine:
    """An engine with one connection, for one thread. On PostgreSQL that connection is the lease: whoever has it is the
    only gateway on the database, and a gateway that has lost it writes nothing until it has it again.

    Raises `Conflict` if the driver is missing; connecting raises it if another gateway has the lease.
    """
    is_sqlite = url.get_backend_name() == "sqlite"
    options = {} if is_sqlite else {**_PATIENCE, "application_name": _our_name(), "options": _SERVER_PATIENCE}
    try:
        engine = sa.create_engine(
            url,
            connect_args=options,
            poolclass=sa.QueuePool,
            pool_size=1,
            max_overflow=0,
            pool_pre_ping=not is_sqlite,  # the server may have been started anew
            hide_parameters=True,
        )
    except ModuleNotFoundError:
        raise Conflict("a PostgreSQL registry needs psycopg: pip install 'jupyter_dsserve[postgres]'") from None
    if is_sqlite:
        os.close(os.open(str(url.database), os.O_RDWR | os.O_CREAT, 0o600))  # SQLite's own would be for all to read
        journal = "WAL" if is_local(Path(str(url.database)), _mounts()) else "DELETE"
        sa.event.listen(engine, "connect", lambda connection, _record: _prepare_sqlite(connection, journal))
        # Python's sqlite3 begins no transaction for a CREATE or ALTER: begin them all ourselves.
        sa.event.listen(engine, "begin", lambda db: db.exec_driver_sql("BEGIN"))
    else:
        sa.event.listen(engine, "connect", lambda connection, _record: _take_lease(connection, url))
    return engine


def place_of(url: sa.URL) -> str:
    """For messages: no user, no password."""
    return f"{url.database}" + ("" if url.get_backend_name() == "sqlite" else f" on {url.host or 'this machine'}")


def is_local(path: Path, mounts: str) -> bool:
    """Whether ``path`` lies on a file system of this machine, by the text of ``/proc/mounts``; False if that does not
    say, as on systems without it."""
    resolved = path.resolve()
    found, kind = Path(), ""
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        place = Path(fields[1].encode().decode("unicode_escape"))  # a blank stands there as \040
        if resolved.is_relative_to(place) and len(place.parts) >= len(found.parts):  # the last of equals lies on top
            found, kind = place, fields[2]
    return kind in _LOCAL


def _mounts() -> str:
    try:
        return Path("/proc/mounts").read_text()
    except OSError:
        return ""


def _prepare_sqlite(connection: Any, journal: str) -> None:
    connection.isolation_level = None
    connection.execute(f"PRAGMA journal_mode={journal}")
    connection.execute("PRAGMA synchronous=FULL")


def _our_name() -> str:
    """How other gateways learn who has the lease."""
    name = f"jupyter_dsserve, process {os.getpid()} on {socket.gethostname()}"
    return name.encode()[:_MAX_NAME_BYTES].decode(errors="ignore")


def _take_lease(connection: Any, url: sa.URL) -> None:
    """PostgreSQL frees the lock when the connection ends, however its owner ends."""
    with connection.cursor() as cursor:
        for _ in range(_TRIES):
            cursor.execute("SELECT pg_try_advisory_lock(%s)", (_LEASE,))
            if cursor.fetchone()[0]:
                connection.commit()
                return
            time.sleep(_TRY_S)
        cursor.execute(
            "SELECT a.application_name FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE l.locktype = "
            "'advisory' AND l.granted AND a.datname = current_database() AND l.classid = %s AND l.objid = %s",
            (_LEASE >> 32, _LEASE & 0xFFFF_FFFF),
        )
        found = cursor.fetchone()
    connection.close()
    raise Conflict(
        f"the database {place_of(url)} is held by another gateway "
        f"({found[0] if found else 'it has just ended'}): use that one, stop it, or give another database"
    )
