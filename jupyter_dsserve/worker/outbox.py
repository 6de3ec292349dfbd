"""What the worker has to say, in order; steps that wait for a slow stream go out as one message."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from typing import Protocol

from jupyter_dsserve.protocol import codec
from jupyter_dsserve.protocol import worker_pb2 as pb
from jupyter_dsserve.protocol.request import Chunk


class Stream(Protocol):
    async def write(self, message: pb.FromWorker, /) -> None: ...
    async def done_writing(self) -> None: ...


class Outbox:
    """Filled from the loop's thread only."""

    def __init__(self) -> None:
        self._messages: deque[pb.FromWorker] = deque()
        self._is_closed = False
        self._news = asyncio.Event()

    def put(self, message: pb.FromWorker) -> None:
        self._messages.append(message)
        self._news.set()

    def put_chunks(self, chunks: Iterable[Chunk], num_running: int = 0) -> None:
        """Add the chunks of a step of ``num_running`` sequences; they join the message before them if that one waits
        and holds chunks too."""
        encoded = [codec.chunk_to_pb(c) for c in chunks]
        if self._messages and self._messages[-1].WhichOneof("kind") == "output":
            self._messages[-1].output.chunks.extend(encoded)
            self._messages[-1].output.running = num_running or self._messages[-1].output.running
        else:
            self.put(pb.FromWorker(output=pb.StepOutput(chunks=encoded, running=num_running)))

    def close(self) -> None:
        """Send what waits, then end the stream."""
        self._is_closed = True
        self._news.set()

    async def send_to(self, stream: Stream) -> None:
        while self._messages or not self._is_closed:
            self._news.clear()
            while self._messages:
                await stream.write(self._messages.popleft())
            if not self._is_closed:
                await self._news.wait()
        await stream.done_writing()
