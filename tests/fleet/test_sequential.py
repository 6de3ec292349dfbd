"""The tests of a rollout keep what they promise: by enumeration where that can be, else over many runs."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest

from jupyter_dsserve.fleet.sequential import Bets, ErrorRate, ErrorRates, PairedMean, _log_e_value

ALPHA = 0.01
LIMIT = np.log(1 / ALPHA)


def crossed(differences: np.ndarray, limit: float, weights: float | np.ndarray = 0.6) -> np.ndarray:
    """Which of the runs ``[runs, blocks]`` are ever ruled out at `ALPHA`, and after how many blocks (0: never)."""
    runs, blocks = differences.shape
    paired, when = PairedMean.new(runs), np.zeros(runs)
    for block in range(blocks):
        weight = weights if isinstance(weights, float) else weights[:, block]
        paired = paired.plus(differences[:, block], np.broadcast_to(weight, runs))
        when = np.where((when == 0) & (paired.log_e(limit) >= LIMIT), block + 1, when)
    return when


def autoregressive(runs: int, blocks: int, phi: float, rng: np.random.Generator) -> np.ndarray:
    x = np.empty((runs, blocks))
    x[:, 0] = rng.normal(size=runs)
    for block in range(1, blocks):
        x[:, block] = phi * x[:, block - 1] + np.sqrt(1 - phi**2) * rng.normal(size=runs)
    return x


class TestPairedMean:
    @pytest.mark.parametrize(("phi", "share"), [(0.0, ALPHA), (0.5, ALPHA), (0.8, 3 * ALPHA)])
    def test_a_mean_at_the_limit_is_hardly_ever_ruled_out_although_it_is_looked_at_all_the_time(
        self, phi: float, share: float
    ) -> None:
        """Nor with noise that hangs together from block to block; at a correlation of 0.8 a little more often."""
        noise = autoregressive(1000, 300, phi, np.random.default_rng(1))
        assert (crossed(0.05 + 0.2 * noise, 0.05) > 0).mean() <= share

    def test_noise_that_changes_its_size_is_no_evidence(self) -> None:
        rng = np.random.default_rng(2)
        sizes = np.exp(rng.normal(0, 1, (1000, 300)).cumsum(axis=1) / 10)
        assert (crossed(sizes * rng.standard_t(3, (1000, 300)), 0.0) > 0).mean() <= ALPHA

    def test_a_mean_over_the_limit_is_found(self) -> None:
        noise = np.random.default_rng(3).normal(size=(200, 300))
        when = crossed(0.18 + 0.2 * noise, 0.05)
        assert (when > 0).mean() > 0.99
        assert np.median(when[when > 0]) < 80

    def test_no_effect_is_so_large_that_few_blocks_prove_it(self) -> None:
        """A slow start of some seconds is no slow version."""
        assert crossed(np.full((1, 12), 3.0), 0.05).item() == 0
        assert crossed(np.full((1, 40), 3.0), 0.05).item() > 0

    def test_blocks_with_nothing_to_compare_change_nothing(self) -> None:
        rng = np.random.default_rng(4)
        paired = dense = PairedMean.new()
        for difference in rng.normal(0.2, 0.1, 20):
            dense = dense.plus(difference, 0.5)
            paired = paired.plus(difference, 0.5).plus(123.0, 0.0)
        assert float(paired.mean) == pytest.approx(float(dense.mean))
        assert float(paired.log_e(0.05)) == pytest.approx(float(dense.log_e(0.05)))

    def test_the_lower_bound_is_where_the_test_turns(self) -> None:
        paired = PairedMean.new()
        for difference in np.random.default_rng(5).normal(0.3, 0.1, 60):
            paired = paired.plus(difference, 0.6)
        bound = float(paired.lower_bound(ALPHA))
        assert 0.05 < bound < float(paired.mean)
        assert float(paired.log_e(bound - 1e-3)) > LIMIT > float(paired.log_e(bound + 1e-3))

    def test_few_blocks_that_are_alike_have_a_bound_as_soon_as_they_rule_a_limit_out(self) -> None:
        """Although limits far below are ruled out by less: it is not to be searched from there."""
        rng, paired = np.random.default_rng(6), PairedMean.new()
        while float(paired.log_e(0.05)) < LIMIT:
            paired = paired.plus(rng.normal(0.7, 0.02), 0.6)
        assert float(paired.log_e(-4.0)) < LIMIT
        bound = float(paired.lower_bound(ALPHA))
        assert 0.05 < bound < float(paired.mean)
        assert float(paired.log_e(bound - 1e-3)) > LIMIT > float(paired.log_e(bound + 1e-3))

    def test_without_evidence_there_is_no_bound(self) -> None:
        assert float(PairedMean.new().lower_bound(ALPHA)) == -np.inf
        assert float(PairedMean.new().mean) == 0.0


class TestErrorRates:
    @pytest.mark.parametrize("counts", [(3, 1), (20, 1), (5, 5), (1, 4)])
    @pytest.mark.parametrize("seen", [(0.02, 0.1), (0.01, 0.5), (0.2, 0.6)])
    def test_the_expected_e_value_is_1_at_most_for_every_pair_of_rates_within_the_margin(
        self, counts: tuple[int, int], seen: tuple[float, float]
    ) -> None:
        """Exactly, over all outcomes of a block."""
        outcomes = [(k, j) for k in range(counts[0] + 1) for j in range(counts[1] + 1)]
        requests = np.array([[[counts[0]], [counts[1]]]], float)
        errors = np.array([[[k], [j]] for k, j in outcomes], float)
        values = np.exp(_log_e_value(errors, requests, np.array(seen), 0.01)).sum(axis=-1)
        for stable in np.linspace(0, 0.99, 23):
            for candidate in np.linspace(0, min(1.0, stable + 0.01), 7):
                chances = [
                    comb(counts[0], k)
                    * stable**k
                    * (1 - stable) ** (counts[0] - k)
                    * comb(counts[1], j)
                    * candidate**j
                    * (1 - candidate) ** (counts[1] - j)
                    for k, j in outcomes
                ]
                assert np.dot(chances, values) <= 1 + 1e-6

    def test_the_first_errors_are_no_verdict_but_many_are(self) -> None:
        rates = ErrorRates.new(0.01)
        for _ in range(2):
            rates = rates.plus([[0], [1]], [[20], [1]])
        assert float(rates.log_e()) < LIMIT
        for _ in range(10):
            rates = rates.plus([[0], [1]], [[20], [2]])
        assert float(rates.log_e()) > LIMIT

    def test_a_worker_that_takes_twenty_requests_along_is_no_verdict(self) -> None:
        rates = ErrorRates.new(0.01).plus([[0], [1]], [[20], [1]]).plus([[0], [20]], [[20], [20]])
        assert 0 < float(rates.log_e()) < LIMIT

    def test_a_stratum_that_only_one_of_them_has_is_left_out(self) -> None:
        rates = ErrorRates.new(0.01).plus([[0, 5], [0, 0]], [[9, 9], [2, 0]])
        assert rates.errors.tolist() == [0, 0]
        assert rates.requests.tolist() == [9, 2]


class TestErrorRate:
    def crossed(self, rate: float, limit: float, runs: int = 500) -> float:
        """The share of the runs in which the limit is ruled out within 300 blocks of two requests."""
        rng, found = np.random.default_rng(7), ErrorRate.new(limit, runs)
        is_out = np.zeros(runs, bool)
        for _ in range(300):
            found = found.plus(rng.binomial(2, rate, runs).astype(float), np.full(runs, 2.0))
            is_out |= found.log_e() >= LIMIT
        return float(is_out.mean())

    def test_a_rate_at_the_limit_is_hardly_ever_ruled_out(self) -> None:
        assert self.crossed(0.1, 0.1) <= 2 * ALPHA  # of 500 runs
        assert self.crossed(0.05, 0.1) == 0

    def test_a_rate_over_it_is_found(self) -> None:
        assert self.crossed(0.2, 0.1) > 0.9

    def test_one_error_is_too_many_for_a_limit_of_0(self) -> None:
        clean = ErrorRate.new(0.0).plus(np.array(0.0), np.array(50.0))
        assert float(clean.log_e()) == 0
        assert float(clean.plus(np.array(1.0), np.array(1.0)).log_e()) > 1000


class TestBets:
    def run(self, stable: float, candidate: float, seed: int, num: int = 300) -> bool:
        rng, bets = np.random.default_rng(seed), Bets(0.05)
        for _ in range(num):
            bets = bets.plus(float(rng.random() < stable), float(rng.random() < candidate))
            if bets.log_e() >= LIMIT:
                return True
        return False

    def test_scores_at_the_margin_are_hardly_ever_ruled_out(self) -> None:
        assert sum(self.run(0.85, 0.80, seed) for seed in range(300)) <= 0.02 * 300

    def test_worse_scores_are_found(self) -> None:
        assert sum(self.run(0.9, 0.6, seed) for seed in range(50)) >= 48
