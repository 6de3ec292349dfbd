"""The figures of a point, from outcomes made by hand."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import pytest

from jupyter_dsserve.bench.measure import Quantiles, Window, mean_in_flight, meets, point_of, tokens_within
from jupyter_dsserve.bench.outcome import End, Outcome
from jupyter_dsserve.bench.plan import Load, Slo

LOAD = Load("concurrency", 2)
WINDOW = Window(10.0, 20.0)


def outcome(
    asked: float, ended: float, pieces: Sequence[float] = (), end: End = "answered", error: str = ""
) -> Outcome:
    return Outcome(asked, ended, end, array("d", pieces), 5, len(pieces), error)


def test_a_quantile_lies_between_the_two_nearest_values() -> None:
    assert Quantiles.of([3, 1, 2]) == Quantiles(2, pytest.approx(2.9), pytest.approx(2.98))
    assert Quantiles.of(range(101)) == Quantiles(50, 95, 99)
    assert Quantiles.of([7, None]) == Quantiles(7, 7, 7)
    assert Quantiles.of([]) == Quantiles(None, None, None)


def test_latencies_are_of_what_was_asked_in_the_window_followed_to_its_end() -> None:
    warm, late = outcome(9.9, 12, [10, 11]), outcome(19, 25, [22, 24])
    point = point_of(LOAD, [warm, outcome(11, 13, [12, 13]), late, outcome(20, 21, [20.5])], WINDOW, Slo())
    assert point.answered == 2
    assert point.latency_s.p50 == 4
    assert point.first_token_s.p50 == 2
    assert point.per_token_s.p50 == point.gap_s.p50 == 1.5
    assert point.requests_per_s == pytest.approx(2 / 10), "two ended within the window"


def test_an_error_and_an_unfinished_request_are_counted_and_are_no_latency() -> None:
    bad = [outcome(11, 11.1, end="failed", error=kind) for kind in ("HTTP 500", "HTTP 429", "HTTP 500")]
    good = outcome(12, 14, [13, 14])
    point = point_of(LOAD, [*bad, good, outcome(13, 99, [14, 15], end="cut")], WINDOW, Slo())
    assert point.errors == {"HTTP 500": 2, "HTTP 429": 1}
    assert (point.answered, point.unfinished) == (1, 1)
    assert point.latency_s == Quantiles(2, 2, 2)
    assert point.requests_per_s == pytest.approx(0.1)


def test_goodput_is_what_kept_every_limit() -> None:
    slo = Slo(first_token_s=1.0, per_token_s=0.5, latency_s=10)
    good = outcome(11, 13, [12, 12.5, 13])
    slow_start = outcome(11, 13, [12.1, 12.6, 13])
    slow_tokens = outcome(11, 14, [12, 13, 14])
    too_long = outcome(11, 21.5, [12, 12.1])
    failed = outcome(11, 12, [11.5, 11.6], end="failed", error="broken off")
    one, none = outcome(11, 12, [12]), outcome(11, 12)
    everything = [good, slow_start, slow_tokens, too_long, failed, one, none]
    assert [meets(o, slo) for o in everything] == [True, False, False, False, False, True, False]
    assert point_of(LOAD, everything, WINDOW, slo).goodput_per_s == pytest.approx(2 / 10)
    assert point_of(LOAD, everything, WINDOW, Slo()).goodput_per_s is None


def test_tokens_flow_when_they_come_whoevers_they_are() -> None:
    """Two of these four came within the window, each piece being three tokens."""
    told = Outcome(5, 21, "answered", array("d", [9, 10, 15, 20.1]), 5, 12)
    assert tokens_within([told], WINDOW) == 6
    cut = Outcome(12, 21, "cut", array("d", [13, 14]))
    assert tokens_within([told, cut], WINDOW) == 12, "an answer that was cut has three tokens a piece, as the other"
    assert tokens_within([cut], WINDOW) == 2


def test_in_flight_is_the_mean_over_the_window() -> None:
    both, half, outside = outcome(0, 30), outcome(15, 25), outcome(1, 9)
    assert mean_in_flight([both, half, outside], WINDOW) == pytest.approx(1.5)


def test_with_a_number_of_requests_only_so_many_are_followed() -> None:
    asked = [outcome(10 + i, 11 + i, [10.5 + i]) for i in (3, 0, 2, 1)]
    assert point_of(LOAD, asked, WINDOW, Slo(), most=3).answered == 3
