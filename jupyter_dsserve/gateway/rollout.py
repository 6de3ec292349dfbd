"""``/api/deployments/{name}/rollout``: a gray release, what is done with it by hand, and a notebook's check."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Literal

from pydantic import Field

from jupyter_dsserve.fleet.fleet import Fleet
from jupyter_dsserve.gateway.answers import Samples as SamplesAnswer
from jupyter_dsserve.gateway.bodies import RolloutBody, ScoresBody
from jupyter_dsserve.gateway.describe import CHANGE_ERRORS, describes
from jupyter_dsserve.gateway.handlers import Handler, until_caller_leaves
from jupyter_dsserve.protocol.errors import Conflict, InvalidRequest, NotFound
from jupyter_dsserve.protocol.records import DeploymentStatus, RolloutStatus

_MAX_WAIT_S = 60.0
_WaitS = Annotated[float, Field(ge=0, le=_MAX_WAIT_S, description="Seconds; 20 unless told.")]
_StartedAt = Annotated[float, Field(description="Of which rollout; a 409 once another one runs.")]


class RolloutOf(Handler):
    @describes("The rollout that runs, or ran last.", {200: RolloutStatus}, errors=(NotFound,))
    def get(self, name: str) -> None:
        self.answer(self.fleet.rollout_status(name))

    @describes(
        "Begin a gray release.",
        {202: RolloutStatus},
        body=RolloutBody,
        example={"candidate": "v2", "steps": [5.0, 50.0, 100.0], "interval_s": 30.0},
        errors=CHANGE_ERRORS,
    )
    async def post(self, name: str) -> None:
        self.answer(await self.fleet.rollout(name, self.body(RolloutBody).spec()), 202)


class Rollback(Handler):
    """Of the rollout that runs; without one, of the last change of the route: 202 if a version must be loaded first."""

    @describes("Go back.", {200: DeploymentStatus, 202: DeploymentStatus}, errors=CHANGE_ERRORS)
    async def post(self, name: str) -> None:
        await self.fleet.rollback(name)
        status = self.fleet.deployment_status(name)
        self.answer(status, 202 if status.activating else 200)


class ByHand(Handler):
    @describes(
        "What people do to a rollout that runs.",
        {200: RolloutStatus},
        path={"verb": Literal["pause", "resume", "promote", "rollback"]},
        errors=CHANGE_ERRORS,
    )
    async def post(self, name: str, verb: str) -> None:
        if verb not in _VERBS:
            raise NotFound(f"a rollout has no {verb!r}: there are {', '.join(_VERBS)}")
        self.answer(await _VERBS[verb](self.fleet, name))


class Samples(Handler):
    """Waits up to ``wait_s`` seconds for answers to score, of the rollout that was ``started_at`` if that is given."""

    @describes(
        "Answers for a check to score.",
        {200: SamplesAnswer},
        query={"wait_s": _WaitS, "started_at": _StartedAt},
        errors=(NotFound, Conflict),
    )
    @until_caller_leaves
    async def get(self, name: str) -> None:
        wait_s, started_at = self._float("wait_s", "20"), self._float("started_at", "")
        if wait_s is None or not 0 <= wait_s <= _MAX_WAIT_S:
            text = self.get_query_argument("wait_s", "")
            raise InvalidRequest(f"wait_s is {text!r}: give seconds from 0 to {_MAX_WAIT_S:g}", param="wait_s")
        self.answer({"samples": await self.fleet.samples(name, wait_s, started_at)})

    def _float(self, name: str, default: str) -> float | None:
        """Of the query; None if it is empty, and NaN for what is no number."""
        text = self.get_query_argument(name, default)
        try:
            return float(text) if text else None
        except ValueError:
            return math.nan


class Scores(Handler):
    @describes(
        "What a check made of answers.",
        {200: RolloutStatus},
        body=ScoresBody,
        example={"scores": [{"id": 1, "score": 0.5}]},
        errors=(NotFound, Conflict),
    )
    def post(self, name: str) -> None:
        body = self.body(ScoresBody)
        self.fleet.score(name, {each.id: each.score for each in body.scores}, body.failure, body.started_at)
        self.answer(self.fleet.rollout_status(name))


_VERBS: Mapping[str, Callable[[Fleet, str], Awaitable[RolloutStatus]]] = {
    "pause": Fleet.pause,
    "resume": Fleet.resume,
    "promote": Fleet.promote,
    "rollback": Fleet.rollback_rollout,
}

_DEPLOYMENT = r"/api/deployments/([^/]+)"

ROUTES: list[tuple[str, type[Handler]]] = [
    (rf"{_DEPLOYMENT}/rollout", RolloutOf),
    (rf"{_DEPLOYMENT}/rollout/samples", Samples),
    (rf"{_DEPLOYMENT}/rollout/scores", Scores),
    (rf"{_DEPLOYMENT}/rollout/([^/]+)", ByHand),
    (rf"{_DEPLOYMENT}/rollback", Rollback),
]
