"""A rollout's check in the kernel: a thread that fetches answers, has them scored, and sends the scores back."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import quote

import httpx
from pydantic import TypeAdapter

from jupyter_dsserve.protocol.records import GatewayAddress

log = logging.getLogger(__name__)

# A prompt and its answer to a score from 0 to 1.
Check = Callable[[str, str], float]

_WAIT_S = 20.0
_RETRY_S = 1.0
_OVER = (401, 403, 404, 409)  # the rollout is no more, or its key


@dataclass(frozen=True, slots=True)
class _Sample:
    id: int
    version: str
    prompt: str
    answer: str


@dataclass(frozen=True, slots=True)
class _Samples:
    samples: list[_Sample]


_SAMPLES = TypeAdapter(_Samples)


class ScoreOutOfRange(ValueError):
    """A check gave something else than a number from 0 to 1."""


def start_checking(
    address: GatewayAddress, deployment: str, started_at: float, check: Check, *, trust_env: bool
) -> threading.Thread:
    """The thread ends with the rollout that was ``started_at``, or with the kernel. A check that raises is told to the
    gateway, by its kind alone, where it holds the rollout up, and is asked again with the next answers. ``trust_env``:
    go through the environment's proxies."""
    thread = threading.Thread(
        target=_follow,
        args=(address, deployment, started_at, check, trust_env),
        name=f"dsserve-check {deployment}",
        daemon=True,
    )
    thread.start()
    return thread


def _follow(address: GatewayAddress, deployment: str, started_at: float, check: Check, trust_env: bool) -> None:
    path = f"{address.url}/api/deployments/{quote(deployment, safe='')}/rollout"
    headers = {"Authorization": f"Bearer {address.key}"}
    with httpx.Client(headers=headers, timeout=_WAIT_S + 10, trust_env=trust_env) as http:
        while True:
            try:
                answer = http.get(f"{path}/samples", params={"wait_s": _WAIT_S, "started_at": started_at})
                if answer.status_code in _OVER:
                    return
                answer.raise_for_status()
                samples = _SAMPLES.validate_json(answer.content).samples
                if samples:
                    http.post(f"{path}/scores", json={"started_at": started_at, **_scored(check, samples)})
            except (httpx.HTTPError, ValueError) as fault:  # it may be starting again
                log.info("the rollout of %s gives no answers to check now: %s", deployment, fault)
                time.sleep(_RETRY_S)


def _scored(check: Check, samples: list[_Sample]) -> dict[str, object]:
    scores: list[dict[str, float]] = []
    try:
        for sample in samples:
            score = float(check(sample.prompt, sample.answer))
            if not 0 <= score <= 1:
                raise ScoreOutOfRange(f"it gave {score}, where a score is 0 to 1")
            scores.append({"id": sample.id, "score": score})
    except Exception as fault:  # whatever a user's code raises
        # Its words may hold an answer, and the gateway writes the reason down: they stay in the kernel.
        sys.stderr.write(f"the check failed: {type(fault).__name__}: {fault}\n")
        return {"scores": scores, "failure": type(fault).__name__[:500]}
    return {"scores": scores}
