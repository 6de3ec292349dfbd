"""Tests that may be looked at after every second: e-processes. Pure; their state is arrays, so that many run at once.

An e-process starts at 1 and, while its null hypothesis holds, exceeds 1/alpha at *any* time with probability alpha at
most (Ville's inequality). So looking again and again inflates nothing. Each class here is one null hypothesis, and
``log_e`` the logarithm of its e-process. Arrays have the shape of the runs, ``[]`` for one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

# Blocks of 1, 2, 4 … 2^11 times the shortest.
_LEVELS = 12
# A block length has a say once there are so many blocks of it.
_MIN_BLOCKS = 32
# Precisions of the mixture over effects: for noise from some per cent to a factor of two in each block.
_RHOS = np.array([0.01, 0.1, 1.0])


_FURTHEST = 5.0  # a factor of 150: beyond it a bound says nothing
_DOUBLINGS = 12  # from a thousandth of it


@dataclass(frozen=True, slots=True)
class PairedMean:
    """Differences, one for each block of time, weighted. Null hypothesis: their mean is ``limit`` at most.

    For differences ``x`` that, given the past, lie symmetrically around ``limit`` or less, ``exp(λS − λ²V/2)``
    with ``S`` the sum of ``w(x − limit)`` and ``V`` the sum of its squares is a supermartingale for every ``λ ≥ 0``,
    whatever their spread and however it changes (de la Peña 1999; Howard, Ramdas, McAuliffe and Sekhon 2021,
    «Time-uniform, nonparametric, nonasymptotic confidence sequences», whose one-sided normal mixture over ``λ`` is
    taken here, averaged over three precisions). Differences that hang together in time break «given the past»: so ``V``
    is multiplied by what that adds to the variance of a sum. It is estimated around the mean, from batch means (blocks
    of 2, 4, 8, … times the length, as far as there are 32 of a length; Flyvbjerg and Petersen 1989) and from the
    correlation of neighbours, whichever is more. So the guarantee is exact for independent blocks, and for others as
    good as this estimate.

    ``num`` counts blocks, with nothing in them or not; ``sums`` ``[…, 2]`` are Σw and Σwx; ``open`` ``[…, levels, 2]``
    the same within the block that is being filled, by length; ``squares`` ``[…, levels, 3]`` are Σu², Σuv, Σv² over
    full blocks, where u and v are a block's Σw and Σwx; ``last`` and ``lagged`` are the last block with something in it
    and the same products between neighbours of these, ``[…, 3]``.
    """

    num: int
    sums: Array
    open: Array
    squares: Array
    last: Array
    lagged: Array

    @staticmethod
    def new(*runs: int) -> PairedMean:
        return PairedMean(
            0,
            np.zeros((*runs, 2)),
            np.zeros((*runs, _LEVELS, 2)),
            np.zeros((*runs, _LEVELS, 3)),
            np.zeros((*runs, 2)),
            np.zeros((*runs, 3)),
        )

    def plus(self, difference: ArrayLike, weight: ArrayLike) -> PairedMean:
        """With one block more; a ``weight`` of 0 is a block in which there was nothing to compare."""
        weight = np.asarray(weight, np.float64)
        pair = np.stack([weight, weight * np.asarray(difference, np.float64)], axis=-1)
        num = self.num + 1
        open_, squares = self.open + pair[..., None, :], self.squares.copy()
        closing = [level for level in range(_LEVELS) if num % (1 << level) == 0]
        u, v = open_[..., closing, 0], open_[..., closing, 1]
        squares[..., closing, :] += np.stack([u * u, u * v, v * v], axis=-1)
        open_[..., closing, :] = 0.0
        u, v, before_u, before_v = pair[..., 0], pair[..., 1], self.last[..., 0], self.last[..., 1]
        lagged = self.lagged + np.stack([u * before_u, (u * before_v + v * before_u) / 2, v * before_v], axis=-1)
        last = np.where((weight > 0)[..., None], pair, self.last)
        return PairedMean(num, self.sums + pair, open_, squares, last, lagged)

    @property
    def mean(self) -> Array:
        """The weighted mean of the differences; 0 before there is one."""
        return np.divide(self.sums[..., 1], self.sums[..., 0], out=np.zeros(self.sums.shape[:-1]), where=self._has_any)

    def log_e(self, limit: ArrayLike) -> Array:
        """Against «the mean is ``limit`` at most»."""
        return self._log_e(np.asarray(limit, np.float64), self._inflation())

    def _log_e(self, limit: Array, inflation: Array) -> Array:
        total = self.sums[..., 1] - limit * self.sums[..., 0]
        # The sum of squares around the limit, with what correlation in time adds.
        variance = (_around(limit, self.squares[..., 0, :]) * inflation)[..., None]
        scaled = np.square(total)[..., None] / (variance + _RHOS)
        # 2Φ(x) ≥ 2 − exp(−x²/2) for x ≥ 0, which spares the error function.
        tail = np.log(2.0 - np.exp(-scaled / 2))
        logs = 0.5 * np.log(_RHOS / (variance + _RHOS)) + scaled / 2 + tail
        mixed = np.logaddexp.reduce(logs, axis=-1) - np.log(len(_RHOS))
        return np.where(total > 0, mixed, -np.inf)

    def lower_bound(self, alpha: float) -> Array:
        """The largest limit that is ruled out at ``alpha``, at most `_FURTHEST` below the mean; minus infinity if none
        is. The mean lies below it at any time with probability ``alpha`` at most.

        Where blocks are few and alike, a limit far below the mean is ruled out by less evidence than a nearer one (its
        squares are larger too): so it is searched from the mean downwards, the distance doubling.
        """
        enough, inflation = -np.log(alpha), self._inflation()
        high = low = self.mean
        has_any = np.zeros(self.mean.shape, np.bool_)
        for distance in _FURTHEST * 0.5 ** np.arange(_DOUBLINGS, -1, -1):
            high, low = np.where(has_any, high, low), np.where(has_any, low, self.mean - distance)
            has_any = has_any | (self._log_e(low, inflation) >= enough)
        for _ in range(20):
            middle = (low + high) / 2
            is_out = self._log_e(middle, inflation) >= enough
            low, high = np.where(is_out, middle, low), np.where(is_out, high, middle)
        return np.where(has_any, low, -np.inf)

    @property
    def _has_any(self) -> NDArray[np.bool_]:
        return self.sums[..., 0] > 0

    def _inflation(self) -> Array:
        """By how much correlation in time multiplies the variance of the sum; 1 at least."""
        mean, num_levels = self.mean, max(1, (self.num // _MIN_BLOCKS).bit_length())
        by_length = [_around(mean, self.squares[..., level, :]) for level in range(min(num_levels, _LEVELS))]
        shortest = by_length[0]
        # (1 + r) / (1 − r) for a first-order autoregression with the correlation r between neighbours.
        r = np.clip(_ratio(_around(mean, self.lagged), shortest), 0.0, 0.8)
        return np.maximum.reduce([np.ones_like(r), (1 + r) / (1 - r), *(_ratio(v, shortest) for v in by_length[1:])])


def _around(middle: Array, squares: Array) -> Array:
    """The sum of (v − middle · u)², or of products of two such, from the sums ``[…, 3]`` of u², uv and v²."""
    u2, uv, v2 = np.moveaxis(squares, -1, 0)
    return np.asarray(v2 - 2 * middle * uv + np.square(middle) * u2)


def _ratio(a: Array, b: Array) -> Array:
    """0 where there is nothing to divide by."""
    return np.divide(a, b, out=np.zeros_like(a), where=b > 0)


# A prior of one request that saw as many errors as a healthy service does, so that the first error is no verdict.
_PRIOR_RATE, _PRIOR_NUM = 0.02, 5.0
# The most that a block adds: requests that fail together (a worker that dies takes all of its own along) are not
# independent, so no single block may decide.
_MAX_GAIN = 3.0
_CERTAIN = 1e6  # not infinity, which JSON does not know


@dataclass(frozen=True, slots=True)
class ErrorRates:
    """Errors of two versions, block by block. Null hypothesis: in each block the candidate's error rate is stable's
    plus ``margin`` at most, whatever they are and however they change from block to block.

    Exact for independent requests, no large numbers needed: in each block the e-value is the likelihood of the rates
    seen *before*, over that of the pair of rates in the null hypothesis that lies nearest to them (Turner, Ly and
    Grünwald 2021, «Generic e-variables for exact sequential k-sample tests that allow for optional stopping»; with a
    margin: Turner and Grünwald 2023, «Exact anytime-valid confidence intervals for contingency tables and beyond»).
    It is cut off at e³, and stays an e-value: a burst of errors in one block is no verdict.

    ``errors`` and ``requests`` ``[…, 2]`` are totals, stable's first; ``logs`` ``[…]`` the logarithm of the e-process.
    """

    margin: float
    errors: Array
    requests: Array
    logs: Array

    @staticmethod
    def new(margin: float, *runs: int) -> ErrorRates:
        return ErrorRates(margin, np.zeros((*runs, 2)), np.zeros((*runs, 2)), np.zeros(runs))

    def plus(self, errors: ArrayLike, requests: ArrayLike) -> ErrorRates:
        """With one block more: counts ``[…, 2, strata]``, stable's first. A stratum in which one of them has no request
        is left out."""
        both, failed = np.asarray(requests, np.float64), np.asarray(errors, np.float64)
        shared = both.min(axis=-2, keepdims=True) > 0
        both, failed = np.where(shared, both, 0.0), np.where(shared, failed, 0.0)
        seen = (self.errors + _PRIOR_RATE * _PRIOR_NUM) / (self.requests + _PRIOR_NUM)
        gain = np.minimum(_log_e_value(failed, both, seen, self.margin).sum(axis=-1), _MAX_GAIN)
        return ErrorRates(
            self.margin, self.errors + failed.sum(axis=-1), self.requests + both.sum(axis=-1), self.logs + gain
        )

    def log_e(self) -> Array:
        return self.logs

    @property
    def rates(self) -> Array:
        """``[…, 2]``, stable's first; 0 before there was a request."""
        return np.divide(self.errors, self.requests, out=np.zeros_like(self.errors), where=self.requests > 0)


def _log_e_value(errors: Array, requests: Array, seen: Array, margin: float) -> Array:
    """``[…, strata]``; ``seen`` ``[…, 2]`` are the rates that are bet on."""
    p, c = seen[..., 0, None], seen[..., 1, None]
    num_p, num_c = requests[..., 0, :], requests[..., 1, :]
    q = _nearest(num_p, num_c, p, c, margin)
    is_bet = (c > p + margin) & (num_p > 0)
    q = np.where(is_bet, q, p)
    c, qc = np.where(is_bet, c, 0.5), np.where(is_bet, q + margin, 0.5)
    of_p = errors[..., 0, :] * np.log(p / q) + (num_p - errors[..., 0, :]) * np.log((1 - p) / (1 - q))
    of_c = errors[..., 1, :] * np.log(c / qc) + (num_c - errors[..., 1, :]) * np.log((1 - c) / (1 - qc))
    return np.where(is_bet, of_p + of_c, 0.0)


def _nearest(num_p: Array, num_c: Array, p: Array, c: Array, margin: float) -> Array:
    """The rate q for which (q, q + margin) has the least Kullback-Leibler divergence from (p, c), by bisection."""
    low, high = p + 0 * num_p, np.maximum(c - margin, p) + 0 * num_p
    for _ in range(40):
        q = (low + high) / 2
        slope = num_p * (q - p) / (q * (1 - q)) + num_c * (q + margin - c) / ((q + margin) * (1 - q - margin))
        low, high = np.where(slope < 0, q, low), np.where(slope < 0, high, q)
    return (low + high) / 2


@dataclass(frozen=True, slots=True)
class ErrorRate:
    """Errors of one version, block by block. Null hypothesis: its error rate is ``limit`` at most.

    As `ErrorRates`, with a limit that is known. ``errors``, ``requests`` and ``logs`` are ``[…]``.
    """

    limit: float
    errors: Array
    requests: Array
    logs: Array

    @staticmethod
    def new(limit: float, *runs: int) -> ErrorRate:
        return ErrorRate(limit, *(np.zeros(runs) for _ in range(3)))

    def plus(self, errors: Array, requests: Array) -> ErrorRate:
        """With one block more."""
        seen = (self.errors + self.limit * _PRIOR_NUM) / (self.requests + _PRIOR_NUM)
        is_bet = (seen > self.limit) & (self.limit > 0)
        c, limit = np.where(is_bet, seen, 0.5), np.where(is_bet, self.limit, 0.5)
        gain = errors * np.log(c / limit) + (requests - errors) * np.log((1 - c) / (1 - limit))
        logs = self.logs + np.minimum(gain, _MAX_GAIN)
        # Nothing is possible under a limit of 0 but no error at all.
        logs = np.where((errors > 0) & (self.limit == 0), _CERTAIN, logs)
        return ErrorRate(self.limit, self.errors + errors, self.requests + requests, logs)

    def log_e(self) -> Array:
        return self.logs


@dataclass(frozen=True, slots=True)
class Bets:
    """Pairs of scores from 0 to 1, stable's and the candidate's. Null hypothesis: the candidate's score is stable's
    minus ``margin`` at least, on average given the past.

    A gambler who bets against it with what she learnt from earlier pairs and never goes broke (Waudby-Smith and Ramdas
    2024, «Estimating means of bounded random variables by betting»): exact, for any scores.

    ``totals`` are the sums of stable's and of the candidate's scores; ``squares`` Σ(z − m)², z the pair as one number.
    """

    margin: float
    num: int = 0
    totals: tuple[float, float] = (0.0, 0.0)
    squares: float = 0.0
    logs: float = 0.0

    def plus(self, stable: float, candidate: float) -> Bets:
        """With one pair more."""
        # z in [0, 1]; its mean is m at most if the candidate is good enough.
        z, m = (stable - candidate + 1) / 2, (self.margin + 1) / 2
        lead = (self.totals[0] - self.totals[1] - self.num * self.margin) / 2
        stake = min(max(lead / (self.squares + 0.25), 0.0), 0.5 / m)
        return Bets(
            self.margin,
            self.num + 1,
            (self.totals[0] + stable, self.totals[1] + candidate),
            self.squares + (z - m) ** 2,
            self.logs + float(np.log1p(stake * (z - m))),
        )

    def log_e(self) -> float:
        return self.logs
