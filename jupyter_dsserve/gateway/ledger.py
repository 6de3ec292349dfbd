"""``/api/ledger``, and how many workers a version has."""

from __future__ import annotations

from jupyter_dsserve.gateway.bodies import AutoscaleBody, ScaleBody
from jupyter_dsserve.gateway.describe import CHANGE_ERRORS, describes
from jupyter_dsserve.gateway.handlers import Handler
from jupyter_dsserve.protocol.records import LedgerStatus, VersionStatus


class Ledger(Handler):
    @describes("Who holds the memory of every device, and which loads wait for what.", {200: LedgerStatus})
    async def get(self) -> None:
        self.answer(await self.fleet.ledger())


class Scale(Handler):
    @describes(
        "Keep so many workers of a loaded version up.",
        {202: VersionStatus},
        body=ScaleBody,
        example={"replicas": 1},
        errors=CHANGE_ERRORS,
    )
    async def post(self, name: str, version: str) -> None:
        await self.fleet.scale(name, version, self.body(ScaleBody).replicas)
        self.answer(self.fleet.version_status(name, version), 202)


class Autoscale(Handler):
    @describes(
        "Have a version from min to max workers, by what is asked of it.",
        {200: VersionStatus},
        body=AutoscaleBody,
        example={"min": 1, "max": 2},
        errors=CHANGE_ERRORS,
    )
    async def put(self, name: str, version: str) -> None:
        await self.fleet.autoscale(name, version, self.body(AutoscaleBody).settings())
        self.answer(self.fleet.version_status(name, version))

    @describes("End that: it keeps the workers it has.", {200: VersionStatus}, errors=CHANGE_ERRORS)
    async def delete(self, name: str, version: str) -> None:
        await self.fleet.autoscale(name, version, None)
        self.answer(self.fleet.version_status(name, version))


_VERSION = r"/api/deployments/([^/]+)/versions/([^/]+)"

ROUTES: list[tuple[str, type[Handler]]] = [
    (r"/api/ledger", Ledger),
    (rf"{_VERSION}/scale", Scale),
    (rf"{_VERSION}/autoscale", Autoscale),
]
