"""API keys: who may ask what, and how much of it. Time is an argument.

A key is 256 random bits. What is kept of it is its SHA-256: nobody can try so many keys, so it needs neither a salt
nor a slow hash, which are there for passwords that people choose; and every request would pay for a slow one.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import secrets
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from jupyter_dsserve.fleet.limits import MovingWindow, Taken, TokenBucket
from jupyter_dsserve.fleet.road import Numbered
from jupyter_dsserve.fleet.router import estimated_tokens
from jupyter_dsserve.protocol.errors import InvalidRequest, NotFound, TooManyRequests, Unauthorized
from jupyter_dsserve.protocol.records import ApiKey, CreatedKey
from jupyter_dsserve.protocol.request import Request

MINUTE_S = 60.0


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A key as it is written down. The key itself is nowhere."""

    digest: str
    key: ApiKey

    @staticmethod
    def read(id: str, digest: str, grants: Mapping[str, Any]) -> StoredKey:
        """Of a row; what a newer gateway wrote besides is not known here."""
        known = {field.name for field in fields(ApiKey)}
        given = {name: value for name, value in grants.items() if name in known}
        given["deployments"] = tuple(given["deployments"]) if given.get("deployments") is not None else None
        return StoredKey(digest, ApiKey(**(given | {"id": id})))

    def grants(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self.key).items() if name != "id"}


def new_key(wanted: ApiKey) -> tuple[CreatedKey, StoredKey]:
    """A key made up, to be told once, and what is kept of it. ``wanted`` needs no id yet."""
    secret = f"dsk_{secrets.token_urlsafe(32)}"
    record = replace(wanted, id=secrets.token_hex(6))
    return CreatedKey(record, secret), StoredKey(digest_of(secret), record)


def digest_of(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


class Grant:
    """A key in use: what it may ask, and what is left of its limits. They begin anew with the gateway."""

    def __init__(self, key: ApiKey, now: float, name: str = "") -> None:
        """``now`` is monotonic seconds, here as in `admit`. ``name`` is what other gateways know the key by too."""
        self.key = key
        self.name = name or key.id
        self.in_flight = 0
        self._calls = TokenBucket(key.rate, key.burst, now) if key.rate else None
        self._tokens = MovingWindow(key.tokens_per_min, MINUTE_S) if key.tokens_per_min else None

    def may_ask(self, deployment: str) -> bool:
        return self.key.deployments is None or deployment in self.key.deployments

    def check(self, model: str) -> None:
        """Raises `NotFound` for a model outside the key's list, in the same words whether it exists or not."""
        if not self.may_ask(model.partition("@")[0]):
            asked = ", ".join(self.key.deployments or ())
            raise NotFound(f"model {model!r} is not one that this key may ask: it may ask {asked}", param="model")

    def missing(self, model: str) -> NotFound:
        """Of a model on the key's list that does not exist (any more, or yet)."""
        asked = ", ".join(self.key.deployments or ())
        return NotFound(f"model {model!r} is not a deployment here now: this key may ask {asked}", param="model")

    def limited(self, requests: Sequence[Request]) -> Sequence[Request]:
        """With the key's own priority, where theirs would go before it."""
        if all(r.priority >= self.key.priority for r in requests):
            return requests
        return [replace(r, priority=max(r.priority, self.key.priority)) for r in requests]

    def admit(self, requests: Sequence[Request], now: float) -> Reservation:
        """Let a call of these requests begin; to be settled when it has ended, however it ends.

        Raises `TooManyRequests` for what is over a limit now, `InvalidRequest` for what would always be.
        """
        key = self.key
        if key.concurrency and self.in_flight >= key.concurrency:
            raise TooManyRequests(
                f"{self.in_flight} calls with this key run already, which is its concurrency: ask again when one of "
                "them has ended"
            )
        num_tokens = sum(map(sum, map(estimated_tokens, requests)))
        if self._tokens and num_tokens > key.tokens_per_min:
            raise InvalidRequest(
                f"the call may take {num_tokens} tokens, and this key has {key.tokens_per_min} a minute: give it a "
                "lower max_tokens, or a shorter prompt",
                param="max_tokens",
            )
        if self._tokens and (wait_s := self._tokens.wait_s(now, num_tokens)):
            raise self.refusal("tokens", wait_s, num_tokens)
        if self._calls and (wait_s := self._calls.take(now)):
            raise self.refusal("calls", wait_s, num_tokens)
        self.in_flight += 1
        taken = self._tokens.take(now, num_tokens) if self._tokens else None
        return Reservation(self, requests, taken, num_tokens)

    @property
    def burst(self) -> int:
        """Calls at once; 0 without a rate."""
        return self._calls.burst if self._calls else 0

    def refusal(self, of: str, wait_s: float, num_tokens: int) -> TooManyRequests:
        """Of a call that may take ``num_tokens``, for too many ``tokens`` or ``calls``."""
        if of == "tokens":
            said = f"this key has {self.key.tokens_per_min} tokens a minute, and the call may take {num_tokens}"
            remedy = f"ask again in {wait_s:.1f} s, or with a lower max_tokens"
        else:
            said = f"this key takes {self.key.rate:g} calls a second and {self.burst} at once"
            remedy = f"ask again in {wait_s:.1f} s"
        return TooManyRequests(f"{said}: {remedy}", retry_after_s=math.ceil(wait_s))

    def _give_back(self) -> None:
        if self._calls:
            self._calls.give_back()

    def _end(self, taken: Taken | None, used: int) -> None:
        self.in_flight -= 1
        if self._tokens and taken:
            self._tokens.settle(taken, used)


class Reservation:
    """A call's place among those of its key, and the tokens it may take. `settle` it, however the call ends: then
    ``settled`` is called with the tokens it took."""

    def __init__(self, grant: Grant, requests: Sequence[Request], taken: Taken | None, num_tokens: int) -> None:
        self.grant, self.num_tokens = grant, num_tokens
        self.settled: Callable[[int], object] = lambda _used: None
        self._requests, self._taken = requests, taken
        self._is_settled = self._has_begun = False
        self._came: dict[int, int] = defaultdict(int)  # tokens by answer
        self._said: dict[int, int] = {}  # those of its usage, by answer

    def begin(self) -> None:
        """The call goes to the fleet: from here on its prompt counts, though its caller leave before any answer."""
        self._has_begun = True

    def refused(self) -> None:
        """The fleet does not answer: nothing counts."""
        self._has_begun = False

    def give_back(self) -> None:
        """It was refused elsewhere, and does not count as a call either. To be settled all the same."""
        self.grant._give_back()

    def counted(self, numbered: Numbered) -> Numbered:
        """The same chunks, whose tokens are counted if the key has a limit of them."""
        return self._counted(numbered) if self.grant.key.tokens_per_min else numbered

    async def _counted(self, numbered: Numbered) -> Numbered:
        async with aclosing(numbered):
            async for number, chunk in numbered:
                self._came[number] += chunk.num_tokens
                if chunk.usage:
                    self._said[number] = chunk.usage.prompt_tokens + chunk.usage.completion_tokens
                yield number, chunk

    def settle(self) -> None:
        """What was reserved and not used is free again; what was used beyond is missing until the minute has passed.

        An answer that did not say its usage (its caller left) counts with what came of it, and its prompt as estimated.
        A second time does nothing.
        """
        if self._is_settled:
            return
        self._is_settled = True
        used = sum(self._said.values())
        if self._has_begun:
            unsaid = [number for number in range(len(self._requests)) if number not in self._said]
            used += sum(estimated_tokens(self._requests[n])[0] + self._came[n] for n in unsaid)
        self.grant._end(self._taken, used)
        self.settled(used)


class Keys:
    """All keys of a gateway but for the admin key. Holding one is checked on every request."""

    def __init__(self) -> None:
        self._stored: dict[str, StoredKey] = {}  # by digest
        self._grants: dict[str, Grant] = {}  # by digest

    def add(self, stored: StoredKey, now: float) -> None:
        """``now`` is monotonic seconds."""
        self._stored[stored.digest] = stored
        self._grants[stored.digest] = Grant(stored.key, now, stored.digest)

    def remove(self, id: str) -> ApiKey:
        """At once: its next request is refused. Raises `NotFound`."""
        found = next((stored for stored in self._stored.values() if stored.key.id == id), None)
        if found is None:
            known = ", ".join(stored.key.id for stored in self._stored.values()) or "none"
            raise NotFound(f"there is no key with the id {id!r}: there are {known}", param="id")
        del self._stored[found.digest], self._grants[found.digest]
        return found.key

    def all(self) -> list[ApiKey]:
        return sorted((stored.key for stored in self._stored.values()), key=lambda key: (key.created_at, key.id))

    def grants(self) -> list[Grant]:
        return list(self._grants.values())

    def grant(self, secret: str, at: float) -> Grant:
        """What holding ``secret`` allows. ``at`` is seconds since the epoch. Raises `Unauthorized`.

        It is found by its digest, whose bytes nobody can choose: how long that takes tells nothing of any key.
        """
        digest = digest_of(secret)
        stored = self._stored.get(digest)
        if stored is None or not hmac.compare_digest(stored.digest, digest):
            raise Unauthorized("the key is not valid here: it was mistyped, revoked, or is another gateway's")
        if stored.key.expires_at is not None and at >= stored.key.expires_at:
            raise Unauthorized(
                f"the key {stored.key.name!r} (id {stored.key.id}) has expired {_ago(at - stored.key.expires_at)} ago: "
                "ask for a new one"
            )
        return self._grants[digest]


def _ago(seconds: float) -> str:
    for unit, size in (("days", 86_400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"
