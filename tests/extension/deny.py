"""Authorizers that let nobody, or only readers, near ``dsserve``; and an identity provider as slow as a hub."""

from __future__ import annotations

import asyncio
from typing import Any

from jupyter_server.auth import Authorizer
from jupyter_server.auth.identity import PasswordIdentityProvider


class DenyDSServe(Authorizer):
    def is_authorized(self, handler: Any, user: Any, action: str, resource: str) -> bool:
        return resource != "dsserve"


class ReadOnly(Authorizer):
    def is_authorized(self, handler: Any, user: Any, action: str, resource: str) -> bool:
        return resource != "dsserve" or action == "read"


class SlowIdentity(PasswordIdentityProvider):
    async def get_user(self, handler: Any) -> Any:
        if handler.request.path.endswith("/completions"):
            await asyncio.sleep(1)
        found: Any = super().get_user(handler)
        return await found if asyncio.iscoroutine(found) else found
