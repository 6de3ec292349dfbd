"""Verbs of API keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from pydantic import TypeAdapter

from jupyter_dsserve.notebook.keys import KeyList, NewKey
from jupyter_dsserve.notebook.verbs.talk import Talk, Talking, read
from jupyter_dsserve.protocol.records import ApiKey

_KEYS = TypeAdapter(list[ApiKey])
_NEW_KEY = TypeAdapter(NewKey)


class Keys(Talking):
    """Who may ask."""

    def key(
        self,
        name: str,
        *,
        scope: str = "infer",
        deployments: Sequence[str] | None = None,
        rate: float | None = None,
        burst: int | None = None,
        tokens_per_min: int | None = None,
        concurrency: int | None = None,
        priority: int | None = None,
        label: str | None = None,
        ttl_s: float | None = None,
        expires_at: float | None = None,
    ) -> Talk[NewKey]:
        """Make an API key for an app or a colleague; its ``key`` is told this once, and never shown by itself.

        A key of the scope ``infer`` asks models and does nothing else, one of ``metrics`` reads ``/metrics`` and does
        nothing else, ``admin`` does everything. ``deployments`` are those it may ask, all unless told. ``rate`` calls a
        second, ``burst`` of them at once, ``tokens_per_min`` of prompts and answers, and ``concurrency`` calls that run
        are its limits; 0 is none. Its requests never go before ``priority`` (0 to 100, lower goes first). A policy's
        rule for the header ``X-DSServe-Key-Label`` sends what comes with a key of that ``label`` to a version. It ends
        after ``ttl_s`` seconds, or at ``expires_at`` (seconds since the epoch).
        """
        given: dict[str, Any] = {
            "deployments": None if deployments is None else list(deployments),
            "rate": rate,
            "burst": burst,
            "tokens_per_min": tokens_per_min,
            "concurrency": concurrency,
            "priority": priority,
            "label": label,
            "ttl_s": ttl_s,
            "expires_at": expires_at,
        }
        body = {key: value for key, value in given.items() if value is not None}
        response = yield from self.send("POST", "/api/keys", {"name": name, "scope": scope, **body})
        return read(_NEW_KEY, response, self.url)

    def keys(self) -> Talk[KeyList]:
        """The keys there are, without the keys themselves; the admin key is none of them."""
        return KeyList((yield from self._look(_KEYS, "/api/keys")))

    def revoke(self, id: str) -> Talk[KeyList]:
        """Refuse a key from now on; what it is being answered already goes on. Returns those that are left."""
        yield from self.send("DELETE", f"/api/keys/{quote(id, safe='')}")
        return (yield from self.keys())
