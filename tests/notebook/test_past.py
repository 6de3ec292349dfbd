"""What a panel remembers of what happened."""

from __future__ import annotations

from jupyter_dsserve.notebook.past import Past, in_words
from jupyter_dsserve.protocol.records import Event


def event(id: int, kind: str, at: float = 0.0, deployment: str = "demo", version: str = "", reason: str = "") -> Event:
    return Event(id, at, kind, deployment, version, reason=reason)


def test_each_event_is_kept_once_in_its_order_however_often_it_is_told() -> None:
    past = Past("demo")
    assert past.add([event(2, "ready"), event(3, "route")])
    assert past.add([event(1, "loading"), event(2, "ready")])
    assert not past.add([event(3, "route")])
    assert [e.id for e in past.newest(2)] == [3, 2]
    assert [e.id for e in past.newest(50)] == [3, 2, 1]


def test_events_of_other_deployments_are_left_out_and_those_of_the_gateway_are_not() -> None:
    past = Past("demo")
    past.add([event(1, "ready", deployment="other"), event(2, "registry_failed", deployment="")])
    assert [e.id for e in past.newest(5)] == [2]


def test_only_the_last_ones_are_kept() -> None:
    past = Past("demo")
    for id in range(1000):
        past.add([event(id, "ready")])
    assert [e.id for e in past.newest(1000)] == list(range(999, 799, -1))


def test_a_step_of_a_rollout_and_the_route_it_makes_are_one_mark() -> None:
    past = Past("demo")
    past.add(
        [
            event(1, "route", 100.0),
            event(2, "route", 110.0),
            event(3, "rollout_step", 110.001, version="v2", reason="to 25 %"),
            event(4, "ready", 111.0),
            event(5, "rollout_rolled_back", 120.0, version="v2", reason="slower"),
        ]
    )
    marks = past.marks(since=0)
    assert [(m.at, m.word) for m in marks] == [(100, "route"), (110.001, "step"), (120, "rollback")]
    assert marks[1].text == "rollout step v2: to 25 %"
    assert [m.word for m in past.marks(since=115)] == ["rollback"]


def test_an_event_in_words_names_the_replica_or_the_version() -> None:
    assert in_words(event(1, "rollout_step", version="v2")) == "rollout step v2"
    assert in_words(Event(1, 0.0, "replica_lost", "demo", "v1", "demo@v1#0")) == "replica lost v1#0"
    assert in_words(event(1, "route")) == "route"
