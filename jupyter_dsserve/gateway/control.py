"""``/api``: deployments, versions, route, activate, events, and ``/health``."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field

from jupyter_dsserve.fleet.events import Asked
from jupyter_dsserve.fleet.route import Route
from jupyter_dsserve.gateway.answers import LiveAnswer, ReadyAnswer, Served
from jupyter_dsserve.gateway.bodies import ActivateBody, DeployBody, LoadBody, RouteBody
from jupyter_dsserve.gateway.describe import CHANGE_ERRORS, describes
from jupyter_dsserve.gateway.feed import Listener, framed
from jupyter_dsserve.gateway.handlers import Handler, is_number, until_caller_leaves
from jupyter_dsserve.gateway.sse import head_stream
from jupyter_dsserve.gateway.stats import Moment, asked_moment
from jupyter_dsserve.protocol.errors import Conflict, InvalidRequest, NotFound, Unavailable
from jupyter_dsserve.protocol.records import DeploymentStatus, Event, VersionStats, VersionStatus

_TOY = {"version": "v1", "model": "toy:"}
_NumLines = Annotated[int, Field(ge=0, lt=10**9, description="The last of each worker; 200 unless told.")]
_Deployment = Annotated[str, Field(description="Only of this one.")]
_Since = Annotated[int, Field(ge=0, lt=10**9, description="The first events after the one with this id.")]
_All = Annotated[bool, Field(description="Only once every deployment that has something loaded can answer.")]
_Before = Annotated[int, Field(ge=0, lt=10**9, description="The last events before the one with this id.")]
_MAX_EVENTS = 10_000  # at once
_Limit = Annotated[int, Field(ge=0, le=_MAX_EVENTS, description="How many; 1000 unless told.")]


class Deployments(Handler):
    @describes("All deployments.", {200: list[DeploymentStatus]})
    def get(self) -> None:
        self.answer(self.fleet.status())

    @describes(
        "Register and load a version; its deployment begins with its first one.",
        {202: VersionStatus},
        body=DeployBody,
        example={"name": "demo", **_TOY},
        errors=(Conflict, Unavailable),
    )
    async def post(self) -> None:
        body = self.body(DeployBody)
        await _load_new(self, body.name, body)


class OneDeployment(Handler):
    @describes("A deployment.", {200: DeploymentStatus}, errors=(NotFound,))
    def get(self, name: str) -> None:
        self.answer(self.fleet.deployment_status(name))

    @describes("Unload and forget all its versions.", {202: list[VersionStatus]}, errors=CHANGE_ERRORS)
    async def delete(self, name: str) -> None:
        self.answer(await self.fleet.delete_deployment(name), 202)


class Versions(Handler):
    @describes("A deployment's versions.", {200: list[VersionStatus]}, errors=(NotFound,))
    def get(self, name: str) -> None:
        self.answer(self.fleet.deployment_status(name).versions)

    @describes(
        "Register and load another version.", {202: VersionStatus}, body=LoadBody, example=_TOY, errors=CHANGE_ERRORS
    )
    async def post(self, name: str) -> None:
        self.fleet.deployment(name)
        await _load_new(self, name, self.body(LoadBody))


class OneVersion(Handler):
    @describes("A version.", {200: VersionStatus}, errors=(NotFound,))
    def get(self, name: str, version: str) -> None:
        self.answer(self.fleet.version_status(name, version))

    @describes("Unload a version and forget it.", {202: VersionStatus}, errors=CHANGE_ERRORS)
    async def delete(self, name: str, version: str) -> None:
        self.answer(await self.fleet.delete(name, version), 202)


class Load(Handler):
    @describes("Load a registered version.", {202: VersionStatus}, errors=CHANGE_ERRORS)
    async def post(self, name: str, version: str) -> None:
        await self.fleet.load(name, version)
        self.answer(self.fleet.version_status(name, version), 202)


class Unload(Handler):
    @describes("Drain a version and end its workers; it stays registered.", {202: VersionStatus}, errors=CHANGE_ERRORS)
    async def post(self, name: str, version: str) -> None:
        await self.fleet.unload(name, version)
        self.answer(self.fleet.version_status(name, version), 202)


class Logs(Handler):
    @describes(
        "The last lines that each of a version's workers wrote, by worker.",
        {200: dict[str, list[str]]},
        query={"lines": _NumLines},
        errors=(NotFound,),
    )
    def get(self, name: str, version: str) -> None:
        self.answer(self.fleet.logs(name, version, self.number("lines", "200") or 0))


class RouteOf(Handler):
    @describes("A deployment's weights, in percent.", {200: Route}, errors=(NotFound,))
    def get(self, name: str) -> None:
        self.answer(self.fleet.deployment(name).route)

    @describes(
        "Set the weights; a stale revision is refused.",
        {200: Route},
        body=RouteBody,
        example={"weights": {"v1": 100.0}},
        errors=CHANGE_ERRORS,
    )
    async def put(self, name: str) -> None:
        body = self.body(RouteBody)
        self.answer(await self.fleet.route(name, body.weights, body.revision))


class Activate(Handler):
    @describes(
        "Give a version all traffic: 200 if it was READY, else 202 and it loads first.",
        {200: DeploymentStatus, 202: DeploymentStatus},
        body=ActivateBody,
        example={"version": "v1"},
        errors=CHANGE_ERRORS,
    )
    async def post(self, name: str) -> None:
        body = self.body(ActivateBody)
        version = await self.fleet.activate(name, body.version, body.strategy)
        self.answer(self.fleet.deployment_status(name), 200 if version.is_ready else 202)


class Status(Handler):
    @describes("Everything now.", {200: Served})
    def get(self) -> None:
        fleet = self.fleet
        found: Served = {
            "id": self.context.id,
            "deployments": fleet.status(),
            "num_requests": fleet.num_requests,
            "in_flight": fleet.in_flight,
            "grpc": self.context.grpc_address,
        }
        self.answer(found)


class History(Handler):
    @describes(
        "What happened, oldest first: the last events (of a time, before an id), or the first after an id.",
        {200: list[Event]},
        query={
            "deployment": _Deployment,
            "since": _Since,
            "before": _Before,
            "from": Moment,
            "to": Moment,
            "limit": _Limit,
        },
    )
    async def get(self) -> None:
        limit = self.number("limit", "1000") or 1
        if limit > _MAX_EVENTS:
            raise InvalidRequest(
                f"limit is {limit}: ask for at most {_MAX_EVENTS} events, then for those before the id of the first "
                "(before=ID)",
                param="limit",
            )
        asked = Asked(
            self.get_query_argument("deployment", ""),
            self.number("since", ""),
            self.number("before", ""),
            asked_moment(self, "from", 0.0),
            asked_moment(self, "to", math.inf),
            limit,
        )
        self.answer(await self.fleet.history(asked))


class EventStream(Handler):
    """Server-sent: ``event: event`` (with its id) as things happen, ``event: stats`` per version every second.

    ``Last-Event-ID`` brings the events since then first, as far as they are remembered.
    """

    @describes(
        "What happens from now on, and each version's numbers every second.",
        {200: None},
        events=Event | VersionStats,
        headers={"Last-Event-ID": _Since},
    )
    @until_caller_leaves
    async def get(self) -> None:
        last_id = self.request.headers.get("Last-Event-ID", "")
        if last_id and not is_number(last_id):
            raise InvalidRequest(f"Last-Event-ID is {last_id!r}: give the id of an event", param="Last-Event-ID")
        head_stream(self)
        events = self.fleet.events
        listener = Listener(self, events.last_id)
        with self.context.feed.told(events, listener):
            past = events.since(int(last_id)) if last_id else []
            listener.send(b"".join(map(framed, past)))
            await listener.ended.wait()


class Live(Handler):
    is_open = True

    @describes("Whether the gateway runs.", {200: LiveAnswer})
    def get(self) -> None:
        self.answer({"status": "live"})

    head = get


class Ready(Handler):
    """200 as soon as some version can answer; with ``all`` once something can in every deployment."""

    is_open = True

    @describes("Whether some version can answer.", {200: ReadyAnswer}, query={"all": _All}, errors=(Unavailable,))
    def get(self) -> None:
        wants_all = self.get_query_argument("all", "false")
        if wants_all not in ("true", "false"):
            raise InvalidRequest(f"all is {wants_all!r}: give true or false", param="all")
        if self.context.connections.is_leaving:
            raise Unavailable("this gateway is stopping: ask the next one", retry_after_s=5)
        deployments = self.fleet.deployments()
        if not any(deployment.ready for deployment in deployments):
            raise Unavailable("no version is READY", retry_after_s=2)
        if wants_all == "true" and (num := sum(d.is_missing for d in deployments)):  # whose names need a key
            raise Unavailable(f"deployments without a READY version, although one is loaded: {num}", retry_after_s=2)
        self.answer({"status": "ready"})

    head = get


async def _load_new(handler: Handler, deployment: str, body: LoadBody) -> None:
    spec, settings = body.spec(), body.settings
    await handler.fleet.register(deployment, body.version, spec, body.replicas, body.origin(), settings)
    await handler.fleet.load(deployment, body.version)
    handler.answer(handler.fleet.version_status(deployment, body.version), 202)


_NAME = r"([^/]+)"
_VERSION = rf"/api/deployments/{_NAME}/versions/{_NAME}"

ROUTES: list[tuple[str, type[Handler]]] = [
    (r"/api/deployments", Deployments),
    (rf"/api/deployments/{_NAME}", OneDeployment),
    (rf"/api/deployments/{_NAME}/versions", Versions),
    (_VERSION, OneVersion),
    (rf"{_VERSION}/load", Load),
    (rf"{_VERSION}/unload", Unload),
    (rf"{_VERSION}/logs", Logs),
    (rf"/api/deployments/{_NAME}/route", RouteOf),
    (rf"/api/deployments/{_NAME}/activate", Activate),
    (r"/api/status", Status),
    (r"/api/history", History),
    (r"/api/events", EventStream),
    (r"/health/live", Live),
    (r"/health/ready", Ready),
    (r"/health", Ready),
]
