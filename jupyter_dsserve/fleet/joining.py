"""`Joins`: workers that people start join a version as one more replica."""

from __future__ import annotations

import hmac
import secrets
import shlex
from typing import TYPE_CHECKING

from jupyter_dsserve.fleet.supervisor import Supervisor
from jupyter_dsserve.fleet.version import Version
from jupyter_dsserve.protocol import worker_pb2 as pb
from jupyter_dsserve.protocol.errors import Conflict, Unauthorized
from jupyter_dsserve.protocol.records import Joining
from jupyter_dsserve.protocol.spec import WorkerLaunch

if TYPE_CHECKING:
    from jupyter_dsserve.fleet.fleet import Fleet


class Joins:
    """One for a fleet. Tokens are of one version each, and change with the gateway."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._secret = secrets.token_bytes(32)

    def told(self, version: Version) -> Joining:
        """How to join ``version``. As `Fleet.join`."""
        token, python, address = self._token(version), version.spec.python or "python", self._fleet.link_address
        line = [python, "-m", "jupyter_dsserve.worker", "--join", address, "--token", token]
        command = shlex.join([*line, "--deployment", version.deployment, "--version", version.name])
        return Joining(address, token, command)

    def admit(self, request: pb.JoinRequest, supervisor: Supervisor) -> WorkerLaunch:
        """What a worker that asks to join is to load. Raises `NotFound`, `Unauthorized` or `Conflict` if it may not."""
        version = self._fleet.version(request.deployment, request.version)
        if not hmac.compare_digest(request.token, self._token(version)):
            raise Unauthorized(f"the token is not one of {version.id}: ask for it again, it changes with the gateway")
        if not version.is_wanted or version.failure:
            raise Conflict(f"{version.id} is {version.state.value}: load it first, then workers can join it")
        return supervisor.adopt(version, request.pid)

    def _token(self, version: Version) -> str:
        return hmac.new(self._secret, version.id.encode(), "sha256").hexdigest()[:32]
