"""`Feed`: one subscription of the kernel to the gateway's event stream, for all panels, in a thread of its own.

A thread, because a task on the kernel's loop stands still while a cell runs.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from contextlib import aclosing

from jupyter_dsserve.notebook.client import AsyncClient, Record
from jupyter_dsserve.protocol.errors import DSServeError

log = logging.getLogger(__name__)

# At most so many updates a second reach a browser.
BATCH_S = 0.25
_RETRY_S = 1.0

# Called in the feed's thread: what came since the last call; or nothing, and why nothing comes.
Listener = Callable[[list[Record], str], None]


class Feed:
    """Runs while somebody listens."""

    def __init__(self, make_client: Callable[[], AsyncClient]) -> None:
        """``make_client`` is called in the feed's thread, for its event loop."""
        self._make_client = make_client
        self._lock = threading.Lock()
        self._listeners: list[Listener] = []
        self._thread: threading.Thread | None = None
        self._stop: Callable[[], object] = lambda: None

    def listen(self, listener: Listener) -> None:
        with self._lock:
            self._listeners.append(listener)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="dsserve-feed", daemon=True)
                self._thread.start()

    def forget(self, listener: Listener) -> None:
        """The thread ends with the last listener."""
        with self._lock:
            if listener in self._listeners:
                self._listeners.remove(listener)
            if not self._listeners:
                self._thread = None
                self._stop()
                self._stop = lambda: None

    def _run(self) -> None:
        asyncio.run(self._follow())

    async def _follow(self) -> None:
        me, loop, task = threading.current_thread(), asyncio.get_running_loop(), asyncio.current_task()
        assert task
        with self._lock:
            if self._thread is not me:  # forgotten before it began
                return
            self._stop = lambda: loop.call_soon_threadsafe(task.cancel)
        client = self._make_client()
        try:
            while self._thread is me:
                try:
                    await self._hand_on(client)
                except DSServeError as fault:
                    self._tell([], fault.message)
                except Exception as fault:  # a newer gateway's records, say: show it, and try again
                    self._tell([], f"{type(fault).__name__}: {fault}")
                await asyncio.sleep(_RETRY_S)
        except asyncio.CancelledError:
            pass
        finally:
            with self._lock:
                if self._thread is me:
                    self._thread, self._stop = None, lambda: None
            await client.aclose()

    async def _hand_on(self, client: AsyncClient) -> None:
        """Records come in bursts, one for each version: they are handed on together."""
        me, loop = threading.current_thread(), asyncio.get_running_loop()
        batch: list[Record] = []
        due: asyncio.TimerHandle | None = None

        def flush() -> None:
            nonlocal due
            due = None
            self._tell(batch[:], "")
            batch.clear()

        async with aclosing(client.events(start=False, on_open=lambda: self._tell([], ""))) as records:
            async for record in records:
                if self._thread is not me:  # a cancellation can be lost on its way through a library
                    return
                batch.append(record)
                due = due or loop.call_later(BATCH_S, flush)

    def _tell(self, batch: list[Record], trouble: str) -> None:
        with self._lock:
            listeners = list(self._listeners) if self._thread is threading.current_thread() else []
        for listener in listeners:
            try:
                listener(batch, trouble)
            except Exception:  # one panel's fault must not silence the others
                log.exception("a panel could not be updated")
