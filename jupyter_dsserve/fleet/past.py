"""`Past`: what happened and what versions did, as it is written down, with what is not written yet."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from jupyter_dsserve.fleet.events import Asked
from jupyter_dsserve.fleet.minutes import Gauges, Minute, Recorder, Sums, not_read, step_of
from jupyter_dsserve.fleet.registry import Registry
from jupyter_dsserve.fleet.stats import Window
from jupyter_dsserve.fleet.version import Version
from jupyter_dsserve.protocol.errors import Unavailable
from jupyter_dsserve.protocol.records import Event, StatsHistory, VersionState

if TYPE_CHECKING:
    from jupyter_dsserve.fleet.fleet import Fleet


class Past:
    """One for a fleet. `tick` it every second, and `close` it before the registry."""

    def __init__(self, fleet: Fleet, registry: Registry) -> None:
        self._fleet = fleet
        self._registry = registry
        self._minutes = Recorder()

    async def history(self, asked: Asked) -> list[Event]:
        """As `Fleet.history`."""
        events = {event.id: event for event in self._fleet.events.since(asked.since or 0)}
        with contextlib.suppress(Unavailable):  # what is remembered is better than nothing
            events |= {event.id: event for event in await self._registry.history(asked)}
        return asked.of(events.values())

    async def stats(
        self, deployment: str, version: str, since: float, until: float, step_s: int | None
    ) -> StatsHistory:
        """As `Fleet.stats`."""
        sums = Sums(since, until, step_of(since, until, step_s))
        before = self._minutes.current()
        async for piece in self._registry.minutes(deployment, version, since, until):
            await asyncio.to_thread(sums.add, piece)
        running = not_read(before, self._minutes.current())
        sums.add(row for row in running if deployment in ("", row.deployment) and version in ("", row.version))
        return await asyncio.to_thread(sums.history, time.time())

    def tick(self, at: float, versions: Iterable[Version]) -> None:
        """Look at all versions. ``at`` is seconds since the epoch."""
        self._write(self._minutes.tick(at, _gauged(versions)))

    def close(self) -> None:
        """Write down the minute so far."""
        self._write(self._minutes.close())

    def _write(self, rows: list[Minute]) -> None:
        if rows:
            self._registry.add_minutes(rows)  # in its thread; nobody waits


def _gauged(versions: Iterable[Version]) -> Iterator[tuple[str, str, Gauges, Window]]:
    for version in versions:
        ready = [r for r in version.replicas if r.state is VersionState.READY]
        queued = version.road.line.num_waiting_for(version.name) + version.num_queued
        used = max((r.heartbeat.kv_used for r in ready), default=0.0)
        taken = sum(r.heartbeat.device_bytes for r in version.replicas)
        gauges = Gauges(version.in_flight, queued, used, taken, len(ready))
        yield version.deployment, version.name, gauges, version.window
