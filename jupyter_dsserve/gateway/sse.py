"""Server-sent events: an answer that is told while it comes."""

from __future__ import annotations

from typing import Any

import orjson
from tornado.iostream import IOStream
from tornado.web import RequestHandler


def head_stream(handler: RequestHandler, kind: str = "text/event-stream") -> None:
    """What keeps caches and proxies (nginx) from holding events back."""
    handler.set_header("Content-Type", kind)
    handler.set_header("Cache-Control", "no-cache")
    handler.set_header("X-Accel-Buffering", "no")


class EventStream:
    """Begins the answer of ``handler``, whose headers may still be set until the first `flush`."""

    def __init__(self, handler: RequestHandler) -> None:
        head_stream(handler, "text/event-stream; charset=utf-8")
        connection: Any = handler.request.connection
        self._handler = handler
        self._stream: IOStream = connection.stream
        # Each token is a small packet of its own: it must not wait for the acknowledgement of the one before.
        self._stream.set_nodelay(True)
        self._waiting: list[bytes] = []
        # HTTP/1.0 knows no chunks; through TLS nobody but Tornado may write.
        self._may_pass = type(self._stream) is IOStream and handler.request.version == "HTTP/1.1"
        self._has_begun = False

    def send(self, data: object, event: str = "") -> None:
        """With the next `flush`, or with the end."""
        named = b"event: %b\n" % event.encode() if event else b""
        self.send_raw(b"%bdata: %b\n\n" % (named, orjson.dumps(data)))

    def send_raw(self, data: bytes) -> None:
        self._waiting.append(data)

    async def flush(self) -> None:
        """Returns once the kernel has taken it all. Raises `StreamClosedError` if the caller has left.

        A token's way through Tornado's queue costs as much as the kernel's send. So what the socket takes at once goes
        there at once, as a chunk of HTTP/1.1, and only the rest waits in the queue.
        """
        if self._has_begun and not self._waiting:
            return
        data, stream = b"".join(self._waiting), self._stream
        self._waiting.clear()
        if not (self._may_pass and self._has_begun) or stream.closed() or stream.writing():
            self._has_begun = True
            self._handler.write(data)
            await self._handler.flush()
            return
        chunk = b"%x\r\n%b\r\n" % (len(data), data)
        try:
            num_taken = stream.socket.send(chunk)
        except OSError:  # it is full, or broken: Tornado finds out which
            num_taken = 0
        if num_taken < len(chunk):
            await stream.write(chunk[num_taken:])

    def finish(self) -> None:
        self._handler.finish(b"".join(self._waiting))
