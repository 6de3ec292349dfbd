"""`Version`: one immutable spec under a deployment, its replicas, and what they have served."""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from jupyter_dsserve.fleet.observations import Watch
from jupyter_dsserve.fleet.reading import Reading
from jupyter_dsserve.fleet.replica import Replica
from jupyter_dsserve.fleet.road import Road, later
from jupyter_dsserve.fleet.router import least_loaded, prefix_of
from jupyter_dsserve.fleet.stats import Window, percentile
from jupyter_dsserve.fleet.tracing import Trace
from jupyter_dsserve.protocol.config import Priority
from jupyter_dsserve.protocol.errors import DeadlineExceeded, DSServeError, Unavailable
from jupyter_dsserve.protocol.records import Origin, VersionState, VersionStats
from jupyter_dsserve.protocol.request import Chunk, Request
from jupyter_dsserve.protocol.spec import WorkerSpec
from jupyter_dsserve.protocol.tensors import ModelInfo

_FURTHEST_FIRST = (
    VersionState.READY,
    VersionState.WARMING,
    VersionState.LOADING,
    VersionState.QUEUED,
    VersionState.DRAINING,
)
SETTLED = (VersionState.READY, VersionState.FAILED, VersionState.STOPPED)


@dataclass(slots=True, eq=False)
class Version:
    """``is_wanted`` is the goal (loaded or not); the state is derived from it, from ``failure``, and from replicas.

    ``road`` is what its deployment's requests share. ``is_awaited``: while no replica is READY requests wait in line
    for one (set it where one is on its way or can be started on demand); else they get a 503.
    """

    deployment: str
    name: str
    spec: WorkerSpec
    model_path: str
    num_replicas: int
    origin: Origin
    created_at: float
    is_wanted: bool = False
    failure: str = ""
    is_resting: bool = False  # its workers have gone as nobody asked it; the next request loads it again
    is_deleted: bool = False  # to be forgotten once its workers have ended
    settings: dict[str, Any] = field(default_factory=dict)  # what may change while it stays the same version
    road: Road = field(default_factory=Road)
    is_awaited: bool = False
    replicas: list[Replica] = field(default_factory=list)
    window: Window = field(default_factory=Window)
    wake: Callable[[], None] = lambda: None  # loads it again: called when a request is to wait while it rests
    watch: Callable[[Request, int, float], Watch] | None = None  # request, in flight, monotonic seconds
    _last_info: ModelInfo = field(default_factory=ModelInfo)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _turn: itertools.count[int] = field(default_factory=itertools.count)

    @property
    def id(self) -> str:
        """As callers pin it: ``deployment@version``."""
        return f"{self.deployment}@{self.name}"

    @property
    def priority(self) -> Priority:
        """The class of its loads."""
        return self.settings.get("priority", "high")

    @property
    def state(self) -> VersionState:
        states = {r.state for r in self.replicas}
        if self.is_wanted:
            if self.failure:
                return VersionState.FAILED
            none = VersionState.STOPPED if self.is_resting else VersionState.QUEUED
            return next((s for s in _FURTHEST_FIRST if s in states), none)
        return VersionState.DRAINING if states else VersionState.STOPPED

    @property
    def is_ready(self) -> bool:
        return self.state is VersionState.READY

    @property
    def can_answer(self) -> bool:
        """Whether requests may be sent to it: it is READY, or rests and comes for them."""
        return self.is_ready or (self.is_wanted and not self.failure and self.is_awaited)

    @property
    def num_wanted(self) -> int:
        """Workers that it should have now."""
        return 0 if self.is_resting else self.num_replicas

    @property
    def in_flight(self) -> int:
        """Requests on its workers."""
        return sum(r.in_flight for r in self.replicas)

    @property
    def num_queued(self) -> int:
        """Those of them that wait for their first step."""
        return sum(r.heartbeat.waiting for r in self.replicas if r.state is VersionState.READY)

    @property
    def progress(self) -> float:
        """0 to 1: of the replica that is furthest behind while loading, 1 once READY."""
        if self.is_ready:
            return 1.0
        return min((r.progress for r in self.replicas), default=0.0)

    @property
    def info(self) -> ModelInfo:
        """What its model says of itself; empty before it is READY. While it rests, what it said before."""
        rested = self._last_info if self.is_awaited else ModelInfo()
        return next((r.info for r in self.replicas if r.state is VersionState.READY), rested)

    def announce(self) -> None:
        """Wake those who wait for the state to settle. Called after every change of it."""
        if self.is_ready:
            self.is_awaited, self._last_info = self.is_resting, self.info
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        self.road.line.wake(self.name)

    async def settled(self) -> VersionState:
        """Wait until the version is READY, FAILED or STOPPED."""
        while self.state not in SETTLED:
            await self._changed.wait()
        return self.state

    @property
    def takes(self) -> bool:
        """Whether a request sent to it now would be answered or wait for a replica."""
        if not self.is_wanted or self.failure:
            return False
        now = time.monotonic()
        for replica in self.replicas:  # a loop: every request passes here
            if replica.takes(now):
                return True
        return self._is_coming

    @property
    def _is_coming(self) -> bool:
        """Whether to wait for a replica although none is READY and well: somebody has to say so, or how long."""
        is_there = any(r.state is VersionState.READY and not r.trouble for r in self.replicas)
        if is_there or not self.is_wanted or self.failure:
            return False
        return self.is_awaited or self.road.policy.queue_timeout_s > 0

    async def generate(self, request: Request, trace: Trace | None = None) -> AsyncGenerator[Chunk, None]:
        """The answer of the replica with the least work, after a wait in line if all are full.

        If the replica is lost before the first token another one answers, once. ``trace`` is told how it goes. Raises
        `Unavailable` if there is none that takes requests, `TooManyRequests` if the line is full, `DeadlineExceeded` if
        the wait took too long.
        """
        started = time.monotonic()
        reading = Reading(self.window, started)
        see, num_spare = reading.see, self.num_spare
        lost: Replica | None = None
        has_waited = False  # so that less of its time is left
        line = self.road.line
        try:
            while True:
                attempt = reading.attempt = trace.attempt(request.id, self.name, time.monotonic()) if trace else None
                is_line = line.num_waiting and line.num_waiting_for(self.name)
                replica = None if is_line else self._find(request, lost)
                if replica is None:
                    replica = await self._wait(request, started, lost)
                    has_waited, reading.queued_s = True, time.monotonic() - started
                if attempt:
                    attempt.replica, attempt.asked_s = replica.id, time.monotonic()
                if self.watch and not lost:  # once, whoever answers in the end: a mirror copies what it is told of
                    reading.watch = self.watch(request, replica.in_flight, started)
                asked = later(request, time.monotonic() - started) if has_waited else request
                async with aclosing(replica.generate(asked, self.road.policy.first_token_timeout_s)) as chunks:
                    async for chunk in chunks:
                        if not see(chunk, replica, num_spare):
                            break
                        yield chunk
                    else:
                        return
                lost, has_waited = replica, True
                self.road.num_retrying += 1
        except DSServeError:
            reading.refused(time.monotonic())
            raise
        finally:
            self.road.num_retrying -= lost is not None
            if line.num_waiting:
                line.wake(self.name)

    def _find(self, request: Request, lost: Replica | None) -> Replica | None:
        """The replica that takes the request; None if all are full, or one is on its way. Raises `Unavailable`."""
        now, max_in_flight = time.monotonic(), self.road.policy.max_in_flight
        taking = [r for r in self.replicas if r.takes(now) and r is not lost]
        free = [r for r in taking if r.in_flight < max_in_flight] if max_in_flight else taking
        if free:
            has_prefixes = len(free) > 1 and free[0].runner == "ragged"
            return least_loaded(free, next(self._turn), prefix_of(request) if has_prefixes else "")
        if taking or self._is_coming:
            if self.is_resting and self.is_wanted:
                self.wake()
            return None
        raise self.refusal(now)

    def refusal(self, now: float) -> Unavailable:
        """Why none of its replicas takes a request."""
        ready = [r for r in self.replicas if r.state is VersionState.READY]
        if not ready:
            return Unavailable(f"{self.id} is {self.state.value}: load it, or wait until it is READY", retry_after_s=2)
        why = "; ".join(f"{r.id}: {r.trouble or f'its breaker is {r.breaker.door.value}'}" for r in ready)
        opens_s = min((r.breaker.open_s(now) for r in ready if not r.trouble), default=2.0)
        return Unavailable(f"no replica of {self.id} takes requests now ({why})", retry_after_s=math.ceil(opens_s) or 1)

    async def _wait(self, request: Request, started: float, lost: Replica | None) -> Replica:
        """Stand in line until there is a replica."""
        policy, limit_s = self.road.policy, request.timeout_s or math.inf
        queue_s, acquire_s = policy.queue_timeout_s or math.inf, policy.acquire_timeout_s or math.inf

        def late() -> DSServeError:
            if limit_s <= min(queue_s, acquire_s):
                return DeadlineExceeded(f"the request's time limit of {limit_s:g} s has passed in line for {self.id}")
            if queue_s <= acquire_s:
                return DeadlineExceeded(
                    f"no replica of {self.id} came free within {queue_s:g} s, which is queue_timeout_s of the policy"
                )
            return Unavailable(
                f"no permit came free within acquire_timeout_s of {acquire_s:g} s: all {len(self.replicas)} replicas "
                f"of {self.id} have their max_in_flight of {policy.max_in_flight} requests; raise one of the three",
                retry_after_s=1,
            )

        until = started + min(limit_s, queue_s, acquire_s)
        look = lambda: self._find(request, lost)  # noqa: E731
        return await self.road.line.wait(self.name, request.priority, started, policy.max_queue, look, until, late)

    def num_spare(self, lost: Replica) -> int:
        """How many requests on ``lost`` the other replicas may be asked to answer now."""
        now = time.monotonic()
        if not any(r.takes(now) for r in self.replicas if r is not lost):
            return 0
        return self.road.num_retries_left(sum(r.in_flight for r in self.replicas))

    def stats(self, weight: float, at: float, now: float) -> VersionStats:
        """``at`` is seconds since the epoch, for the record; ``now`` is monotonic seconds."""
        good = self.window.good(now)
        latencies = [s.latency_s for s in good]
        ready = [r for r in self.replicas if r.state is VersionState.READY]
        return VersionStats(
            deployment=self.deployment,
            version=self.name,
            at=at,
            state=self.state,
            weight=weight,
            replicas=len(ready),
            requests=self.window.requests,
            errors=self.window.errors,
            in_flight=self.in_flight,
            queued=self.num_queued,
            p50_s=percentile(latencies, 0.50),
            p95_s=percentile(latencies, 0.95),
            p99_s=percentile(latencies, 0.99),
            first_token_p95_s=percentile([s.first_token_s for s in good if s.first_token_s is not None], 0.95),
            tokens_per_s=self.window.tokens_per_s(now),
            kv_used=max((r.heartbeat.kv_used for r in ready), default=0.0),
            device_bytes=sum(r.heartbeat.device_bytes for r in self.replicas),
            padding=max((r.heartbeat.padding for r in ready), default=0.0),
            prefix_hits=sum(r.heartbeat.num_cached for r in ready) / max(1, sum(r.heartbeat.num_prompt for r in ready)),
            preemptions=sum(r.heartbeat.num_preempted for r in ready),
        )
