"""The router's choices: exact shares, the least work, the same beginning to the same replica."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

import pytest

from jupyter_dsserve.fleet.router import SmoothShares, estimated_tokens, least_loaded, prefix_of, ruled
from jupyter_dsserve.protocol.policy import Rule
from jupyter_dsserve.protocol.request import Message, Pair, Request, SamplingParams, Texts

WEIGHTS = [
    {"v1": 95.0, "v2": 5.0},
    {"v1": 99.0, "v2": 1.0},
    {"v1": 50.0, "v2": 50.0},
    {"v1": 90.0, "v2": 10.0},
    {"v1": 34.0, "v2": 33.0, "v3": 33.0},
    {"v1": 80.0, "v2": 13.0, "v3": 7.0},
    *({"v1": 100.0 - w, "v2": float(w)} for w in range(2, 50, 3)),
]


@dataclass(frozen=True)
class Replica:
    id: str
    outstanding_tokens: int


def picks(weights: dict[str, float], num: int) -> list[str]:
    shares = SmoothShares()
    return [shares.next(weights) or "" for _ in range(num)]


class TestShares:
    @pytest.mark.parametrize("weights", WEIGHTS, ids=str)
    def test_any_hundred_picks_in_a_row_have_exactly_the_weights(self, weights: dict[str, float]) -> None:
        taken = picks(weights, 350)
        for start in range(250):
            assert Counter(taken[start : start + 100]) == weights

    def test_a_small_share_is_spread_evenly_and_begins_in_its_middle(self) -> None:
        taken = [i for i, name in enumerate(picks({"v1": 95.0, "v2": 5.0}, 100)) if name == "v2"]
        assert {later - earlier for earlier, later in pairwise(taken)} == {20}
        assert 5 <= taken[0] <= 15

    def test_weights_that_are_no_whole_percents_are_met_within_one_pick(self) -> None:
        counted = Counter(picks({"v1": 100 - 33.333, "v2": 33.333}, 3000))
        assert abs(counted["v2"] - 999.99) <= 1

    def test_a_change_starts_it_anew_and_a_version_that_is_away_is_left_out(self) -> None:
        shares = SmoothShares()
        for _ in range(7):
            shares.next({"v1": 95.0, "v2": 5.0})
        assert {shares.next({"v1": 95.0}) for _ in range(20)} == {"v1"}
        after = [shares.next({"v1": 50.0, "v2": 50.0}) for _ in range(10)]
        assert Counter(after) == {"v1": 5, "v2": 5}
        assert Counter(shares.next({"v2": 20.0, "v3": 80.0}) for _ in range(10)) == {"v2": 2, "v3": 8}
        assert shares.next({}) is None


class TestReplicas:
    def test_the_least_outstanding_work_is_taken_not_the_fewest_requests(self) -> None:
        assert least_loaded([Replica("a", 900), Replica("b", 100)], turn=0).id == "b"

    def test_equals_take_turns(self) -> None:
        equals = [Replica("a", 5), Replica("b", 5), Replica("busy", 6)]
        assert [least_loaded(equals, turn).id for turn in range(4)] == ["a", "b", "a", "b"]

    def test_of_many_two_are_drawn_and_it_stays_nearly_even(self) -> None:
        loads = dict.fromkeys(map(str, range(50)), 0)
        draw = random.Random(1).randrange
        for turn in range(5000):
            chosen = least_loaded([Replica(id, tokens) for id, tokens in loads.items()], turn, draw=draw)
            loads[chosen.id] += 1
        assert max(loads.values()) - min(loads.values()) <= 12  # drawing one at random: 40 and more

    def test_prompts_with_one_beginning_go_to_one_replica_unless_much_more_work_is_on_it(self) -> None:
        idle = [Replica("a", 0), Replica("b", 0), Replica("c", 0)]
        homes = {prefix: least_loaded(idle, 0, prefix).id for prefix in map(str, range(100))}
        assert set(homes.values()) == {"a", "b", "c"}
        assert all(least_loaded(idle, turn, "7").id == homes["7"] for turn in range(5))
        some = [Replica(r.id, 1000 if r.id == homes["7"] else 0) for r in idle]
        assert least_loaded(some, 0, "7").id == homes["7"]
        much = [Replica(r.id, 9000 if r.id == homes["7"] else 1000) for r in idle]
        assert least_loaded(much, 0, "7").id != homes["7"]


class TestRequests:
    def test_two_prompts_have_one_prefix_if_they_begin_alike(self) -> None:
        system = "You are a careful assistant. " * 20
        chats = [(Message("system", system), Message("user", said)) for said in ("hello", "good bye")]
        assert prefix_of(Request("1", chats[0])) == prefix_of(Request("2", chats[1])) != ""
        assert prefix_of(Request("1", system + "a")) == prefix_of(Request("2", system + "b")) != ""
        assert prefix_of(Request("1", tuple(range(70)))) == prefix_of(Request("2", tuple(range(80)))) != ""
        assert prefix_of(Request("1", "a" * 100)) != prefix_of(Request("2", "b" * 100))

    def test_short_prompts_and_other_tasks_have_none(self) -> None:
        for prompt in ("hello", (1, 2, 3), (Message("user", "hi"),), Texts(("a" * 999,)), ()):
            assert prefix_of(Request("1", prompt)) == ""

    def test_work_is_estimated_from_length_and_limit(self) -> None:
        limit = SamplingParams(max_tokens=50)
        assert estimated_tokens(Request("1", "x" * 400, limit)) == (101, 50)
        assert estimated_tokens(Request("1", tuple(range(400)), limit)) == (401, 50)
        assert estimated_tokens(Request("1", (Message("user", "x" * 40),), limit)) == (11, 50)
        assert estimated_tokens(Request("1", Texts(("x" * 40, (1, 2))))) == (14, 0)
        assert estimated_tokens(Request("1", Texts((Pair("x" * 40, "y" * 80),)))) == (32, 0)
        assert estimated_tokens(Request("1", "x"))[1] > 100


class TestRules:
    RULES = (Rule("X-User-Group", "beta", "v2"), Rule("X-User-Group", "inner", "v3"))

    def test_the_first_rule_that_fits_names_the_version(self) -> None:
        assert ruled(self.RULES, {"X-User-Group": "inner"}, {"v1", "v2", "v3"}) == "v3"
        assert ruled(self.RULES, {"X-User-Group": "other"}, {"v1", "v2", "v3"}) is None
        assert ruled(self.RULES, {}, {"v1", "v2"}) is None

    def test_a_version_that_takes_nothing_is_not_named(self) -> None:
        assert ruled(self.RULES, {"X-User-Group": "beta"}, {"v1"}) is None
