"""`Fleet`: the verbs. Every change to deployments, versions and routes goes through here, and is written down."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from jupyter_dsserve import __version__
from jupyter_dsserve.content import content_at
from jupyter_dsserve.fleet.admission import Admission
from jupyter_dsserve.fleet.answering import Answering, answered
from jupyter_dsserve.fleet.applier import Applier
from jupyter_dsserve.fleet.autoscale import AutoscaleSettings
from jupyter_dsserve.fleet.catalog import check_names, row_of, same, status_of, version_of
from jupyter_dsserve.fleet.conductor import Conductor
from jupyter_dsserve.fleet.database import database_url
from jupyter_dsserve.fleet.deployment import Deployment
from jupyter_dsserve.fleet.events import Asked, Events
from jupyter_dsserve.fleet.goal import Goal, exported
from jupyter_dsserve.fleet.joining import Joins
from jupyter_dsserve.fleet.keyring import Keyring
from jupyter_dsserve.fleet.keys import Keys
from jupyter_dsserve.fleet.launcher import LocalLauncher
from jupyter_dsserve.fleet.link import Link
from jupyter_dsserve.fleet.listener import JoinSettings
from jupyter_dsserve.fleet.moves import Moves, refuse_while_activating
from jupyter_dsserve.fleet.past import Past
from jupyter_dsserve.fleet.registry import EVENT, Registry, Retention, VersionRow, written
from jupyter_dsserve.fleet.road import Call, Road
from jupyter_dsserve.fleet.rollout import RolloutSpec
from jupyter_dsserve.fleet.route import Route
from jupyter_dsserve.fleet.scoring import Sample
from jupyter_dsserve.fleet.sizes import Sizes
from jupyter_dsserve.fleet.source import canonical, check_can_load, model_path
from jupyter_dsserve.fleet.supervisor import Supervisor
from jupyter_dsserve.fleet.tasks import Tasks
from jupyter_dsserve.fleet.version import Version
from jupyter_dsserve.protocol import worker_pb2 as pb
from jupyter_dsserve.protocol.config import AdmissionSettings
from jupyter_dsserve.protocol.errors import (
    Conflict,
    InvalidRequest,
    NotFound,
    Unavailable,
)
from jupyter_dsserve.protocol.policy import Policy
from jupyter_dsserve.protocol.records import (
    ApiKey,
    ApplyStatus,
    CreatedKey,
    DeploymentStatus,
    Event,
    Joining,
    LedgerStatus,
    Origin,
    RolloutStatus,
    StatsHistory,
    VersionState,
    VersionStatus,
)
from jupyter_dsserve.protocol.request import Request
from jupyter_dsserve.protocol.spec import Strategy, WorkerLaunch, WorkerSpec

_UNKNOWN = Origin()


class Fleet:
    """Lives on one event loop. ``drain_s``: how long running requests may take to end when their version stops.
    ``allow_code``: versions may load files that can run code. ``database``: where the registry lies
    (`database.database_url`). ``memory_budget_bytes`` and ``admission``: what loads may take, as in `GatewayConfig`.
    ``joining``: where workers of other machines join."""

    def __init__(
        self,
        data_dir: Path,
        drain_s: float = 30.0,
        *,
        allow_code: bool = False,
        database: str = "",
        retention: Retention = Retention(),  # noqa: B008  # it is immutable
        memory_budget_bytes: int = 0,
        admission: AdmissionSettings = AdmissionSettings(),  # noqa: B008  # likewise
        joining: JoinSettings = JoinSettings(),  # noqa: B008
    ) -> None:
        self._drain_s = drain_s
        self._allow_code = allow_code
        self._registry = Registry(database_url(database, data_dir), retention)
        self._registry.on_failure = self._say_unwritten
        self._launcher = LocalLauncher(data_dir / "logs")
        self._link = Link(data_dir, self._admit)
        self.joins = Joins(self, self._link, joining, data_dir)
        self._admission = Admission(admission, memory_budget_bytes)
        self._supervisor = Supervisor(self._link, self._launcher, self._admission, self._record)
        self._deployments: dict[str, Deployment] = {}
        self._watching = Tasks()  # cancelled at the stop
        self._ending = Tasks()  # awaited at the stop: they end workers
        self._conductor = Conductor(self, self._registry, self._watching.spawn, self._replace_route)
        self._moves = Moves(self, self._conductor.changes, self._watching.spawn, self._replace_route)
        self._is_stopping = False
        self.applier = Applier(self)
        self.events = Events(lambda _event: None)
        self._sizes = Sizes(
            self._admission, self._supervisor, self._record, self._shrink, self._save, self._conductor.has_part
        )
        self._keyring = Keyring(self, self._registry)
        self._past = Past(self, self._registry)

    # ---- life

    async def start(self, restore: bool = True) -> None:
        """Open the registry and accept workers. ``restore``: load what ran; without it everything is STOPPED."""
        stored = self._registry.open(1000, f"jupyter_dsserve {__version__}, process {os.getpid()}")
        self.events = Events(self._registry.add_event, stored.events)
        self._keyring.bring_back(stored.keys)
        self._admission.start()
        for row in stored.versions:
            if row.deployment not in self._deployments:
                self._deployments[row.deployment] = Deployment(
                    row.deployment,
                    stored.routes.get(row.deployment, Route()),
                    road=Road(Policy.from_json(stored.policies.get(row.deployment, {}))),
                )
            self._bring_back(row, restore)
        self._conductor.bring_back(stored.rollouts)
        await self._link.start()  # a worker that joins again is refused for good if its version is not known
        await self.joins.start()
        self._watching.spawn(self._every_second())
        self._watching.spawn(self._sizes.autoscaler.run(self._versions))

    def _bring_back(self, row: VersionRow, restore: bool) -> None:
        deployment = self._deployments[row.deployment]
        version = version_of(row)
        version.road, version.wake = deployment.road, partial(self._sizes.wake, version, "a request came")
        deployment.versions[row.name] = version
        version.is_wanted = row.is_wanted and restore
        if version.is_wanted != row.is_wanted:  # so that a crash of ours brings back what ran today
            self._registry.save_version(row_of(version))
        try:
            version.model_path = self._path(row.spec)
        except InvalidRequest as gone:  # the directory was moved since: shown as FAILED, the others still come back
            version.failure = gone.message
        if version.is_wanted and not version.failure:
            self._supervisor.start(version)

    async def stop(self) -> None:
        """Drain and end every worker, finish writing. What ran stays wanted, and comes back at the next start."""
        self._is_stopping = True
        self._conductor.stop()
        self._watching.cancel()
        versions = self._versions()
        for version in versions:
            version.is_wanted = False
        await asyncio.gather(*(self._supervisor.stop(v, self._drain_s) for v in versions))
        await self._ending.ended()
        self._admission.stop()
        self.events.close()
        await self.joins.stop()
        await self._link.stop()
        self._past.close()
        self._registry.close()

    def hurry(self) -> None:
        """End a stop that is under way without waiting for running requests."""
        self._supervisor.hurry()

    # ---- verbs: versions

    async def register(
        self,
        deployment: str,
        version: str,
        spec: WorkerSpec,
        num_replicas: int | None,
        origin: Origin = _UNKNOWN,
        settings: Mapping[str, Any] = {},
    ) -> Version:
        """Make a version known; one that is already registered as just this is left alone, wherever it came from, but
        for its ``settings``.

        ``num_replicas`` None is 1, or as many as it has. Raises `InvalidRequest` for what cannot be, `Conflict` for a
        name that stands for another version, and for one that never fits into the memory that we may hold.
        """
        self._refuse_while_stopping()
        path = self.check(deployment, version, spec)
        # A version never changes: a relative path would mean another model to a gateway started elsewhere.
        spec = replace(spec, model=canonical(spec.model))
        origin = replace(origin, content=await content_at(path))
        new = Version(deployment, version, spec, path, num_replicas or 1, origin, time.time(), settings=dict(settings))
        if version not in (self._deployments[deployment].versions if deployment in self._deployments else ()):
            await self._admission.check(new)
        known = self._deployments.get(deployment)
        if known and version in known.versions:
            found = same(known.versions[version], spec, num_replicas, origin.content)
            found.settings |= settings
            await self._save(found)
            return found
        if not known:
            known = self._deployments[deployment] = Deployment(deployment)
        known.versions[version] = new
        new.road, new.wake = known.road, partial(self._sizes.wake, new, "a request came")
        try:
            await self._registry.save_version(row_of(new), is_new=True)
        except Unavailable:
            self._forget(new)
            raise
        self._record("registered", new, "", spec.model)
        return new

    def check(self, deployment: str, version: str, spec: WorkerSpec) -> str:
        """Where the model lies. Raises `InvalidRequest` for what can be no version here."""
        check_names(deployment, version)
        path = self._path(spec)
        check_can_load(path, spec)
        return path

    async def load(self, deployment: str, version: str) -> Version:
        """Start a registered version's workers; one that is loaded already is left alone. Returns at once: what does
        not fit into memory now is QUEUED. Raises `Conflict` for what never fits."""
        self._refuse_while_stopping()
        found = self.version(deployment, version)
        if not found.is_wanted or found.failure:
            found.model_path = self._path(found.spec)
            await self._admission.check(found)
            self._refuse_while_stopping()
        if found.is_deleted or found.state is VersionState.DRAINING:
            raise Conflict(f"{found.id} is still DRAINING: load it again when it is STOPPED")
        if found.is_resting:
            self._sizes.wake(found, "it is loaded")
        if found.is_wanted and not found.failure:
            self._supervisor.start(found)  # a worker that was given up may be tried again
            return found
        found.is_wanted, found.failure = True, ""
        self._supervisor.start(found)
        await self._save(found)
        return found

    async def refuse_unless_beside(self, version: Version, others: Collection[str], remedy: str) -> None:
        """Raises `Conflict`, with the figures and the ``remedy``, if a version that is not loaded would wait for memory
        that ``others`` hold (ids of versions), which end only once it is READY."""
        if version.is_wanted and not version.failure:
            return
        version.model_path = self._path(version.spec)
        if why := await self._admission.why_not_beside(version, others):
            raise Conflict(f"{version.id} {why}; {remedy}")

    async def unload(self, deployment: str, version: str) -> Version:
        """Move its traffic away, drain it and end its workers, in the background. It stays registered."""
        self._refuse_while_stopping()
        found = self.version(deployment, version)
        self._conductor.refuse_during(deployment, f"unload {version}", version)
        self._take_down(found)
        self._ending.spawn(self._supervisor.stop(found, self._drain_s))
        await self._save(found)
        return found

    async def delete(self, deployment: str, version: str) -> VersionStatus:
        """Unload and forget; how it stands now. The name is free again once its workers have ended."""
        self._refuse_while_stopping()
        found = self.version(deployment, version)
        self._conductor.refuse_during(deployment, f"delete {version}", version)
        if not found.is_deleted:
            self._take_down(found)
            found.is_deleted = True
            self._ending.spawn(self._stop_and_forget(found))
        status = self.version_status(deployment, version)
        # Before its workers have ended: a gateway that is killed meanwhile must not bring it back.
        await written(self._registry.forget_version(deployment, version))
        return status

    async def delete_deployment(self, name: str) -> list[VersionStatus]:
        """Unload and forget all versions, and the deployment with the last one."""
        return [await self.delete(name, version) for version in list(self.deployment(name).versions)]

    def _take_down(self, version: Version) -> None:
        deployment = self._deployments[version.deployment]
        if version.is_wanted:
            version.is_wanted, version.failure = False, ""
            version.is_resting = version.is_awaited = False
            self._record("unloading", version, "", "")
        self._replace_route(deployment, deployment.route.without(version.name, deployment.ready))
        version.announce()

    async def _stop_and_forget(self, version: Version) -> None:
        await self._supervisor.stop(version, self._drain_s)
        self._record("deleted", version, "", "")
        self._launcher.forget_logs(version.id)
        self._forget(version)

    def _forget(self, version: Version) -> None:
        deployment = self._deployments[version.deployment]
        del deployment.versions[version.name]
        if not deployment.versions:
            del self._deployments[deployment.name]
            self._conductor.forget(deployment.name)
            self._registry.forget_deployment(deployment.name)

    def _shrink(self, version: Version) -> None:
        self._ending.spawn(self._supervisor.shrink(version, self._drain_s))

    async def _save(self, version: Version) -> None:
        # At the stop nothing is wanted any more, and that is not what the next start is to find.
        if not (version.is_deleted or self._is_stopping):
            await written(self._registry.save_version(row_of(version)))

    def _say_unwritten(self, what: str, why: str) -> None:
        if not what.startswith(EVENT):  # which is written later; to tell that with an event would never end
            self.events.record(time.time(), "registry_failed", reason=f"{why}; it is tried again, and lost at a crash")

    def _refuse_while_stopping(self) -> None:
        if self._is_stopping:
            raise Unavailable("this gateway is stopping: ask the next one", retry_after_s=5)

    async def scale(self, deployment: str, version: str, num_replicas: int) -> Version:
        """Keep so many workers of a loaded version up. Returns at once: new ones wait for memory if need be, and those
        that are too many drain. Raises `Conflict` for a version that is not loaded, and if so many never fit."""
        self._refuse_while_stopping()
        found = self.version(deployment, version)
        await self._sizes.scale(found, num_replicas)
        return found

    async def autoscale(self, deployment: str, version: str, settings: AutoscaleSettings | None) -> Version:
        """Scale a version by what is asked of it from now on; None ends that, and it keeps the workers it has."""
        self._refuse_while_stopping()
        found = self.version(deployment, version)
        await self._sizes.autoscale(found, settings)
        return found

    def join(self, deployment: str, version: str) -> Joining:
        """How a worker that people start, from another environment say, joins a version as one more replica."""
        return self.joins.told(self.version(deployment, version))

    def _admit(self, request: pb.JoinRequest, is_here: bool) -> WorkerLaunch:
        self._refuse_while_stopping()
        return self.joins.admit(request, is_here, self._supervisor)

    # ---- verbs: all of it

    async def apply(self, goal: Goal, *, dry_run: bool = False, prune: bool = False) -> ApplyStatus:
        """Make the fleet what ``goal`` says, in the background (``applier.status`` tells how far it is); with
        ``dry_run`` only the plan. ``prune`` deletes what it does not name.

        Raises `InvalidRequest` for what cannot be, `Conflict` where it would change a version, or while another goal
        is being applied.
        """
        self._refuse_while_stopping()
        self.applier.check(goal)
        planned = self.applier.planned(goal, prune=prune)
        if dry_run:
            return planned
        self.applier.begin(planned)
        self._watching.spawn(self.applier.run(goal))
        return self.applier.status

    def export(self) -> dict[str, Any]:
        """The fleet as a deployments file has it."""
        return exported(self.applier.snapshot())

    async def history(self, asked: Asked = Asked()) -> list[Event]:  # noqa: B008  # it is immutable
        """Events, oldest first, from the registry, and what is not written yet from memory."""
        return await self._past.history(asked)

    async def stats(
        self, deployment: str, version: str, since: float, until: float, step_s: int | None = None
    ) -> StatsHistory:
        """What versions did (of one deployment, or one version, unless they are empty), in steps of whole minutes, this
        one included. Times are seconds since the epoch. Raises `InvalidRequest` for too many points."""
        return await self._past.stats(deployment, version, since, until, step_s)

    # ---- verbs: traffic

    async def route(self, deployment: str, weights: Mapping[str, float], revision: int | None = None) -> Route:
        """Set the weights. Raises `Conflict` if ``revision`` is not the current one or a version is not READY; and
        while a rollout or an activation runs, which would set others."""
        found = self.deployment(deployment)
        self._conductor.refuse_during(deployment, "set weights by hand")
        refuse_while_activating(found)
        if revision is not None and revision != found.route.revision:
            raise Conflict(
                f"the route of {deployment} is at revision {found.route.revision}, not {revision}: somebody changed it "
                "meanwhile; read it again",
                param="revision",
            )
        found.check_weights(weights)
        changed = found.route.replaced(weights)
        if changed.weights != found.route.weights:  # a cell that runs again leaves what a rollback goes back to
            self._conductor.changes(found)
        await written(self._replace_route(found, changed))
        return found.route

    async def activate(self, deployment: str, version: str, strategy: Strategy = "beside") -> Version:
        """Give ``version`` all traffic once it is READY (loading it if need be); then those that had it drain and stop.

        Returns at once. Until the version is READY, and if its load fails, the old ones serve on. With ``strategy``
        ``recreate`` they end first, for memory that does not hold both: requests wait in line meanwhile, and if the
        load fails the old ones are loaded again. Raises `Conflict` while another swap or a rollout runs, and if there
        is no memory for both.
        """
        found, candidate = self.deployment(deployment), self.version(deployment, version)
        self._refuse_while_stopping()
        self._conductor.refuse_during(deployment, f"activate {version}")
        await self._moves.activate(found, candidate, strategy)
        return candidate

    async def rollout(self, deployment: str, spec: RolloutSpec) -> RolloutStatus:
        """Begin a gray release of ``spec.candidate``, loading it first if need be. Returns at once."""
        self._refuse_while_stopping()
        await self._conductor.start(self.deployment(deployment), spec)
        return self.rollout_status(deployment)

    async def pause(self, deployment: str) -> RolloutStatus:
        """Leave the weights as they are until `resume`."""
        await self._conductor.pause(self.deployment(deployment).name)
        return self.rollout_status(deployment)

    async def resume(self, deployment: str) -> RolloutStatus:
        """Go on with a paused rollout."""
        await self._conductor.resume(self.deployment(deployment).name)
        return self.rollout_status(deployment)

    async def promote(self, deployment: str) -> RolloutStatus:
        """Give the candidate all traffic now; the old version drains and stops."""
        await self._conductor.promote(self.deployment(deployment).name)
        return self.rollout_status(deployment)

    async def rollback(self, deployment: str) -> None:
        """End the rollout that runs; without one, go back to the weights before the last `route` or `activate`."""
        self._refuse_while_stopping()
        found = self.deployment(deployment)
        if self._conductor.is_running(deployment):
            await self._conductor.rollback_rollout(deployment)
        else:
            await self._moves.go_back(found, self._conductor.before(found))

    async def rollback_rollout(self, deployment: str) -> RolloutStatus:
        """Take the candidate back. Raises `NotFound` or `Conflict` if no rollout runs."""
        await self._conductor.rollback_rollout(self.deployment(deployment).name)
        return self.rollout_status(deployment)

    async def samples(self, deployment: str, wait_s: float, started_at: float | None = None) -> list[Sample]:
        """Answers for a rollout's check to score. Raises `Conflict` if it is not the one that was ``started_at``."""
        return await self._conductor.samples(self.deployment(deployment).name, wait_s, started_at)

    def score(
        self, deployment: str, scores: Mapping[int, float], failure: str, started_at: float | None = None
    ) -> None:
        """What a rollout's check made of samples, by id. Raises as `samples` does."""
        self._conductor.scored(self.deployment(deployment).name, scores, failure, started_at)

    def rollout_status(self, deployment: str) -> RolloutStatus:
        """The rollout that runs, or the last one. Raises `NotFound` if there never was one."""
        status = self._conductor.status(self.deployment(deployment).name)
        if status is None:
            raise NotFound(f"{deployment} has no rollout: start one first", param="deployment")
        return status

    def _replace_route(self, deployment: Deployment, route: Route) -> Awaitable[None]:
        """At once for requests; awaiting the result waits until it is written down."""
        if route is not deployment.route:
            deployment.route = route  # one assignment: a request sees the old route or the new one
            shares = " ".join(f"{n}={w:g}" for n, w in route.weights.items()) or "no version"
            self.events.record(time.time(), "route", deployment=deployment.name, reason=shares)
        return self._registry.save_route(deployment.name, route)

    async def policy(self, deployment: str, changes: Mapping[str, Any]) -> Policy:
        """Set the fields in ``changes``; the others stay. Raises `NotFound` for a version that nobody knows."""
        found = self.deployment(deployment)
        policy = found.road.policy.changed(changes)
        for name in {policy.fallback, *(rule.version for rule in policy.rules)} - {""}:
            self.version(deployment, name)
        if policy != found.road.policy:
            found.set_policy(policy, time.monotonic())
            said = ", ".join(f"{name}={value}" for name, value in changes.items())
            self.events.record(time.time(), "policy", deployment=deployment, reason=said)
            await written(self._registry.save_policy(deployment, policy.to_json(), found.route))
        return policy

    async def answer(self, call: Call, requests: Sequence[Request], check: Callable[[Version], None]) -> Answering:
        """The answers to ``requests``, all of one version, once they have begun; ``check`` may refuse that version.

        A version that goes away before it answers is replaced by the next that the route gives. If none answers, the
        policy's fallback does, then its own text; not for a pinned version. Raises `NotFound`, `TooManyRequests`,
        `Unavailable` if nobody takes requests, and what an answer raised before it began.
        """
        name, _, pinned = call.model.partition("@")
        deployment = self._deployments.get(name)
        if deployment is None:
            known = ", ".join(sorted(self._deployments)) or "none yet"
            raise NotFound(f"model {call.model!r} is not a deployment here: there are {known}", param="model")
        return await answered(deployment, pinned, call, requests, check)

    # ---- verbs: keys

    async def key(self, wanted: ApiKey) -> CreatedKey:
        """Make a key. Raises `Unavailable` if it cannot be written down: then there is none."""
        return await self._keyring.make(wanted)

    def keys(self) -> list[ApiKey]:
        """All but the admin key, oldest first."""
        return self.held_keys.all()

    async def revoke(self, id: str) -> ApiKey:
        """Refuse a key from now on. Raises `NotFound`; and `Unavailable` if that could not be written yet, and would be
        forgotten if the gateway crashed now."""
        return await self._keyring.revoke(id)

    @property
    def held_keys(self) -> Keys:
        """Those that open something now."""
        return self._keyring.held

    # ---- looking

    def has_deployment(self, name: str) -> bool:
        return name in self._deployments

    def deployments(self) -> list[Deployment]:
        """All, by name."""
        return [self._deployments[name] for name in sorted(self._deployments)]

    def deployment(self, name: str) -> Deployment:
        """Raises `NotFound` naming the known ones."""
        if name not in self._deployments:
            known = ", ".join(sorted(self._deployments)) or "none yet"
            raise NotFound(f"deployment {name!r} does not exist: there are {known}", param="deployment")
        return self._deployments[name]

    def version(self, deployment: str, name: str) -> Version:
        """Raises `NotFound` naming the known ones."""
        return self.deployment(deployment).version(name)

    def status(self) -> list[DeploymentStatus]:
        return [self.deployment_status(name) for name in sorted(self._deployments)]

    @property
    def in_flight(self) -> int:
        """Requests that run now."""
        return sum(d.in_flight for d in self._deployments.values())

    @property
    def num_requests(self) -> int:
        """Requests taken since the start: ended and running ones."""
        return sum(v.window.requests for v in self._versions()) + self.in_flight

    def deployment_status(self, name: str) -> DeploymentStatus:
        found = self.deployment(name)
        versions = [self.version_status(name, v) for v in found.versions]
        route, rollout = found.route, self._conductor.status(name)
        return DeploymentStatus(name, dict(route.weights), route.revision, found.activating, versions, rollout)

    def version_status(self, deployment: str, name: str) -> VersionStatus:
        found, version = self.deployment(deployment), self.version(deployment, name)
        return status_of(version, found.route.weights.get(name, 0.0), self._admission.why(version.id))

    async def ledger(self) -> LedgerStatus:
        """Who holds the memory of every device, and who waits for it."""
        return await self._admission.status()

    def logs(self, deployment: str, version: str, num_lines: int) -> dict[str, list[str]]:
        """The last lines of each replica's output, by replica id."""
        found = self.version(deployment, version)
        ids = [f"{found.id}#{i}" for i in range(found.num_replicas)]
        ids += [r.id for r in found.replicas if r.id not in ids]
        return {id: self._launcher.tail(id, num_lines) for id in ids}

    # ---- inside

    def _versions(self) -> list[Version]:
        return [v for d in self._deployments.values() for v in d.versions.values()]

    def _path(self, spec: WorkerSpec) -> str:
        return model_path(spec.model, spec.runner, spec.task, allow_code=self._allow_code)

    def _record(self, kind: str, version: Version, replica: str, reason: str) -> None:
        self.events.record(
            time.time(), kind, deployment=version.deployment, version=version.name, replica=replica, reason=reason
        )
        if kind == "measured":  # the next load goes by it
            self._ending.spawn(self._save(version))
        if kind == "ready":
            self._moves.route_first_ready(self._deployments[version.deployment])

    async def _every_second(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            if num_written := await self._registry.retry(time.monotonic()):
                self.events.record(time.time(), "registry_written", reason=f"{num_written} changes that had to wait")
            self._past.tick(time.time(), self._versions())
            if self.events.has_listeners:
                at, now = time.time(), time.monotonic()
                for deployment in self._deployments.values():
                    for version in deployment.versions.values():
                        weight = deployment.route.weights.get(version.name, 0.0)
                        self.events.publish(version.stats(weight, at, now))
