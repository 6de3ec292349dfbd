"""A replica's answers, from what its worker says on the stream."""

from __future__ import annotations

import asyncio

import pytest

from jupyter_dsserve.fleet import watch as watch_module
from jupyter_dsserve.fleet.replica import Replica
from jupyter_dsserve.fleet.version import Version
from jupyter_dsserve.protocol import codec
from jupyter_dsserve.protocol import worker_pb2 as pb
from jupyter_dsserve.protocol.errors import Conflict, ReplicaLost
from jupyter_dsserve.protocol.records import Origin
from jupyter_dsserve.protocol.request import Chunk, FinishReason, Request, SamplingParams
from jupyter_dsserve.protocol.spec import WorkerSpec
from jupyter_dsserve.protocol.tensors import ModelInfo
from tests.support import until


def ready() -> Replica:
    replica = Replica("demo@v1#0", "digest", lambda _: None)
    replica.receive(pb.FromWorker(ready=pb.Ready(device="cpu", info=codec.info_to_pb(ModelInfo()))), 0.0)
    return replica


def step(running: int, *chunks: Chunk) -> pb.FromWorker:
    return pb.FromWorker(output=pb.StepOutput(chunks=map(codec.chunk_to_pb, chunks), running=running))


async def test_the_last_chunk_says_how_many_sequences_the_request_met_on_average() -> None:
    replica = ready()

    async def ask() -> list[Chunk]:
        return [chunk async for chunk in replica.generate(Request("r", "hello"))]

    asking = asyncio.create_task(ask())
    await asyncio.sleep(0)
    for running in (1, 2, 6):
        replica.receive(step(running, Chunk("r", "a", 1), Chunk("another", "b", 1)), 0.0)
    replica.receive(step(9, Chunk("another", "b", 1)), 0.0)  # a step it was not in
    replica.receive(step(3, Chunk("r", "a", 1, FinishReason.LENGTH)), 0.0)
    assert (await asking)[-1].batch == 3.0


async def test_an_answer_of_unknown_steps_has_no_batch() -> None:
    replica = ready()
    chunks = replica.generate(Request("r", "hello"))
    asking = asyncio.create_task(anext(chunks))
    await asyncio.sleep(0)
    replica.receive(step(0, Chunk("r", finish_reason=FinishReason.STOP)), 0.0)
    assert (await asking).batch == 0.0
    await chunks.aclose()


def ask(replica: Replica, request: Request) -> asyncio.Task[list[Chunk]]:
    async def whole() -> list[Chunk]:
        return [chunk async for chunk in replica.generate(request)]

    return asyncio.create_task(whole())


async def test_outstanding_work_is_estimated_and_settled_by_what_comes() -> None:
    replica = ready()
    asking = ask(replica, Request("r", "x" * 40, SamplingParams(max_tokens=50)))
    await asyncio.sleep(0)
    assert replica.outstanding_tokens == 11 + 50
    replica.receive(step(1, Chunk("r", "a", 1)), 0.0)
    await asyncio.sleep(0)
    assert replica.outstanding_tokens == 49  # the prompt is done with the first token
    replica.receive(step(1, Chunk("r", "b", 1, FinishReason.STOP)), 0.0)  # long before its 50 tokens
    await asking
    assert replica.outstanding_tokens == 0


async def test_a_caller_who_leaves_takes_the_work_along_and_it_is_aborted() -> None:
    replica = ready()
    asking = ask(replica, Request("r", "hello"))
    await asyncio.sleep(0)
    asking.cancel()
    await asyncio.wait({asking})
    assert (replica.outstanding_tokens, replica.in_flight) == (0, 0)
    assert [command.WhichOneof("kind") for command in sent(replica)] == ["submit", "abort"]


async def test_a_suspect_gives_back_what_it_has_not_begun_and_what_still_comes_is_not_told_twice() -> None:
    replica = ready()
    begun, waiting, later = (ask(replica, Request(id, "hello")) for id in ("begun", "waiting", "later"))
    await asyncio.sleep(0)
    replica.receive(step(1, Chunk("begun", "a", 1)), 0.0)
    replica.suspect("silent for 3.0 s", num_spare=1)
    assert not replica.takes(0.0)
    replica.receive(step(1, Chunk("waiting", "late", 1)), 0.0)
    (lost,) = await waiting
    assert isinstance(lost.error, ReplicaLost)
    assert "silent for 3.0 s" in lost.error.message
    assert sent(replica)[-1].abort.request_id == "waiting"
    assert not later.done(), "there was one to spare"
    replica.suspect("")
    assert replica.takes(0.0)
    for id in ("begun", "later"):
        replica.receive(step(1, Chunk(id, "b", 1, FinishReason.STOP)), 0.0)
    assert ["".join(c.text for c in await each) for each in (begun, later)] == ["ab", "b"]


async def test_an_answer_that_was_complete_when_its_replica_was_lost_stays_so() -> None:
    replica = ready()
    asking = ask(replica, Request("r", "hello"))
    await asyncio.sleep(0)
    replica.receive(step(1, Chunk("r", "all of it", 1, FinishReason.STOP)), 0.0)
    replica.lost()
    assert [(c.text, c.error) for c in await asking] == [("all of it", None)]


def sent(replica: Replica) -> list[pb.ToWorker]:
    commands = []
    while not replica.commands.empty():
        if command := replica.commands.get_nowait():
            commands.append(command)
    return commands


async def test_an_id_that_runs_already_is_refused_and_the_one_before_is_answered() -> None:
    replica = ready()
    first, second = ask(replica, Request("r", "hello")), ask(replica, Request("r", "again"))
    with pytest.raises(Conflict, match="'r' runs on demo@v1#0 already"):
        await asyncio.wait_for(second, 30)
    replica.receive(step(1, Chunk("r", "a", 1, FinishReason.STOP)), 0.0)
    assert [c.text for c in await asyncio.wait_for(first, 30)] == ["a"]


async def test_our_own_probe_is_no_request_and_is_sent_once_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_module, "PROBE_S", 0.0)
    replica = ready()
    version = Version("demo", "v1", WorkerSpec("toy:"), "toy:", 1, Origin(), 0.0, replicas=[replica])
    watch = watch_module.Watch(version, replica, 0)
    for now in (1.0, 2.0):
        watch._probe_if_idle(now)
        await asyncio.sleep(0)
    (command,) = sent(replica)
    assert (replica.in_flight, version.in_flight, replica.status.in_flight) == (0, 0, 0)
    replica.receive(step(1, Chunk(command.submit.request_id, "a", 1, FinishReason.LENGTH)), 0.0)
    await until(lambda: not replica._in_flight)
