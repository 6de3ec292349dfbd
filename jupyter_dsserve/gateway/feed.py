"""`Feed`: what happens, server-sent to all who listen."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import orjson
from tornado.web import RequestHandler

from jupyter_dsserve.fleet.events import Events, Item
from jupyter_dsserve.protocol.records import Event

_KEEPALIVE_S = 15.0
# A thousand listeners take some 30 ms to tell: between so many of them others have their turn.
_AT_ONCE = 25
_MAX_BEHIND = 1000


class Listener:
    """One who listens. What it is too slow to take waits, bounded: ``last_id`` is the newest event from before."""

    def __init__(self, handler: RequestHandler, last_id: int) -> None:
        self.last_id = last_id
        self.ended = asyncio.Event()
        self._handler = handler
        self._waiting: deque[bytes] = deque()

    def send(self, data: bytes) -> None:
        """One that is too far behind is cut off and has to come back."""
        connection: Any = self._handler.request.connection
        if connection.stream.writing():
            self._waiting.append(data)
            if len(self._waiting) > _MAX_BEHIND:
                connection.stream.close()
            return
        for waiting in self._waiting:
            self._handler.write(waiting)
        self._waiting.clear()
        self._handler.write(data)
        self._handler.flush()


class Feed:
    """Takes each item once and tells it to all listeners, so that a thousand of them hold nobody up."""

    def __init__(self) -> None:
        self._listeners: dict[Listener, None] = {}  # in order
        self._listening = ExitStack()

    @property
    def num_listeners(self) -> int:
        return len(self._listeners)

    @contextmanager
    def told(self, events: Events, listener: Listener) -> Iterator[None]:
        """It hears what comes from now on, until the block ends."""
        if not self._listeners:
            queue = self._listening.enter_context(events.listen())
            task = asyncio.create_task(self._tell(queue))
            self._listening.callback(task.cancel)
        self._listeners[listener] = None
        try:
            yield
        finally:
            if self._listeners.pop(listener, self) is None and not self._listeners:
                self._listening.pop_all().close()

    async def _tell(self, queue: asyncio.Queue[Item | None]) -> None:
        while True:
            try:
                item = await asyncio.wait_for(queue.get(), _KEEPALIVE_S)
            except asyncio.TimeoutError:
                await self._send(b": still here\n\n", None)
                continue
            if item is None:  # the gateway stops, or was too slow: they come back to a new beginning
                listeners, self._listeners = self._listeners, {}
                for listener in listeners:
                    listener.ended.set()
                self._listening.pop_all().close()
                return
            await self._send(framed(item), item)

    async def _send(self, data: bytes, item: Item | None) -> None:
        for number, listener in enumerate(list(self._listeners), start=1):
            if listener in self._listeners and not (isinstance(item, Event) and item.id <= listener.last_id):
                listener.send(data)
            if number % _AT_ONCE == 0:
                await asyncio.sleep(0)


def framed(item: Item) -> bytes:
    data = orjson.dumps(item)
    if isinstance(item, Event):
        return b"event: event\nid: %d\ndata: %b\n\n" % (item.id, data)
    return b"event: stats\ndata: %b\n\n" % data
