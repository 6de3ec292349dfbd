"""Lengths, prompts and arrivals are what they claim to be, and the same every time."""

from __future__ import annotations

import itertools
import math
import random
import statistics

import pytest

from jupyter_dsserve.bench.plan import Lengths, Plan
from jupyter_dsserve.bench.workload import WORDS, Scale, Task, arrivals, length, tasks

ONE = Scale(0, 1)


def some(plan: Plan, point: int = 0, num: int = 200, scale: Scale = ONE) -> list[Task]:
    return list(itertools.islice(tasks(plan, point, scale), num))


def drawn(text: str, num: int = 5000) -> list[int]:
    lengths, draw = Lengths.read(text), random.Random(1)
    return [length(lengths, draw) for _ in range(num)]


def test_a_fixed_length_is_that_length() -> None:
    assert set(drawn("77")) == {77}


def test_a_uniform_length_takes_each_value_alike() -> None:
    found = drawn("10-19")
    assert set(found) == set(range(10, 20))
    assert all(400 < found.count(n) < 600 for n in range(10, 20))


def test_a_lognormal_length_has_its_median_its_spread_and_its_bounds() -> None:
    found = drawn("lognormal:64:0.8:16-256")
    assert statistics.median(found) == pytest.approx(64, rel=0.05)
    assert (min(found), max(found)) == (16, 256)
    free = [math.log(n) for n in drawn("lognormal:1000:0.5:1-1000000")]
    assert statistics.stdev(free) == pytest.approx(0.5, rel=0.05)


def test_two_runs_of_a_seed_ask_the_same_and_another_seed_or_point_something_else() -> None:
    plan = Plan.read(prompt_tokens="16-64", output_tokens="lognormal:32:0.5:8-64", seed=3)
    assert some(plan) == some(plan)
    assert some(plan) != some(plan, point=1)
    assert some(plan) != some(Plan.read(prompt_tokens="16-64", output_tokens="lognormal:32:0.5:8-64", seed=4))


def test_prompts_are_of_the_asked_length_in_the_servers_tokens() -> None:
    """A word is 2.5 tokens here, and a chat's template adds 10."""
    scale = Scale.measured((16, 50), (80, 210))
    assert scale == Scale(10, 2.5)
    (task,) = some(Plan.read(prompt_tokens=110), num=1, scale=scale)
    assert len(task.prompt.split()) == 40
    assert set(task.prompt.split()) <= set(WORDS)


def test_no_prompt_is_empty_and_a_server_that_counts_nonsense_changes_nothing() -> None:
    assert Scale(100, 1).num_words(5) == 1
    assert Scale.measured((16, 30), (80, 30)) == Scale()


def test_prompts_begin_differently_so_that_no_prefix_cache_helps() -> None:
    beginnings = {" ".join(task.prompt.split()[:4]) for task in some(Plan.read(prompt_tokens=32))}
    assert len(beginnings) == 200


def test_arrivals_are_a_poisson_process_of_the_rate() -> None:
    """Exponential gaps: mean and standard deviation are both 1/rate, a share 1 - 1/e is shorter than the mean, and one
    gap says nothing about the next."""
    times = list(itertools.islice(arrivals(rate=20, seed=0, point=0), 5001))
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert statistics.mean(gaps) == pytest.approx(1 / 20, rel=0.05)
    assert statistics.stdev(gaps) == pytest.approx(1 / 20, rel=0.05)
    assert sum(gap < 1 / 20 for gap in gaps) / len(gaps) == pytest.approx(1 - 1 / math.e, abs=0.02)
    assert abs(statistics.correlation(gaps[:-1], gaps[1:])) < 0.05
    counts = [sum(second <= t < second + 1 for t in times) for second in range(200)]
    assert statistics.variance(counts) == pytest.approx(statistics.mean(counts), rel=0.3)


def test_arrivals_are_the_same_for_a_seed() -> None:
    first, again, other = (list(itertools.islice(arrivals(5, seed, 0), 50)) for seed in (1, 1, 2))
    assert first == again != other
