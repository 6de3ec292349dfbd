"""``/api/apply`` and ``/api/export``: the fleet as a file says, and as a file has it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from jupyter_dsserve.fleet.fleet import Fleet
from jupyter_dsserve.fleet.goal import DeploymentGoal, Goal, VersionGoal
from jupyter_dsserve.fleet.source import canonical
from jupyter_dsserve.gateway.answers import Exported
from jupyter_dsserve.gateway.bodies import AutoscaleBody, Body, LoadBody, No, PolicyBody, validated
from jupyter_dsserve.gateway.describe import describes
from jupyter_dsserve.gateway.handlers import Handler
from jupyter_dsserve.manifest import LOOK_S, Manifest, stamp
from jupyter_dsserve.protocol.errors import Conflict, DSServeError, InvalidRequest, NotFound, Unavailable
from jupyter_dsserve.protocol.records import ApplyState, ApplyStatus

log = logging.getLogger(__name__)


class VersionBody(LoadBody):
    """As for a load, but that the name stands before it. ``loaded`` false only registers it;
    ``autoscale`` false ends it."""

    version: str = ""
    loaded: bool = True
    autoscale: AutoscaleBody | No | None = None

    def goal(self, at: str) -> VersionGoal:
        spec = self.spec()
        spec = replace(spec, model=canonical(spec.model))
        settings = self.settings
        if self.autoscale is not None:
            settings["autoscale"] = _limits(self.autoscale, f"{at}.autoscale") if self.autoscale else None
        return VersionGoal(spec, self.replicas, settings, self.loaded, self.origin())


class DeploymentBody(Body):
    versions: dict[str, Any]
    route: dict[str, float] | None = None
    policy: dict[str, Any] = {}

    def goal(self, at: str) -> DeploymentGoal:
        versions = {
            name: validated(VersionBody, raw, f"{at}.versions.{name}").goal(f"{at}.versions.{name}")
            for name, raw in self.versions.items()
        }
        return DeploymentGoal(versions, self.route, validated(PolicyBody, self.policy, f"{at}.policy").changes())


class ApplyBody(Body):
    """``deployments`` by name, each with ``versions`` by name and maybe its ``route``. ``dry_run`` only tells the plan;
    ``prune`` deletes what is not named."""

    deployments: dict[str, Any]
    dry_run: bool = False
    prune: bool = False

    def goal(self) -> Goal:
        """Raises `InvalidRequest` naming the field by its whole path, such as ``deployments.demo.versions.v1.tp``."""
        return {
            name: validated(DeploymentBody, raw, f"deployments.{name}").goal(f"deployments.{name}")
            for name, raw in self.deployments.items()
        }


class Apply(Handler):
    @describes("How far the last deployments file is.", {200: ApplyStatus})
    def get(self) -> None:
        self.answer(self.fleet.applier.status)

    @describes(
        "Make the fleet what a deployments file says; with dry_run only the plan, and 200.",
        {200: ApplyStatus, 202: ApplyStatus},
        body=ApplyBody,
        example={"deployments": {"demo": {"versions": {"v1": {"model": "toy:"}}}}, "dry_run": True},
        errors=(NotFound, Conflict, Unavailable),
    )
    async def post(self) -> None:
        body = self.body(ApplyBody)
        status = await self.fleet.apply(body.goal(), dry_run=body.dry_run, prune=body.prune)
        self.answer(status, 200 if body.dry_run else 202)


class Export(Handler):
    @describes("The deployments file of what is registered, loaded and routed.", {200: Exported})
    def get(self) -> None:
        self.answer({"deployments": self.fleet.export()})


ROUTES: list[tuple[str, type[Handler]]] = [(r"/api/apply", Apply), (r"/api/export", Export)]


async def apply_file(fleet: Fleet, file: str) -> ApplyStatus:
    """Begin to make the fleet what the file says. Raises `DSServeError` naming the line of what cannot be."""
    manifest = Manifest.read(file)
    try:
        return await fleet.apply(_goal(manifest.deployments))
    except DSServeError as fault:
        raise manifest.placed(fault) from None


async def keep_applied(fleet: Fleet, file: str) -> None:
    """Apply the file again whenever it was written; what cannot be is told in history, until the next time."""
    seen = stamp(file)
    while True:
        await asyncio.sleep(LOOK_S)
        if (now := stamp(file)) in (seen, None) or fleet.applier.status.state is ApplyState.APPLYING:
            continue
        try:
            await apply_file(fleet, file)
        except DSServeError as fault:
            log.error("%s", fault.message)
            fleet.events.record(time.time(), "apply_failed", reason=fault.message)
        except Exception as fault:  # whatever it is, the next writing is seen
            log.exception("%s could not be applied", file)
            fleet.events.record(time.time(), "apply_failed", reason=f"{type(fault).__name__}: {fault}")
        seen = now


def _limits(body: AutoscaleBody, at: str) -> dict[str, Any]:
    try:
        return body.settings().to_json()
    except InvalidRequest as fault:
        raise InvalidRequest(fault.message, param=f"{at}.{fault.param}") from None


def _goal(deployments: Mapping[str, Any]) -> Goal:
    return validated(ApplyBody, {"deployments": deployments}).goal()
