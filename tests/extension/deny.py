"""An authorizer that lets nobody near the resource ``dsserve``."""

from __future__ import annotations

from typing import Any

from jupyter_server.auth import Authorizer


class DenyDSServe(Authorizer):
    def is_authorized(self, handler: Any, user: Any, action: str, resource: str) -> bool:
        return resource != "dsserve"


class ReadOnly(Authorizer):
    def is_authorized(self, handler: Any, user: Any, action: str, resource: str) -> bool:
        return resource != "dsserve" or action == "read"
