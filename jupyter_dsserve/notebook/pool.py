"""A client's connections: how many there may be, how long they are kept, and what it says when all are taken."""

from __future__ import annotations

from dataclasses import dataclass

import httpx

from jupyter_dsserve.protocol.errors import Unavailable

_CONNECT_S = 5.0
_MAX_IDLE = 100


@dataclass(frozen=True, slots=True)
class Pool:
    """At most ``max_connections`` at once (None: as many as there are requests, for the gateway batches what comes at
    once); one that nobody uses is closed after ``idle_s``; a request waits for a free one for ``acquire_timeout_s``
    (None: as long as it takes)."""

    max_connections: int | None = None
    idle_s: float = 5.0
    acquire_timeout_s: float | None = None

    @property
    def limits(self) -> httpx.Limits:
        return httpx.Limits(
            max_connections=self.max_connections, max_keepalive_connections=_MAX_IDLE, keepalive_expiry=self.idle_s
        )

    def timeout(self, silent_s: float) -> httpx.Timeout:
        """``silent_s``: how long an answer may be silent."""
        return httpx.Timeout(silent_s, connect=_CONNECT_S, pool=self.acquire_timeout_s)

    def exhausted(self) -> Unavailable:
        return Unavailable(
            f"no connection of this client came free within acquire_timeout_s of {self.acquire_timeout_s:g} s: all "
            f"{self.max_connections} of its pool are in use; make it with a larger max_connections, or ask less at once"
        )
