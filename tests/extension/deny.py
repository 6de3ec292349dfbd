"""Authorizers that let nobody, or only readers, near ``dsserve``; and an identity provider that waits, as for a hub."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from jupyter_server.auth import Authorizer
from jupyter_server.auth.identity import PasswordIdentityProvider

from tests.support import until

# In the server's working directory: from then on people who complete are known.
KNOWN = "known"


class DenyDSServe(Authorizer):
    def is_authorized(self, handler: Any, user: Any, action: str, resource: str) -> bool:
        return resource != "dsserve"


class ReadOnly(Authorizer):
    def is_authorized(self, handler: Any, user: Any, action: str, resource: str) -> bool:
        return resource != "dsserve" or action == "read"


class SlowIdentity(PasswordIdentityProvider):
    async def get_user(self, handler: Any) -> Any:
        if handler.request.path.endswith("/completions"):
            await until(Path(KNOWN).exists, timeout_s=60)
            await asyncio.sleep(0.05)  # in which it hears of callers who had left before
        found: Any = super().get_user(handler)
        return await found if asyncio.iscoroutine(found) else found
