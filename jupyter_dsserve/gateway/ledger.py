"""``/api/ledger``, and how many workers a version has."""

from __future__ import annotations

from jupyter_dsserve.gateway.bodies import ScaleBody
from jupyter_dsserve.gateway.handlers import Handler


class Ledger(Handler):
    async def get(self) -> None:
        self.answer(await self.fleet.ledger())


class Scale(Handler):
    async def post(self, name: str, version: str) -> None:
        await self.fleet.scale(name, version, self.body(ScaleBody).replicas)
        self.answer(self.fleet.version_status(name, version), 202)


_VERSION = r"/api/deployments/([^/]+)/versions/([^/]+)"

ROUTES: list[tuple[str, type[Handler]]] = [(r"/api/ledger", Ledger), (rf"{_VERSION}/scale", Scale)]
