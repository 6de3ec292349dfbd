"""Whose turn it is in the thread that tokenizes."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

# So long goes a short text before a longer one that came earlier, by what it has less: none waits for ever.
_CHARS_A_SECOND = 20_000
_MAX_WAIT_S = 5.0


class Turns:
    """One at a time, short ones first: a list of thousands of texts comes in many requests, and those of others need
    not wait for them all. On one loop only."""

    def __init__(self) -> None:
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []  # a heap
        self._count = itertools.count()
        self._is_taken = False

    @asynccontextmanager
    async def taken(self, num_chars: int) -> AsyncIterator[None]:
        """Nobody else has a turn meanwhile."""
        if self._is_taken:
            turn = asyncio.get_running_loop().create_future()
            due = time.monotonic() + min(num_chars / _CHARS_A_SECOND, _MAX_WAIT_S)
            heapq.heappush(self._waiting, (due, next(self._count), turn))
            try:
                await turn
            except asyncio.CancelledError:
                if not turn.cancelled():  # it was given to us just now
                    self._pass_on()
                raise
        self._is_taken = True
        try:
            yield
        finally:
            self._pass_on()

    def _pass_on(self) -> None:
        while self._waiting:
            _, _, turn = heapq.heappop(self._waiting)
            if not turn.done():
                turn.set_result(None)
                return
        self._is_taken = False
