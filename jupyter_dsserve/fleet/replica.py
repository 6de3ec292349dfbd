"""`Replica`: one worker as the fleet sees it, and the requests that are on it."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from itertools import islice

from jupyter_dsserve.fleet.breaker import Breaker, BreakerSettings, Door, Outcome
from jupyter_dsserve.fleet.router import estimated_tokens
from jupyter_dsserve.protocol import codec
from jupyter_dsserve.protocol import worker_pb2 as pb
from jupyter_dsserve.protocol.errors import (
    Conflict,
    DeadlineExceeded,
    DSServeError,
    EngineFailure,
    ReplicaLost,
    Unavailable,
)
from jupyter_dsserve.protocol.records import ReplicaStatus, VersionState
from jupyter_dsserve.protocol.request import Chunk, FinishReason, Request
from jupyter_dsserve.protocol.tensors import ModelInfo

# Every request and every piece of an answer passes here, and a member of an enumeration is found slowly.
_READY, _CLOSED = VersionState.READY, Door.CLOSED
# Beyond a request's own time limit, which the worker keeps: a worker that hangs does not.
_LATE_S = 1.0


class _Inbox:
    """The chunks of one request on their way to its reader; those that wait for a slow reader merge into one.

    ``has_begun``: something came. ``is_over``: the last chunk came. ``is_cut``: that one is from here, and what still
    comes from the worker is not wanted.
    """

    __slots__ = ("_chunk", "_num_met", "_num_steps", "_reader", "has_begun", "is_cut", "is_over")

    def __init__(self) -> None:
        self.has_begun = self.is_over = self.is_cut = False
        self._chunk: Chunk | None = None
        self._reader: asyncio.Future[None] | None = None  # who waits: an Event is twice as dear, once for each token
        self._num_met = self._num_steps = 0

    def put(self, chunk: Chunk, num_running: int = 0) -> None:
        """``num_running``: sequences in the step that the chunk comes from; 0 is unknown. The last chunk gets their
        mean over the request's steps."""
        if self.is_over:
            return
        self.has_begun = True
        self.is_over = chunk.finish_reason is not None
        if num_running:
            self._num_met += num_running
            self._num_steps += 1
        if chunk.finish_reason and self._num_steps:
            chunk = replace(chunk, batch=self._num_met / self._num_steps)
        self._chunk = self._chunk.merged(chunk) if self._chunk else chunk
        if self._reader and not self._reader.done():
            self._reader.set_result(None)

    def cut(self, request_id: str, error: DSServeError) -> None:
        if not self.is_over:
            self.put(Chunk(request_id, finish_reason=FinishReason.ERROR, error=error))
            self.is_cut = True

    async def get(self) -> Chunk:
        if self._chunk is None:
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        chunk, self._chunk = self._chunk, None
        assert chunk is not None
        return chunk


class Replica:
    """From QUEUED to STOPPED. `Link` feeds it what the worker says; `commands` is what the worker is to hear.

    A None in ``commands`` ends the stream. ``on_change`` is called after each change of state or progress, ``tell``
    with the kind and the reason of what people may want to know. ``trouble`` says why it takes nothing although it is
    READY. ``outstanding_tokens`` is about what is still to be computed on it.
    """

    def __init__(
        self,
        id: str,
        spec_digest: str,
        on_change: Callable[[Replica], None],
        tell: Callable[[str, str], None] = lambda _kind, _reason: None,
        breaker: BreakerSettings | None = None,
    ) -> None:
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
        self.has_left = False  # its stream has ended
        self.failure: DSServeError | None = None
        self.heartbeat = pb.Heartbeat()
        self.commands: asyncio.Queue[pb.ToWorker | None] = asyncio.Queue()
        self.breaker = Breaker(breaker or BreakerSettings())
        self.trouble = ""
        self.outstanding_tokens = 0
        self.heard_at = 0.0  # monotonic seconds; 0 before it dialled
        self.used_at = 0.0  # when its last request ended, or it became READY
        self._on_change = on_change
        self._tell = tell
        self.probe_id = f"probe-{id}"  # of our own request, which nobody is to take for use
        self._in_flight: dict[str, _Inbox] = {}

    @property
    def in_flight(self) -> int:
        """Requests on it, without our own probe."""
        return len(self._in_flight) - (self.probe_id in self._in_flight)

    @property
    def status(self) -> ReplicaStatus:
        door = self.breaker.door.value
        return ReplicaStatus(
            self.id, self.state, self.device, self.runner, self.pid, self.in_flight, door, self.trouble
        )

    def takes(self, now: float) -> bool:
        """Whether a request may go to it. ``now`` is monotonic seconds."""
        if self.state is not _READY or self.trouble:
            return False
        return self.breaker.door is _CLOSED or self.breaker.allows(now)

    # ---- what the link tells

    def receive(self, message: pb.FromWorker, now: float) -> None:
        """Take in one message of the worker. ``now`` is monotonic seconds."""
        self.heard_at = now
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
            self.used_at = now
            self._become(VersionState.READY)
        elif kind == "draining":
            self.drain()
        elif kind == "failed":
            self.failure = codec.error_from_pb(message.failed.error)

    @property
    def has_dialled(self) -> bool:
        return self.heard_at > 0

    def dialled(self, now: float) -> None:
        """The worker's stream is open. ``now`` is monotonic seconds."""
        self.heard_at = now

    def disconnected(self) -> None:
        """The worker's stream has ended: it takes nothing new. What it left unanswered ends with its process."""
        self.has_left = True
        self._become(VersionState.DRAINING)

    def launched(self, pid: int) -> None:
        self.pid = pid
        self._become(VersionState.LOADING)

    def lost(self) -> None:
        """The worker is gone: every request still on it ends with an error, and none is taken any more."""
        self._become(VersionState.STOPPED)
        self.commands.put_nowait(None)
        how = f"was lost while it was answering ({self.trouble})" if self.trouble else "ended while it was answering"
        error = ReplicaLost(f"the worker {self.id} {how}; ask again")
        for request_id, inbox in self._in_flight.items():
            inbox.cut(request_id, error)

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

    def suspect(self, reason: str, num_spare: int = 0) -> None:
        """Take nothing more for now: something is wrong with the worker. Of the requests on which it has not begun
        ``num_spare`` are given back with `ReplicaLost`; the others wait for what becomes of it. An empty ``reason``: it
        is fine again."""
        if bool(reason) != bool(self.trouble):
            self._tell("replica_suspect" if reason else "replica_fine", reason or "it is heard again")
        is_changed, self.trouble = bool(reason) != bool(self.trouble), reason
        if is_changed:
            self._on_change(self)
        if reason:
            error = ReplicaLost(f"the worker {self.id} does not answer ({reason}); ask again")
            waiting = ((id, inbox) for id, inbox in self._in_flight.items() if not inbox.has_begun)
            for request_id, inbox in islice(waiting, num_spare):
                inbox.cut(request_id, error)

    async def generate(self, request: Request, first_token_s: float = 0.0) -> AsyncGenerator[Chunk, None]:
        """The answer in chunks; the last one has a finish reason. Leaving early aborts the request on the worker.

        ``first_token_s``: how many seconds it may take to begin; 0 is any. Raises `Unavailable` if the replica is not
        READY, `Conflict` if a request with its id runs there already.
        """
        if self.state is not _READY:
            raise Unavailable(f"the worker {self.id} is {self.state.value} and takes no requests")
        if request.id in self._in_flight:  # the one before would never hear again
            raise Conflict(f"a request {request.id!r} runs on {self.id} already: give each one its own id")
        command = codec.submit(request)
        num_prompt, num_answer = estimated_tokens(request)
        outstanding = num_prompt + num_answer
        self.outstanding_tokens += outstanding
        generation = self._enter(time.monotonic())
        inbox = self._in_flight[request.id] = _Inbox()
        has_limit = first_token_s or request.timeout_s is not None
        timers = self._timers(request, inbox, first_token_s) if has_limit else ()
        self.commands.put_nowait(command)
        last: Chunk | None = None
        try:
            while last is None:
                chunk = await inbox.get()
                if chunk.finish_reason:
                    last = chunk
                num_done = num_prompt + chunk.num_tokens  # the prompt is done with the first token
                num_prompt = 0
                if num_done > outstanding:
                    num_done = outstanding
                outstanding -= num_done
                self.outstanding_tokens -= num_done
                yield chunk
        finally:
            for timer in timers:
                timer.cancel()
            del self._in_flight[request.id]
            self.outstanding_tokens -= outstanding
            self._leave(generation, Outcome.OTHER if inbox.is_cut else _outcome(last), time.monotonic())
            if last is None or inbox.is_cut:
                self.commands.put_nowait(pb.ToWorker(abort=pb.Abort(request_id=request.id)))

    def _timers(self, request: Request, inbox: _Inbox, first_token_s: float) -> list[asyncio.TimerHandle]:
        """What ends a request from here when its time is over."""
        loop, timers = asyncio.get_running_loop(), []

        def late(text: str, *, although_begun: bool) -> None:
            if although_begun or not inbox.has_begun:
                inbox.cut(request.id, DeadlineExceeded(text))

        if first_token_s:
            text = f"no first token came within {first_token_s:g} s, which is first_token_timeout_s of the policy"
            timers.append(loop.call_later(first_token_s, lambda: late(text, although_begun=False)))
        if request.timeout_s is not None:
            whole = f"the request's time limit has passed, and {self.id} did not say so: give it a longer timeout_s"
            timers.append(loop.call_later(request.timeout_s + _LATE_S, lambda: late(whole, although_begun=True)))
        return timers

    def _enter(self, now: float) -> int:
        before, generation = self.breaker.door, self.breaker.begin(now)
        if self.breaker.door is not before:
            self._tell_door(before)
        return generation

    def _leave(self, generation: int, outcome: Outcome, now: float) -> None:
        self.used_at = now
        before = self.breaker.door
        self.breaker.end(generation, outcome, now)
        if self.breaker.door is not before:
            self._tell_door(before)

    def _tell_door(self, before: Door) -> None:
        door = self.breaker.door
        open_s = f" for {self.breaker.settings.open_s:g} s" if door is Door.OPEN else ""
        self._tell(f"breaker_{door.name.lower()}", f"the breaker was {before.value} and is {door.value}{open_s}")
        self._on_change(self)


def _outcome(last: Chunk | None) -> Outcome:
    """How a request ended for the breaker: callers who leave, deadlines and bad requests say nothing of the replica."""
    if last is None or last.finish_reason is FinishReason.ABORT:
        return Outcome.OTHER
    if last.error is None:
        return Outcome.OK
    return Outcome.FAULT if isinstance(last.error, EngineFailure | ReplicaLost) else Outcome.OTHER
