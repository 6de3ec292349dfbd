"""From what became of each request to the figures of a point. Pure functions.

Two things are counted. What flows (tokens/s, requests/s, requests in flight) is what happened within the window,
whoever's it was. What a request saw (latencies, errors, goodput) is that of the requests asked within the window,
followed to their end after it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np

from jupyter_dsserve.bench.outcome import Outcome
from jupyter_dsserve.bench.plan import Load, Slo


@dataclass(frozen=True, slots=True)
class Quantiles:
    """In the unit of what was measured; None if there was nothing to measure."""

    p50: float | None = None
    p95: float | None = None
    p99: float | None = None

    @staticmethod
    def of(values: Iterable[float | None]) -> Quantiles:
        """Linear between the two nearest values (numpy's default; method 7 of Hyndman and Fan, 1996)."""
        given = [value for value in values if value is not None]
        return Quantiles(*(float(p) for p in np.percentile(given, [50, 95, 99]))) if given else Quantiles()


@dataclass(frozen=True, slots=True)
class Window:
    """The seconds that count, of the clock of the outcomes. ``lag_s``: how late the one who asks was awake meanwhile
    (p95): so much the latencies are too long. ``is_warm``: the first wave had ended before."""

    start_s: float
    end_s: float
    lag_s: float = 0.0
    is_warm: bool = True

    @property
    def length_s(self) -> float:
        return max(self.end_s - self.start_s, 1e-9)


@dataclass(frozen=True, slots=True)
class Point:
    """What was measured at one load. Counts are of the requests asked in the window; ``unfinished`` ones were not
    answered when the test ended, and are in no latency, as errors are not. ``errors`` counts by kind.

    ``per_token_s``: a token after the first, each request's average. ``gap_s``: between two pieces of text of an
    answer, all gaps together. ``in_flight``: on average. ``goodput_per_s``: requests a second that kept the SLO; None
    without one. ``prompt_tokens`` and ``output_tokens`` are means of the answered ones. The last two: see `Window`.
    """

    load: Load
    window_s: float
    answered: int
    errors: dict[str, int]
    unfinished: int
    output_tokens_per_s: float
    requests_per_s: float
    goodput_per_s: float | None
    first_token_s: Quantiles
    per_token_s: Quantiles
    gap_s: Quantiles
    latency_s: Quantiles
    in_flight: float
    prompt_tokens: float | None
    output_tokens: float | None
    lag_s: float
    is_warm: bool

    @property
    def num_counted(self) -> int:
        return self.answered + sum(self.errors.values()) + self.unfinished


def point_of(load: Load, outcomes: Sequence[Outcome], window: Window, slo: Slo, most: int = 0) -> Point:
    """The figures of ``outcomes``; with ``most`` only so many of those asked in the window are followed."""
    asked = followed(outcomes, window, most)
    answered = [o for o in asked if o.end == "answered"]
    length_s = window.length_s
    within = sum(o.end == "answered" and window.start_s <= o.ended_s <= window.end_s for o in outcomes)
    return Point(
        load=load,
        window_s=length_s,
        answered=len(answered),
        errors=dict(Counter(o.error for o in asked if o.end == "failed").most_common()),
        unfinished=sum(o.end == "cut" for o in asked),
        output_tokens_per_s=tokens_within(outcomes, window) / length_s,
        requests_per_s=within / length_s,
        goodput_per_s=sum(meets(o, slo) for o in answered) / length_s if slo != Slo() else None,
        first_token_s=Quantiles.of(o.first_token_s for o in answered),
        per_token_s=Quantiles.of(o.per_token_s for o in answered),
        gap_s=Quantiles.of(gap for o in answered for gap in np.diff(o.piece_s).tolist()),
        latency_s=Quantiles.of(o.latency_s for o in answered),
        in_flight=mean_in_flight(outcomes, window),
        prompt_tokens=_mean(o.prompt_tokens for o in answered),
        output_tokens=_mean(o.num_tokens for o in answered),
        lag_s=window.lag_s,
        is_warm=window.is_warm,
    )


def followed(outcomes: Sequence[Outcome], window: Window, most: int = 0) -> list[Outcome]:
    """Those asked in the window, in that order; with ``most`` only so many."""
    asked = sorted((o for o in outcomes if window.start_s <= o.asked_s < window.end_s), key=lambda o: o.asked_s)
    return asked[: most or None]


def tokens_within(outcomes: Sequence[Outcome], window: Window) -> float:
    """Output tokens that came within the window. A piece may be several tokens: the answer's are spread evenly over its
    pieces, and an answer that was cut has as many a piece as the others."""
    whole = [o for o in outcomes if o.end == "answered" and o.output_tokens is not None and o.piece_s]
    num_pieces = sum(len(o.piece_s) for o in whole)
    usual = sum(o.num_tokens for o in whole) / num_pieces if num_pieces else 1.0
    total = 0.0
    for outcome in outcomes:
        pieces = np.asarray(outcome.piece_s)
        within = int(np.count_nonzero((pieces >= window.start_s) & (pieces <= window.end_s)))
        if within:
            is_told = outcome.end == "answered" and outcome.output_tokens is not None
            total += within * (outcome.num_tokens / len(pieces) if is_told else usual)
    return total


def mean_in_flight(outcomes: Sequence[Outcome], window: Window) -> float:
    """Requests that were under way at once, on average over the window."""
    busy_s = (min(o.ended_s, window.end_s) - max(o.asked_s, window.start_s) for o in outcomes)
    return sum(max(0.0, seconds) for seconds in busy_s) / window.length_s


def meets(outcome: Outcome, slo: Slo) -> bool:
    """Whether an answer kept every limit of the SLO. One of a single token has no time per token to break."""
    if slo.first_token_s is not None and outcome.first_token_s is None:
        return False
    pairs = ((getattr(outcome, f.name), getattr(slo, f.name)) for f in fields(Slo))
    return outcome.end == "answered" and all(took is None or most is None or took <= most for took, most in pairs)


def _mean(values: Iterable[int | None]) -> float | None:
    given = [value for value in values if value is not None]
    return sum(given) / len(given) if given else None
