"""What callers' connections may cost: a reader that reads nothing, a sender that trickles, one that has vanished."""

from __future__ import annotations

import asyncio
import errno
import logging
import resource
import socket
import sys
import time
from dataclasses import dataclass
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.ioloop import IOLoop
from tornado.iostream import IOStream

from jupyter_dsserve.protocol.errors import HeadersTooLarge

log = logging.getLogger(__name__)

MAX_HEADERS = 100
MAX_HEADER_BYTES = 32 * 1024
# How much of too large a head or body is read and thrown away so that its sender gets to see our answer.
MAX_DISCARDED = 8

_LOOK_S = 1.0
_TOLD_S = 1.0
_PAUSE_S = 0.5
# A host that vanished answers no probe: its idle connection ends within two minutes.
_PROBES = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%b"
)


def check_headers(num: int, num_bytes: int) -> None:
    """Raises `HeadersTooLarge`."""
    if num > MAX_HEADERS:
        raise HeadersTooLarge(f"the request has {num} headers, over the limit of {MAX_HEADERS}: send fewer")
    if num_bytes > MAX_HEADER_BYTES:
        raise HeadersTooLarge(
            f"the request's headers have {num_bytes} bytes, over the limit of {MAX_HEADER_BYTES}: send shorter ones"
        )


@dataclass(frozen=True, slots=True)
class Taken:
    """So many bytes a caller has taken of what we write, since ``since_s`` (monotonic) no more."""

    num_bytes: int
    since_s: float


def looked(before: Taken | None, num_bytes: int, is_writing: bool, now: float) -> Taken | None:
    """After one more look; None while nothing waits to be taken."""
    if not is_writing:
        return None
    return before if before and before.num_bytes == num_bytes else Taken(num_bytes, now)


def most_connections(wanted: int) -> int:
    """0: three quarters of the files that the process may open."""
    return wanted or 3 * resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4


class Connections:
    """Those that are open. One that takes nothing of what waits for it for ``stall_s`` seconds is cut (0: never).
    Beyond ``most`` a new one is told 503 (0: three quarters of the files that the process may open). Once the gateway
    ``is_leaving`` each ends with its next answer, so that who keeps some open asks elsewhere."""

    def __init__(self, stall_s: float = 0.0, most: int = 0) -> None:
        self.num_cut = self.num_refused = 0
        self.is_leaving = False
        self.stall_s = stall_s
        self._most = most_connections(most)
        self._open: dict[IOStream, Taken | None] = {}

    @property
    def num_open(self) -> int:
        return sum(not stream.closed() for stream in self._open)

    def takes(self, stream: IOStream) -> bool:
        """Whether there is room for one more, which is counted then."""
        if len(self._open) >= self._most:
            self._forget_closed()
        if len(self._open) >= self._most:
            self.num_refused += 1
            return False
        self._open[stream] = None
        return True

    def look(self, now: float) -> None:
        """Cut those whose reader is stuck. ``now`` is monotonic seconds."""
        self._forget_closed()
        for stream, before in self._open.items():
            # What went into the kernel's buffer: Tornado has no public name for it.
            after = looked(before, stream._total_write_done_index, stream.writing(), now)
            self._open[stream] = after
            if after and self.stall_s and now - after.since_s >= self.stall_s:
                self.num_cut += 1
                log.warning("a caller read nothing for %g s (stall_s): its connection is cut", self.stall_s)
                stream.close()

    async def keep_looking(self) -> None:
        while True:
            await asyncio.sleep(min(_LOOK_S, self.stall_s / 4 or _LOOK_S))
            self.look(time.monotonic())

    def _forget_closed(self) -> None:
        for stream in [stream for stream in self._open if stream.closed()]:
            del self._open[stream]


class Listening(socket.socket):
    """Listens for a `Server`. While no file is left for one more connection, those that come wait in the kernel: to be
    told of them again and again would take all of the loop's time."""

    def accept(self) -> tuple[socket.socket, Any]:
        try:
            return super().accept()
        except OSError as fault:
            if fault.errno not in (errno.EMFILE, errno.ENFILE):
                raise
        log.warning("no file is left for a new connection: it waits until another has gone")
        IOLoop.current().update_handler(self, 0)
        asyncio.get_running_loop().call_later(_PAUSE_S, self._go_on)
        raise BlockingIOError

    def _go_on(self) -> None:
        if self.fileno() >= 0:
            IOLoop.current().update_handler(self, IOLoop.READ)


class Server(HTTPServer):
    """Tornado's, with `Connections`."""

    connections: Connections

    def initialize(self, app: Any, connections: Connections, **settings: Any) -> None:  # type: ignore[override]
        super().initialize(app, **settings)
        self.connections = connections

    def handle_stream(self, stream: IOStream, address: tuple[Any, ...]) -> None:
        if not self.connections.takes(stream):
            told = b'{"error": {"type": "Unavailable", "message": "too many connections: ask again later"}}'
            stream.write(_FULL % (len(told), told))
            # Closed now, with its request unread, the connection's end would overtake this answer.
            asyncio.get_running_loop().call_later(_TOLD_S, stream.close)
            return
        _probe(stream.socket)
        super().handle_stream(stream, address)


def _probe(connection: socket.socket) -> None:
    """Have the kernel find out whether the other end is still there."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform == "linux":  # elsewhere the names differ, or the numbers are the system's
        for name, value in _PROBES.items():
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def allow_files() -> None:
    """Each connection is an open file, of which many systems allow 1024 until one asks for more."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    except (OSError, ValueError) as fault:  # then there are fewer connections
        log.info("no more files can be opened than before: %s", fault)
