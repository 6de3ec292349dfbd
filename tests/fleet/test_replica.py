"""A replica's answers, from what its worker says on the stream."""

from __future__ import annotations

import asyncio

from jupyter_dsserve.fleet.replica import Replica
from jupyter_dsserve.protocol import codec
from jupyter_dsserve.protocol import worker_pb2 as pb
from jupyter_dsserve.protocol.request import Chunk, FinishReason, Request
from jupyter_dsserve.protocol.tensors import ModelInfo


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
