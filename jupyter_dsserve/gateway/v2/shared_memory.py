"""Triton's extension for system shared memory: registering regions. `regions` says what they are."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from typing_extensions import TypedDict

from jupyter_dsserve.gateway.describe import describes
from jupyter_dsserve.gateway.handlers import Handler
from jupyter_dsserve.gateway.v2.handlers import OIPHandler
from jupyter_dsserve.gateway.v2.peers import is_direct, is_own_user
from jupyter_dsserve.gateway.v2.regions import Region
from jupyter_dsserve.gateway.v2.shapes import RegisterBody
from jupyter_dsserve.protocol.errors import Conflict, Forbidden, NotFound, TooManyRequests


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
        peer = connection.stream.socket
        if not (is_direct(peer, self.request.headers) and is_own_user(peer)):
            raise Forbidden(
                "shared memory is registered by programs of the gateway's own user on its machine, straight at its port"
            )
        self.context.regions.keep({"", *(grant.key.id for grant in self.fleet.held_keys.grants())})
        self.context.regions.register(self.owner, Region(region, body.key, body.offset, body.byte_size))
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
