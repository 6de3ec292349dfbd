"""Triton's repository extension: which models there are, and loading and unloading those that are registered."""

from __future__ import annotations

from jupyter_dsserve.fleet.fleet import Fleet
from jupyter_dsserve.fleet.version import Version
from jupyter_dsserve.gateway.bodies import B, read_body
from jupyter_dsserve.gateway.describe import CHANGE_ERRORS, describes
from jupyter_dsserve.gateway.handlers import Handler, until_caller_leaves
from jupyter_dsserve.gateway.v2 import models
from jupyter_dsserve.gateway.v2.handlers import OIPHandler
from jupyter_dsserve.gateway.v2.shapes import IndexBody, IndexEntry, LoadBody, UnloadBody
from jupyter_dsserve.protocol.errors import Conflict, InvalidRequest
from jupyter_dsserve.protocol.records import VersionState


def meant(fleet: Fleet, name: str) -> Version:
    """The version that is named, or the only one. Raises `NotFound`, `InvalidRequest` if there are several."""
    deployment, pinned = models.named(name)
    if pinned:
        return fleet.version(deployment, pinned)
    found = list(fleet.deployment(deployment).versions.values())
    if len(found) != 1:
        names = ", ".join(version.id for version in found)
        raise InvalidRequest(f"model {name!r} has several versions: name one of {names}", param="name")
    return found[0]


async def load(fleet: Fleet, name: str) -> None:
    """Until it is READY. Raises what `meant` and `Fleet.load` do, and `Conflict` with what it became instead."""
    version = meant(fleet, name)
    await fleet.load(version.deployment, version.name)
    if await version.settled() is not VersionState.READY:
        raise Conflict(f"{version.id} is {version.state.value}: {version.failure or 'it was unloaded meanwhile'}")


async def unload(fleet: Fleet, name: str) -> None:
    version = meant(fleet, name)
    await fleet.unload(version.deployment, version.name)


class _Repository(OIPHandler):
    async def body_or_none(self, kind: type[B]) -> B:
        """Triton's clients send none where it would be empty."""
        return read_body(kind, await self.raw_body() or b"{}")


class Index(_Repository):
    """A key sees those that it may ask."""

    @describes("Which models there are, loaded or not.", {200: list[IndexEntry]}, body=IndexBody, needs_body=False)
    async def post(self) -> None:
        body = await self.body_or_none(IndexBody)
        deployments = [d for d in self.fleet.deployments() if self.may_ask(d.name)]
        versions = [version for deployment in deployments for version in deployment.versions.values()]
        self.answer(models.index(versions, only_ready=body.ready))


class Load(_Repository):
    """Answers once the version is READY. It is loaded as it was registered; the route stays as it is."""

    scope = "admin"

    @describes("Load a registered version.", {200: None}, body=LoadBody, needs_body=False, errors=CHANGE_ERRORS)
    @until_caller_leaves
    async def post(self, name: str) -> None:
        await self.body_or_none(LoadBody)
        await load(self.fleet, name)
        self.finish()


class Unload(_Repository):
    """Answers once it takes no more requests; what runs is finished after that."""

    scope = "admin"

    @describes(
        "Drain a version and end its workers.", {200: None}, body=UnloadBody, needs_body=False, errors=CHANGE_ERRORS
    )
    async def post(self, name: str) -> None:
        await self.body_or_none(UnloadBody)
        await unload(self.fleet, name)
        self.finish()


ROUTES: list[tuple[str, type[Handler]]] = [
    (r"/v2/repository/index", Index),
    (r"/v2/repository/models/([^/]+)/load", Load),
    (r"/v2/repository/models/([^/]+)/unload", Unload),
]
