"""Rollouts of made-up traffic, many at once: how often, how soon and after how many requests a candidate is taken back.

    python -m tests.fleet.simulation --runs 1000 --out docs/gray-release-simulation.md

The tests and the rules are those of `fleet/rollout.py`, on arrays of runs. Made up are the requests: Poisson arrivals,
split by the route's weights; batches by Little's law from the load that a version has, spread by 30 %; a step time of
``step_s + per_seq_s × batch``; log-normal noise of each request; noise of each second that both versions share, and
noise of its own for each, both autoregressive; step times measured in WARMING with an error.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path

import numpy as np

from jupyter_dsserve.fleet.observations import (
    NUM_BATCHES,
    NUM_ERROR_STRATA,
    NUM_PROMPTS,
    Block,
    error_stratum,
    log_step_s,
)
from jupyter_dsserve.fleet.rollout import Counts, Evidence, RolloutSpec, is_ruled_out, may_advance
from jupyter_dsserve.fleet.sequential import Array

_FINE = 3  # batches within a half octave
_BATCHES = np.exp2((np.arange(NUM_BATCHES * _FINE) + 0.5) / (2 * _FINE))
_SPREAD = 0.3
_PROMPT_SHARES = np.array([0.5, 0.3, 0.2, 0.0, 0.0])
_PROMPT_COST = np.array([0.0, 0.02, 0.08, 0.3, 1.0])  # seconds on top of the first step
_NOISE_TOKENS, _NOISE_FIRST = 0.25, 0.4
_TOKENS = 60  # of an answer


@dataclass(frozen=True, slots=True)
class Scenario:
    """``rate`` is requests a second over both versions; ``slower`` the candidate's step time over stable's; ``errors``
    the two rates; ``shared`` and ``own`` noise of a second, as correlation with the second before and size."""

    name: str
    is_worse: bool = False
    rate: float = 20.0
    slower: float = 1.0
    errors: tuple[float, float] = (0.005, 0.005)
    step_s: float = 0.01
    per_seq_s: float = 0.0005
    shared: tuple[float, float] = (0.7, 0.1)
    own: tuple[float, float] = (0.0, 0.03)
    step_time_error: float = 0.03
    bursts: float = 1.0  # the rate's factor in five of thirty seconds
    slow_start: tuple[float, float] = (0.0, 1.0)  # so many seconds with so many times the latency
    spec: RolloutSpec = field(default_factory=partial(RolloutSpec, "v2"))
    max_s: int = 600


SCENARIOS = (
    Scenario("no difference"),
    Scenario("identical code, 5 % beside 95 %", per_seq_s=0.002, spec=RolloutSpec("v2", steps=(5.0, 100.0))),
    Scenario(
        "identical code, steps up to 90 %", per_seq_s=0.002, spec=RolloutSpec("v2", steps=(10.0, 50.0, 90.0, 100.0))
    ),
    Scenario("latency +4 %, within the margin", slower=1.04),
    Scenario("noise that both share", shared=(0.9, 0.5)),
    Scenario("latencies correlated from second to second (0.5)", own=(0.5, 0.1)),
    Scenario("latencies correlated from second to second (0.8)", own=(0.8, 0.1)),
    Scenario("thin traffic (one request in 2 s)", rate=0.5),
    Scenario("bursts (fivefold for 5 of 30 s)", bursts=5.0),
    Scenario("slow start (8 s at 1.5 times)", slow_start=(8.0, 1.5)),
    Scenario("errors 3 % on both", errors=(0.03, 0.03)),
    Scenario("errors 7 % on both, max_error_rate 10 %", errors=(0.07, 0.07)),
    Scenario("latency +10 %", True, slower=1.10),
    Scenario("latency +10 %, 100 requests/s", True, slower=1.10, rate=100.0),
    Scenario("latency +20 %", True, slower=1.20),
    Scenario("latency +20 %, 100 requests/s", True, slower=1.20, rate=100.0),
    Scenario("latency +50 %", True, slower=1.50),
    Scenario(
        "latency +30 %, steps of 5 s and 20 requests",
        True,
        rate=50.0,
        slower=1.30,
        spec=RolloutSpec("v2", interval_s=5.0, min_requests=20),
    ),
    Scenario("errors 1 % → 5 %", True, errors=(0.01, 0.05)),
    Scenario("errors 1 % → 5 %, 100 requests/s", True, errors=(0.01, 0.05), rate=100.0),
    Scenario("errors 1 % → 20 %", True, errors=(0.01, 0.20)),
)


@dataclass(frozen=True, slots=True)
class Result:
    """Of all runs, ``[runs]``: seconds until it was over (NaN: never), and the candidate's requests by then."""

    scenario: Scenario
    is_rolled_back: Array
    is_promoted: Array
    over_s: Array
    exposed: Array

    @property
    def rolled_back(self) -> float:
        return float(self.is_rolled_back.mean())

    @property
    def promoted(self) -> float:
        return float(self.is_promoted.mean())

    def row(self) -> str:
        def median(values: Array, which: Array) -> str:
            return f"{np.median(values[which]):,.0f}" if which.any() else "–"

        back, over = self.is_rolled_back, self.is_rolled_back | self.is_promoted
        cells = (
            self.scenario.name,
            f"{100 * back.mean():.1f} %" if self.scenario.is_worse else "",
            "" if self.scenario.is_worse else f"{100 * back.mean():.1f} %",
            f"{100 * self.is_promoted.mean():.1f} %",
            f"{median(self.exposed, back)}" if self.scenario.is_worse else "",
            median(self.over_s, over),
        )
        return f"| {' | '.join(cells)} |"


HEAD = (
    "| scenario | detected | false rollbacks | promoted | requests of the candidate before the rollback, median "
    "| seconds to the decision, median |\n|---|---|---|---|---|---|"
)


def simulate(scenario: Scenario, num_runs: int, seed: int = 0) -> Result:
    rng, spec = np.random.default_rng(seed), scenario.spec
    traffic = _Traffic(scenario, num_runs, rng)
    evidence = Evidence.new(spec, num_runs)
    step, at_step_s = np.zeros(num_runs, int), np.zeros(num_runs)
    back, promoted = np.zeros(num_runs, bool), np.zeros(num_runs, bool)
    over_s, exposed = np.full(num_runs, np.nan), np.zeros(num_runs)
    for second in range(scenario.max_s):
        block = traffic.second(second, np.array(spec.steps)[step] / 100)
        evidence, at_step_s = evidence.plus(block), at_step_s + 1
        is_running = ~(back | promoted)
        exposed += np.where(is_running, block.requests[:, 1].sum(axis=-1), 0)
        back |= is_running & np.any(
            list(np.broadcast_arrays(*is_ruled_out(spec, evidence, at_step_s).values())), axis=0
        )
        goes_on = is_running & ~back & may_advance(spec, evidence, at_step_s, np.array(spec.steps)[step])
        promoted |= goes_on & (step >= len(spec.steps) - 1)
        over_s = np.where(np.isnan(over_s) & (back | promoted), second + 1, over_s)
        step = np.where(goes_on & ~promoted, step + 1, step)
        at_step_s = np.where(goes_on, 0.0, at_step_s)
        evidence = replace(evidence, counts=_begun_again(evidence.counts, goes_on))
        if (back | promoted).all():
            break
    return Result(scenario, back, promoted, over_s, exposed)


def _begun_again(counts: Counts, which: Array) -> Counts:
    return Counts(*(getattr(counts, each.name) * ~which for each in fields(counts)))


class _Traffic:
    """The requests of one second after the other, for all runs."""

    def __init__(self, scenario: Scenario, num_runs: int, rng: np.random.Generator) -> None:
        self._s, self._num_runs, self._rng = scenario, num_runs, rng
        self._shared = _Noise(*scenario.shared, (num_runs, 1), rng)
        self._own = _Noise(*scenario.own, (num_runs, 2), rng)
        sizes = np.array([1, 2, 4, 8, 16])
        off = rng.normal(0, scenario.step_time_error, (num_runs, len(sizes)))
        measured = np.log(self._step_s(sizes) * scenario.slower) + off
        times = [list(zip(sizes, np.exp(of_run), strict=True)) for of_run in measured]
        self._log_measured = np.array([[log_step_s(t, b) for b in _BATCHES] for t in times])  # [runs, batches]

    def _step_s(self, batch: Array) -> Array:
        return self._s.step_s + self._s.per_seq_s * batch

    def second(self, second: int, weight: Array) -> Block:
        s, rng = self._s, self._rng
        rate = s.rate * (s.bursts if second % 30 < 5 else 1.0)
        rates = rate * np.stack([1 - weight, weight], axis=-1)  # [runs, 2]
        batch = self._batch(rates)
        spread = np.exp(-0.5 * np.square((np.log(_BATCHES) - np.log(batch)[..., None]) / _SPREAD))
        spread /= spread.sum(axis=-1, keepdims=True)
        shares = rates[..., None, None] * spread[..., None] * _PROMPT_SHARES  # [runs, 2, batches, prompts]
        asked = rng.poisson(shares)
        failed = rng.binomial(asked, np.array(s.errors)[:, None, None])
        num = (asked - failed).astype(float)
        slower = np.array([1.0, s.slower * (s.slow_start[1] if second < s.slow_start[0] else 1.0)])[:, None, None]
        noise = (self._shared.next() + self._own.next())[..., None, None]
        step_s = self._step_s(_BATCHES)[:, None] * slower  # [2, batches, 1]
        per_token = np.log(step_s) + noise - self._log_measured[:, None, :, None]
        first = np.log(2 * step_s + _PROMPT_COST * slower) + noise
        tokens = num * per_token + np.sqrt(num) * _NOISE_TOKENS * rng.normal(size=num.shape)
        firsts = num * first + np.sqrt(num) * _NOISE_FIRST * rng.normal(size=num.shape)
        sums = [_by_stratum(num), _by_stratum(firsts), _by_stratum(num), _by_stratum(tokens)]
        return Block(*sums, num.sum(axis=2), tokens.sum(axis=2), *_errors(asked, failed, batch))

    def _batch(self, rates: Array) -> Array:
        """What a version's load makes of it: requests a second times the seconds of one."""
        batch = np.ones_like(rates)
        for _ in range(20):
            batch = np.maximum(1.0, rates * _TOKENS * self._step_s(batch))
            batch = np.minimum(batch, 100.0)
        return batch


class _Noise:
    def __init__(self, phi: float, size: float, shape: tuple[int, ...], rng: np.random.Generator) -> None:
        self._phi, self._size, self._rng = phi, size, rng
        self._now = size * rng.normal(size=shape)

    def next(self) -> Array:
        fresh = self._size * np.sqrt(1 - self._phi**2) * self._rng.normal(size=self._now.shape)
        self._now = self._phi * self._now + fresh
        return self._now


def _by_stratum(values: Array) -> Array:
    """``[runs, 2, batches, prompts]`` to ``[runs, 2, strata]``."""
    runs, sides = values.shape[:2]
    return values.reshape(runs, sides, NUM_BATCHES, _FINE, NUM_PROMPTS).sum(axis=3).reshape(runs, sides, -1)


def _errors(asked: Array, failed: Array, batch: Array) -> tuple[Array, Array]:
    """Requests and errors by stratum of errors: all of a version are on as many as its batch has."""
    found = []
    levels = np.array([error_stratum(int(b), 0) // NUM_PROMPTS for b in batch.ravel()]).reshape(batch.shape)
    for counts in (asked, failed):
        by_prompt = counts.sum(axis=2)  # [runs, 2, prompts]
        placed = np.zeros((*batch.shape, NUM_ERROR_STRATA // NUM_PROMPTS, NUM_PROMPTS))
        np.put_along_axis(placed, levels[..., None, None], by_prompt[..., None, :], axis=2)
        found.append(placed.reshape(*batch.shape, -1))
    return found[0], found[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000, help="How many rollouts of each scenario.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="Scenarios whose name contains this.")
    parser.add_argument("--out", type=Path, help="Where the table is written too.")
    given = parser.parse_args()
    lines = [HEAD]
    sys.stdout.write(HEAD + "\n")
    for scenario in SCENARIOS:
        if given.only in scenario.name:
            lines.append(simulate(scenario, given.runs, given.seed).row())
            sys.stdout.write(lines[-1] + "\n")
            sys.stdout.flush()
    if given.out:
        given.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
