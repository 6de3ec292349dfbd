"""``/api``: what a deployment does when things are busy or break, and how a worker that people start joins."""

from __future__ import annotations

from jupyter_dsserve.gateway.bodies import PolicyBody
from jupyter_dsserve.gateway.handlers import Handler


class PolicyOf(Handler):
    def get(self, name: str) -> None:
        self.answer(self.fleet.deployment(name).road.policy)

    async def put(self, name: str) -> None:
        """What the body holds is set; the rest stays as it was."""
        self.answer(await self.fleet.policy(name, self.body(PolicyBody).changes()))


class Join(Handler):
    def post(self, name: str, version: str) -> None:
        """Starts nothing: it says how."""
        self.answer(self.fleet.join(name, version))


ROUTES: list[tuple[str, type[Handler]]] = [
    (r"/api/deployments/([^/]+)/policy", PolicyOf),
    (r"/api/deployments/([^/]+)/versions/([^/]+)/join", Join),
]
