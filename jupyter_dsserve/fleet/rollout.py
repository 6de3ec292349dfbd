"""A gray release that decides by itself: `decide` says what to do next, from snapshots. No clock, no effects.

A `Rollout` gives the candidate the weights of its steps, one after the other. At each step the `Evidence` of both
versions grows by a `Block` at a time, and `decide` gives a `Verdict`. docs/gray-release.md says what the tests assume,
and what they find how soon.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from enum import Enum
from typing import Any, TypeVar, get_type_hints

import numpy as np
from numpy.typing import NDArray

from jupyter_dsserve.fleet.observations import Block, by_prompt
from jupyter_dsserve.fleet.sequential import Array, Bets, ErrorRate, ErrorRates, PairedMean
from jupyter_dsserve.protocol.errors import InvalidRequest
from jupyter_dsserve.protocol.records import Measure, RolloutState

# The chance that a candidate within all margins is ever rolled back by the tests, shared out evenly among them.
ALPHA = 0.01
_NUM_TESTS = 7  # errors and per-token latency within strata and across, max_error_rate, first-token latency, scores
ROLL_BACK_AT = float(np.log(_NUM_TESTS / ALPHA))
# From here on (an e-value of 4) the candidate gets no more traffic until it is clear.
SUSPICIOUS_AT = float(np.log(4))

LATENCY_MARGIN = 1.05  # times stable's
ERROR_MARGIN = 0.01  # above stable's rate
SCORE_MARGIN = 0.05  # below stable's
# What a step time measured in WARMING may be off between two batch sizes: asked on top across strata.
_STEP_TIME_MARGIN = 1.10
_LEAST_SHARED = 0.5  # of the candidate's requests: below it strata say too little
_MIN_SCORES = 10


@dataclass(frozen=True, slots=True)
class RolloutSpec:
    """What is asked: ``steps`` are the candidate's weights in percent, rising.

    It stays at each for ``interval_s`` at least, and until it has answered ``min_requests``. The tests are relative to
    the stable version; on top it goes no further while its error rate is over ``max_error_rate``, and ends once that is
    sure, or a latency is over ``max_latency_ratio`` times stable's with ``min_requests`` compared, half an interval
    after the step began. ``mirror`` is the
    percentage of stable's requests of which the candidate first gets copies, at weight 0; with 0 it gets none.
    ``has_check``: a notebook scores answers. ``block_s``: requests that end within so many seconds are compared with
    one another.
    """

    candidate: str
    steps: tuple[float, ...] = (5.0, 25.0, 50.0, 100.0)
    interval_s: float = 30.0
    min_requests: int = 50
    max_error_rate: float = 0.1
    max_latency_ratio: float = 2.0
    mirror: float = 0.0
    has_check: bool = False
    block_s: float = 1.0

    def checked(self) -> RolloutSpec:
        """Raises `InvalidRequest` for what cannot be."""
        rising = all(a < b for a, b in zip(self.steps, self.steps[1:], strict=False))
        if not self.steps or not rising or not 0 < self.steps[0] <= self.steps[-1] <= 100:
            listed = ", ".join(f"{step:g}" for step in self.steps) or "none"
            raise InvalidRequest(f"steps are {listed}: give rising percents over 0 and up to 100", param="steps")
        return self


@dataclass(frozen=True, slots=True)
class Counts:
    """The candidate's of the step that runs, ``[…]``: its requests, errors, and answers with a latency per token.

    ``shared_…`` of them lay in strata in which stable had some at the same time: of all, of those with a latency to the
    first token, and per token; ``shared_moved`` if only the prompt's length makes a stratum.
    """

    requests: Array
    errors: Array
    tokens: Array
    shared_requests: Array
    shared_first: Array
    shared_tokens: Array
    shared_moved: Array

    @staticmethod
    def new(*runs: int) -> Counts:
        return Counts(*(np.zeros(runs) for _ in fields(Counts)))

    def plus(self, block: Block) -> Counts:
        return Counts(
            self.requests + block.requests[..., 1, :].sum(axis=-1),
            self.errors + block.errors[..., 1, :].sum(axis=-1),
            self.tokens + block.num_tokens[..., 1, :].sum(axis=-1),
            self.shared_requests + _shared(block.requests),
            self.shared_first + _shared(block.num_first),
            self.shared_tokens + _shared(block.num_tokens),
            self.shared_moved + _shared(block.num_moved),
        )


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of the two versions. The tests go through all steps, ``counts`` are the step's own."""

    first: PairedMean
    tokens: PairedMean
    tokens_moved: PairedMean  # each version's moved to the other's batches by the candidate's step times
    errors: ErrorRates
    errors_pooled: ErrorRates  # whatever was on the replica
    hard_stop: ErrorRate  # of the candidate alone
    counts: Counts
    scores: Bets = field(default_factory=lambda: Bets(SCORE_MARGIN))
    num_scores: tuple[int, int] = (0, 0)  # of the step, stable's first

    @staticmethod
    def new(spec: RolloutSpec, *runs: int) -> Evidence:
        paired, rates = PairedMean.new(*runs), ErrorRates.new(ERROR_MARGIN, *runs)
        hard_stop = ErrorRate.new(spec.max_error_rate, *runs)
        return Evidence(paired, paired, paired, rates, rates, hard_stop, Counts.new(*runs))

    def plus(self, block: Block) -> Evidence:
        return replace(
            self,
            first=self.first.plus(*difference(block.num_first, block.first)),
            tokens=self.tokens.plus(*difference(block.num_tokens, block.tokens)),
            tokens_moved=self.tokens_moved.plus(*difference(block.num_moved, block.moved)),
            errors=self.errors.plus(block.errors, block.requests),
            errors_pooled=self.errors_pooled.plus(by_prompt(block.errors), by_prompt(block.requests)),
            hard_stop=self.hard_stop.plus(block.errors[..., 1, :].sum(axis=-1), block.requests[..., 1, :].sum(axis=-1)),
            counts=self.counts.plus(block),
        )

    def at_next_step(self) -> Evidence:
        return replace(self, counts=Counts.new(*self.counts.shared_tokens.shape), num_scores=(0, 0))

    @property
    def is_comparable(self) -> NDArray[np.bool_]:
        """Whether strata are shared by enough of the candidate's requests to compare latencies per token in them."""
        return np.asarray(self.counts.shared_tokens >= _LEAST_SHARED * self.counts.tokens)

    @property
    def has_comparable_errors(self) -> NDArray[np.bool_]:
        return np.asarray(self.counts.shared_requests >= _LEAST_SHARED * self.counts.requests)

    @property
    def token_ratio(self) -> Array:
        """The candidate's latency per token over stable's, as far as they were compared; 1 if they were not."""
        return np.exp(np.where(self.is_comparable, self.tokens.mean, self.tokens_moved.mean))

    @property
    def first_ratio(self) -> Array:
        return np.exp(self.first.mean)

    @property
    def is_within(self) -> dict[str, NDArray[np.bool_]]:
        """Whether the estimates lie within their margins, sure or not: of the latency per token, and the errors."""
        most = LATENCY_MARGIN * np.where(self.is_comparable, 1.0, _STEP_TIME_MARGIN)
        strata = self.has_comparable_errors[..., None]
        rates = np.where(strata, self.errors.rates, self.errors_pooled.rates)
        return {
            TOKENS: np.asarray(self.token_ratio <= most),
            ERRORS: np.asarray(rates[..., 1] <= rates[..., 0] + ERROR_MARGIN),
        }

    def against(self) -> dict[str, Array]:
        """The evidence against the candidate, by measure: logarithms of e-values, `ROLL_BACK_AT` is enough."""
        limit = np.log(LATENCY_MARGIN)
        moved_limit = limit + np.log(_STEP_TIME_MARGIN)
        return {
            ERRORS: np.where(self.has_comparable_errors, self.errors.log_e(), self.errors_pooled.log_e()),
            FIRST: self.first.log_e(limit),
            TOKENS: np.where(self.is_comparable, self.tokens.log_e(limit), self.tokens_moved.log_e(moved_limit)),
            HARD_STOP: self.hard_stop.log_e(),
            SCORES: np.asarray(self.scores.log_e()),
        }


ERRORS, FIRST, TOKENS, SCORES = "error rate", "first-token latency", "per-token latency", "score"
HARD_STOP = "max_error_rate"


def _shared(counts: Array) -> Array:
    """How many of the candidate's lie in strata that stable has too."""
    return np.asarray(np.where(counts[..., 0, :] > 0, counts[..., 1, :], 0.0).sum(axis=-1))


def difference(num: Array, total: Array) -> tuple[Array, Array]:
    """The candidate's mean less stable's, over the strata that both have, and its weight, 0 to 1.

    Strata weigh by the precision of their difference; a block as if it had as much noise of its own as a request.
    """
    precision = np.divide(num.prod(axis=-2), num.sum(axis=-2), out=np.zeros(_no_side(num)), where=num.min(axis=-2) > 0)
    means = np.divide(total, num, out=np.zeros_like(total), where=num > 0)
    whole = precision.sum(axis=-1)
    weighted = (precision * (means[..., 1, :] - means[..., 0, :])).sum(axis=-1)
    return np.divide(weighted, whole, out=np.zeros_like(whole), where=whole > 0), whole / (1 + whole)


def _no_side(num: Array) -> tuple[int, ...]:
    return (*num.shape[:-2], num.shape[-1])


class VerdictKind(Enum):
    HOLD = "HOLD"
    ADVANCE = "ADVANCE"
    PROMOTE = "PROMOTE"
    ROLL_BACK = "ROLL_BACK"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do, and why, in numbers."""

    kind: VerdictKind
    reason: str


@dataclass(frozen=True, slots=True)
class Rollout:
    """A rollout as it stands, all of which outlives a restart. ``step`` is an index into the spec's steps; -1 is the
    mirror phase. ``at_step_s`` counts the seconds at this step in which both were READY and nothing was paused.
    ``before`` are the weights that a rollback brings back; ``started_at`` and ``ended_at`` (None while it runs) are
    seconds since the epoch."""

    spec: RolloutSpec
    stable: str
    before: dict[str, float]
    started_at: float
    evidence: Evidence
    state: RolloutState = RolloutState.PROGRESSING
    reason: str = ""
    step: int = 0
    at_step_s: float = 0.0
    is_loaded: bool = False  # the candidate was READY once, and has had the first step's traffic since
    ended_at: float | None = None

    @staticmethod
    def begun(spec: RolloutSpec, stable: str, before: Mapping[str, float], started_at: float) -> Rollout:
        """Before the candidate is READY."""
        return Rollout(spec, stable, dict(before), started_at, Evidence.new(spec), step=-1 if spec.mirror else 0)

    def ended(self, state: RolloutState, reason: str, now: float) -> Rollout:
        """As PROMOTED or ROLLED_BACK at ``now``, in seconds since the epoch."""
        return replace(self, state=state, reason=reason, ended_at=now)

    @property
    def is_over(self) -> bool:
        return self.state in (RolloutState.PROMOTED, RolloutState.ROLLED_BACK)

    @property
    def is_mirroring(self) -> bool:
        return self.step < 0 and self.is_loaded and self.state is RolloutState.PROGRESSING

    @property
    def weight(self) -> float:
        """The candidate's, in percent, at this step."""
        if self.step < 0 or not self.is_loaded:
            return 0.0
        return self.spec.steps[min(self.step, len(self.spec.steps) - 1)]

    @property
    def weights(self) -> dict[str, float]:
        """Of the route, at this step."""
        return {self.stable: 100.0 - self.weight, self.spec.candidate: self.weight}

    @property
    def is_last_step(self) -> bool:
        return self.step >= len(self.spec.steps) - 1

    def advanced(self) -> Rollout:
        return replace(self, step=self.step + 1, at_step_s=0.0, evidence=self.evidence.at_next_step())

    def to_json(self) -> dict[str, Any]:
        return dumped(self)

    @staticmethod
    def from_json(raw: dict[str, Any]) -> Rollout:
        return loaded(Rollout, raw)


def is_ruled_out(spec: RolloutSpec, evidence: Evidence, at_step_s: float | Array) -> dict[str, NDArray[np.bool_]]:
    """Whether the candidate is to be rolled back, by cause: a test, or the hard stop of latencies."""
    counts = evidence.counts
    num_tokens = np.where(evidence.is_comparable, counts.shared_tokens, counts.shared_moved)
    is_slow = [
        (num >= spec.min_requests) & (ratio > spec.max_latency_ratio)
        for num, ratio in ((counts.shared_first, evidence.first_ratio), (num_tokens, evidence.token_ratio))
    ]
    tests = {name: log_e >= ROLL_BACK_AT for name, log_e in evidence.against().items()}
    tests[HARD_STOP] = tests[HARD_STOP] & (evidence.hard_stop.requests >= spec.min_requests)
    # A worker's first requests are often slow: half an interval is for that.
    is_started = np.asarray(at_step_s) >= spec.interval_s / 2
    return tests | {"max_latency_ratio": is_started & (is_slow[0] | is_slow[1])}


def may_advance(
    spec: RolloutSpec, evidence: Evidence, at_step_s: float | Array, weight: float | Array
) -> NDArray[np.bool_]:
    """Whether time and requests at this step are enough, and nothing speaks against the candidate.

    ``weight`` is the step's, in percent: at 100 nothing is compared any more, so what comes before it has to be clear.
    """
    runs = evidence.counts.shared_tokens.shape
    most = np.max([np.broadcast_to(log_e, runs) for log_e in evidence.against().values()], axis=0)
    is_enough = evidence.counts.requests >= spec.min_requests
    is_low = evidence.counts.errors <= spec.max_error_rate * evidence.counts.requests
    is_within = np.logical_and.reduce(list(evidence.is_within.values()))
    is_clear = ((most < SUSPICIOUS_AT) & is_within) | (np.asarray(weight) >= 100)
    return np.asarray((np.asarray(at_step_s) >= spec.interval_s) & is_enough & is_low & is_clear)


def decide(rollout: Rollout) -> Verdict:
    """What is to be done with a rollout whose versions are both READY."""
    spec, evidence = rollout.spec, rollout.evidence
    for cause, is_out in is_ruled_out(spec, evidence, rollout.at_step_s).items():
        if is_out:
            return Verdict(VerdictKind.ROLL_BACK, _why_not(cause, rollout))
    if spec.has_check and min(evidence.num_scores) < min(_MIN_SCORES, spec.min_requests):
        silent = "the check has scored {} answers of stable and {} of the candidate at this step: {} each are needed"
        return Verdict(VerdictKind.HOLD, silent.format(*evidence.num_scores, min(_MIN_SCORES, spec.min_requests)))
    if may_advance(spec, evidence, rollout.at_step_s, rollout.weight):
        kind = VerdictKind.PROMOTE if rollout.is_last_step else VerdictKind.ADVANCE
        return Verdict(kind, f"{_so_far(rollout)}; {_figures(rollout)}")
    return Verdict(VerdictKind.HOLD, f"{_so_far(rollout)}; {_waits_for(rollout)}{_figures(rollout)}")


def measures(evidence: Evidence) -> list[Measure]:
    """What was compared, for people: the estimates, the bounds that hold at any time, and the limits."""
    found = []
    log_es = evidence.against()
    against = {name: _share(log_e) for name, log_e in log_es.items()}
    if evidence.errors_pooled.requests[1]:
        stable, candidate = map(float, evidence.errors_pooled.rates)
        found.append(Measure(ERRORS, stable, candidate, None, ERROR_MARGIN, against[ERRORS]))
    tokens, limit = evidence.tokens, LATENCY_MARGIN
    if not evidence.is_comparable:
        tokens, limit = evidence.tokens_moved, LATENCY_MARGIN * _STEP_TIME_MARGIN
    for name, paired, most in ((FIRST, evidence.first, LATENCY_MARGIN), (TOKENS, tokens, limit)):
        if paired.sums[0] > 0:
            bound = float(np.exp(paired.lower_bound(ALPHA / _NUM_TESTS))) or None
            if log_es[name] >= ROLL_BACK_AT:  # the limit itself is ruled out: what the reason of a rollback says
                bound = max(bound or most, most)
            found.append(Measure(name, 1.0, float(np.exp(paired.mean)), bound, most, against[name]))
    if evidence.scores.num:
        stable, candidate = (total / evidence.scores.num for total in evidence.scores.totals)
        found.append(Measure(SCORES, stable, candidate, None, SCORE_MARGIN, against[SCORES]))
    return found


def _share(log_e: Array) -> float:
    """Of the evidence that a rollback takes, 0 to 1."""
    return round(float(np.clip(log_e / ROLL_BACK_AT, 0.0, 1.0)), 3)


def _so_far(rollout: Rollout) -> str:
    where = "mirror phase" if rollout.step < 0 else f"{rollout.weight:g} %"
    num = int(rollout.evidence.counts.requests)
    return f"{where} for {rollout.at_step_s:.0f} s, {num} requests of the candidate"


def _waits_for(rollout: Rollout) -> str:
    spec, waits = rollout.spec, []
    if rollout.at_step_s < spec.interval_s:
        waits.append(f"{spec.interval_s - rollout.at_step_s:.0f} s")
    if (missing := spec.min_requests - int(rollout.evidence.counts.requests)) > 0:
        waits.append(f"{missing} requests")
    if rollout.evidence.counts.errors > spec.max_error_rate * rollout.evidence.counts.requests:
        waits.append(f"an error rate below max_error_rate {100 * spec.max_error_rate:g} %")
    if suspects := [
        name for name, log_e in rollout.evidence.against().items() if log_e >= SUSPICIOUS_AT and name != HARD_STOP
    ]:
        waits.append(f"clearness about its {' and '.join(suspects)}")
    elif beyond := [name for name, is_within in rollout.evidence.is_within.items() if not is_within]:
        waits.append(f"{' and '.join(beyond)} within the limit, or clearness that it is not")
    return f"waits for {' and '.join(waits)}; " if waits else ""


def _figures(rollout: Rollout) -> str:
    evidence = rollout.evidence
    told = [_told(measure) for measure in measures(evidence)] or ["nothing to compare yet"]
    return ", ".join(told) + _how_compared(rollout)


def _told(measure: Measure) -> str:
    if measure.name == ERRORS:
        return f"errors {100 * measure.candidate:.1f} % against {100 * measure.stable:.1f} %"
    if measure.name == SCORES:
        return f"score {measure.candidate:.2f} against {measure.stable:.2f}"
    return f"{measure.name} {measure.candidate:.2f} × stable's"


def _how_compared(rollout: Rollout) -> str:
    evidence = rollout.evidence
    if rollout.weight >= 100:
        return " (stable has no traffic to compare with any more: what is left are the hard stops)"
    if evidence.counts.tokens and not evidence.is_comparable:
        share = 100 * evidence.counts.shared_tokens / evidence.counts.tokens
        told = f"only {share:.0f} %" if share >= 1 else "hardly any"
        return (
            f" ({told} of its tokens came in batches of stable's sizes, so compared is what is left over after the "
            "step time of each batch)"
        )
    return ""


def _why_not(cause: str, rollout: Rollout) -> str:
    evidence, spec = rollout.evidence, rollout.spec
    num = int(evidence.counts.requests)
    if cause == HARD_STOP:
        stop = evidence.hard_stop
        rate, limit = 100 * stop.errors / stop.requests, 100 * spec.max_error_rate
        return f"{rate:.1f} % of the candidate's {stop.requests:.0f} requests failed: over max_error_rate {limit:g} %"
    if cause == "max_latency_ratio":
        name, ratio = max(((FIRST, evidence.first_ratio), (TOKENS, evidence.token_ratio)), key=lambda pair: pair[1])
        return (
            f"{name} is {ratio:.2f} × stable's over {num} requests: over max_latency_ratio {spec.max_latency_ratio:g}"
        )
    found = next(m for m in measures(evidence) if m.name == cause)
    if cause == ERRORS:
        said = f"limit is stable's plus {100 * ERROR_MARGIN:g} points"
    elif cause == SCORES:
        said = f"limit is stable's less {SCORE_MARGIN:g}, over {evidence.scores.num} pairs"
    else:
        said = f"at least {found.lower_bound or found.limit:.2f} ×, limit {found.limit:.2f} ×"
    how = _how_compared(rollout) if cause == TOKENS else ""
    return f"{_told(found)} ({said}); {_so_far(rollout)}{how}"


# ---- as JSON

T = TypeVar("T")


def dumped(value: Any) -> Any:
    """A dataclass of ours as plain data."""
    if is_dataclass(value):
        return {f.name: dumped(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Enum):
        return value.value
    return list(value) if isinstance(value, tuple) else value


def loaded(kind: type[T], raw: dict[str, Any]) -> T:
    """The reverse of `dumped`. A field that was not written has its default."""
    hints = get_type_hints(kind)
    known: dict[str, Any] = {}
    for each in fields(kind):  # type: ignore[arg-type]
        if each.name in raw:
            known[each.name] = _value(hints[each.name], raw[each.name])
    return kind(**known)


def _value(hint: Any, raw: Any) -> Any:
    if is_dataclass(hint):
        return loaded(hint, raw)  # type: ignore[arg-type]
    if hint == Array:
        return np.array(raw, np.float64)
    if isinstance(raw, list):
        return tuple(raw)
    return hint(raw) if isinstance(hint, type) and issubclass(hint, Enum) else raw
