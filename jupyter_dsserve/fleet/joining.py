"""`Joins`: workers that people start join a version as one more replica, from this machine or from another."""

from __future__ import annotations

import hmac
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from jupyter_dsserve.data_dir import kept_secret
from jupyter_dsserve.fleet.link import Link
from jupyter_dsserve.fleet.listener import JoinSettings, Listener
from jupyter_dsserve.fleet.supervisor import Supervisor
from jupyter_dsserve.fleet.version import Version
from jupyter_dsserve.protocol import worker_pb2 as pb
from jupyter_dsserve.protocol.errors import Conflict, Unauthorized
from jupyter_dsserve.protocol.records import Joining
from jupyter_dsserve.protocol.spec import WorkerLaunch

if TYPE_CHECKING:
    from jupyter_dsserve.fleet.fleet import Fleet


class Joins:
    """One for a fleet. A token is one version's, for as long as that is registered."""

    def __init__(self, fleet: Fleet, link: Link, settings: JoinSettings, data_dir: Path) -> None:
        self._fleet = fleet
        self._link = link
        self._settings = settings
        self._data_dir = data_dir
        self._secret = kept_secret(data_dir / "join.secret")
        self._listener: Listener | None = None

    async def start(self) -> None:
        """Let workers of other machines in, if the settings say where. Raises `Conflict` if that cannot be."""
        if self._settings.address:
            self._listener = Listener(self._settings, self._data_dir, self._link, self._knows)
            await self._listener.start()

    async def stop(self) -> None:
        if self._listener:
            await self._listener.stop()

    @property
    def address(self) -> str:
        """Where workers of other machines dial in; empty: nowhere."""
        return self._listener.address if self._listener else ""

    def told(self, version: Version) -> Joining:
        """How to join ``version``. As `Fleet.join`."""
        token, python, address = self._token(version), version.spec.python or "python", self._link.address
        line = [python, "-m", "jupyter_dsserve.worker", "--join", address]
        if self._listener:
            address, shown = self._listener.address, self._listener.certificate
            line = [*line[:-1], address, "--fingerprint", shown.fingerprint, "--name", shown.name]
        joined = shlex.join([*line, "--deployment", version.deployment, "--version", version.name])
        # A shell's own printf: on a command line of its own the token would stand in the list of processes.
        return Joining(address, token, f"printf '%s\\n' {token} | {joined}")

    def admit(self, request: pb.JoinRequest, is_here: bool, supervisor: Supervisor) -> WorkerLaunch:
        """What a worker that asks to join is to load. ``is_here``: its process is one of this machine.

        Raises `NotFound`, `Unauthorized` or `Conflict` if it may not.
        """
        version = self._fleet.version(request.deployment, request.version)
        if not _is_equal(request.token, self._token(version)):
            raise Unauthorized(f"the token is not one of {version.id}: ask for it again, it goes with the version")
        if not version.is_wanted or version.failure:
            raise Conflict(f"{version.id} is {version.state.value}: load it first, then workers can join it")
        return supervisor.adopt(version, request.pid, is_here=is_here)

    def _knows(self, token: str) -> bool:
        """Whether it is a version's, or that of a worker that has joined and dials in."""
        versions = (version for found in self._fleet.deployments() for version in found.versions.values())
        return self._link.knows(token) or any(_is_equal(token, self._token(version)) for version in versions)

    def _token(self, version: Version) -> str:
        # Another version may get the name of one that is deleted.
        named = f"{version.id} {version.created_at!r}"
        return hmac.new(self._secret, named.encode(), "sha256").hexdigest()[:32]


def _is_equal(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode())
