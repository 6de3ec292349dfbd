"""Samples for a check come in equal numbers, and its scores are paired."""

from __future__ import annotations

from collections import Counter

from jupyter_dsserve.fleet import scoring as module
from jupyter_dsserve.fleet.scoring import Scoring


def offered(stable: int, candidate: int) -> Scoring:
    scoring = Scoring("v1", "v2")
    for version, num in (("v1", stable), ("v2", candidate)):
        for index in range(num):
            scoring.offer(version, f"prompt {index}", f"answer {index}")
    return scoring


async def test_as_many_samples_of_one_version_as_of_the_other() -> None:
    scoring = offered(20, 3)
    samples = await scoring.samples(0.01)
    assert Counter(s.version for s in samples) == {"v1": 3, "v2": 3}
    assert await scoring.samples(0.01) == []


async def test_old_samples_go_when_nobody_takes_them() -> None:
    samples = await offered(1000, 1000).samples(0.01)
    assert len(samples) == 2 * module._MAX_WAITING
    assert samples[-1].answer == "answer 999"


async def test_scores_are_paired_as_they_come_and_unknown_ones_left_out() -> None:
    scoring = offered(2, 2)
    stable_1, candidate_1, stable_2, candidate_2 = (s.id for s in await scoring.samples(0.01))
    assert scoring.scored({stable_1: 1.0, stable_2: 0.8, 12345: 0.1}) == []
    assert scoring.scored({candidate_2: 0.5}) == [(1.0, 0.5)]
    assert scoring.scored({candidate_2: 0.5}) == []  # it was scored already
    assert scoring.scored({candidate_1: 0.2}) == [(0.8, 0.2)]


async def test_who_waits_is_let_go_when_the_rollout_is_over() -> None:
    scoring = offered(1, 0)
    scoring.wake()
    assert await scoring.samples(10) == []


async def test_a_late_score_of_another_rollouts_check_counts_for_nothing() -> None:
    earlier, later = offered(2, 2), offered(2, 2)
    late = {sample.id: 1.0 for sample in await earlier.samples(0.01)}
    assert late.keys().isdisjoint(sample.id for sample in await later.samples(0.01))
    assert later.scored(late) == []
    assert max(late) < 2**53
