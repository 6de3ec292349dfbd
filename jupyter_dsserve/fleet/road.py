"""The road of a deployment's requests: its policy, the state that the policy needs, and the answer as it begins."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from jupyter_dsserve.fleet.breaker import BreakerSettings
from jupyter_dsserve.fleet.limits import TokenBucket, num_retries_left
from jupyter_dsserve.fleet.line import Line
from jupyter_dsserve.fleet.router import SmoothShares
from jupyter_dsserve.fleet.tracing import Trace
from jupyter_dsserve.protocol.errors import DeadlineExceeded, DSServeError, EngineFailure, TooManyRequests, Unavailable
from jupyter_dsserve.protocol.policy import Policy
from jupyter_dsserve.protocol.request import Chunk, FinishReason, Request, Usage

log = logging.getLogger(__name__)

Chunks = AsyncGenerator[Chunk, None]
# The chunks of several answers, each with the number of its answer.
Numbered = AsyncGenerator[tuple[int, Chunk], None]


@dataclass(frozen=True, slots=True)
class Call:
    """Who is asked: ``model`` is a deployment or a pinned ``deployment@version``. The same ``key`` gets the same
    version while weights stand; ``headers`` are what the policy's rules look at; ``trace`` is told how it goes."""

    model: str
    key: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    trace: Trace | None = None


def later(request: Request, passed_s: float) -> Request:
    """The request with what is left of its time after ``passed_s`` seconds. Raises `DeadlineExceeded` if nothing is."""
    if request.timeout_s is None:
        return request
    if passed_s >= request.timeout_s:
        raise DeadlineExceeded(f"the request's time limit of {request.timeout_s:g} s has passed: give it a longer one")
    return replace(request, timeout_s=request.timeout_s - passed_s)


class Road:
    """What requests to one deployment share. ``num_retrying`` of them are being repeated on another replica."""

    def __init__(self, policy: Policy | None = None) -> None:
        self.line = Line()
        self.shares = SmoothShares()
        self.num_retrying = 0
        self.set_policy(policy or Policy(), time.monotonic())

    def set_policy(self, policy: Policy, now: float) -> None:
        self.policy = policy
        self._bucket = TokenBucket(policy.rate, policy.burst, now) if policy.rate else None

    @property
    def breaker(self) -> BreakerSettings:
        p = self.policy
        return BreakerSettings(p.breaker_failures, p.breaker_share, p.breaker_open_s, p.breaker_successes)

    def admit(self, name: str, now: float) -> None:
        """Count a call to the deployment ``name``. Raises `TooManyRequests` if it is over the rate."""
        if self._bucket and (wait_s := self._bucket.take(now)):
            raise TooManyRequests(
                f"{name} takes {self._bucket.rate:g} calls a second and {self._bucket.burst} at once: ask again in "
                f"{wait_s:.1f} s, or raise rate and burst of its policy",
                retry_after_s=math.ceil(wait_s),
            )

    def limited(self, requests: Sequence[Request]) -> Sequence[Request]:
        """With the policy's own time limit, where it is shorter."""
        limit_s = self.policy.timeout_s
        if not limit_s:
            return requests
        return [replace(r, timeout_s=min(limit_s, r.timeout_s or math.inf)) for r in requests]

    def num_retries_left(self, num_in_flight: int) -> int:
        return num_retries_left(self.num_retrying, num_in_flight, self.policy.retry_share, self.policy.min_retries)


async def begun(answers: Sequence[Chunks]) -> Numbered:
    """The chunks of all ``answers`` as they come, once the first is there.

    Raises `Unavailable` or `EngineFailure` if that is one: nothing was told to the caller yet, so somebody else may
    answer. Leaving early ends those that still run.
    """
    if len(answers) == 1:
        first = await anext(answers[0])
        await _check(first, answers[0])
        return _one(first, answers[0])
    numbered = _interleaved(answers)
    number, first = await anext(numbered)
    await _check(first, numbered)
    return _several(number, first, numbered)


async def _check(first: Chunk, rest: AsyncGenerator[object, None]) -> None:
    if isinstance(first.error, Unavailable | EngineFailure) and not first.text:
        await rest.aclose()
        raise first.error


async def _one(first: Chunk, rest: Chunks) -> Numbered:
    async with aclosing(rest):
        yield 0, first
        async for chunk in rest:
            yield 0, chunk


async def _several(number: int, first: Chunk, rest: Numbered) -> Numbered:
    async with aclosing(rest):
        yield number, first
        async for each in rest:
            yield each


async def _interleaved(answers: Sequence[Chunks]) -> Numbered:
    # It holds one chunk an answer: what a slow reader leaves beyond that merges in the replica's inbox.
    ready: asyncio.Queue[tuple[int, Chunk]] = asyncio.Queue(len(answers))
    tasks = [asyncio.create_task(_forward(answer, number, ready)) for number, answer in enumerate(answers)]
    try:
        num_open = len(answers)
        while num_open:
            number, chunk = await ready.get()
            num_open -= chunk.finish_reason is not None
            yield number, chunk
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _forward(answer: Chunks, number: int, ready: asyncio.Queue[tuple[int, Chunk]]) -> None:
    try:
        async with aclosing(answer):
            async for chunk in answer:
                await ready.put((number, chunk))
    except Exception as fault:  # whoever waits for this answer must hear of its end, whatever that was
        error = fault if isinstance(fault, DSServeError) else EngineFailure(f"{type(fault).__name__}: {fault}")
        if error is not fault:
            log.exception("answer %d of several failed", number)
        await ready.put((number, Chunk("", finish_reason=FinishReason.ERROR, error=error)))


async def configured(text: str, requests: Sequence[Request]) -> Numbered:
    """The policy's own answer, for each of the requests."""
    for number, request in enumerate(requests):
        yield number, Chunk(request.id, text, finish_reason=FinishReason.STOP, usage=Usage(0, 0))
