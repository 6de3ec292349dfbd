"""The breaker, the token bucket and the retry budget: state machines whose time the tests turn."""

from __future__ import annotations

from typing import Any

import pytest

from jupyter_dsserve.fleet.breaker import Breaker, BreakerSettings, Door, Outcome
from jupyter_dsserve.fleet.limits import TokenBucket, num_retries_left

OK, FAULT, OTHER = Outcome.OK, Outcome.FAULT, Outcome.OTHER


def told(breaker: Breaker, *outcomes: Outcome, now: float = 0.0) -> Breaker:
    for outcome in outcomes:
        assert breaker.allows(now)
        breaker.end(breaker.begin(now), outcome, now)
    return breaker


def opened(at: float = 0.0) -> Breaker:
    return told(Breaker(BreakerSettings()), *[FAULT] * 5, now=at)


class TestBreaker:
    def test_five_failures_in_a_row_open_it_for_half_a_minute(self) -> None:
        breaker = told(Breaker(BreakerSettings()), *[FAULT] * 4)
        assert breaker.allows(0)
        told(breaker, FAULT, now=7)
        assert (breaker.door, breaker.allows(36.9), breaker.open_s(17)) == (Door.OPEN, False, 20)
        assert breaker.allows(37)

    def test_an_answer_in_between_starts_the_row_anew(self) -> None:
        assert told(Breaker(BreakerSettings()), *[FAULT] * 4, OK, *[FAULT] * 4).door is Door.CLOSED

    def test_half_of_the_last_answers_open_it_once_there_are_twenty(self) -> None:
        assert told(Breaker(BreakerSettings()), *[OK, FAULT] * 9).door is Door.CLOSED
        assert told(Breaker(BreakerSettings()), *[OK, FAULT] * 10).door is Door.OPEN
        old = told(Breaker(BreakerSettings()), *[OK] * 100, *[OK, FAULT] * 50)  # only the last hundred count
        assert old.door is Door.OPEN

    def test_what_the_caller_did_counts_as_neither(self) -> None:
        assert told(Breaker(BreakerSettings()), *[FAULT] * 4, *[OTHER] * 50, FAULT).door is Door.OPEN
        assert told(Breaker(BreakerSettings()), *[OTHER] * 50).door is Door.CLOSED

    def test_half_open_lets_one_through_at_a_time_and_two_successes_close_it(self) -> None:
        breaker = opened()
        first = breaker.begin(30)
        assert (breaker.door, breaker.allows(31)) == (Door.HALF_OPEN, False)
        breaker.end(first, OK, 31)
        assert (breaker.door, breaker.allows(31)) == (Door.HALF_OPEN, True)
        assert told(breaker, OK, now=31).door is Door.CLOSED

    def test_a_failure_while_half_open_opens_it_again(self) -> None:
        breaker = told(opened(), FAULT, now=30)
        assert (breaker.door, breaker.allows(59), breaker.allows(60)) == (Door.OPEN, False, True)

    def test_a_caller_who_leaves_while_half_open_gives_the_place_to_the_next(self) -> None:
        breaker = told(opened(), OTHER, now=30)
        assert (breaker.door, breaker.allows(30)) == (Door.HALF_OPEN, True)

    def test_a_late_answer_of_an_older_generation_is_ignored(self) -> None:
        breaker = Breaker(BreakerSettings())
        late = [breaker.begin(0) for _ in range(3)]
        told(breaker, *[FAULT] * 5)
        breaker.end(late[0], OK, 1)
        assert breaker.door is Door.OPEN
        trial = breaker.begin(30)
        breaker.end(late[1], FAULT, 31)
        assert (breaker.door, breaker.allows(31)) == (Door.HALF_OPEN, False)
        breaker.end(trial, OK, 32)
        told(breaker, OK, now=32)
        for _ in range(5):
            breaker.end(late[2], FAULT, 33)
        assert breaker.door is Door.CLOSED

    def test_zeros_switch_it_off(self) -> None:
        never = Breaker(BreakerSettings(max_failures=0, failure_share=0))
        assert told(never, *[FAULT] * 200).door is Door.CLOSED


class TestBucket:
    def test_a_burst_goes_through_and_then_the_rate(self) -> None:
        bucket = TokenBucket(10, 50, now=0)
        assert [bucket.take(0) for _ in range(50)] == [0] * 50
        assert bucket.take(0) == pytest.approx(0.1)
        taken = sum(bucket.take(i / 100) == 0 for i in range(1, 1001))  # ten seconds, a hundred calls in each
        assert taken == pytest.approx(100, abs=1)

    def test_what_is_not_used_adds_up_to_the_burst_and_no_further(self) -> None:
        bucket = TokenBucket(10, 3, now=0)
        assert [bucket.take(1000) == 0 for _ in range(4)] == [True] * 3 + [False]

    def test_without_a_burst_it_is_a_seconds_worth(self) -> None:
        assert [TokenBucket(rate, 0, 0).burst for rate in (20, 0.5)] == [20, 1]


def test_the_retry_budget_is_a_share_of_what_is_in_flight_and_a_few_in_any_case() -> None:
    budget: dict[str, Any] = {"share": 0.2, "at_least": 3}
    assert num_retries_left(num_retrying=2, num_in_flight=1, **budget) == 1
    assert num_retries_left(num_retrying=3, num_in_flight=1, **budget) == 0
    assert num_retries_left(num_retrying=19, num_in_flight=100, **budget) == 1
    assert num_retries_left(num_retrying=25, num_in_flight=100, **budget) == 0
