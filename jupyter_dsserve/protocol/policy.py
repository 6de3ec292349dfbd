"""What a deployment does when things are busy or break: `Policy`, one immutable value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Rule:
    """Calls whose ``header`` has this ``value`` go to ``version`` while it takes requests, whatever the weights say."""

    header: str
    value: str
    version: str


@dataclass(frozen=True, slots=True)
class Policy:
    """The limits of a deployment; 0 (or an empty text) switches one off.

    ``rate`` calls a second are taken, and ``burst`` at once (0: as many as in one second); more get 429.
    ``max_in_flight`` requests are on a replica at once; the others wait in line, at most ``max_queue`` of them (then
    the last in line gets 429), for at most ``acquire_timeout_s`` (503) and ``queue_timeout_s`` (504).
    ``first_token_timeout_s`` and ``timeout_s`` end a request with 504 when its first token, or its end, has not come.
    ``fallback`` is the version that answers if the one that should cannot, ``fallback_answer`` the text if that cannot
    either. ``rules`` send calls with a header to a version.
    A request whose replica is lost before its first token goes to another one, as long as such requests are fewer than
    ``retry_share`` of what is in flight, or than ``min_retries``.
    A replica's breaker opens after ``breaker_failures`` in a row, or when ``breaker_share`` of its last 100 answers
    were failures, for ``breaker_open_s``; then ``breaker_successes`` requests in a row close it.
    """

    rate: float = 0.0
    burst: int = 0
    max_in_flight: int = 0
    max_queue: int = 1000
    acquire_timeout_s: float = 0.0
    queue_timeout_s: float = 0.0
    first_token_timeout_s: float = 0.0
    timeout_s: float = 0.0
    fallback: str = ""
    fallback_answer: str = ""
    rules: tuple[Rule, ...] = ()
    retry_share: float = 0.2
    min_retries: int = 3
    breaker_failures: int = 5
    breaker_share: float = 0.5
    breaker_open_s: float = 30.0
    breaker_successes: int = 2

    def changed(self, changes: Mapping[str, Any]) -> Policy:
        """This policy with other values in some fields; rules may be mappings."""
        given = dict(changes)
        if "rules" in given:
            given["rules"] = tuple(rule if isinstance(rule, Rule) else Rule(**rule) for rule in given["rules"])
        return replace(self, **given)

    @staticmethod
    def from_json(stored: Mapping[str, Any]) -> Policy:
        """What `to_json` gave; of one that a newer gateway wrote, the fields that are known here."""
        known = {field.name for field in fields(Policy)}
        return Policy().changed({name: value for name, value in stored.items() if name in known})

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
