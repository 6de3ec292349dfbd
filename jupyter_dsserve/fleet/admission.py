"""`Admission`: the books of the devices' memory, and the line of loads that wait for some."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from itertools import takewhile

from jupyter_dsserve.fleet.devices import CPU, Device, Machine, OtherProcess
from jupyter_dsserve.fleet.ledger import Claim, Grant, Queued, Room, described, in_order, place, seats, why_never
from jupyter_dsserve.fleet.need import CUDA_BYTES, Need, need_of
from jupyter_dsserve.fleet.replica import Replica
from jupyter_dsserve.fleet.version import Version
from jupyter_dsserve.protocol.config import AdmissionSettings
from jupyter_dsserve.protocol.errors import Conflict, Unavailable
from jupyter_dsserve.protocol.records import (
    DeviceMemory,
    HeldMemory,
    LedgerStatus,
    OtherMemory,
    VersionState,
    WaitingLoad,
)
from jupyter_dsserve.protocol.sizes import shown

log = logging.getLogger(__name__)

_BUDGET = 0.75  # of what is free at the start, where nobody says more or less
POLL_S = 1.0
_OTHERS_S = 5.0  # between two looks at all processes while somebody waits


@dataclass(slots=True, eq=False)
class _Holding:
    """A replica's place. ``taken`` and ``settled`` are bytes by device: what its processes have now, and what it is to
    keep, once it is known."""

    claim: Claim
    grant: Grant
    taken: dict[str, int] = field(default_factory=dict)
    settled: dict[str, int] = field(default_factory=dict)

    @property
    def devices(self) -> set[str]:
        return set(self.settled or self.grant.parts)

    def held(self, device: str) -> int:
        """What nobody else gets. A worker that takes more than it may has it all the same."""
        return max((self.settled or self.grant.parts).get(device, 0), self.taken.get(device, 0))


@dataclass(slots=True, eq=False)
class _Waiting:
    queued: Queued
    since: float  # the epoch
    granted: asyncio.Future[Grant]


class Admission:
    """Lives on the fleet's loop. A replica asks for a place (`admit`), and keeps it until `release`."""

    def __init__(self, settings: AdmissionSettings, budget_bytes: int = 0, machine: Machine | None = None) -> None:
        """``budget_bytes``: the most that we hold of each device; 0 is 75 % of what is free at `start`."""
        self.settings = settings
        self._machine = machine or Machine()
        self._budget_bytes = budget_bytes
        self._capacity: dict[str, int] = {}
        self._holdings: dict[str, _Holding] = {}  # by replica
        self._line: dict[str, _Waiting] = {}  # by replica
        self._pids: dict[str, int] = {}  # of the workers, by replica
        self._others: dict[str, list[OtherProcess]] = {}
        self._others_at = -_OTHERS_S
        self._polling: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Fix the most that we hold of each device, and begin to look after those that wait."""
        for device in self._machine.devices():
            budget = min(self._budget_bytes, device.total_bytes) or int(_BUDGET * device.free_bytes)
            self._capacity[device.id] = budget
        self._polling = asyncio.create_task(self._poll())

    def stop(self) -> None:
        if self._polling:
            self._polling.cancel()

    # ---- asking

    async def check(self, version: Version, num_replicas: int = 0) -> Need:
        """What a replica of the version needs. Raises `Conflict`, with the figures, if so many replicas (its own number
        unless told) could not have a place even if nobody else held anything."""
        need = await asyncio.to_thread(self._need_of, version)
        claim = _claim(version, "", need, num_replicas or version.num_replicas)
        if why := why_never(claim, self._rooms(everything=True), self.settings):
            raise Conflict(why, param="model")
        return need

    async def why_not_beside(self, version: Version, others: Collection[str]) -> str:
        """Why a replica has no place now, if it would have one without ``others`` (ids of versions); else empty. Raises
        `Conflict` as `check` does."""
        claim = _claim(version, "", await self.check(version), version.num_replicas)
        rooms, holdings = self._rooms(), [h for h in self._holdings.values() if h.claim.version in others]
        freed = [replace(r, free_bytes=r.free_bytes + sum(h.held(r.device) for h in holdings)) for r in rooms]
        if place(claim, rooms, self.settings) or not place(claim, freed, self.settings):
            return ""
        return self._why(Queued(claim, time.monotonic()))

    async def admit(self, version: Version, replica: str) -> Grant:
        """A place for a replica; waits for it in the line. One that has a place keeps it.

        Raises `Conflict` if it can never have one, `Unavailable` if it waited longer than it may.
        """
        if holding := self._holdings.get(replica):
            return holding.grant
        need = await self.check(version)
        queued = Queued(_claim(version, replica, need, version.num_replicas), time.monotonic())
        waiting = _Waiting(queued, time.time(), asyncio.get_running_loop().create_future())
        self._line[replica] = waiting
        try:
            self._serve()
            # Not asyncio.wait_for: before Python 3.12 it swallows the cancellation of who gets a place just now.
            limit = self.settings.max_wait_s
            await asyncio.wait({waiting.granted}, timeout=limit or None)
            if waiting.granted.done():
                return waiting.granted.result()
            raise Unavailable(f"{replica} waited {limit:g} s for memory, as long as it may: {self._why(queued)}")
        finally:
            if self._line.pop(replica, None):
                self._serve()  # those behind may be next

    def release(self, replica: str) -> None:
        """The replica's processes are gone: what it held is free."""
        self._pids.pop(replica, None)
        if self._holdings.pop(replica, None):
            self._serve()

    async def look(self, version: Version, replica: Replica) -> int:
        """See what a replica's processes have taken by now, about once a second. Returns, once, when it is READY, what
        it took besides its KV cache in bytes (else 0); from then on that is what it holds."""
        holding = self._holdings.get(replica.id)
        if holding is None or not replica.pid:
            return 0
        self._pids[replica.id] = replica.pid
        device = replica.device or holding.grant.device
        is_there = device in self._capacity
        devices = holding.devices if holding.grant.device == device or not is_there else {device}
        # Said before it is measured: what loads on meanwhile would be settled with less than it takes.
        is_first = replica.state is VersionState.READY and replica.heartbeat.device_bytes and not holding.settled
        holding.taken = {d: await self._taken(version, replica, d) for d in devices}
        if not is_first or not (total := sum(holding.taken.values())):
            return 0
        # On a CPU the cache takes memory as it is filled, on a GPU all of it at once.
        filled = holding.grant.kv_bytes if device != CPU else int(holding.grant.kv_bytes * replica.heartbeat.kv_used)
        kv_left = max(0, holding.grant.kv_bytes - filled) // len(devices)
        holding.settled = {d: taken + kv_left for d, taken in holding.taken.items()}
        self._serve()
        return max(1, total - filled)

    async def work_s(self, replica: Replica) -> float:
        """How much its processes have done so far, as `Machine.work_s` counts it."""
        return await asyncio.to_thread(self._machine.work_s, replica.pid)

    # ---- looking

    def why(self, version_id: str) -> str:
        """What a version waits for, in words; empty if it does not."""
        waiting = next((w for w in self._line.values() if w.queued.claim.version == version_id), None)
        return self._why(waiting.queued) if waiting else ""

    async def status(self) -> LedgerStatus:
        """The books, with the other processes as they are now."""
        await self._see_others()
        by_id = {device.id: device for device in self._machine.devices()}
        devices = [
            DeviceMemory(
                id=room.device,
                capacity_bytes=room.capacity_bytes,
                free_bytes=room.free_bytes,
                held=[
                    HeldMemory(
                        owner=h.claim.version,
                        replica=h.claim.replica,
                        bytes=h.held(room.device),
                        expected_bytes=h.grant.parts.get(room.device, 0),
                        taken_bytes=h.taken.get(room.device, 0),
                        note=h.grant.need.note,
                    )
                    for h in self._holdings.values()
                    if room.device in h.devices
                ],
                device_bytes=by_id[room.device].total_bytes,
                others=[OtherMemory(o.owner, o.pid, o.num_bytes) for o in self._others.get(room.device, [])],
            )
            for room in self._rooms()
        ]
        waiting = [
            WaitingLoad(
                owner=queued.claim.version,
                replica=queued.claim.replica,
                priority=queued.claim.priority,
                bytes=queued.claim.need.least_bytes,
                reason=self._why(queued),
                since=self._line[queued.claim.replica].since,
            )
            for queued in self._in_order()
        ]
        return LedgerStatus(devices, waiting)

    # ---- inside

    def _need_of(self, version: Version) -> Need:
        """Reads files: called in a thread."""
        on_gpu = self._machine.has_gpus and version.spec.device != CPU
        measured = version.settings.get("measured", {})
        is_same = (measured.get("device", "") != CPU) == on_gpu
        measured_bytes = int(measured.get("bytes", 0)) if is_same else 0
        return need_of(version.spec, version.model_path, on_gpu=on_gpu, measured_bytes=measured_bytes)

    async def _taken(self, version: Version, replica: Replica, device: str) -> int:
        if version.spec.runner == "toy":  # its memory is the bytes it was told to take, and not Python's
            return int(replica.heartbeat.device_bytes)
        tp = version.spec.tp
        taken = await asyncio.to_thread(self._machine.taken, device, replica.pid, with_children=tp > 1)
        if taken or device == CPU:
            return taken
        # In most containers, and under WSL, a driver does not tell who holds a GPU's memory: then the worker does, of
        # its tensors.
        told = int(replica.heartbeat.device_bytes) // tp
        return told + CUDA_BYTES if told else 0

    def _rooms(self, *, everything: bool = False) -> list[Room]:
        """Each device; ``everything``: as if nobody held anything."""
        rooms = []
        for device in self._machine.devices():
            if (capacity := self._capacity.get(device.id)) is not None:
                free = capacity if everything else self._free(device, capacity)
                rooms.append(Room(device.id, capacity, free))
        return rooms

    def _free(self, device: Device, capacity: int) -> int:
        """What can be had: what we may still hold, unless others have taken it. What our workers have been promised and
        have not taken yet is not free either."""
        held = sum(h.held(device.id) for h in self._holdings.values())
        coming = sum(max(0, h.held(device.id) - h.taken.get(device.id, 0)) for h in self._holdings.values())
        return max(0, min(capacity - held, device.free_bytes - coming))

    def _serve(self) -> None:
        """Give places to those who are next. Nobody passes one that waits for the same device: it could starve."""
        if not self._line:
            return
        blocked: set[str] = set()
        for queued in self._in_order():
            claim = self._now(queued.claim)
            rooms = [replace(r, free_bytes=0) if r.device in blocked else r for r in self._rooms()]
            if grant := place(claim, rooms, self.settings):
                self._holdings[claim.replica] = _Holding(claim, grant)
                granted = self._line.pop(claim.replica).granted
                if not granted.done():
                    granted.set_result(grant)
            elif not self._is_at_its_share(claim):  # else nobody's leaving helps it, and nobody need wait for it
                blocked |= {d for run in seats(claim, [r.device for r in rooms]) for d in run}

    def _is_at_its_share(self, claim: Claim) -> bool:
        """Whether what its own version holds by now is all that keeps a replica out: its workers took more than was
        expected when the version was let in."""
        return place(replace(claim, num_to_come=1), self._rooms(everything=True), self.settings) is None

    def _in_order(self) -> list[Queued]:
        return in_order([waiting.queued for waiting in self._line.values()], self.settings)

    def _now(self, claim: Claim) -> Claim:
        """With what its version holds by now, and how many of its replicas have no place yet."""
        placed = [h for h in self._holdings.values() if h.claim.version == claim.version]
        held: dict[str, int] = {}
        for holding in placed:
            for device in holding.devices:
                held[device] = held.get(device, 0) + holding.held(device)
        return replace(claim, num_to_come=max(1, claim.num_to_come - len(placed)), version_bytes=held)

    def _why(self, queued: Queued) -> str:
        claim, rooms = queued.claim, self._rooms()
        devices = {d for run in seats(claim, [r.device for r in rooms]) for d in run}
        several = len(devices) > 1
        books = [(room.device, self._who(room)) for room in rooms if room.device in devices]
        places = "; ".join(f"{device}: {who}" if several else who for device, who in books)
        before = [q.claim.version for q in takewhile(lambda q: q is not queued, self._in_order())]
        behind = f"; first comes {_listed(before)}" if before else ""
        if self._is_at_its_share(self._now(claim)):
            share = self.settings.share(claim.priority)
            most = f"a version of priority {claim.priority} may take {share:.0%}"
            behind = f"; {most}, of which its other workers leave too little"
        return f"waits for {described(claim.need)} on {' or '.join(sorted(devices))}: {places}{behind}"

    def _who(self, room: Room) -> str:
        held: dict[str, int] = {}
        for holding in self._holdings.values():
            held[holding.claim.version] = held.get(holding.claim.version, 0) + holding.held(room.device)
        ours = [f"{owner} holds {shown(n)}" for owner, n in held.items() if n]
        text = f"of the {shown(room.capacity_bytes)} that we may hold {shown(room.free_bytes)} are free"
        if room.free_bytes < room.capacity_bytes - sum(held.values()):
            text += ", as the device has no more"
            ours += [f"{o.owner} holds {shown(o.num_bytes)}" for o in self._others.get(room.device, [])[:3]]
        return text + (f" ({', '.join(ours)})" if ours else "")

    async def _poll(self) -> None:
        """Memory that other processes free is noticed by looking."""
        while True:
            await asyncio.sleep(POLL_S)
            if self._line:
                try:
                    if time.monotonic() - self._others_at > _OTHERS_S:
                        await self._see_others()
                    self._serve()
                except Exception:  # those that wait must not be forgotten for one look that failed
                    log.exception("the devices could not be looked at")

    async def _see_others(self) -> None:
        ours = {os.getpid(), *self._pids.values()}
        self._others = await asyncio.to_thread(self._machine.others, ours)
        self._others_at = time.monotonic()


def _claim(version: Version, replica: str, need: Need, num_replicas: int) -> Claim:
    return Claim(replica, version.id, need, version.priority, version.spec.device, num_replicas)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(names))
