"""`Moves`: a route goes to other weights, with what has to be loaded before and what drains after."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jupyter_dsserve.fleet.deployment import Deployment
from jupyter_dsserve.fleet.registry import written
from jupyter_dsserve.fleet.route import Route
from jupyter_dsserve.fleet.version import Version
from jupyter_dsserve.protocol.errors import Conflict, DSServeError
from jupyter_dsserve.protocol.records import VersionState
from jupyter_dsserve.protocol.spec import Strategy

if TYPE_CHECKING:
    from jupyter_dsserve.fleet.fleet import Fleet


@dataclass(frozen=True, slots=True)
class _Move:
    """Where to, and how it is told: ``done`` and ``failed`` are kinds of events, of ``version`` if it is one's own.

    ``remedy`` is what to do if there is no memory for both; empty if those that serve end first. ``leaves``: what has
    no weight any more drains and stops.
    """

    weights: Mapping[str, float]
    done: str
    said: str
    failed: str
    version: str = ""
    remedy: str = ""
    leaves: bool = True


class Moves:
    """One for a fleet; a deployment makes one move at a time, and `Deployment.activating` says that it does.

    ``keep_before`` remembers the weights that are about to change; ``spawn`` starts a task that the fleet ends with
    itself; ``replace_route`` changes a route at once, and awaiting its result waits until that is written down.
    """

    def __init__(
        self,
        fleet: Fleet,
        keep_before: Callable[[Deployment], None],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        replace_route: Callable[[Deployment, Route], Awaitable[None]],
    ) -> None:
        self._fleet = fleet
        self._keep_before = keep_before
        self._spawn = spawn
        self._replace_route = replace_route

    async def activate(self, deployment: Deployment, candidate: Version, strategy: Strategy) -> None:
        """All traffic to the candidate once it is READY. As `Fleet.activate`."""
        others = [v.name for v in deployment.served if v is not candidate]
        move = _Move(
            {candidate.name: 100.0},
            done="activated",
            said=f"instead of {', '.join(others) or 'nothing'}",
            failed="activate_failed",
            version=candidate.name,
            remedy="" if strategy == "recreate" else "to end those that serve first, ask for the strategy recreate",
        )
        await self._begin(deployment, move, [candidate])

    async def go_back(self, deployment: Deployment, before: Mapping[str, float]) -> None:
        """To the weights of ``before``: at once if their versions are READY, else as soon as they are."""
        targets = [self._fleet.version(deployment.name, name) for name in before]
        move = _Move(
            before,
            done="rolled_back",
            said=f"to {' '.join(f'{name}={weight:g}' for name, weight in before.items())}",
            failed="rollback_failed",
            remedy="to end those that serve first, activate it with the strategy recreate",
            # As those did that leave now, when these came: who set weights by hand kept both.
            leaves=not all(version.is_ready for version in targets),
        )
        await self._begin(deployment, move, targets)

    def route_first_ready(self, deployment: Deployment) -> None:
        """The first version of a deployment that is READY takes all of its traffic."""
        ready = [v.name for v in deployment.versions.values() if v.is_ready]  # is_ready: so it is also wanted
        if ready and not deployment.route.weights and not deployment.activating:
            self._replace_route(deployment, deployment.route.replaced({ready[0]: 100.0}))

    async def _begin(self, deployment: Deployment, move: _Move, targets: list[Version]) -> None:
        """Raises `Conflict` during another move, and if there is no memory for both."""
        refuse_while_activating(deployment)
        missing = [version for version in targets if not version.is_ready]
        deployment.activating = (missing or targets)[0].name  # before any wait: two at once are one too many
        is_left = True
        try:
            if move.remedy:
                served = {version.id for version in deployment.served}
                for version in missing:
                    await self._fleet.refuse_unless_beside(version, served, move.remedy)
            for version in targets:
                await self._fleet.load(deployment.name, version.name)
            missing = [version for version in missing if not version.is_ready]
            if not missing:
                await self._arrive(deployment, move)
                return
            before = {}
            if not move.remedy:
                before = dict(deployment.route.weights)
                for version in missing:
                    version.is_awaited = True
                await self._arrive(deployment, move)
            self._spawn(self._arrive_when_ready(deployment, move, missing, before))
            is_left = False
        finally:
            if is_left:
                deployment.activating = ""

    async def _arrive_when_ready(
        self, deployment: Deployment, move: _Move, missing: list[Version], before: Mapping[str, float]
    ) -> None:
        """``before``: the weights that are gone already, to come back if what is ``missing`` fails."""
        try:
            why = ""
            for version in missing:
                if await version.settled() is not VersionState.READY:
                    version.is_awaited = False
                    why = f"{version.id} is {version.state.value}: {version.failure or 'it was unloaded'}"
                    break
            if not before:
                why = why or deployment.lost(move.weights)  # one of them, while others were waited for
                if not why:
                    await self._arrive(deployment, move)
            if why:
                then = f"{' and '.join(before)} come back" if before else "the route stays"
                self._record(deployment, move.failed, move.version, f"{why}; {then}")
                await self._bring_back(deployment, before)
        finally:
            deployment.activating = ""
            self.route_first_ready(deployment)

    async def _arrive(self, deployment: Deployment, move: _Move) -> None:
        leaving = [version for version in deployment.served if version.name not in move.weights]
        if deployment.route.weights != move.weights:
            self._keep_before(deployment)
        writing = self._replace_route(deployment, deployment.route.replaced(move.weights))
        self._record(deployment, move.done, move.version, move.said)
        for version in leaving if move.leaves else ():
            if version.name in deployment.versions:  # or it was deleted while we waited for the one before
                await self._fleet.unload(deployment.name, version.name)
        await written(writing)

    async def _bring_back(self, deployment: Deployment, before: Mapping[str, float]) -> None:
        served = [deployment.versions[name] for name in before if name in deployment.versions]
        for version in served:
            await version.settled()
            with contextlib.suppress(DSServeError):  # it was deleted meanwhile, say: the others come back all the same
                await self._fleet.load(version.deployment, version.name)
                version.is_awaited = True
        if lost := deployment.lost(before):
            self._record(deployment, "rollback_failed", "", f"{lost}; the route stays")
        elif before:
            await written(self._replace_route(deployment, deployment.route.replaced(before)))

    def _record(self, deployment: Deployment, kind: str, version: str, reason: str) -> None:
        self._fleet.events.record(time.time(), kind, deployment=deployment.name, version=version, reason=reason)


def refuse_while_activating(deployment: Deployment) -> None:
    """Raises `Conflict` during a move of the deployment's route."""
    if deployment.activating:
        raise Conflict(
            f"{deployment.name} is already activating {deployment.activating}: wait until that has ended, or unload "
            f"{deployment.activating} to end it"
        )
