"""`Version`: one immutable spec under a deployment, its replicas, and what they have served."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from jupyter_dsserve.fleet.replica import Replica
from jupyter_dsserve.fleet.stats import Served, Window, percentile
from jupyter_dsserve.protocol.config import Priority
from jupyter_dsserve.protocol.errors import Unavailable
from jupyter_dsserve.protocol.records import Origin, VersionState, VersionStats
from jupyter_dsserve.protocol.request import Chunk, FinishReason, Request
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
    """``is_wanted`` is the goal (loaded or not); the state is derived from it, from ``failure``, and from replicas."""

    deployment: str
    name: str
    spec: WorkerSpec
    model_path: str
    num_replicas: int
    origin: Origin
    created_at: float
    is_wanted: bool = False
    failure: str = ""
    is_deleted: bool = False  # to be forgotten once its workers have ended
    settings: dict[str, Any] = field(default_factory=dict)  # what may change while it stays the same version
    replicas: list[Replica] = field(default_factory=list)
    window: Window = field(default_factory=Window)
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
            return next((s for s in _FURTHEST_FIRST if s in states), VersionState.QUEUED)
        return VersionState.DRAINING if states else VersionState.STOPPED

    @property
    def is_ready(self) -> bool:
        return self.state is VersionState.READY

    @property
    def progress(self) -> float:
        """0 to 1: of the replica that is furthest behind while loading, 1 once READY."""
        if self.is_ready:
            return 1.0
        return min((r.progress for r in self.replicas), default=0.0)

    @property
    def info(self) -> ModelInfo:
        """What its model says of itself; empty before it is READY."""
        return next((r.info for r in self.replicas if r.state is VersionState.READY), ModelInfo())

    def announce(self) -> None:
        """Wake those who wait for the state to settle. Called after every change of it."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def settled(self) -> VersionState:
        """Wait until the version is READY, FAILED or STOPPED."""
        while self.state not in SETTLED:
            await self._changed.wait()
        return self.state

    async def generate(self, request: Request) -> AsyncGenerator[Chunk, None]:
        """The answer of the least loaded READY replica. Raises `Unavailable` if there is none."""
        replica = pick_replica(self.replicas, next(self._turn))
        if replica is None:
            raise Unavailable(f"{self.id} is {self.state.value}: load it, or wait until it is READY", retry_after_s=2)
        started = time.monotonic()
        first_token_s: float | None = None
        async with aclosing(replica.generate(request)) as chunks:
            async for chunk in chunks:
                now = time.monotonic()
                if chunk.num_tokens and first_token_s is None:
                    first_token_s = now - started
                self.window.add_tokens(now, chunk.num_tokens)
                if chunk.finish_reason:
                    self._note_end(chunk, now, started, first_token_s)
                yield chunk

    def _note_end(self, chunk: Chunk, now: float, started: float, first_token_s: float | None) -> None:
        is_error = chunk.finish_reason is FinishReason.ERROR and not _is_callers_fault(chunk)
        num_tokens = chunk.usage.completion_tokens if chunk.usage else 0
        self.window.add(Served(now, now - started, first_token_s, num_tokens, is_error))

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
            in_flight=sum(r.in_flight for r in self.replicas),
            queued=sum(r.heartbeat.waiting for r in ready),
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


def pick_replica(replicas: Iterable[Replica], turn: int) -> Replica | None:
    """The READY replica with the fewest requests on it; equals take turns. None if none is READY."""
    ready = [r for r in replicas if r.state is VersionState.READY]
    if not ready:
        return None
    fewest = min(r.in_flight for r in ready)
    equals = [r for r in ready if r.in_flight == fewest]
    return equals[turn % len(equals)]


def _is_callers_fault(chunk: Chunk) -> bool:
    return chunk.error is not None and 400 <= chunk.error.status < 500
