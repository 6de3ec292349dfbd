"""``/api/keys``: API keys, which are told once."""

from __future__ import annotations

import time

from jupyter_dsserve.gateway.bodies import KeyBody
from jupyter_dsserve.gateway.handlers import Handler


class Keys(Handler):
    def get(self) -> None:
        self.answer(self.fleet.keys())

    async def post(self) -> None:
        created = await self.fleet.key(self.body(KeyBody).key(time.time()))
        self.set_header("Cache-Control", "no-store")
        self.answer({"id": created.record.id, "key": created.key, "record": created.record}, 201)


class OneKey(Handler):
    async def delete(self, id: str) -> None:
        self.answer(await self.fleet.revoke(id))


ROUTES: list[tuple[str, type[Handler]]] = [(r"/api/keys", Keys), (r"/api/keys/([^/]+)", OneKey)]
