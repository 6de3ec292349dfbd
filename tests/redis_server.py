"""A Redis of the tests' own, from the system's package, on a socket; nothing of it is written to a disk."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PASSWORD = "s3cret-and-long"


class RedisServer:
    """It can be stopped and started again, and has forgotten everything then."""

    def __init__(self, folder: Path, program: str) -> None:
        self.socket, self._program = folder / "redis.sock", program
        self.start()

    @property
    def url(self) -> str:
        return f"unix://:{PASSWORD}@{self.socket}"

    def start(self) -> None:
        options = ("--port", "0", "--unixsocket", str(self.socket), "--save", "", "--appendonly", "no")
        self.process = subprocess.Popen(
            [self._program, *options, "--requirepass", PASSWORD], stdout=subprocess.DEVNULL, cwd=self.socket.parent
        )
        end = time.monotonic() + 30
        while not self._listens():
            assert self.process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.01)

    def _listens(self) -> bool:
        """The socket is there a moment before anybody listens at it."""
        with socket.socket(socket.AF_UNIX) as asking:
            return asking.connect_ex(str(self.socket)) == 0

    def stop(self) -> None:
        self.process.kill()  # it may be stopped
        self.process.wait()
        self.socket.unlink(missing_ok=True)


@contextmanager
def running() -> Iterator[RedisServer | None]:
    """None where it is not installed."""
    program = shutil.which("redis-server")
    if program is None:
        yield None
        return
    folder = Path(tempfile.mkdtemp(prefix="redis-", dir="/tmp"))  # a socket's path is short
    try:
        server = RedisServer(folder, program)
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)
