"""Sliders always make 100."""

from __future__ import annotations

import itertools

import pytest

from jupyter_dsserve.notebook.weights import balanced, whole_percents


@pytest.mark.parametrize(
    ("weights", "moved", "value", "after"),
    [
        ({"v1": 90, "v2": 10}, "v2", 30, {"v1": 70, "v2": 30}),
        ({"v1": 90, "v2": 10}, "v1", 0, {"v1": 0, "v2": 100}),
        ({"v1": 60, "v2": 30, "v3": 10}, "v3", 40, {"v1": 40, "v2": 20, "v3": 40}),
        ({"v1": 100, "v2": 0, "v3": 0}, "v1", 50, {"v1": 50, "v2": 25, "v3": 25}),
        ({"v1": 33, "v2": 33, "v3": 34}, "v3", 33, {"v1": 34, "v2": 33, "v3": 33}),
        ({"v1": 100}, "v1", 20, {"v1": 100}),
        ({"v1": 50, "v2": 50}, "v1", 130, {"v1": 100, "v2": 0}),
    ],
)
def test_the_others_share_the_rest_as_before(
    weights: dict[str, int], moved: str, value: int, after: dict[str, int]
) -> None:
    assert balanced(weights, moved, value) == after


def test_they_sum_to_100_wherever_they_are_moved_and_none_is_negative() -> None:
    for shares in itertools.product(range(0, 101, 7), repeat=3):
        if sum(shares) > 100:
            continue
        weights = dict(zip("abcd", (*shares, 100 - sum(shares)), strict=True))
        for value in (0, 1, 33, 50, 99, 100):
            after = balanced(weights, "b", value)
            assert sum(after.values()) == 100
            assert min(after.values()) >= 0
            assert after["b"] == value
            assert list(after) == list(weights)


def test_weights_that_are_not_whole_are_shown_as_whole_ones_that_sum_to_100() -> None:
    assert whole_percents({"v1": 100 / 3, "v2": 100 / 3, "v3": 100 / 3}) == {"v1": 34, "v2": 33, "v3": 33}
    assert whole_percents({"v1": 99.5, "v2": 0.5}) in ({"v1": 100, "v2": 0}, {"v1": 99, "v2": 1})
    assert whole_percents({"v1": 0.0, "v2": 0.0}) == {"v1": 0, "v2": 0}
