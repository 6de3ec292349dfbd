"""Events pass Tornado's queue where they can; what a reader sees is the same, however slowly it reads."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import orjson
from tornado.httpserver import HTTPServer
from tornado.iostream import StreamClosedError
from tornado.testing import bind_unused_port
from tornado.web import Application, RequestHandler

from jupyter_dsserve.gateway.sse import EventStream
from tests.support import until

NUM, FILLER = 2000, "x" * 5000  # 10 MB: more than the kernel keeps for one who does not read


class Telling(RequestHandler):
    ended: asyncio.Future[str]
    connection: Any

    async def get(self) -> None:
        Telling.connection = self.request.connection
        events = EventStream(self)
        try:
            for number in range(NUM):
                events.send({"number": number, "filler": FILLER})
                await events.flush()
        except StreamClosedError:
            self.ended.set_result("the caller left")
            raise
        events.send_raw(b"data: [DONE]\n\n")
        events.finish()
        self.ended.set_result("all told")


@contextlib.asynccontextmanager
async def reader(version: str = "1.1") -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Who has asked, and has read nothing yet."""
    Telling.ended = asyncio.get_running_loop().create_future()
    server = HTTPServer(Application([("/", Telling)]))
    listening, port = bind_unused_port()
    server.add_socket(listening)
    reading, writing = await asyncio.open_connection("127.0.0.1", port, limit=1 << 16)
    writing.write(f"GET / HTTP/{version}\r\nHost: here\r\n\r\n".encode())
    try:
        yield reading, writing
    finally:
        writing.close()
        server.stop()
        await server.close_all_connections()


def numbers(events: bytes) -> list[int]:
    *told, done, rest = events.split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    found = [orjson.loads(one.removeprefix(b"data: ")) for one in told]
    assert all(one["filler"] == FILLER for one in found)
    return [one["number"] for one in found]


async def whole(reading: asyncio.StreamReader) -> bytes:
    """The body of a chunked answer, read to its end."""
    body = bytearray()
    while size := int(await reading.readline(), 16):
        body += await reading.readexactly(size)
        assert await reading.readexactly(2) == b"\r\n"
    assert await reading.readexactly(2) == b"\r\n"
    return bytes(body)


async def test_who_reads_late_gets_all_in_order() -> None:
    async with reader() as (reading, _):
        assert b"chunked" in (await reading.readuntil(b"\r\n\r\n")).lower()
        await until(Telling.connection.stream.writing)  # the socket takes no more
        assert not Telling.ended.done(), "whoever does not read is waited for"
        assert numbers(await whole(reading)) == list(range(NUM))
        assert await Telling.ended == "all told"


async def test_http_1_0_has_no_chunks() -> None:
    async with reader("1.0") as (reading, _):
        assert b"chunked" not in (await reading.readuntil(b"\r\n\r\n")).lower()
        assert numbers(await reading.read(-1)) == list(range(NUM))


async def test_who_leaves_ends_it() -> None:
    async with reader() as (reading, writing):
        await reading.readuntil(b"\r\n\r\n")
        writing.transport.abort()
        assert await asyncio.wait_for(Telling.ended, 30) == "the caller left"
