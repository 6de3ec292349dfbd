"""``/api``: deployments, versions, route, activate, events, and ``/health``."""

from __future__ import annotations

import asyncio

import orjson

from jupyter_dsserve.fleet.events import Item
from jupyter_dsserve.gateway.bodies import ActivateBody, DeployBody, LoadBody, RouteBody
from jupyter_dsserve.gateway.handlers import Handler, is_number, until_caller_leaves
from jupyter_dsserve.protocol.errors import InvalidRequest, Unavailable
from jupyter_dsserve.protocol.records import Event

KEEPALIVE_S = 15.0


class Deployments(Handler):
    def get(self) -> None:
        self.answer(self.fleet.status())

    async def post(self) -> None:
        body = self.body(DeployBody)
        await _load_new(self, body.name, body)


class OneDeployment(Handler):
    def get(self, name: str) -> None:
        self.answer(self.fleet.deployment_status(name))

    async def delete(self, name: str) -> None:
        self.answer(await self.fleet.delete_deployment(name), 202)


class Versions(Handler):
    def get(self, name: str) -> None:
        self.answer(self.fleet.deployment_status(name).versions)

    async def post(self, name: str) -> None:
        self.fleet.deployment(name)
        await _load_new(self, name, self.body(LoadBody))


class OneVersion(Handler):
    def get(self, name: str, version: str) -> None:
        self.answer(self.fleet.version_status(name, version))

    async def delete(self, name: str, version: str) -> None:
        self.answer(await self.fleet.delete(name, version), 202)


class Load(Handler):
    async def post(self, name: str, version: str) -> None:
        await self.fleet.load(name, version)
        self.answer(self.fleet.version_status(name, version), 202)


class Unload(Handler):
    async def post(self, name: str, version: str) -> None:
        await self.fleet.unload(name, version)
        self.answer(self.fleet.version_status(name, version), 202)


class Logs(Handler):
    def get(self, name: str, version: str) -> None:
        self.answer(self.fleet.logs(name, version, self.number("lines", "200") or 0))


class RouteOf(Handler):
    def get(self, name: str) -> None:
        self.answer(self.fleet.deployment(name).route)

    async def put(self, name: str) -> None:
        body = self.body(RouteBody)
        self.answer(await self.fleet.route(name, body.weights, body.revision))


class Activate(Handler):
    async def post(self, name: str) -> None:
        body = self.body(ActivateBody)
        version = await self.fleet.activate(name, body.version, body.strategy)
        self.answer(self.fleet.deployment_status(name), 200 if version.is_ready else 202)


class Status(Handler):
    def get(self) -> None:
        fleet = self.fleet
        counts = {"num_requests": fleet.num_requests, "in_flight": fleet.in_flight}
        self.answer({"deployments": fleet.status(), **counts})


class History(Handler):
    async def get(self) -> None:
        """``?deployment=&since=&limit=``: see `Fleet.history`."""
        since, limit = self.number("since", ""), self.number("limit", "1000")
        self.answer(await self.fleet.history(self.get_query_argument("deployment", ""), since, limit or 1))


class EventStream(Handler):
    """Server-sent: ``event: event`` (with its id) as things happen, ``event: stats`` per version every second.

    ``Last-Event-ID`` brings the events since then first, as far as they are remembered.
    """

    @until_caller_leaves
    async def get(self) -> None:
        last_id = self.request.headers.get("Last-Event-ID", "")
        if last_id and not is_number(last_id):
            raise InvalidRequest(f"Last-Event-ID is {last_id!r}: give the id of an event", param="Last-Event-ID")
        self.set_header("Content-Type", "text/event-stream")
        self.set_header("Cache-Control", "no-cache")
        with self.fleet.events.listen() as queue:
            for event in self.fleet.events.since(int(last_id)) if last_id else []:
                self.write(_framed(event))
            await self.flush()
            while True:
                try:
                    item = await asyncio.wait_for(queue.get(), KEEPALIVE_S)
                except asyncio.TimeoutError:
                    self.write(": still here\n\n")
                else:
                    if item is None:
                        return
                    self.write(_framed(item))
                await self.flush()


class Live(Handler):
    is_open = True

    def get(self) -> None:
        self.answer({"status": "live"})

    head = get


class Ready(Handler):
    """200 as soon as some version can answer."""

    is_open = True

    def get(self) -> None:
        if not any(self.fleet.deployment(d.name).ready for d in self.fleet.status()):
            raise Unavailable("no version is READY", retry_after_s=2)
        self.answer({"status": "ready"})

    head = get


async def _load_new(handler: Handler, deployment: str, body: LoadBody) -> None:
    spec, settings = body.spec(), body.settings
    await handler.fleet.register(deployment, body.version, spec, body.replicas, body.origin(), settings)
    await handler.fleet.load(deployment, body.version)
    handler.answer(handler.fleet.version_status(deployment, body.version), 202)


def _framed(item: Item) -> bytes:
    data = orjson.dumps(item)
    if isinstance(item, Event):
        return b"event: event\nid: %d\ndata: %b\n\n" % (item.id, data)
    return b"event: stats\ndata: %b\n\n" % data


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
]
