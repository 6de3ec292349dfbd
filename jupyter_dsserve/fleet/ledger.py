"""Who may have which memory: pure functions over the rooms of the devices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from jupyter_dsserve.fleet.devices import CPU
from jupyter_dsserve.fleet.need import UNLIMITED, Need
from jupyter_dsserve.protocol.config import AdmissionSettings, Priority
from jupyter_dsserve.protocol.sizes import shown
from jupyter_dsserve.protocol.spec import WorkerSpec


@dataclass(frozen=True, slots=True)
class Room:
    """A device as a load sees it, in bytes: the most that we hold of it, and what of that can be had now."""

    device: str
    capacity_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Claim:
    """What one replica asks for. ``num_to_come``: replicas of its version that have no place yet, this one included;
    ``version_bytes``: what its version holds already, by device. ``device`` is the version's setting."""

    replica: str
    version: str
    need: Need
    priority: Priority
    device: str = "auto"
    num_to_come: int = 1
    version_bytes: Mapping[str, int] | None = None


@dataclass(frozen=True, slots=True)
class Grant:
    """The place of one replica: bytes by device, and how much of them the KV cache may fill. ``device`` is where its
    first rank runs, ``need`` what it was made for."""

    need: Need
    device: str
    parts: Mapping[str, int]
    kv_bytes: int

    def told(self, spec: WorkerSpec) -> WorkerSpec:
        """What the worker is told, so that it keeps to its place: which GPU, and how large its KV cache may become.

        A version that would take the first GPU by itself is left to: its Python may have a torch without CUDA, and then
        it runs on the CPU.
        """
        if self.need.tells_kv:
            spec = replace(spec, kv_bytes=self.kv_bytes)
        return replace(spec, device=self.device) if self.device not in (CPU, "cuda:0") else spec


@dataclass(frozen=True, slots=True)
class Queued:
    """A claim in the line, and when it came, in seconds."""

    claim: Claim
    since_s: float


def in_order(line: Sequence[Queued], settings: AdmissionSettings) -> list[Queued]:
    """Who is next: by class and then by arrival. A class counts as so much later an arrival, so that whoever waits
    long enough is before everyone who comes later, of any class."""
    classes: tuple[Priority, ...] = ("high", "medium", "low")
    return sorted(line, key=lambda q: q.since_s + settings.ageing_s * classes.index(q.claim.priority))


def seats(claim: Claim, devices: Sequence[str]) -> list[tuple[str, ...]]:
    """The places that a replica could have: for each, the device of every rank. A group's GPUs follow one another.

    Ranks on a CPU all take from RAM. Empty if the version names a device that is not there.
    """
    gpus, num_ranks = [d for d in devices if d != CPU], claim.need.num_ranks
    if claim.device == CPU or not gpus:
        return [(CPU,) * num_ranks]
    runs = [tuple(gpus[i : i + num_ranks]) for i in range(len(gpus) - num_ranks + 1)]
    return runs if claim.device == "auto" else [run for run in runs if run[0] == claim.device]


def place(claim: Claim, rooms: Sequence[Room], settings: AdmissionSettings) -> Grant | None:
    """A place for a replica where it fits whole, of several the one with most room; None if there is none now.

    Its KV cache gets half of what is left there once all replicas to come have their least, at most what it can fill:
    so another version still fits beside it.
    """
    by_device = {room.device: _left(room, claim, settings) for room in rooms}
    grants = [grant for run in seats(claim, list(by_device)) if (grant := _seated(claim, run, by_device))]
    return max(grants, key=lambda g: min(by_device[d] for d in g.parts), default=None)


def _left(room: Room, claim: Claim, settings: AdmissionSettings) -> int:
    """What this version may still take of a device: what is free, and within the share of its class."""
    held = (claim.version_bytes or {}).get(room.device, 0)
    return min(room.free_bytes, int(settings.share(claim.priority) * room.capacity_bytes) - held)


def _seated(claim: Claim, run: tuple[str, ...], left: Mapping[str, int]) -> Grant | None:
    need, num_devices = claim.need, len(set(run))
    least = -(-need.least_bytes // num_devices)
    host = need.host_bytes if run[0] != CPU else 0
    room = min(left[device] for device in run)
    if room < least or (host and left[CPU] < host):
        return None
    num_here = claim.num_to_come
    if claim.device == "auto" and run[0] != CPU:  # they spread over the GPUs
        num_here = -(-claim.num_to_come * num_devices // (len(left) - 1))
    spare = max(0, room - num_here * least) // (2 * num_here) * num_devices
    kv_bytes = need.kv_least_bytes + min(need.kv_most_bytes - need.kv_least_bytes, spare)
    each = -(-max(need.fixed_bytes + kv_bytes, need.load_bytes) // num_devices)
    parts = dict.fromkeys(run, each) | ({CPU: host} if host else {})
    return Grant(need, run[0], parts, kv_bytes)


def why_never(claim: Claim, rooms: Sequence[Room], settings: AdmissionSettings) -> str:
    """Why ``num_to_come`` replicas could not all have a place if nobody else held anything; empty if they could."""
    left = {room.device: room.capacity_bytes for room in rooms}
    if not seats(claim, list(left)):
        many = f" for {claim.need.num_ranks} ranks from there on" if claim.need.num_ranks > 1 else ""
        return (
            f"{claim.version} wants {claim.device}{many}, and this machine has {', '.join(left)}: use another device, "
            "or auto"
        )
    least = _at_least(claim)
    held: dict[str, int] = {}
    for number in range(claim.num_to_come):
        now = [Room(d, room.capacity_bytes, left[d]) for d, room in zip(left, rooms, strict=True)]
        grant = place(_with(least, held), now, settings)
        if grant is None:
            return _too_large(claim, number, rooms, settings)
        for device, num_bytes in grant.parts.items():
            left[device] -= num_bytes
            held[device] = held.get(device, 0) + num_bytes
    return ""


def _at_least(claim: Claim) -> Claim:
    need = claim.need
    least = Need(need.least_bytes, num_ranks=need.num_ranks, host_bytes=need.host_bytes)
    return Claim(claim.replica, claim.version, least, claim.priority, claim.device)


def _with(claim: Claim, held: Mapping[str, int]) -> Claim:
    return Claim(claim.replica, claim.version, claim.need, claim.priority, claim.device, 1, dict(held))


def _too_large(claim: Claim, num_placed: int, rooms: Sequence[Room], settings: AdmissionSettings) -> str:
    devices = {device for run in seats(claim, [room.device for room in rooms]) for device in run}
    share = settings.share(claim.priority)
    most = ", ".join(
        f"{shown(int(share * r.capacity_bytes))} of the {shown(r.capacity_bytes)} that we may hold on {r.device}"
        for r in rooms
        if r.device in devices
    )
    many = f" for each of {claim.num_to_come} replicas, of which {num_placed} fit" if claim.num_to_come > 1 else ""
    return (
        f"{claim.version} needs {described(claim.need)}{many}, but a version of priority {claim.priority} may take "
        f"{share:.0%} of a device: {most}; {_remedy(claim)}"
    )


def _remedy(claim: Claim) -> str:
    fewer = "load fewer replicas, " if claim.num_to_come > 1 else ""
    higher = "give it a higher priority, " if claim.priority != "high" else ""
    kv = "lower max_sequences, max_context or kv_bytes, " if claim.need.kv_least_bytes else ""
    return f"{fewer}{higher}{kv}or start the gateway with a larger --memory-budget"


def described(need: Need) -> str:
    """``3.1 GiB (at least 0.5 GiB of it for the KV cache)``."""
    if need.load_bytes > need.kept_bytes:
        return f"{shown(need.load_bytes)} as it loads, then {described(replace(need, load_bytes=0))}"
    more = f", over {need.num_ranks} ranks" if need.num_ranks > 1 else ""
    more += f", and more, for {need.note}" if need.read_bytes == UNLIMITED else ""
    if not need.kv_least_bytes:
        return shown(need.least_bytes) + more
    kv = "" if need.kv_least_bytes == need.kv_most_bytes else "at least "
    return f"{shown(need.least_bytes)} ({kv}{shown(need.kv_least_bytes)} of it for the KV cache{more})"
