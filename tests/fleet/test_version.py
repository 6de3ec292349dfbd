"""Which replica of a version takes a request, and what is said if none does."""

from __future__ import annotations

import asyncio

import pytest

from jupyter_dsserve.fleet.observations import Watch
from jupyter_dsserve.fleet.replica import Replica
from jupyter_dsserve.fleet.version import Version
from jupyter_dsserve.protocol import codec
from jupyter_dsserve.protocol import worker_pb2 as pb
from jupyter_dsserve.protocol.errors import DeadlineExceeded, TooManyRequests, Unavailable
from jupyter_dsserve.protocol.policy import Policy
from jupyter_dsserve.protocol.records import Origin, VersionState
from jupyter_dsserve.protocol.request import Chunk, FinishReason, Request
from jupyter_dsserve.protocol.spec import WorkerSpec
from tests.support import until

SHORT = Request("r", "hello")
LONG = [Request("r", f"{number} is what this long prompt begins with, and so do others. " * 3) for number in range(20)]


def version(num_replicas: int = 3, runner: str = "toy", **policy: float) -> Version:
    made = Version("demo", "v1", WorkerSpec("toy:"), "toy:", num_replicas, Origin(), 0.0, is_wanted=True)
    made.road.set_policy(Policy().changed(policy), 0.0)
    for index in range(num_replicas):
        replica = Replica(f"demo@v1#{index}", "digest", lambda _: None)
        replica.state, replica.runner = VersionState.READY, runner
        made.replicas.append(replica)
    return made


def found(version: Version, request: Request = SHORT, lost: Replica | None = None) -> Replica:
    replica = version._find(request, lost)
    assert replica
    return replica


def test_only_replicas_that_are_ready_and_well_and_not_the_one_that_lost_it_are_asked() -> None:
    made = version(4)
    loading, troubled, lost, well = made.replicas
    loading.state, troubled.trouble = VersionState.LOADING, "silent for 3.0 s"
    assert {found(made, lost=lost) for _ in range(5)} == {well}
    assert {found(made) for _ in range(5)} == {well, lost}


def test_a_full_one_is_passed_over_and_when_all_are_full_one_waits() -> None:
    made = version(2, max_in_flight=1)
    first, second = made.replicas
    first._in_flight = {"r": None}  # type: ignore[dict-item]
    assert {found(made) for _ in range(5)} == {second}
    second._in_flight = {"r": None}  # type: ignore[dict-item]
    assert made._find(SHORT, None) is None
    assert made.takes


async def test_what_ends_in_line_or_for_want_of_a_replica_is_an_error_of_the_version() -> None:
    gone, full = version(0), version(1, max_in_flight=1, max_queue=0)
    slow = version(1, max_in_flight=1, queue_timeout_s=0.01)
    for made, kind in ((gone, Unavailable), (full, TooManyRequests), (slow, DeadlineExceeded)):
        for replica in made.replicas:
            replica._in_flight = {"r": None}  # type: ignore[dict-item]
        with pytest.raises(kind):
            await anext(made.generate(SHORT))
        assert (made.window.requests, made.window.errors) == (1, 1), kind
    assert slow.window.totals.queued_s.sum >= 0.01


def test_if_none_takes_requests_the_refusal_says_why_of_each() -> None:
    made = version(2)
    for replica in made.replicas:
        replica.trouble = "silent for 3.0 s"
    assert not made.takes
    with pytest.raises(Unavailable, match=r"demo@v1#0: silent for 3\.0 s; demo@v1#1: silent for 3\.0 s"):
        made._find(SHORT, None)
    made.replicas.clear()
    with pytest.raises(Unavailable, match="demo@v1 is QUEUED"):
        made._find(SHORT, None)


@pytest.mark.parametrize("set_by", ["is_awaited", "queue_timeout_s"])
def test_one_that_is_awaited_is_waited_for_until_it_fails_or_is_unloaded(set_by: str) -> None:
    made = version(0, **({"queue_timeout_s": 5} if set_by == "queue_timeout_s" else {}))
    made.is_awaited = set_by == "is_awaited"
    assert made.takes
    assert made._find(SHORT, None) is None
    made.failure = "it does not load"
    assert not made.takes
    with pytest.raises(Unavailable):
        made._find(SHORT, None)


def test_prompts_with_one_beginning_go_to_one_replica_where_prefixes_are_kept_and_only_there() -> None:
    keeps, does_not = version(runner="ragged"), version(runner="toy")
    for request in LONG:
        assert len({found(keeps, request).id for _ in range(6)}) == 1
    assert len({found(keeps, request).id for request in LONG}) == 3
    assert len({found(does_not, LONG[0]).id for _ in range(6)}) == 3


def test_how_many_the_others_may_take_over_is_the_budget_and_none_if_there_are_no_others() -> None:
    made = version(2, retry_share=0.5, min_retries=1)
    first, second = made.replicas
    first._in_flight = dict.fromkeys(map(str, range(10)))  # type: ignore[arg-type]
    assert made.num_spare(first) == 5
    made.road.num_retrying = 4
    assert made.num_spare(first) == 1
    second.trouble = "silent for 3.0 s"
    assert made.num_spare(first) == 0


async def test_a_request_that_another_replica_answers_in_the_end_is_watched_once() -> None:
    made = version(2)
    told: list[tuple[str, int]] = []
    watch = Watch(SHORT, 0, 0.0, lambda _watch, _seen: None, keeps_text=True)

    def begun(request: Request, in_flight: int, _started: float) -> Watch:
        told.append((request.id, in_flight))
        return watch

    made.watch = begun

    async def ask() -> str:
        return "".join([chunk.text async for chunk in made.generate(SHORT)])

    asking = asyncio.create_task(ask())
    await asyncio.sleep(0)
    first, other = sorted(made.replicas, key=lambda r: -r.in_flight)
    first.lost()
    await until(lambda: other.in_flight)
    output = pb.StepOutput(chunks=[codec.chunk_to_pb(Chunk("r", "a", 1, FinishReason.STOP))])
    other.receive(pb.FromWorker(output=output), 0.0)
    assert await asyncio.wait_for(asking, 30) == watch.text == "a"
    assert told == [("r", 0)]


async def test_a_request_wakes_one_that_rests_before_it_waits_and_nothing_else_does() -> None:
    made = version(0)
    made.is_resting = made.is_awaited = True
    woken: list[str] = []

    def wake() -> None:
        made.is_resting = False
        woken.append(made.id)

    made.wake = wake
    assert made.takes
    assert not woken
    asking = asyncio.create_task(anext(made.generate(SHORT)))
    await asyncio.sleep(0)
    assert woken == ["demo@v1"]
    asking.cancel()
    await asyncio.wait({asking})
