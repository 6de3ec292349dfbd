"""What the worker has to say, in order; steps that wait for a slow stream go out as one message."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Protocol

from jupyter_dsserve.protocol import codec
from jupyter_dsserve.protocol import worker_pb2 as pb
from jupyter_dsserve.protocol.errors import InvalidRequest
from jupyter_dsserve.protocol.request import Chunk, FinishReason
from jupyter_dsserve.protocol.sizes import shown
from jupyter_dsserve.protocol.spec import MAX_FAR_MESSAGE_BYTES

_MAX_TOGETHER_BYTES = 16 * 1024 * 1024
_PROTOBUFS_MAX_BYTES = (1 << 31) - 1
_MAX_AROUND_BYTES = 1 << 20  # of a message: what `_size` does not count
_LOGPROB_BYTES = 64  # about


class Stream(Protocol):
    async def write(self, message: pb.FromWorker, /) -> None: ...
    async def done_writing(self) -> None: ...


class Outbox:
    """Filled from the loop's thread only."""

    def __init__(self, *, is_far: bool = False) -> None:
        """``is_far``: the gateway is on another machine."""
        self._messages: deque[pb.FromWorker] = deque()
        self._size = 0  # of the chunks in the last message
        self._max_bytes = (MAX_FAR_MESSAGE_BYTES if is_far else _PROTOBUFS_MAX_BYTES) - _MAX_AROUND_BYTES
        self._is_closed = False
        self._news = asyncio.Event()

    def begin(self, messages: Iterable[pb.FromWorker]) -> None:
        """A new stream, with these first: what waited for the one before is for nobody any more."""
        self._messages.clear()
        for message in messages:
            self.put(message)

    def put(self, message: pb.FromWorker) -> None:
        self._messages.append(message)
        self._news.set()

    def put_chunks(self, chunks: Iterable[Chunk], num_running: int = 0) -> None:
        """Add the chunks of a step of ``num_running`` sequences; they join the message before them if that one waits
        and holds chunks too. Of large ones few go together, and one that no message takes is an error instead."""
        for part, size in self._parts(chunks):
            encoded = [codec.chunk_to_pb(c) for c in part]
            last = self._messages[-1] if self._messages else None
            if last and last.WhichOneof("kind") == "output" and self._size + size <= _MAX_TOGETHER_BYTES:
                last.output.chunks.extend(encoded)
                last.output.running = num_running or last.output.running
                self._size += size
            else:
                self.put(pb.FromWorker(output=pb.StepOutput(chunks=encoded, running=num_running)))
                self._size = size

    def _parts(self, chunks: Iterable[Chunk]) -> Iterator[tuple[list[Chunk], int]]:
        """What goes together, and its size."""
        part: list[Chunk] = []
        total = 0
        for given in chunks:
            chunk, size = given, _size(given)
            if size > self._max_bytes:
                chunk, size = _too_large(given, size, self._max_bytes), 0
            if part and total + size > _MAX_TOGETHER_BYTES:
                yield part, total
                part, total = [], 0
            part.append(chunk)
            total += size
        if part:
            yield part, total

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


def _size(chunk: Chunk) -> int:
    """In bytes, about: to encode each token for it would cost more than the rest."""
    size = len(chunk.text) + sum(len(tensor.data) for tensor in chunk.tensors)
    return size + sum(_LOGPROB_BYTES * (1 + len(one.top)) for one in chunk.logprobs) if chunk.logprobs else size


def _too_large(chunk: Chunk, size: int, limit: int) -> Chunk:
    error = InvalidRequest(
        f"the answer has {shown(size)}, and this version's worker sends at most {shown(limit)}: ask with fewer rows at "
        "once"
    )
    return Chunk(chunk.request_id, finish_reason=FinishReason.ERROR, error=error, times=chunk.times)
