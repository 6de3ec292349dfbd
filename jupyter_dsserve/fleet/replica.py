"""`Replica`: one worker as the fleet sees it, and the requests that are on it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace

from jupyter_dsserve.protocol import codec
from jupyter_dsserve.protocol import worker_pb2 as pb
from jupyter_dsserve.protocol.errors import DSServeError, ReplicaLost, Unavailable
from jupyter_dsserve.protocol.records import VersionState
from jupyter_dsserve.protocol.request import Chunk, FinishReason, Request
from jupyter_dsserve.protocol.tensors import ModelInfo


class _Inbox:
    """The chunks of one request on their way to its reader; those that wait for a slow reader merge into one."""

    def __init__(self) -> None:
        self._chunk: Chunk | None = None
        self._news = asyncio.Event()
        self._num_met = self._num_steps = 0

    def put(self, chunk: Chunk, num_running: int = 0) -> None:
        """``num_running``: sequences in the step that the chunk comes from; 0 is unknown. The last chunk gets their
        mean over the request's steps."""
        if num_running:
            self._num_met += num_running
            self._num_steps += 1
        if chunk.finish_reason and self._num_steps:
            chunk = replace(chunk, batch=self._num_met / self._num_steps)
        self._chunk = self._chunk.merged(chunk) if self._chunk else chunk
        self._news.set()

    async def get(self) -> Chunk:
        await self._news.wait()
        self._news.clear()
        chunk, self._chunk = self._chunk, None
        assert chunk is not None
        return chunk


class Replica:
    """From QUEUED to STOPPED. `Link` feeds it what the worker says; `commands` is what the worker is to hear.

    A None in ``commands`` ends the stream. ``on_change`` is called after each change of state or progress.
    """

    def __init__(self, id: str, spec_digest: str, on_change: Callable[[Replica], None]) -> None:
        self.id = id
        self.spec_digest = spec_digest
        self.token = secrets.token_urlsafe(24)
        self.state = VersionState.QUEUED
        self.stage = ""
        self.progress = 0.0
        self.device = ""
        self.info = ModelInfo()  # until it is READY
        self.runner = ""
        self.pid = 0
        self.failure: DSServeError | None = None
        self.heartbeat = pb.Heartbeat()
        self.commands: asyncio.Queue[pb.ToWorker | None] = asyncio.Queue()
        self._on_change = on_change
        self._seen = 0.0
        self._in_flight: dict[str, _Inbox] = {}

    @property
    def in_flight(self) -> int:
        return len(self._in_flight)

    def silent_s(self, now: float) -> float:
        """Seconds since the worker was heard; 0 until it is READY, for loading may hold its interpreter."""
        return now - self._seen if self.state is VersionState.READY else 0.0

    # ---- what the link tells

    def receive(self, message: pb.FromWorker, now: float) -> None:
        """Take in one message of the worker. ``now`` is monotonic seconds."""
        self._seen = now
        kind = message.WhichOneof("kind")
        if kind == "output":
            for raw in message.output.chunks:
                if inbox := self._in_flight.get(raw.request_id):
                    inbox.put(codec.chunk_from_pb(raw), message.output.running)
        elif kind == "heartbeat":
            self.heartbeat = message.heartbeat
        elif kind == "progress":
            self.stage, self.progress = message.progress.stage, message.progress.fraction
            self._become(VersionState.WARMING if self.stage == "warming" else VersionState.LOADING)
        elif kind == "ready":
            self.device, self.runner = message.ready.device, message.ready.runner
            self.info, self.progress = codec.info_from_pb(message.ready.info), 1.0
            self._become(VersionState.READY)
        elif kind == "draining":
            self.drain()
        elif kind == "failed":
            self.failure = codec.error_from_pb(message.failed.error)

    @property
    def has_dialled(self) -> bool:
        return self._seen > 0

    def dialled(self, now: float) -> None:
        """The worker's stream is open. ``now`` is monotonic seconds."""
        self._seen = now

    def disconnected(self) -> None:
        """The worker's stream has ended: it takes nothing new. What it left unanswered ends with its process."""
        self._become(VersionState.DRAINING)

    def launched(self, pid: int) -> None:
        self.pid = pid
        self._become(VersionState.LOADING)

    def lost(self) -> None:
        """The worker is gone: every request still on it ends with an error, and none is taken any more."""
        self._become(VersionState.STOPPED)
        self.commands.put_nowait(None)
        error = ReplicaLost(f"the worker {self.id} ended while it was answering; ask again")
        for request_id, inbox in self._in_flight.items():
            inbox.put(Chunk(request_id, finish_reason=FinishReason.ERROR, error=error))

    def _become(self, state: VersionState) -> None:
        # A replica that drains or is gone stays so, whatever was on its way from the worker.
        if self.state not in (VersionState.DRAINING, VersionState.STOPPED) or state is VersionState.STOPPED:
            self.state = state
        self._on_change(self)

    # ---- what the fleet asks

    def drain(self) -> None:
        """Take nothing new; the worker ends once what runs has ended."""
        self._become(VersionState.DRAINING)
        self.commands.put_nowait(pb.ToWorker(drain=pb.Drain()))

    async def generate(self, request: Request) -> AsyncGenerator[Chunk, None]:
        """The answer in chunks; the last one has a finish reason. Leaving early aborts the request on the worker.

        Raises `Unavailable` if the replica is not READY.
        """
        if self.state is not VersionState.READY:
            raise Unavailable(f"the worker {self.id} is {self.state.value} and takes no requests")
        command = codec.submit(request)
        inbox = self._in_flight[request.id] = _Inbox()
        self.commands.put_nowait(command)
        is_ended = False
        try:
            while not is_ended:
                chunk = await inbox.get()
                is_ended = chunk.finish_reason is not None
                yield chunk
        finally:
            del self._in_flight[request.id]
            if not is_ended:
                self.commands.put_nowait(pb.ToWorker(abort=pb.Abort(request_id=request.id)))
