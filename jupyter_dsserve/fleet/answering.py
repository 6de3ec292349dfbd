"""Who answers a call: the version that the route gives, the next one, or who stands in."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from jupyter_dsserve.fleet.deployment import Deployment
from jupyter_dsserve.fleet.road import Call, Numbered, begun, configured, later
from jupyter_dsserve.fleet.tracing import Trace
from jupyter_dsserve.fleet.version import Version
from jupyter_dsserve.protocol.errors import DSServeError, EngineFailure, InvalidRequest, ReplicaLost, Unavailable
from jupyter_dsserve.protocol.request import Features, Request, Texts


@dataclass(frozen=True, slots=True)
class Answering:
    """An answer that has begun. ``version`` gives it; None is the policy's own text. ``degraded`` says who stands in
    for the version that should answer, or is empty."""

    version: Version | None
    degraded: str
    chunks: Numbered


async def answered(
    deployment: Deployment, pinned: str, call: Call, requests: Sequence[Request], check: Callable[[Version], None]
) -> Answering:
    """The answers to ``requests``. ``pinned`` names the only version that may give them, or is empty. As
    `Fleet.answer`."""
    road = deployment.road
    road.admit(deployment.name, time.monotonic())
    requests = road.limited(requests)
    began = time.monotonic()
    tried: set[str] = set()
    fault: DSServeError | None = None
    while version := deployment.version(pinned) if pinned else deployment.pick(call, tried):
        check(version)
        try:
            return Answering(version, "", await begun([version.generate(r, call.trace) for r in requests]))
        except (Unavailable, EngineFailure) as failed:
            fault = failed
        tried.add(version.name)
        requests = [later(request, time.monotonic() - began) for request in requests]
        began = time.monotonic()
        is_gone = isinstance(fault, Unavailable) and not version.takes
        if (
            pinned
            or not is_gone
            or (isinstance(fault, ReplicaLost) and not road.num_retries_left(deployment.in_flight))
        ):
            break
    if not pinned and (stand_in := await _stand_in(deployment, requests, check, tried, call.trace)):
        return stand_in
    raise fault or deployment.refusal(time.monotonic())


async def _stand_in(
    deployment: Deployment,
    requests: Sequence[Request],
    check: Callable[[Version], None],
    tried: Collection[str],
    trace: Trace | None,
) -> Answering | None:
    """Who answers when those that should cannot, as the policy says."""
    policy = deployment.road.policy
    version = deployment.versions.get(policy.fallback)
    if version and version.takes and version.name not in tried:
        with contextlib.suppress(Unavailable, EngineFailure, InvalidRequest):  # the first fault is what is told
            check(version)
            chunks = await begun([version.generate(r, trace) for r in requests])
            return Answering(version, f"version {version.name}", chunks)
    if policy.fallback_answer and not isinstance(requests[0].prompt, Texts | Features):
        return Answering(None, "answer", configured(policy.fallback_answer, requests))
    return None
