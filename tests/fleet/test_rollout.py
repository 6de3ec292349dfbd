"""What a rollout decides from what it saw, without a clock or a worker."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from jupyter_dsserve.fleet.observations import Block, Observation, StepTimes, log_step_s
from jupyter_dsserve.fleet.rollout import (
    Evidence,
    Rollout,
    RolloutSpec,
    Verdict,
    VerdictKind,
    decide,
    measures,
)
from jupyter_dsserve.fleet.sequential import Bets, ErrorRate
from jupyter_dsserve.protocol.errors import InvalidRequest
from jupyter_dsserve.protocol.records import RolloutState

SPEC = RolloutSpec("v2", interval_s=30, min_requests=50)
# A step of 10 ms and 1 ms more for each sequence.
STEP_TIMES: StepTimes = tuple((batch, 0.01 + 0.001 * batch) for batch in (1, 2, 4, 8, 16))


def observed(
    num: int,
    rng: np.random.Generator,
    *,
    per_token_s: float = 0.02,
    first_token_s: float = 0.1,
    batch: float = 4,
    num_errors: int = 0,
    prompt_tokens: int = 100,
    noise: float = 0.1,
) -> list[Observation]:
    factors = np.exp(rng.normal(0, noise, (num, 2)))
    return [
        Observation(
            0.0, first_token_s * f[0], per_token_s * f[1], batch, 3, prompt_tokens, prompt_tokens, index < num_errors
        )
        for index, f in enumerate(factors)
    ]


def seen(seconds: int, stable: dict[str, float], candidate: dict[str, float], step_times: StepTimes = ()) -> Evidence:
    """Ten requests of stable and two of the candidate a second, unless told."""
    rng, evidence = np.random.default_rng(0), Evidence.new(SPEC)
    for _ in range(seconds):
        requests = [
            observed(int(side.get("num", most)), rng, **{k: v for k, v in side.items() if k != "num"})  # type: ignore[arg-type]
            for side, most in ((stable, 10), (candidate, 2))
        ]
        evidence = evidence.plus(Block.of(*requests, step_times))
    return evidence


def at(evidence: Evidence, at_step_s: float, step: int = 0, spec: RolloutSpec = SPEC) -> Rollout:
    begun = Rollout.begun(spec, "v1", {"v1": 100.0}, 0.0)
    return replace(begun, step=step, at_step_s=at_step_s, is_loaded=True, evidence=evidence)


def verdict(evidence: Evidence, at_step_s: float = 30, step: int = 0, spec: RolloutSpec = SPEC) -> Verdict:
    return decide(at(evidence, at_step_s, step, spec))


def test_no_worse_goes_on_after_the_interval_and_the_last_step_promotes() -> None:
    evidence = seen(30, {}, {})
    assert verdict(evidence, 29.9).kind is VerdictKind.HOLD
    assert verdict(evidence, 30).kind is VerdictKind.ADVANCE
    assert verdict(evidence, 30, step=3).kind is VerdictKind.PROMOTE
    assert verdict(evidence, 30, step=4).kind is VerdictKind.PROMOTE  # reached with >=


def test_thin_traffic_is_held_whatever_it_shows() -> None:
    held = verdict(seen(10, {}, {"num": 1, "per_token_s": 0.06}), 1000)
    assert held.kind is VerdictKind.HOLD
    assert "40 requests" in held.reason
    failing = seen(2, {}, {"num": 1, "num_errors": 1})
    assert verdict(failing, 1000).kind is VerdictKind.HOLD


def test_slower_tokens_roll_back_with_the_bound_in_the_reason() -> None:
    found = verdict(seen(60, {}, {"per_token_s": 0.026}))
    assert found.kind is VerdictKind.ROLL_BACK
    assert "per-token latency 1.29 ×" in found.reason
    assert "limit 1.05 ×" in found.reason


def test_the_measures_of_a_rollback_have_the_bound_of_its_reason() -> None:
    """At the first second in which it is sure, with little noise."""
    slower = ({"noise": 0.02}, {"noise": 0.02, "per_token_s": 0.034})
    evidence = next(e for e in (seen(seconds, *slower) for seconds in range(10, 60)) if is_out(e))
    found, measure = verdict(evidence), next(m for m in measures(evidence) if m.name == "per-token latency")
    assert measure.lower_bound is not None, "no bound yet, and it is taken back"
    assert measure.lower_bound >= measure.limit
    assert f"at least {measure.lower_bound:.2f} ×, limit 1.05 ×" in found.reason


def is_out(evidence: Evidence) -> bool:
    return verdict(evidence).kind is VerdictKind.ROLL_BACK


def test_a_slower_first_token_rolls_back() -> None:
    found = verdict(seen(60, {}, {"first_token_s": 0.14}))
    assert found.kind is VerdictKind.ROLL_BACK
    assert "first-token latency" in found.reason


def test_more_errors_roll_back_before_the_hard_stop() -> None:
    found = verdict(seen(100, {}, {"num": 20, "num_errors": 1}))
    assert found.kind is VerdictKind.ROLL_BACK
    assert "errors 5.0 % against 0.0 %" in found.reason


def test_errors_that_both_have_are_nobodys_fault() -> None:
    both = seen(100, {"num": 20, "num_errors": 2}, {"num": 20, "num_errors": 2})
    assert verdict(both, 100).kind is VerdictKind.ADVANCE


def test_an_error_rate_over_the_hard_stop_goes_no_further_and_ends_once_it_is_sure() -> None:
    def both(seconds: int) -> Evidence:
        return seen(seconds, {"num": 20, "num_errors": 4}, {"num": 20, "num_errors": 4})

    unsure = verdict(both(4), 100)
    assert unsure.kind is VerdictKind.HOLD
    assert "an error rate below max_error_rate 10 %" in unsure.reason
    a_little_over = verdict(seen(7, {"num": 8, "num_errors": 1}, {"num": 8, "num_errors": 1}), 100)
    assert a_little_over.kind is VerdictKind.HOLD
    sure = verdict(both(40), 100)
    assert sure.kind is VerdictKind.ROLL_BACK
    assert "20.0 % of the candidate's 800 requests failed: over max_error_rate 10 %" in sure.reason
    one = seen(60, {}, {}).plus(Block.of([], observed(1, np.random.default_rng(0), num_errors=1), ()))
    assert (
        verdict(replace(one, hard_stop=ErrorRate.new(0.0).plus(np.array(1.0), np.array(100.0)))).kind
        is VerdictKind.ROLL_BACK
    )


def test_the_hard_stop_of_latencies_needs_min_requests() -> None:
    few = seen(4, {}, {"num": 10, "per_token_s": 0.05})
    assert verdict(few).kind is VerdictKind.HOLD
    enough = verdict(seen(5, {}, {"num": 10, "per_token_s": 0.05}), 15)
    assert verdict(seen(5, {}, {"num": 10, "per_token_s": 0.05}), 14).kind is VerdictKind.HOLD  # it has just begun
    assert enough.kind is VerdictKind.ROLL_BACK
    assert "max_latency_ratio 2" in enough.reason


def test_an_estimate_beyond_its_margin_gets_no_more_traffic_although_nothing_is_sure() -> None:
    noisy, spec = {"noise": 0.3}, replace(SPEC, min_requests=10)
    evidence = seen(5, noisy, noisy | {"per_token_s": 0.025})
    held = verdict(evidence, step=2, spec=spec)
    assert held.kind is VerdictKind.HOLD
    assert "waits for per-token latency within the limit" in held.reason
    assert verdict(evidence, step=3, spec=spec).kind is VerdictKind.PROMOTE  # at 100 % no news come


def test_an_error_rate_beyond_its_margin_gets_no_more_traffic_although_nothing_is_sure() -> None:
    rng, spec = np.random.default_rng(0), replace(SPEC, min_requests=50)
    failed = Block.of(observed(200, rng), observed(50, rng, num_errors=1), ())
    held = verdict(Evidence.new(SPEC).plus(failed), step=2, spec=spec)
    assert held.kind is VerdictKind.HOLD
    assert "waits for error rate within the limit" in held.reason
    later = Evidence.new(SPEC).plus(failed).plus(Block.of(observed(200, rng), observed(50, rng), ()))
    assert verdict(later, step=2, spec=spec).kind is VerdictKind.ADVANCE  # one in a hundred is the margin


def test_what_is_suspicious_gets_no_more_traffic_until_it_is_clear() -> None:
    spec = replace(SPEC, interval_s=5, min_requests=10)
    early = verdict(seen(16, {}, {"per_token_s": 0.026}), 16, spec=spec)
    assert early.kind is VerdictKind.HOLD
    assert "clearness about its per-token latency" in early.reason


class TestStrata:
    """The candidate at 5 % runs in small batches."""

    stable = {"batch": 16.0, "per_token_s": 0.026}

    def test_other_batches_are_not_compared_as_they_are(self) -> None:
        fast_by_its_batch = {"batch": 1.0, "per_token_s": 0.011}
        evidence = seen(60, self.stable, fast_by_its_batch, STEP_TIMES)
        assert not evidence.is_comparable
        assert float(evidence.token_ratio) == pytest.approx(1.0, abs=0.05)
        assert "hardly any of its tokens came in batches of stable's sizes" in verdict(evidence, 60).reason

    def test_a_slower_candidate_is_found_although_it_looks_fast(self) -> None:
        slower_by_40_percent = {"batch": 1.0, "per_token_s": 0.011 * 1.4}
        times = tuple((batch, 1.4 * seconds) for batch, seconds in STEP_TIMES)
        found = verdict(seen(60, self.stable, slower_by_40_percent, times), 60)
        assert found.kind is VerdictKind.ROLL_BACK
        assert "left over after the step time of each batch" in found.reason

    def test_without_step_times_nothing_is_said_across_strata(self) -> None:
        evidence = seen(60, {"batch": 1.0}, {"batch": 16.0, "per_token_s": 0.03})
        assert "per-token latency" not in [m.name for m in measures(evidence)]

    def test_prompts_of_other_lengths_are_not_compared(self) -> None:
        evidence = seen(60, {"prompt_tokens": 10}, {"prompt_tokens": 3000, "first_token_s": 0.19}, STEP_TIMES)
        assert "first-token latency" not in [m.name for m in measures(evidence)]

    def test_a_step_time_is_read_off_straight_lines_and_not_far_beyond_the_last(self) -> None:
        times = ((1, 1.0), (3, 2.0), (4, 4.0))
        found = [float(np.exp(log_step_s(times, batch))) for batch in (0, 1, 2, 3, 4, 6, 16, 100)]
        assert found == pytest.approx([1.0, 1.0, 1.5, 2.0, 4.0, 8.0, 28.0, 28.0])
        assert log_step_s((), 8) == 0
        assert log_step_s(((1, 0.5),), 8) == pytest.approx(np.log(0.5))


class TestCheck:
    spec = replace(SPEC, has_check=True)

    def scored(self, stable: float, candidate: float, num: int) -> Evidence:
        scores, rng = Bets(0.05), np.random.default_rng(0)
        for _ in range(num):
            scores = scores.plus(float(rng.random() < stable), float(rng.random() < candidate))
        return replace(seen(30, {}, {}), scores=scores, num_scores=(num, num))

    def test_silence_holds(self) -> None:
        found = verdict(self.scored(0.9, 0.9, 9), spec=self.spec)
        assert found.kind is VerdictKind.HOLD
        assert "scored 9 answers of stable" in found.reason

    def test_scores_as_good_go_on(self) -> None:
        assert verdict(self.scored(0.9, 0.9, 100), spec=self.spec).kind is VerdictKind.ADVANCE

    def test_worse_scores_roll_back(self) -> None:
        found = verdict(self.scored(0.9, 0.6, 200), spec=self.spec)
        assert found.kind is VerdictKind.ROLL_BACK
        assert "score 0.58 against 0.89" in found.reason


def test_a_rollout_comes_back_from_json_as_it_was() -> None:
    rollout = at(seen(40, {}, {"per_token_s": 0.021}, STEP_TIMES), 40, step=2)
    again = Rollout.from_json(json.loads(json.dumps(rollout.to_json())))
    assert again.to_json() == rollout.to_json()
    ended = rollout.ended(RolloutState.ROLLED_BACK, "by hand", now=12.5)
    assert Rollout.from_json(json.loads(json.dumps(ended.to_json()))).ended_at == 12.5
    assert decide(again) == decide(rollout)
    block = Block.of([], [], ())
    assert decide(replace(again, evidence=again.evidence.plus(block))) == decide(
        replace(rollout, evidence=rollout.evidence.plus(block))
    )


@pytest.mark.parametrize("steps", [(), (0.0, 50.0), (50.0, 25.0), (50.0, 101.0), (5.0, 5.0)])
def test_steps_rise_from_above_0_to_100_at_most(steps: tuple[float, ...]) -> None:
    with pytest.raises(InvalidRequest, match="rising percents"):
        replace(SPEC, steps=steps).checked()
