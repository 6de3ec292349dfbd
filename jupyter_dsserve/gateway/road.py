"""``/api``: what a deployment does when things are busy or break, and how a worker that people start joins."""

from __future__ import annotations

from jupyter_dsserve.gateway.bodies import PolicyBody
from jupyter_dsserve.gateway.describe import CHANGE_ERRORS, describes
from jupyter_dsserve.gateway.handlers import Handler
from jupyter_dsserve.protocol.errors import NotFound
from jupyter_dsserve.protocol.policy import Policy
from jupyter_dsserve.protocol.records import Joining


class PolicyOf(Handler):
    @describes("What a deployment does when things are busy or break.", {200: Policy}, errors=(NotFound,))
    def get(self, name: str) -> None:
        self.answer(self.fleet.deployment(name).road.policy)

    @describes(
        "Change its policy.",
        {200: Policy},
        body=PolicyBody,
        example={"rate": 10.0, "burst": 50},
        errors=CHANGE_ERRORS,
    )
    async def put(self, name: str) -> None:
        """What the body holds is set; the rest stays as it was."""
        self.answer(await self.fleet.policy(name, self.body(PolicyBody).changes()))


class Join(Handler):
    @describes("How a worker that you start joins a version.", {200: Joining}, errors=CHANGE_ERRORS)
    def post(self, name: str, version: str) -> None:
        """Starts nothing: it says how."""
        self.answer(self.fleet.join(name, version))


ROUTES: list[tuple[str, type[Handler]]] = [
    (r"/api/deployments/([^/]+)/policy", PolicyOf),
    (r"/api/deployments/([^/]+)/versions/([^/]+)/join", Join),
]
