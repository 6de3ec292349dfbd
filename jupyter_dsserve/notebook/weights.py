"""Sliders that together always make 100."""

from __future__ import annotations

import math
from collections.abc import Mapping


def balanced(weights: Mapping[str, int], moved: str, value: int) -> dict[str, int]:
    """The weights after ``moved`` was set to ``value``: the others share the rest as they did before.

    Whole percents that sum to 100, by the largest remainder; where the others had nothing they share it equally.
    ``moved`` alone is always 100.
    """
    others = [name for name in weights if name != moved]
    if not others:
        return {moved: 100}
    value = min(max(value, 0), 100)
    total = sum(weights[name] for name in others)
    exact = {name: (100 - value) * (weights[name] / total if total else 1 / len(others)) for name in others}
    whole = {name: math.floor(share) for name, share in exact.items()}
    left = 100 - value - sum(whole.values())
    for name in sorted(others, key=lambda n: whole[n] - exact[n])[:left]:
        whole[name] += 1
    return {name: value if name == moved else whole[name] for name in weights}


def whole_percents(weights: Mapping[str, float]) -> dict[str, int]:
    """``weights`` (that sum to 100) in whole percents that do, by the largest remainder."""
    whole = {name: math.floor(share) for name, share in weights.items()}
    left = round(sum(weights.values())) - sum(whole.values())
    for name in sorted(weights, key=lambda n: whole[n] - weights[n])[:left]:
        whole[name] += 1
    return whole
