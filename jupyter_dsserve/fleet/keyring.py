"""`Keyring`: making and revoking API keys, each written down and told in the history."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from jupyter_dsserve.fleet.keys import Keys, StoredKey, new_key
from jupyter_dsserve.fleet.registry import Registry
from jupyter_dsserve.protocol.records import ApiKey, CreatedKey

if TYPE_CHECKING:
    from jupyter_dsserve.fleet.fleet import Fleet


class Keyring:
    """One for a fleet. ``held`` are the keys that open something now."""

    def __init__(self, fleet: Fleet, registry: Registry) -> None:
        self._fleet = fleet
        self._registry = registry
        self.held = Keys()

    def bring_back(self, stored: list[StoredKey]) -> None:
        """Those of the registry, at the start."""
        for each in stored:
            self.held.add(each, time.monotonic())

    async def make(self, wanted: ApiKey) -> CreatedKey:
        """As `Fleet.key`."""
        created, stored = new_key(replace(wanted, created_at=time.time()))
        await self._registry.add_key(stored)
        self.held.add(stored, time.monotonic())
        self._record("key_created", created.record)
        return created

    async def revoke(self, id: str) -> ApiKey:
        """As `Fleet.revoke`."""
        gone = self.held.remove(id)
        self._record("key_revoked", gone)
        await self._registry.forget_key(id)
        return gone

    def _record(self, kind: str, key: ApiKey) -> None:
        self._fleet.events.record(time.time(), kind, reason=f"{key.name!r} (id {key.id}), scope {key.scope}")
