"""Keeps a version's workers running: launch → watch → restart with backoff, until it is no longer wanted."""

from __future__ import annotations

import asyncio
import itertools
import logging
import signal
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from jupyter_dsserve.content import check_content, content_at
from jupyter_dsserve.fleet.admission import Admission
from jupyter_dsserve.fleet.health import TICK_S
from jupyter_dsserve.fleet.launcher import LocalLauncher
from jupyter_dsserve.fleet.ledger import Grant
from jupyter_dsserve.fleet.link import Link
from jupyter_dsserve.fleet.loading import LoadWatch, load_limit_s
from jupyter_dsserve.fleet.output import tail
from jupyter_dsserve.fleet.replica import Replica
from jupyter_dsserve.fleet.version import Version
from jupyter_dsserve.fleet.watch import Watch
from jupyter_dsserve.parent import backoff_s
from jupyter_dsserve.protocol.errors import DSServeError, EngineFailure
from jupyter_dsserve.protocol.records import VersionState
from jupyter_dsserve.protocol.sizes import shown
from jupyter_dsserve.protocol.spec import WorkerLaunch

log = logging.getLogger(__name__)

MAX_RESTARTS = 6
# A worker that served this long was healthy: what ends it now is a new trouble, not the old one again.
HEALTHY_S = 60.0
# A worker dials before it imports anything heavy.
MAX_DIAL_S = 60.0
_NEWS = 0.05  # a load that took more or less than expected by this share is worth a word

# kind, version, replica id, reason
Record = Callable[[str, Version, str, str], None]


@dataclass(slots=True, eq=False)
class Slot:
    """The task that keeps one replica up. ``is_leaving``: it is one too many, and ends when its worker has.
    ``is_joined``: its worker was started by people, and is none of those that the version wants."""

    id: str
    task: asyncio.Task[None]
    is_leaving: bool = False
    is_joined: bool = False


class Supervisor:
    """One slot per replica. ``record`` is told every change that people may want to know."""

    def __init__(self, link: Link, launcher: LocalLauncher, admission: Admission, record: Record) -> None:
        self._link = link
        self._launcher = launcher
        self._admission = admission
        self._record = record
        self._slots: dict[Version, dict[str, Slot]] = {}
        self._is_hurried = False
        self._num_joined = itertools.count()

    def start(self, version: Version) -> None:
        """Keep as many replicas up as the version wants: begin with those that are missing. It must be wanted."""
        slots = self._slots.setdefault(version, {})
        missing = version.num_wanted - sum(not slot.is_leaving and not slot.is_joined for slot in slots.values())
        free = (id for id in map(f"{version.id}#{{}}".format, itertools.count()) if id not in slots)
        for id in itertools.islice(free, max(0, missing)):
            slot = slots[id] = Slot(id, asyncio.create_task(self._keep(version, id), name=id))
            slot.task.add_done_callback(partial(self._forget, version, id))

    def adopt(self, version: Version, pid: int, *, is_here: bool) -> WorkerLaunch:
        """Expect a worker that people started; what it is to be told. It is dropped when its stream ends. Of one that
        is not ``is_here`` (on this machine) the process cannot be looked at."""
        replica = self._replica(version, f"{version.id}#joined-{next(self._num_joined)}", _Kept(version, self._record))
        replica.launched(pid)
        self._link.expect(replica)
        task = asyncio.create_task(self._host(version, replica, pid if is_here else 0), name=replica.id)
        self._slots.setdefault(version, {})[replica.id] = Slot(replica.id, task, is_joined=True)
        task.add_done_callback(partial(self._forget, version, replica.id))
        content = version.origin.content  # of which only the worker knows whether it is there too
        return WorkerLaunch(replica.id, self._link.address, replica.token, version.model_path, version.spec, content)

    async def _host(self, version: Version, replica: Replica, pid: int) -> None:
        """The stay of a joined worker: nobody starts it again, and its process is not ours to end."""
        life, started, reason = Watch(version, replica, pid), time.monotonic(), ""
        try:
            while not (reason or replica.has_left):
                await asyncio.sleep(TICK_S)
                if not replica.has_dialled and time.monotonic() - started > MAX_DIAL_S:
                    reason = f"it did not dial in within {MAX_DIAL_S:.0f} s"
                reason = reason or life.look(time.monotonic())
        finally:
            self._drop(version, replica)
        reason = replica.failure.message if replica.failure else reason
        self._record("replica_left", version, replica.id, reason or "its stream ended")

    def _replica(self, version: Version, id: str, kept: _Kept) -> Replica:
        tell = partial(self._tell, version, id)
        replica = Replica(id, version.spec.digest, kept.changed, tell, version.road.breaker)
        version.replicas.append(replica)
        return replica

    def _drop(self, version: Version, replica: Replica) -> None:
        self._link.forget(replica)
        version.replicas.remove(replica)
        replica.lost()

    def _forget(self, version: Version, id: str, _task: asyncio.Task[None]) -> None:
        slots = self._slots[version]
        del slots[id]
        if not slots:
            del self._slots[version]

    async def shrink(self, version: Version, drain_s: float) -> None:
        """Drain and end the replicas that the version does not want any more. Never raises."""
        slots = self._slots.get(version, {})
        staying = [id for id, slot in slots.items() if not slot.is_leaving and not slot.is_joined]
        leaving = [slots[id] for id in surplus(version.replicas, staying, version.num_wanted)]
        for slot in leaving:
            slot.is_leaving = True
        await self._end(version, leaving, drain_s)

    async def stop(self, version: Version, drain_s: float) -> None:
        """Drain the version's replicas for at most ``drain_s`` seconds, then end what is left. Never raises.

        Several may call it for one version: each waits for the same end.
        """
        await self._end(version, list(self._slots.get(version, {}).values()), drain_s)

    async def _end(self, version: Version, slots: list[Slot], drain_s: float) -> None:
        ids = {slot.id for slot in slots}
        joined = {slot.id for slot in slots if slot.is_joined}  # who hears no Drain takes the end for a lost network
        for replica in [r for r in version.replicas if r.id in ids]:
            if replica.state is VersionState.READY or (replica.id in joined and replica.has_dialled):
                replica.drain()
        version.announce()
        # Only workers that serve are worth waiting for; one that still loads is ended at once.
        draining = {r.id for r in version.replicas if r.state is VersionState.DRAINING}
        serving = {slot.task for slot in slots if slot.id in draining}
        for slot in slots:
            if slot.task not in serving:
                slot.task.cancel()
        await self._wait_drained(serving, drain_s)
        for task in serving:
            task.cancel()
        await asyncio.gather(*(slot.task for slot in slots), return_exceptions=True)
        version.announce()

    def hurry(self) -> None:
        """Wait for no running request any more, in stops that are under way and in later ones."""
        self._is_hurried = True

    async def _wait_drained(self, tasks: set[asyncio.Task[None]], drain_s: float) -> None:
        end = time.monotonic() + drain_s
        while tasks and not self._is_hurried and (left := end - time.monotonic()) > 0:
            _, tasks = await asyncio.wait(tasks, timeout=min(left, 0.1))

    async def _keep(self, version: Version, replica_id: str) -> None:
        try:
            await self._keep_up(version, replica_id)
        finally:
            self._admission.release(replica_id)

    async def _keep_up(self, version: Version, replica_id: str) -> None:
        num_failures = 0
        while self._is_wanted(version, replica_id):
            kept = _Kept(version, self._record)
            replica = self._replica(version, replica_id, kept)
            try:
                grant = await self._admission.admit(version, replica_id)  # kept through restarts
                reason = await self._run(version, replica, grant)
            except DSServeError as fault:
                replica.failure, reason = fault, fault.message
            except Exception as fault:  # a full disk, say: whatever it is, the version must show it
                log.exception("%s could not be started", replica.id)
                reason = f"the worker could not be started: {type(fault).__name__}: {fault}"
                replica.failure = EngineFailure(reason)
            finally:
                self._drop(version, replica)
            if not self._is_wanted(version, replica_id):
                return
            num_failures = 1 if kept.was_healthy(time.monotonic()) else num_failures + 1
            if replica.failure or num_failures > MAX_RESTARTS or (num_failures == 1 and kept.ready_at is None):
                times = f"{num_failures} times in a row; the last time " if num_failures > MAX_RESTARTS > 0 else ""
                self._give_up(version, replica, times + reason)
                return
            self._record("replica_lost", version, replica.id, reason)
            await asyncio.sleep(backoff_s(num_failures))

    def _is_wanted(self, version: Version, replica_id: str) -> bool:
        slot = self._slots.get(version, {}).get(replica_id)
        return version.is_wanted and slot is not None and not slot.is_leaving

    def _give_up(self, version: Version, replica: Replica, reason: str) -> None:
        """This replica will not come back: the version serves on with those that are READY, or is FAILED as a whole."""
        if version.is_ready:
            self._record("replica_failed", version, replica.id, reason)
            return
        version.failure = reason
        for slot in self._slots[version].values():
            slot.is_leaving = True
            if slot.task is not asyncio.current_task():
                slot.task.cancel()
        self._record("failed", version, replica.id, reason)
        version.announce()

    async def _run(self, version: Version, replica: Replica, grant: Grant) -> str:
        """One life of a worker, from its launch to its end; the reason it ended. The process is gone afterwards."""
        origin, model = version.origin, version.spec.model
        check_content(version.id, origin.content, await content_at(version.model_path), model)
        spec = grant.told(version.spec)
        replica.spec_digest = spec.digest
        self._link.expect(replica)
        launch = WorkerLaunch(replica.id, self._link.address, replica.token, version.model_path, spec)
        process = await self._launcher.start(launch)
        try:
            self._record("loading", version, replica.id, f"process {process.pid}")
            replica.launched(process.pid)
            watch = LoadWatch(grant.need, version.priority, self._admission.settings, time.monotonic())
            max_dial_s = min(MAX_DIAL_S, load_limit_s(watch.need, watch.priority, watch.settings))
            life = Watch(version, replica, process.pid)
            while not (reason := life.look(time.monotonic())):
                if (code := await process.wait(timeout_s=TICK_S)) is not None:
                    doubt = f": {_is_it_python(version)}" if spec.python and not replica.has_dialled else ""
                    return _reason(replica, code, process.log_path) + doubt
                if not replica.has_dialled and time.monotonic() - watch.started_s > max_dial_s:
                    return f"the worker did not dial in within {max_dial_s:.0f} s: {_is_it_python(version)}"
                if overdue := await self._overdue(watch, replica):
                    return overdue
                await self._look(version, replica, grant)
                await process.bound_log()
            return reason
        finally:
            # Shielded: whoever cancels us must still not leave a process.
            await asyncio.shield(process.kill())

    async def _overdue(self, watch: LoadWatch, replica: Replica) -> str:
        """Why a load is given up; empty if it goes on, or is over."""
        if replica.state not in (VersionState.LOADING, VersionState.WARMING) or not replica.has_dialled:
            return ""
        now = time.monotonic()
        if watch.is_quiet(replica.stage, replica.progress, now):
            watch.worked(await self._admission.work_s(replica), now)
        return watch.overdue(now)

    async def _look(self, version: Version, replica: Replica, grant: Grant) -> None:
        """Once a load is over, compare what it took with what was expected; the next one expects that."""
        if not (took := await self._admission.look(version, replica)):
            return
        expected = grant.need.fixed_bytes
        if abs(took - expected) > _NEWS * expected:
            version.settings["measured"] = {"device": replica.device, "bytes": took}
            text = f"it took {shown(took)}, where {shown(expected)} were expected"
            self._record("measured", version, replica.id, text)

    def _tell(self, version: Version, replica_id: str, kind: str, reason: str) -> None:
        self._record(kind, version, replica_id, reason)


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


def surplus(replicas: Iterable[Replica], slots: Iterable[str], num_wanted: int) -> list[str]:
    """Which of the ``slots`` go when only so many are wanted: those without a READY worker, then those with the fewest
    requests on it; of equals the newest."""
    in_flight = {r.id: r.in_flight for r in replicas if r.state is VersionState.READY}
    newest_first = sorted(slots, key=lambda id: -int(id.rpartition("#")[2]))
    going = sorted(newest_first, key=lambda id: in_flight.get(id, -1))
    return going[: max(0, len(going) - num_wanted)]


def _is_it_python(version: Version) -> str:
    python = version.spec.python or sys.executable
    return f"is {python} a Python with jupyter_dsserve installed?"


def _reason(replica: Replica, code: int, log_path: Path) -> str:
    """Why a worker ended, in words; where it did not say so itself, with the end of its output."""
    if replica.failure:
        return replica.failure.message
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    last = " / ".join(line for line in tail(log_path, 3) if line.strip())
    return f"the worker ended with {how}" + (f"; its last words: {last}" if code != -signal.SIGKILL and last else "")
