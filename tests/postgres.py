"""A PostgreSQL server of the tests' own, from the system's package: a cluster in a temporary directory, on a socket."""

from __future__ import annotations

import getpass
import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg import sql

PASSWORD = "s3cret-and-long"


def programs() -> Path | None:
    """Where ``initdb`` and ``pg_ctl`` are: Debian keeps them off the PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[-3]))
    on_path = shutil.which("initdb")
    return found[-1].parent if found else Path(on_path).parent if on_path else None


class Postgres:
    """Each `database` is a new one. It can be stopped and started again."""

    def __init__(self, folder: Path, bin: Path, user: str) -> None:
        self.folder, self._bin, self._user = folder, bin, user
        (folder / "password").write_text(PASSWORD)
        self._run("initdb", "-D", f"{folder}/data", "-U", "ann", "--auth=scram-sha-256", f"--pwfile={folder}/password")
        self.start()

    def start(self) -> None:
        # What a test writes need not outlive a power cut.
        options = f"-c listen_addresses='' -c fsync=off -c unix_socket_directories={self.folder}"
        self._run("pg_ctl", "-D", f"{self.folder}/data", "-l", f"{self.folder}/log", "-w", "-o", options, "start")

    def stop(self) -> None:
        self._run("pg_ctl", "-D", f"{self.folder}/data", "-w", "-m", "immediate", "stop")

    def database(self) -> str:
        """The URL of a new database."""
        name = f"fleet_{uuid.uuid4().hex[:8]}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self.url(name)

    def url(self, database: str) -> str:
        return f"postgresql://ann:{PASSWORD}@/{database}?host={self.folder}"

    def _run(self, program: str, *arguments: str) -> None:
        command: Sequence[str] = (str(self._bin / program), *arguments)
        if self._user != getpass.getuser():  # it refuses to run as root
            command = ("runuser", "-u", self._user, "--", *command)
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def running(bin: Path) -> Iterator[Postgres]:
    # Not in pytest's directory: a socket's path is short, and another user has to reach it.
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
    user = getpass.getuser()
    if os.geteuid() == 0:
        user = "postgres"
        shutil.chown(folder, user, pwd.getpwnam(user).pw_gid)
    folder.chmod(0o755)
    try:
        server = Postgres(folder, bin, user)
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)
