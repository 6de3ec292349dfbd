"""``/api/ledger``, and how many workers a version has."""

from __future__ import annotations

from jupyter_dsserve.gateway.bodies import AutoscaleBody, ScaleBody
from jupyter_dsserve.gateway.handlers import Handler


class Ledger(Handler):
    async def get(self) -> None:
        self.answer(await self.fleet.ledger())


class Scale(Handler):
    async def post(self, name: str, version: str) -> None:
        await self.fleet.scale(name, version, self.body(ScaleBody).replicas)
        self.answer(self.fleet.version_status(name, version), 202)


class Autoscale(Handler):
    async def put(self, name: str, version: str) -> None:
        await self.fleet.autoscale(name, version, self.body(AutoscaleBody).settings())
        self.answer(self.fleet.version_status(name, version))

    async def delete(self, name: str, version: str) -> None:
        await self.fleet.autoscale(name, version, None)
        self.answer(self.fleet.version_status(name, version))


_VERSION = r"/api/deployments/([^/]+)/versions/([^/]+)"

ROUTES: list[tuple[str, type[Handler]]] = [
    (r"/api/ledger", Ledger),
    (rf"{_VERSION}/scale", Scale),
    (rf"{_VERSION}/autoscale", Autoscale),
]
