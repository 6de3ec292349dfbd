"""Makes a fleet what a goal says, by the fleet's own verbs."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from jupyter_dsserve.fleet.autoscale import AutoscaleSettings
from jupyter_dsserve.fleet.goal import CHOSEN, DeploymentGoal, Goal, VersionGoal, left_alone, plan
from jupyter_dsserve.protocol.errors import Conflict, DSServeError, InvalidRequest, Unavailable
from jupyter_dsserve.protocol.records import ApplyState, ApplyStatus, Change, VersionState

if TYPE_CHECKING:
    from jupyter_dsserve.fleet.fleet import Fleet

log = logging.getLogger(__name__)

_WAITING = ("route", "unload", "delete")  # what is done only once the deployment's versions are READY


class Applier:
    """One goal at a time. ``status`` is the last one's."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.status = ApplyStatus(ApplyState.IDLE)

    def snapshot(self) -> Goal:
        """The fleet as it is now."""
        return {d.name: self._deployment(d.name) for d in self._fleet.status()}

    def check(self, goal: Goal) -> None:
        """Raises `InvalidRequest` for a version that cannot be, saying where in the goal it stands."""
        for name, deployment in goal.items():
            for version, wanted in deployment.versions.items():
                try:
                    self._fleet.check(name, version, wanted.spec)
                except InvalidRequest as fault:
                    field = f".{fault.param}" if fault.param not in (None, "deployment", "version") else ""
                    where = f"deployments.{name}.versions.{version}{field}"
                    raise InvalidRequest(fault.message, param=where) from None

    def planned(self, goal: Goal, *, prune: bool) -> ApplyStatus:
        """What `run` would do. Raises `InvalidRequest` and `Conflict` as `plan` does."""
        now = self.snapshot()
        left = [] if prune else left_alone(now, goal)
        return ApplyStatus(ApplyState.PLANNED, plan(now, goal, prune=prune), left_alone=left)

    def begin(self, planned: ApplyStatus) -> None:
        """Raises `Conflict` if another goal is still being applied. `run` is to follow."""
        if self.status.state is ApplyState.APPLYING:
            raise Conflict("another deployments file is being applied: wait until that has ended")
        self.status = replace(planned, state=ApplyState.APPLYING)

    async def run(self, goal: Goal) -> None:
        """Do what was begun, one change after the other. What fails ends it, and says why in the status and in
        history; what was done until then stays."""
        try:
            for change in self.status.changes:
                await self._does[change.kind](change, goal)
                self.status = replace(self.status, num_done=self.status.num_done + 1)
            await self._wait_ready(goal, {c.deployment for c in self.status.changes})
        except DSServeError as fault:
            self._end(ApplyState.FAILED, fault.message)
        except asyncio.CancelledError:
            self._end(ApplyState.FAILED, "the gateway is stopping")
            raise
        except Exception as fault:
            log.exception("a deployments file could not be applied")
            self._end(ApplyState.FAILED, f"{type(fault).__name__}: {fault}")
        else:
            self._end(ApplyState.APPLIED, "")

    def _end(self, state: ApplyState, reason: str) -> None:
        self.status = replace(self.status, state=state, reason=reason)
        if self.status.changes:
            done = f"{self.status.num_done} of {len(self.status.changes)} changes"
            kind = "applied" if state is ApplyState.APPLIED else "apply_failed"
            self._fleet.events.record(time.time(), kind, reason=f"{done}: {reason}" if reason else done)

    @property
    def _does(self) -> Mapping[str, Callable[[Change, Goal], Awaitable[object]]]:
        fleet = self._fleet
        return {
            "register": self._register,
            "load": self._load,
            "scale": lambda c, goal: fleet.scale(c.deployment, c.version, _wanted(c, goal).num_replicas or 1),
            "autoscale": self._autoscale,
            "set": self._register,
            "policy": lambda c, goal: fleet.policy(c.deployment, goal[c.deployment].policy),
            "route": self._route,
            "unload": self._unload,
            "delete": self._delete,
        }

    async def _register(self, change: Change, goal: Goal) -> None:
        """Of a version that is registered only its settings change."""
        wanted = _wanted(change, goal)
        is_new = change.kind == "register"
        num_replicas = wanted.num_replicas if is_new else None
        settings = {k: v for k, v in wanted.settings.items() if is_new or k != "autoscale"}
        await self._fleet.register(
            change.deployment, change.version, wanted.spec, num_replicas, wanted.origin, settings
        )

    async def _load(self, change: Change, _: Goal) -> None:
        """Raises `Conflict` if it would wait for memory of what is to end only once it is READY."""
        changes = self.status.changes
        waits = (i for i, c in enumerate(changes) if c.kind in _WAITING and c.deployment == change.deployment)
        later = changes[next(waits, len(changes)) :]
        if leaving := [f"{c.deployment}@{c.version}" for c in later if c.kind in ("unload", "delete")]:
            found = self._fleet.version(change.deployment, change.version)
            remedy = f"{', '.join(leaving)} would end once it is READY: activate it with the strategy recreate first"
            await self._fleet.refuse_unless_beside(found, leaving, remedy)
        await self._fleet.load(change.deployment, change.version)

    async def _autoscale(self, change: Change, goal: Goal) -> None:
        limits = _wanted(change, goal).settings["autoscale"]
        settings = AutoscaleSettings(**limits) if limits else None
        await self._fleet.autoscale(change.deployment, change.version, settings)

    async def _route(self, change: Change, goal: Goal) -> None:
        await self._wait_ready(goal, {change.deployment})
        await self._fleet.route(change.deployment, change.weights)

    async def _unload(self, change: Change, goal: Goal) -> None:
        await self._wait_ready(goal, {change.deployment})
        await self._fleet.unload(change.deployment, change.version)

    async def _delete(self, change: Change, goal: Goal) -> None:
        await self._wait_ready(goal, {change.deployment})
        await self._fleet.delete(change.deployment, change.version)

    async def _wait_ready(self, goal: Goal, deployments: set[str]) -> None:
        """Until all versions are READY that the goal wants loaded. Raises `Unavailable` with the reason of one that
        will not be: what serves now then serves on."""
        for name in deployments & goal.keys():
            for version, wanted in goal[name].versions.items():
                if wanted.is_loaded:
                    found = self._fleet.version(name, version)
                    state = await found.settled()
                    if state is not VersionState.READY and not found.can_answer:  # one that rests comes when asked
                        why = found.failure or "it was unloaded meanwhile"
                        raise Unavailable(f"{found.id} is {state.value}: {why}")

    def _deployment(self, name: str) -> DeploymentGoal:
        found = self._fleet.deployment(name)
        versions = {
            v.name: VersionGoal(v.spec, v.num_replicas, _chosen(v.settings), v.is_wanted and not v.failure, v.origin)
            for v in found.versions.values()
            if not v.is_deleted
        }
        policy = found.road.policy.to_json()
        return DeploymentGoal(versions, dict(found.route.weights), policy | {"rules": list(policy["rules"])})


def _wanted(change: Change, goal: Goal) -> VersionGoal:
    return goal[change.deployment].versions[change.version]


def _chosen(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those that people choose; others are what we have measured."""
    return {name: settings[name] for name in CHOSEN if name in settings}
