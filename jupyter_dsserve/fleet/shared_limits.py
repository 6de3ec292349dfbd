"""A key's rate and tokens a minute, shared by all gateways that hold the key, in Redis.

The library `limits` has a window in Redis too, with an entry for each token and without a way to give one back; so the
bucket and the window of `limits.py` are a script here (`shared_limits.lua`), which Redis runs as a whole, by its own
clock. Each gateway holds to the limits by itself besides: when Redis does not answer, that is what is left of them.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from jupyter_dsserve.data_dir import told_or_read
from jupyter_dsserve.fleet.keys import MINUTE_S, Reservation
from jupyter_dsserve.protocol.errors import Conflict

log = logging.getLogger(__name__)

_SCRIPT = Path(__file__).with_suffix(".lua")
_ANSWER_S = 0.25  # it takes a thousandth of that
_AGAIN_S = 5.0  # without an answer, until it is asked again
_MAX_CONNECTIONS = 16  # a burst waits in line for them: opening one for each call would take longer
_SCHEMES = ("redis://", "rediss://", "unix://")


class SharedLimits:
    """``url`` is ``redis://…``, ``rediss://…`` (TLS), ``unix://…``, or ``@FILE`` with one of them. ``say`` is told the
    kind of an event and its reason when Redis stops answering, and when it answers again.

    Raises `Conflict` for a URL that is none, and without the library ``redis``. No message ever holds the URL, for it
    may hold a password.
    """

    def __init__(self, url: str, say: Callable[[str, str], object]) -> None:
        try:
            from redis.asyncio import BlockingConnectionPool, Redis
            from redis.asyncio.retry import Retry
            from redis.backoff import NoBackoff
            from redis.exceptions import RedisError
        except ImportError:
            raise Conflict("limits over Redis need its client: pip install 'jupyter_dsserve[redis]'") from None
        url = told_or_read(url)
        try:
            if not url.startswith(_SCHEMES):
                raise ValueError
            pool: Any = BlockingConnectionPool.from_url(
                url,
                max_connections=_MAX_CONNECTIONS,
                timeout=None,
                socket_timeout=_ANSWER_S,
                socket_connect_timeout=_ANSWER_S,
                retry=Retry(NoBackoff(), 0),  # `_answer` does
                decode_responses=True,
            )
        except (ValueError, TypeError):
            raise Conflict(
                "the URL of limits is none that can be used: give redis://HOST:6379/0 (or rediss://, unix://), or "
                "@FILE with it if a password is in it"
            ) from None
        self._redis: Any = Redis(connection_pool=pool)
        self._script: Any = self._redis.register_script(_SCRIPT.read_text())
        self._faults = (RedisError, OSError)
        self._line = asyncio.Semaphore(_MAX_CONNECTIONS)
        self._say = say
        self._is_lost = False
        self._again_at = 0.0
        self._num_changes = 0
        self._settling: set[asyncio.Task[None]] = set()

    async def take(self, reservation: Reservation) -> None:
        """Count a call that its own gateway has admitted, among those of the others.

        Raises `TooManyRequests` if that is one too many; the gateway's own place is free again then. When Redis does
        not answer, the call may go on.
        """
        grant = reservation.grant
        if not (grant.key.rate or grant.key.tokens_per_min):
            return
        # A secret's digest opens nothing, but nobody else need know it.
        name = hashlib.sha256(grant.name.encode()).hexdigest()[:32]
        entry = uuid.uuid4().hex
        keys = [f"dsserve:limits:{{{name}}}:{part}" for part in ("state", "entries", "nums", entry)]
        if grant.key.tokens_per_min:  # also for who leaves while it is asked
            reservation.settled = partial(self._settle, keys, entry)
        num_tokens = reservation.num_tokens
        limits = (grant.key.rate, grant.burst, grant.key.tokens_per_min, MINUTE_S)
        said = await self._ask(keys, ["take", entry, *limits, num_tokens])
        if said and said[0]:
            reservation.settled = lambda _used: None  # nothing was counted
            reservation.give_back()
            raise grant.refusal(said[0], float(said[1]), num_tokens)

    async def close(self) -> None:
        """Once the last calls are settled."""
        if self._settling:
            await asyncio.wait(self._settling, timeout=2 * _ANSWER_S)
        await self._redis.aclose()

    def _settle(self, keys: list[str], entry: str, used: int) -> None:
        """In a task of its own: whoever has their answer does not wait for it."""

        async def settle() -> None:
            await self._ask(keys, ["settle", entry, used])

        task = asyncio.get_running_loop().create_task(settle())
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)

    async def _ask(self, keys: list[str], arguments: list[Any]) -> list[str] | None:
        """The script's answer; None if there is none."""
        if self._is_left_alone():
            return None
        async with self._line:
            if self._is_left_alone():  # since this one waits
                return None
            self._again_at = time.monotonic() + _AGAIN_S  # if it is lost: one asks, the others do not wait for it
            began = self._num_changes
            said, fault = await self._answer(keys, arguments)
        if began != self._num_changes:
            pass  # that tells how it was before
        elif fault is not None:
            self._tell(True, f"Redis does not answer ({type(fault).__name__}): until it does, each gateway by itself")
        else:
            self._tell(False, "Redis answers again: all gateways together")
        return said

    async def _answer(self, keys: list[str], arguments: list[Any]) -> tuple[list[str] | None, Exception | None]:
        """Asked twice before it counts as none: a server closes a connection that is idle, and while the event loop
        stands still an answer comes too late. The script counts an entry once however often it is asked."""
        fault: Exception | None = None
        for _ in range(2):
            try:
                return await self._script(keys=keys, args=arguments), None
            except self._faults as caught:
                fault = caught
        return None, fault

    def _is_left_alone(self) -> bool:
        return self._is_lost and time.monotonic() < self._again_at

    def _tell(self, is_lost: bool, how: str) -> None:
        if is_lost is self._is_lost:
            return
        self._is_lost = is_lost
        self._num_changes += 1
        reason = f"{how} holds keys to their limits" if is_lost else f"{how} hold keys to their limits"
        log.log(logging.WARNING if is_lost else logging.INFO, "%s", reason)
        self._say("limits_local" if is_lost else "limits_shared", reason)
