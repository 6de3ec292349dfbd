"""``/api/keys``: API keys, which are told once."""

from __future__ import annotations

import time

from jupyter_dsserve.gateway.answers import MadeKey
from jupyter_dsserve.gateway.bodies import KeyBody
from jupyter_dsserve.gateway.describe import describes
from jupyter_dsserve.gateway.handlers import Handler
from jupyter_dsserve.protocol.errors import NotFound, Unavailable
from jupyter_dsserve.protocol.records import ApiKey


class Keys(Handler):
    @describes("All keys but the admin key, oldest first.", {200: list[ApiKey]})
    def get(self) -> None:
        self.answer(self.fleet.keys())

    @describes(
        "Make a key: the answer tells it, and nothing ever again.",
        {201: MadeKey},
        body=KeyBody,
        example={"name": "app", "rate": 10.0},
        errors=(Unavailable,),
    )
    async def post(self) -> None:
        created = await self.fleet.key(self.body(KeyBody).key(time.time()))
        self.set_header("Cache-Control", "no-store")
        made: MadeKey = {"id": created.record.id, "key": created.key, "record": created.record}
        self.answer(made, 201)


class OneKey(Handler):
    @describes("Refuse a key from now on.", {200: ApiKey}, errors=(NotFound, Unavailable))
    async def delete(self, id: str) -> None:
        self.answer(await self.fleet.revoke(id))


ROUTES: list[tuple[str, type[Handler]]] = [(r"/api/keys", Keys), (r"/api/keys/([^/]+)", OneKey)]
