"""`Conductor`: carries rollouts out. `rollout.decide` says what is to be done; everything with an effect is here."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from jupyter_dsserve.fleet.deployment import Deployment
from jupyter_dsserve.fleet.mirror import Mirror, prompt_text
from jupyter_dsserve.fleet.moves import refuse_while_activating
from jupyter_dsserve.fleet.observations import Block, Observation, Watch
from jupyter_dsserve.fleet.registry import Registry, written
from jupyter_dsserve.fleet.rollout import Rollout, RolloutSpec, Verdict, VerdictKind, decide, measures
from jupyter_dsserve.fleet.route import Route
from jupyter_dsserve.fleet.scoring import Sample, Scoring
from jupyter_dsserve.fleet.version import Version
from jupyter_dsserve.protocol.errors import Conflict, NotFound
from jupyter_dsserve.protocol.records import RolloutState, RolloutStatus, VersionState
from jupyter_dsserve.protocol.request import Request

if TYPE_CHECKING:
    from jupyter_dsserve.fleet.fleet import Fleet

log = logging.getLogger(__name__)

_SAVE_S = 5.0  # at most so many seconds of evidence are lost by a crash
_MAX_TICK_S = 1.0
_LATE_TICKS = 2.0  # a loop that was held up counts as so many ticks of time at most


@dataclass(slots=True, eq=False)
class _Performance:
    """A rollout and what belongs to it while it runs. Of an ended one only ``rollout`` is left of interest."""

    rollout: Rollout
    mirror: Mirror | None = None
    scoring: Scoring | None = None
    seen: tuple[list[Observation], list[Observation]] = field(default_factory=lambda: ([], []))
    block_s: float = 0.0  # passed of the block that is being filled
    saved_at: float = 0.0

    def forget(self) -> None:
        """What was seen since the last block."""
        self.seen, self.block_s = ([], []), 0.0


class Conductor:
    """One for a fleet. The weights before the last change of a route are kept too, to go back to.

    ``spawn`` starts a task that the fleet ends with itself; ``replace_route`` changes a route at once.
    """

    def __init__(
        self,
        fleet: Fleet,
        registry: Registry,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        replace_route: Callable[[Deployment, Route], object],
    ) -> None:
        self._fleet = fleet
        self._registry = registry
        self._spawn = spawn
        self._replace_route = replace_route
        self._performances: dict[str, _Performance] = {}
        self._before: dict[str, dict[str, float]] = {}

    # ---- life

    def bring_back(self, stored: Mapping[str, Mapping[str, Any]]) -> None:
        """Go on with what ran when the last gateway on this registry ended. Called once, before serving."""
        for deployment, raw in stored.items():
            try:
                self._before[deployment] = dict(raw["before"])
                if raw["rollout"]:
                    self._go_on(deployment, Rollout.from_json(raw["rollout"]))
            except (KeyError, TypeError, ValueError, NotFound) as fault:  # the others must come back all the same
                why = f"what is written of it cannot be read ({type(fault).__name__}: {fault}); the weights stay"
                self._fleet.events.record(time.time(), "rollout_lost", deployment=deployment, reason=why)

    def _go_on(self, deployment: str, rollout: Rollout) -> None:
        performance = self._perform(deployment, rollout)
        if not rollout.is_over:
            self._spawn(self._conduct(deployment, performance))
        # The route is written on its own: a crash may have come between the two.
        if rollout.is_loaded and not rollout.is_over:
            self._set_weights(deployment, rollout.weights)

    def stop(self) -> None:
        """Write down how all stands: the gateway ends."""
        for deployment, performance in self._performances.items():
            if not performance.rollout.is_over:
                self._save(deployment)
            if performance.mirror:
                performance.mirror.stop()

    def forget(self, deployment: str) -> None:
        """The deployment is gone."""
        self._performances.pop(deployment, None)
        self._before.pop(deployment, None)

    # ---- verbs

    async def start(self, deployment: Deployment, spec: RolloutSpec) -> None:
        """Begin a rollout; its candidate is loaded first if need be. Raises `InvalidRequest`, `NotFound`, or `Conflict`
        for what the deployment is in the middle of."""
        self.refuse_during(deployment.name, "start another rollout")
        spec.checked()
        candidate = self._fleet.version(deployment.name, spec.candidate)
        refuse_while_activating(deployment)
        others = [name for name in deployment.route.weights if name != spec.candidate]
        if len(others) != 1:
            held = ", ".join(f"{n}={w:g}" for n, w in deployment.route.weights.items()) or "none"
            raise Conflict(
                f"a rollout of {candidate.id} needs one other version with traffic to compare it with, and the weights "
                f"are {held}: activate the one it is to replace first"
            )
        rollout = Rollout.begun(spec, others[0], deployment.route.weights, time.time())
        last = self._performances.get(deployment.name)
        performance = self._perform(deployment.name, rollout)  # before any wait: two at once are one too many
        try:
            await self._fleet.load(deployment.name, spec.candidate)
        except BaseException as fault:
            if not performance.rollout.is_over:  # else it was taken back meanwhile, and another may have begun
                self._end(deployment.name, RolloutState.ROLLED_BACK, str(fault))
                if last:
                    self._performances[deployment.name] = last
                else:
                    del self._performances[deployment.name]
            raise
        if performance.rollout.is_over:
            return
        self._spawn(self._conduct(deployment.name, performance))  # not before: a failure of an earlier load is gone now
        self._record(deployment.name, "rollout_started", f"instead of {rollout.stable}, {_listed(spec)}")
        await written(self._save(deployment.name))

    async def pause(self, deployment: str) -> None:
        """Leave the weights as they are and decide nothing."""
        running = self._running(deployment)
        if running.rollout.state is RolloutState.PAUSED:
            raise Conflict(f"the rollout of {deployment} is paused already: resume goes on with it")
        running.rollout = replace(running.rollout, state=RolloutState.PAUSED, reason="by hand")
        self._record(deployment, "rollout_paused", f"at {running.rollout.weight:g} %")
        await written(self._save(deployment))

    async def resume(self, deployment: str) -> None:
        """Go on where it was paused."""
        running = self._running(deployment)
        if running.rollout.state is not RolloutState.PAUSED:
            raise Conflict(f"the rollout of {deployment} is not paused: it is {running.rollout.state.value}")
        running.rollout = replace(running.rollout, state=RolloutState.PROGRESSING, reason="")
        self._record(deployment, "rollout_resumed", f"at {running.rollout.weight:g} %")
        await written(self._save(deployment))

    async def promote(self, deployment: str) -> None:
        """Give the candidate all traffic now. Raises `Conflict` if it is not READY."""
        running = self._running(deployment)
        candidate = self._fleet.version(deployment, running.rollout.spec.candidate)
        if not candidate.is_ready:
            raise Conflict(f"{candidate.id} is {candidate.state.value}: it can be promoted once it is READY")
        await self._promote(deployment, "by hand")

    async def rollback_rollout(self, deployment: str) -> None:
        """Take the candidate back."""
        self._running(deployment)
        await self._roll_back(deployment, "by hand")

    def status(self, deployment: str) -> RolloutStatus | None:
        """The rollout that runs, or the last one."""
        performance = self._performances.get(deployment)
        if performance is None:
            return None
        rollout = performance.rollout
        counts = rollout.evidence.counts
        return RolloutStatus(
            deployment=deployment,
            stable=rollout.stable,
            candidate=rollout.spec.candidate,
            state=rollout.state,
            reason=rollout.reason,
            step=rollout.step,
            steps=list(rollout.spec.steps),
            weight=self._fleet.deployment(deployment).route.weights.get(rollout.spec.candidate, 0.0),
            at_step_s=round(rollout.at_step_s, 3),
            requests=int(counts.requests),
            errors=int(counts.errors),
            started_at=rollout.started_at,
            measures=measures(rollout.evidence),
            mirror=performance.mirror.status if performance.mirror else None,
            ended_at=rollout.ended_at,
        )

    # ---- the check of a notebook

    async def samples(self, deployment: str, wait_s: float, started_at: float | None = None) -> list[Sample]:
        """Answers to score, as they come within ``wait_s`` seconds. Raises `Conflict` if no check is registered, or the
        rollout is another than the one that was ``started_at``."""
        return await self._scoring(deployment, started_at).samples(wait_s)

    def scored(
        self, deployment: str, scores: Mapping[int, float], failure: str, started_at: float | None = None
    ) -> None:
        """Take in scores from 0 to 1 by sample id. ``failure``: the check itself failed. Raises as `samples` does."""
        scoring, running = self._scoring(deployment, started_at), self._running(deployment)
        scoring.failure = failure
        evidence = running.rollout.evidence
        for stable, candidate in scoring.scored(scores):
            num = evidence.num_scores[0] + 1, evidence.num_scores[1] + 1
            evidence = replace(evidence, scores=evidence.scores.plus(stable, candidate), num_scores=num)
        running.rollout = replace(running.rollout, evidence=evidence)

    def _scoring(self, deployment: str, started_at: float | None) -> Scoring:
        running = self._running(deployment)
        scoring = running.scoring
        if started_at not in (None, running.rollout.started_at):
            raise Conflict(f"another rollout of {deployment} runs now: the one that this check is for is over")
        if scoring is None:
            raise Conflict(f"the rollout of {deployment} has no check: start it with one")
        return scoring

    # ---- what others must know

    def is_running(self, deployment: str) -> bool:
        """Whether a rollout of the deployment is on, paused or not."""
        performance = self._performances.get(deployment)
        return performance is not None and not performance.rollout.is_over

    def refuse_during(self, deployment: str, verb: str, version: str = "") -> None:
        """Raises `Conflict` while a rollout of the deployment runs; if a ``version`` is named, one it takes part in."""
        if not self.is_running(deployment):
            return
        rollout = self._performances[deployment].rollout
        if version in ("", rollout.stable, rollout.spec.candidate):
            raise Conflict(
                f"a rollout of {deployment}@{rollout.spec.candidate} is {rollout.state.value} beside {rollout.stable}: "
                f"promote it or roll it back, then {verb}"
            )

    def has_part(self, deployment: str, version: str) -> bool:
        """Whether the version takes part in a rollout that runs."""
        if not self.is_running(deployment):
            return False
        rollout = self._performances[deployment].rollout
        return version in (rollout.stable, rollout.spec.candidate)

    def before(self, deployment: Deployment) -> dict[str, float]:
        """The weights before the last change of the route. Raises `Conflict` if there are none to go back to."""
        if found := self._before.get(deployment.name):
            return found
        raise Conflict(
            f"the weights of {deployment.name} are as they were first, or as they were before its last rollout: "
            "there is nothing to go back to; set them with route, or activate a version"
        )

    def changes(self, deployment: Deployment) -> None:
        """The route is about to be changed by hand."""
        if deployment.route.weights:
            self._before[deployment.name] = dict(deployment.route.weights)
            self._save(deployment.name)

    # ---- the performance

    def _perform(self, deployment: str, rollout: Rollout) -> _Performance:
        """`_conduct` is to follow, unless it is over. Raises `NotFound`, and then nothing has changed."""
        performance = _Performance(rollout)
        if not rollout.is_over:
            stable, candidate = (self._fleet.version(deployment, v) for v in (rollout.stable, rollout.spec.candidate))
            if rollout.step < 0:
                performance.mirror = Mirror(candidate, rollout.spec.mirror)
            if rollout.spec.has_check:
                performance.scoring = Scoring(rollout.stable, rollout.spec.candidate)
            for side, version in enumerate((stable, candidate)):
                version.watch = partial(self._watch, performance, side)
        self._performances[deployment] = performance
        return performance

    def _watch(self, performance: _Performance, side: int, request: Request, in_flight: int, started: float) -> Watch:
        keeps_text = performance.scoring is not None or performance.mirror is not None
        if performance.mirror and side == 0 and performance.rollout.is_mirroring:
            performance.mirror.begin(request)
        return Watch(request, in_flight, started, partial(self._ended, performance, side), keeps_text=keeps_text)

    def _ended(self, performance: _Performance, side: int, watch: Watch, seen: Observation) -> None:
        rollout = performance.rollout
        if rollout.state is not RolloutState.PROGRESSING or (seen.is_mirrored and rollout.step >= 0):
            return
        performance.seen[side].append(seen)
        if seen.is_error:
            return
        if performance.scoring:
            name = (rollout.stable, rollout.spec.candidate)[side]
            performance.scoring.offer(name, prompt_text(watch.request.prompt), watch.text)
        if performance.mirror and side == 0:
            performance.mirror.end(watch.request.id, watch.text)

    async def _conduct(self, deployment: str, performance: _Performance) -> None:
        tick_s, last = min(performance.rollout.spec.block_s, _MAX_TICK_S), time.monotonic()
        while True:
            await asyncio.sleep(tick_s)
            if performance.rollout.is_over:  # by hand, perhaps, and perhaps just now
                return
            now = time.monotonic()
            try:
                await self._turn(deployment, performance, min(now - last, _LATE_TICKS * tick_s))
            except Exception as fault:  # a candidate must not stay with its traffic and nobody who looks
                log.exception("the rollout of %s could not be judged", deployment)
                reason = f"it cannot be judged ({type(fault).__name__}: {fault}): the gateway's log says more"
                performance.rollout = replace(performance.rollout, reason=reason)
            last = now

    async def _turn(self, deployment: str, performance: _Performance, passed_s: float) -> None:
        rollout = performance.rollout
        stable, candidate = (self._fleet.version(deployment, name) for name in (rollout.stable, rollout.spec.candidate))
        if candidate.state is VersionState.FAILED:
            await self._roll_back(deployment, f"{candidate.id} is FAILED: {candidate.failure}")
        elif rollout.state is RolloutState.PAUSED:
            performance.forget()
        elif waits := [v for v in (stable, candidate) if not v.is_ready]:
            if rollout.is_loaded and performance.seen[1]:  # what a worker left unanswered when it died
                self._learn(performance, candidate, rollout.spec.block_s)
            performance.forget()
            said = " and ".join(f"{v.id}, which is {v.state.value}" for v in waits)
            performance.rollout = replace(performance.rollout, reason=f"waits for {said}")
        elif not rollout.is_loaded:
            performance.forget()
            performance.rollout = replace(rollout, is_loaded=True, reason="")
            await self._take_step(deployment, f"{candidate.id} is READY")
        else:
            performance.rollout = replace(rollout, at_step_s=rollout.at_step_s + passed_s)
            self._learn(performance, candidate, passed_s)
            await self._act(deployment, performance, self._judged(performance))

    def _learn(self, performance: _Performance, candidate: Version, passed_s: float) -> None:
        """Add what was seen to the evidence, a block at a time."""
        performance.block_s += passed_s
        if performance.block_s >= performance.rollout.spec.block_s - 1e-6:
            block = Block.of(*performance.seen, candidate.info.step_times)
            performance.forget()
            evidence = performance.rollout.evidence.plus(block)
            performance.rollout = replace(performance.rollout, evidence=evidence)

    def _judged(self, performance: _Performance) -> Verdict:
        verdict = decide(performance.rollout)
        if performance.scoring and performance.scoring.failure and verdict.kind is not VerdictKind.ROLL_BACK:
            return Verdict(VerdictKind.HOLD, f"the check failed: {performance.scoring.failure}")
        return verdict

    async def _act(self, deployment: str, performance: _Performance, verdict: Verdict) -> None:
        performance.rollout = replace(performance.rollout, reason=verdict.reason)
        if verdict.kind is VerdictKind.ROLL_BACK:
            await self._roll_back(deployment, verdict.reason)
        elif verdict.kind is VerdictKind.PROMOTE:
            await self._promote(deployment, verdict.reason)
        elif verdict.kind is VerdictKind.ADVANCE:
            performance.rollout = performance.rollout.advanced()
            await self._take_step(deployment, verdict.reason)
        elif time.monotonic() - performance.saved_at > _SAVE_S:
            self._save(deployment)

    async def _take_step(self, deployment: str, reason: str) -> None:
        """Give the candidate the weight of the step it is at."""
        performance = self._performances[deployment]
        rollout, said = performance.rollout, f"{performance.rollout.weight:g} %"
        if rollout.step < 0:
            said = f"copies of {rollout.spec.mirror:g} % of {rollout.stable}'s requests"
        elif performance.mirror:
            performance.mirror.stop()
        self._set_weights(deployment, rollout.weights)
        self._record(deployment, "rollout_step", f"to {said}: {reason}")
        await written(self._save(deployment))

    async def _promote(self, deployment: str, reason: str) -> None:
        rollout = self._end(deployment, RolloutState.PROMOTED, reason)
        self._set_weights(deployment, {rollout.spec.candidate: 100.0})
        self._before[deployment] = rollout.before
        self._record(deployment, "rollout_promoted", reason)
        await written(self._save(deployment))
        await self._fleet.unload(deployment, rollout.stable)

    async def _roll_back(self, deployment: str, reason: str) -> None:
        rollout = self._end(deployment, RolloutState.ROLLED_BACK, reason)
        self._set_weights(deployment, rollout.before)
        self._before.pop(deployment, None)  # whoever asks for a rollback once more does not mean the change before
        self._record(deployment, "rollout_rolled_back", reason)
        await written(self._save(deployment))

    def _end(self, deployment: str, state: RolloutState, reason: str) -> Rollout:
        performance = self._performances[deployment]
        rollout = performance.rollout = performance.rollout.ended(state, reason, time.time())
        if performance.mirror:
            performance.mirror.stop()
        if performance.scoring:
            performance.scoring.wake()
        for name in (rollout.stable, rollout.spec.candidate):
            self._fleet.version(deployment, name).watch = None
        return rollout

    # ---- inside

    def _running(self, deployment: str) -> _Performance:
        """Raises `NotFound` if there never was one, `Conflict` if it is over."""
        performance = self._performances.get(deployment)
        if performance is None:
            raise NotFound(f"{deployment} has no rollout: start one first", param="deployment")
        rollout = performance.rollout
        if rollout.is_over:
            raise Conflict(f"the rollout of {deployment}@{rollout.spec.candidate} is over: it is {rollout.state.value}")
        return performance

    def _set_weights(self, deployment: str, weights: Mapping[str, float]) -> None:
        """At once: the next request sees them."""
        found = self._fleet.deployment(deployment)
        self._replace_route(found, found.route.replaced(weights))

    def _record(self, deployment: str, kind: str, reason: str) -> None:
        version = self._performances[deployment].rollout.spec.candidate
        self._fleet.events.record(time.time(), kind, deployment=deployment, version=version, reason=reason)

    def _save(self, deployment: str) -> asyncio.Future[None]:
        performance = self._performances.get(deployment)
        rollout = performance.rollout.to_json() if performance else None
        if performance:
            performance.saved_at = time.monotonic()
        state = {"rollout": rollout, "before": self._before.get(deployment, {})}
        return self._registry.save_rollout(deployment, state)


def _listed(spec: RolloutSpec) -> str:
    steps = ", ".join(f"{step:g}" for step in spec.steps)
    return f"steps {steps}, {spec.interval_s:g} s and {spec.min_requests} requests at each"
