"""The route's claims: pure functions, no processes."""

from __future__ import annotations

import pytest

from jupyter_dsserve.fleet.route import Route
from jupyter_dsserve.fleet.stats import Served, Window, percentile
from jupyter_dsserve.parent import backoff_s
from jupyter_dsserve.protocol.errors import InvalidRequest

KEYS = [f"user-{i}" for i in range(10_000)]
BOTH = {"v1", "v2"}


def share(route: Route, name: str) -> float:
    return 100 * sum(route.pick(key, BOTH) == name for key in KEYS) / len(KEYS)


def test_shares_follow_the_weights() -> None:
    # 10,000 draws at 10 %: the standard deviation is 0.3 points
    assert share(Route({"v1": 90, "v2": 10}), "v2") == pytest.approx(10, abs=1.2)
    assert share(Route({"v1": 100}), "v1") == 100


def test_a_key_keeps_its_version_while_weights_stand() -> None:
    assert all(
        Route({"v1": 60, "v2": 40}, 1).pick(key, BOTH) == Route({"v1": 60, "v2": 40}, 9).pick(key, BOTH) for key in KEYS
    )


def test_a_change_of_weights_moves_only_as_many_keys_as_it_must() -> None:
    before, after = Route({"v1": 90, "v2": 10}), Route({"v1": 80, "v2": 20})
    moves = {(before.pick(key, BOTH), after.pick(key, BOTH)) for key in KEYS}
    assert ("v2", "v1") not in moves
    moved = sum(before.pick(key, BOTH) != after.pick(key, BOTH) for key in KEYS)
    assert 100 * moved / len(KEYS) == pytest.approx(10, abs=1.5)


def test_only_ready_versions_with_weight_are_picked() -> None:
    route = Route({"v1": 90, "v2": 10})
    assert {route.pick(key, {"v2", "v3"}) for key in KEYS} == {"v2"}
    assert route.pick("k", {"v3"}) is None
    assert Route().pick("k", BOTH) is None


@pytest.mark.parametrize(
    ("weights", "named"),
    [
        ({"v1": 90, "v2": 20}, "110"),
        ({"v1": -10, "v2": 110}, "-10"),
        ({}, "no version"),
        ({"v1": float("nan")}, "nan"),
        ({"v1": float("inf")}, "inf"),
    ],
)
def test_weights_that_are_no_split_of_100_are_refused_with_their_sum(weights: dict[str, float], named: str) -> None:
    with pytest.raises(InvalidRequest, match=named):
        Route().replaced(weights)


def test_a_new_route_has_the_next_revision_and_no_zero_weights() -> None:
    assert Route({}, 4).replaced({"v1": 33.333, "v2": 66.667, "v3": 0}) == Route({"v1": 33.333, "v2": 66.667}, 5)


def test_a_version_that_leaves_gives_its_share_to_the_ready_ones_in_proportion() -> None:
    route = Route({"v1": 60, "v2": 30, "v3": 10}, 1)
    assert route.without("v1", {"v1", "v2", "v3"}) == Route({"v2": 75, "v3": 25}, 2)
    assert route.without("v1", {"v2"}) == Route({"v2": 100}, 2)
    assert route.without("v1", {"v1"}) == Route({}, 2)
    assert route.without("other", {"v2"}) is route


def test_backoff_doubles_up_to_half_a_minute() -> None:
    assert [backoff_s(n) for n in (1, 2, 3, 4)] == [0.5, 1, 2, 4]
    assert backoff_s(50) == 30


def test_percentiles_are_nearest_ranks() -> None:
    values = [float(i) for i in range(1, 101)]
    assert [percentile(values, p) for p in (0.5, 0.95, 0.99, 0, 1)] == [50, 95, 99, 1, 100]
    assert percentile([7.0], 0.99) == 7
    assert percentile([], 0.5) is None


def test_the_window_forgets_what_is_old_and_leaves_errors_out_of_latencies() -> None:
    window = Window()
    window.add(Served(0.0, 9.0, 1.0, 5, is_error=False))
    window.add(Served(20.0, 1.0, 0.1, 5, is_error=False))
    window.add(Served(20.0, 0.0, None, 0, is_error=True))
    assert [s.latency_s for s in window.good(now=31.0)] == [1.0]
    assert (window.requests, window.errors) == (3, 1)


def test_the_window_stays_small_although_nobody_looks() -> None:
    window = Window()
    for at in range(10_000):
        window.add(Served(float(at), 1.0, 0.1, 5, is_error=False))
        window.add_tokens(float(at), 1)
    assert (len(window._served), len(window._tokens)) == (31, 6)


def test_tokens_per_second_are_those_of_the_last_seconds() -> None:
    window = Window()
    for at in range(10):
        window.add_tokens(float(at), 10)
    assert window.tokens_per_s(now=9.0) == pytest.approx(12)  # those at 4, 5, … 9
    assert window.tokens_per_s(now=100.0) == 0
