"""Keeps a version's workers running: launch → watch → restart with backoff, until it is no longer wanted."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path

from jupyter_dsserve.fleet.content import check_content, content_at
from jupyter_dsserve.fleet.launcher import LocalLauncher, tail
from jupyter_dsserve.fleet.link import Link
from jupyter_dsserve.fleet.replica import Replica
from jupyter_dsserve.fleet.version import Version
from jupyter_dsserve.protocol.errors import DSServeError, EngineFailure
from jupyter_dsserve.protocol.records import VersionState
from jupyter_dsserve.protocol.spec import WorkerLaunch

log = logging.getLogger(__name__)

MAX_RESTARTS = 6
# A worker that served this long was healthy: what ends it now is a new trouble, not the old one again.
HEALTHY_S = 60.0
# Heartbeats come every second, from a thread that a model step does not hold for long.
MAX_SILENT_S = 15.0
# A worker dials before it imports anything heavy.
MAX_DIAL_S = 60.0

# kind, version, replica id, reason
Record = Callable[[str, Version, str, str], None]


def backoff_s(num_failures: int) -> float:
    """Seconds to wait before restart number ``num_failures`` (from 1): half a second, doubling, at most 30."""
    return min(0.25 * 2.0**num_failures, 30.0)


class Supervisor:
    """One task per replica slot. ``record`` is told every change that people may want to know."""

    def __init__(self, link: Link, launcher: LocalLauncher, record: Record) -> None:
        self._link = link
        self._launcher = launcher
        self._record = record
        self._tasks: dict[Version, list[asyncio.Task[None]]] = {}
        self._is_hurried = False

    def start(self, version: Version) -> None:
        """Begin to keep the version's replicas up. The version must be wanted and not yet kept."""
        self._tasks[version] = [
            asyncio.create_task(self._keep(version, id), name=id)  # a task is named after its replica
            for id in (f"{version.id}#{index}" for index in range(version.num_replicas))
        ]

    async def stop(self, version: Version, drain_s: float) -> None:
        """Drain the version's replicas for at most ``drain_s`` seconds, then end what is left. Never raises.

        Several may call it for one version: each waits for the same end.
        """
        tasks = self._tasks.get(version, [])
        serving = [r for r in version.replicas if r.state is VersionState.READY]
        for replica in serving:
            replica.drain()
        version.announce()
        # Only workers that serve are worth waiting for; one that still loads is ended at once.
        draining = {r.id for r in version.replicas if r.state is VersionState.DRAINING}
        serving_tasks = {t for t in tasks if t.get_name() in draining}
        for task in set(tasks) - serving_tasks:
            task.cancel()
        await self._wait_drained(serving_tasks, drain_s)
        for task in serving_tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._tasks.get(version) is tasks:
            del self._tasks[version]
        version.announce()

    def hurry(self) -> None:
        """Wait for no running request any more, in stops that are under way and in later ones."""
        self._is_hurried = True

    async def _wait_drained(self, tasks: set[asyncio.Task[None]], drain_s: float) -> None:
        end = time.monotonic() + drain_s
        while tasks and not self._is_hurried and (left := end - time.monotonic()) > 0:
            _, tasks = await asyncio.wait(tasks, timeout=min(left, 0.1))

    async def _keep(self, version: Version, replica_id: str) -> None:
        num_failures = 0
        while version.is_wanted:
            kept = _Kept(version, self._record)
            replica = Replica(replica_id, version.spec.digest, kept.changed)
            version.replicas.append(replica)
            self._link.expect(replica)
            try:
                reason = await self._run(version, replica)
            except DSServeError as fault:
                replica.failure, reason = fault, fault.message
            except Exception as fault:  # a full disk, say: whatever it is, the version must show it
                log.exception("%s could not be started", replica.id)
                reason = f"the worker could not be started: {type(fault).__name__}: {fault}"
                replica.failure = EngineFailure(reason)
            finally:
                self._link.forget(replica)
                version.replicas.remove(replica)
                replica.lost()
            if not version.is_wanted:
                return
            num_failures = 1 if kept.was_healthy(time.monotonic()) else num_failures + 1
            if replica.failure or num_failures > MAX_RESTARTS or (num_failures == 1 and kept.ready_at is None):
                self._give_up(version, replica, reason)
                return
            self._record("replica_lost", version, replica.id, reason)
            await asyncio.sleep(backoff_s(num_failures))

    def _give_up(self, version: Version, replica: Replica, reason: str) -> None:
        """This replica will not come back: the version serves on with those that are READY, or is FAILED as a whole."""
        if version.is_ready:
            self._record("replica_failed", version, replica.id, reason)
            return
        version.failure = reason
        for task in self._tasks.pop(version, []):
            if task is not asyncio.current_task():
                task.cancel()
        self._record("failed", version, replica.id, reason)
        version.announce()

    async def _run(self, version: Version, replica: Replica) -> str:
        """One life of a worker, from its launch to its end; the reason it ended. The process is gone afterwards."""
        origin, model = version.origin, version.spec.model
        check_content(version.id, origin.content, await content_at(version.model_path), model)
        launch = WorkerLaunch(replica.id, self._link.address, replica.token, version.model_path, version.spec)
        process = await self._launcher.start(launch)
        try:
            self._record("loading", version, replica.id, f"process {process.pid}")
            replica.launched(process.pid)
            started = time.monotonic()
            while replica.silent_s(time.monotonic()) < MAX_SILENT_S:
                if (code := await process.wait(timeout_s=1.0)) is not None:
                    return _reason(replica, code, process.log_path)
                if not replica.has_dialled and time.monotonic() - started > MAX_DIAL_S:
                    return f"the worker did not dial in within {MAX_DIAL_S:.0f} s: {_is_it_python(version)}"
            return f"the worker was silent for {MAX_SILENT_S:.0f} s and was ended"
        finally:
            # Shielded: whoever cancels us must still not leave a process.
            await asyncio.shield(process.kill())


class _Kept:
    """Watches one life of a worker for the moment it becomes READY."""

    def __init__(self, version: Version, record: Record) -> None:
        self._version = version
        self._record = record
        self.ready_at: float | None = None

    def changed(self, replica: Replica) -> None:
        if self.ready_at is None and replica.state is VersionState.READY:
            self.ready_at = time.monotonic()
            self._record("ready", self._version, replica.id, f"on {replica.device}, {replica.runner}")
        self._version.announce()

    def was_healthy(self, now: float) -> bool:
        return self.ready_at is not None and now - self.ready_at > HEALTHY_S


def _is_it_python(version: Version) -> str:
    python = version.spec.python or sys.executable
    return f"is {python} a Python with jupyter_dsserve installed?"


def _reason(replica: Replica, code: int, log_path: Path) -> str:
    """Why a worker ended, in words; where it did not say so itself, with the end of its output."""
    if replica.failure:
        return replica.failure.message
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    last = " / ".join(line for line in tail(log_path, 3) if line.strip())
    return f"the worker ended with {how}" + (f"; its last words: {last}" if code > 0 and last else "")
