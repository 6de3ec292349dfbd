"""Triton's extension for system shared memory: registering regions. `regions` says what they are."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any, ParamSpec, TypeVar

from typing_extensions import TypedDict

from jupyter_dsserve.gateway.asker import Asker
from jupyter_dsserve.gateway.describe import describes
from jupyter_dsserve.gateway.handlers import Handler
from jupyter_dsserve.gateway.v2.handlers import OIPHandler
from jupyter_dsserve.gateway.v2.peers import Address, is_direct, is_own_user, peer_of
from jupyter_dsserve.gateway.v2.regions import Region
from jupyter_dsserve.gateway.v2.shapes import RegisterBody
from jupyter_dsserve.gateway.v2.wire import Place
from jupyter_dsserve.protocol.errors import Conflict, Forbidden, NotFound, TooManyRequests

P = ParamSpec("P")
T = TypeVar("T")
# In shared memory, of a call, that is copied on the event loop: a fraction of a millisecond.
MAX_COPY = 1 << 20
_FORBIDDEN = "shared memory is registered by programs of the gateway's own user on its machine, straight at its port"


def register(asker: Asker, is_allowed: bool, region: Region) -> None:
    """Of the caller's key. Raises `Forbidden`, and what `Regions.register` does."""
    if not is_allowed:
        raise Forbidden(_FORBIDDEN)
    regions = asker.context.regions
    regions.keep({"", *(grant.key.id for grant in asker.fleet.held_keys.grants())})
    regions.register(asker.owner, region)


def check(asker: Asker, peer: Address | None, places: Iterable[Place]) -> None:
    """Whether a caller at ``peer`` may have tensors there. Raises `Forbidden` for one from elsewhere, and what
    `Regions.check` does."""
    for place in places:
        if not is_direct(peer, asker.sent_headers):
            raise Forbidden("shared memory is for callers on this machine, straight at the gateway's port")
        asker.context.regions.check(asker.owner, place.region, place.offset, place.num_bytes)


def read(asker: Asker, place: Place) -> bytes:
    return asker.context.regions.read(asker.owner, place.region, place.offset, place.num_bytes)


def write(asker: Asker, place: Place, data: bytes) -> None:
    asker.context.regions.write(asker.owner, place.region, place.offset, data)


async def aside(places: Sequence[Place], function: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
    """Its result, made in a thread if much lies in shared memory: the event loop is everybody's."""
    if sum(place.num_bytes for place in places) <= MAX_COPY:
        return function(*args, **named)
    return await asyncio.to_thread(function, *args, **named)


class RegionStatus(TypedDict):
    name: str
    key: str
    offset: int
    byte_size: int


class Status(OIPHandler):
    """Of the regions that this key has registered."""

    @describes("The regions of shared memory.", {200: list[RegionStatus]}, errors=(NotFound,))
    def get(self, region: str = "") -> None:
        regions = self.context.regions
        found = [regions.one(self.owner, region)] if region else regions.of(self.owner)
        self.answer([asdict(each) for each in found])


class Register(OIPHandler):
    """Of an object in /dev/shm of the gateway's own user, for a program of that user, on this machine."""

    @describes(
        "Have tensors read from and written to shared memory.",
        {200: None},
        body=RegisterBody,
        errors=(Forbidden, NotFound, Conflict, TooManyRequests),
    )
    def post(self, region: str) -> None:
        body = self.body(RegisterBody)
        connection: Any = self.request.connection
        ours = connection.stream.socket
        is_allowed = is_direct(peer_of(ours), self.request.headers) and is_own_user(ours)
        register(self, is_allowed, Region(region, body.key, body.offset, body.byte_size))
        self.finish()


class Unregister(OIPHandler):
    """Without a name: all that this key has registered."""

    @describes("Leave a region of shared memory.", {200: None})
    def post(self, region: str = "") -> None:
        self.context.regions.unregister(self.owner, region)
        self.finish()


_REGION = r"/v2/systemsharedmemory/region/([^/]+)"

ROUTES: list[tuple[str, type[Handler]]] = [
    (r"/v2/systemsharedmemory/status", Status),
    (f"{_REGION}/status", Status),
    (f"{_REGION}/register", Register),
    (r"/v2/systemsharedmemory/unregister", Unregister),
    (f"{_REGION}/unregister", Unregister),
]
