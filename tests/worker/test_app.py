"""The worker's asyncio half, without a gateway and with an engine that only listens."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence as Seq

import pytest

from jupyter_dsserve.engine.sequence import Sequence
from jupyter_dsserve.engine.toy import ToyTokenizer
from jupyter_dsserve.protocol import codec
from jupyter_dsserve.protocol import worker_pb2 as pb
from jupyter_dsserve.protocol.errors import InvalidRequest
from jupyter_dsserve.protocol.request import Chunk, FinishReason
from jupyter_dsserve.protocol.spec import WorkerLaunch, WorkerSpec
from jupyter_dsserve.protocol.tensors import Tensor
from jupyter_dsserve.worker.app import WorkerApp
from jupyter_dsserve.worker.dial import Dial
from jupyter_dsserve.worker.outbox import Outbox
from tests.support import until


class Listening:
    """Stands for the engine: keeps what it is told."""

    def __init__(self) -> None:
        self.posted: list[str] = []
        self.aborted: list[str] = []

    def post(self, sequence: Sequence) -> None:
        self.posted.append(sequence.id)

    def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)


class SlowTokenizer(ToyTokenizer):
    def __init__(self) -> None:
        self.may_go_on = threading.Event()
        self.slow_from = 0  # characters

    def encode_batch(self, texts: Seq[str], add_special_tokens: bool = True) -> list[list[int]]:
        if len(texts[0]) >= self.slow_from:
            self.may_go_on.wait(10)
        return super().encode_batch(texts, add_special_tokens)


async def test_an_abort_that_overtakes_tokenizing_keeps_the_request_from_the_engine() -> None:
    launch = WorkerLaunch("demo@v1#0", "unix:/nowhere", "t", "toy:", WorkerSpec("toy:", runner="toy"))
    app = WorkerApp(launch, Dial(launch.gateway))
    engine, tokenizer = Listening(), SlowTokenizer()
    app._loop = asyncio.get_running_loop()
    app._engine, app._request_tokenizer = engine, tokenizer  # type: ignore[assignment]
    app._submit(pb.Submit(request_id="gone", text="hello"))
    app._submit(pb.Submit(request_id="stays", text="hello"))
    await asyncio.sleep(0)
    app._abort("gone")
    tokenizer.may_go_on.set()
    await until(lambda: engine.posted)
    app._abort("stays")
    assert (engine.posted, engine.aborted) == (["stays"], ["stays"])
    ended = app._outbox._messages[0].output.chunks[0]
    assert (ended.request_id, ended.finish_reason) == ("gone", "abort")
    assert app._open == {"stays"}


async def test_a_short_request_is_tokenized_before_the_many_of_a_long_list() -> None:
    launch = WorkerLaunch("demo@v1#0", "unix:/nowhere", "t", "toy:", WorkerSpec("toy:", runner="toy"))
    app = WorkerApp(launch, Dial(launch.gateway))
    engine, tokenizer = Listening(), SlowTokenizer()
    app._loop = asyncio.get_running_loop()
    app._engine, app._request_tokenizer = engine, tokenizer  # type: ignore[assignment]
    for number in range(4):
        app._submit(pb.Submit(request_id=f"long {number}", text="hello " * 10_000))
    app._submit(pb.Submit(request_id="short", text="hello"))
    await asyncio.sleep(0)
    app._abort("long 2")
    tokenizer.may_go_on.set()
    await until(lambda: len(engine.posted) == 4)
    assert engine.posted == ["long 0", "short", "long 1", "long 3"]
    await until(lambda: not app._turns._is_taken)


async def test_a_text_that_is_long_to_tokenize_holds_up_no_other() -> None:
    launch = WorkerLaunch("demo@v1#0", "unix:/nowhere", "t", "toy:", WorkerSpec("toy:", runner="toy"))
    app = WorkerApp(launch, Dial(launch.gateway))
    engine, tokenizer = Listening(), SlowTokenizer()
    tokenizer.slow_from = 300_000
    app._loop = asyncio.get_running_loop()
    app._engine, app._request_tokenizer = engine, tokenizer  # type: ignore[assignment]
    app._submit(pb.Submit(request_id="long", text="x" * 300_000))
    app._submit(pb.Submit(request_id="short", text="hello"))
    await until(lambda: engine.posted == ["short"])
    tokenizer.may_go_on.set()
    await until(lambda: engine.posted == ["short", "long"])


class SlowStream:
    """Takes one message at a time, when told to."""

    def __init__(self) -> None:
        self.may_take = asyncio.Semaphore(0)
        self.taken: list[pb.FromWorker] = []
        self.is_done = False

    async def write(self, message: pb.FromWorker, /) -> None:
        await self.may_take.acquire()
        self.taken.append(message)

    async def done_writing(self) -> None:
        self.is_done = True


async def test_steps_that_wait_for_a_slow_stream_go_out_as_one_message() -> None:
    outbox, stream = Outbox(), SlowStream()
    outbox.put_chunks([Chunk("a", "1", 1)])
    sending = asyncio.create_task(outbox.send_to(stream))
    await asyncio.sleep(0)
    outbox.put_chunks([Chunk("a", "2", 1), Chunk("b", "x", 1)])
    outbox.put_chunks([Chunk("a", "3", 1, FinishReason.STOP)])
    outbox.close()
    for _ in range(2):
        stream.may_take.release()
    await asyncio.wait_for(sending, 5)
    assert [[(c.request_id, c.text) for c in m.output.chunks] for m in stream.taken] == [
        [("a", "1")],
        [("a", "2"), ("b", "x"), ("a", "3")],
    ]
    assert stream.is_done


async def test_large_answers_go_out_one_by_one_and_one_that_fits_no_message_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("jupyter_dsserve.worker.outbox._MAX_TOGETHER_BYTES", 250)
    monkeypatch.setattr("jupyter_dsserve.worker.outbox.MAX_FAR_MESSAGE_BYTES", (1 << 20) + 999)

    def answer(id: str, num_bytes: int) -> Chunk:
        tensors = (Tensor("y", "UINT8", (num_bytes,), bytes(num_bytes)),)
        return Chunk(id, finish_reason=FinishReason.STOP, tensors=tensors)

    outbox = Outbox(is_far=True)
    outbox.put_chunks([answer("a", 100), answer("b", 100), answer("c", 100), answer("d", 999), answer("e", 1000)], 5)
    outbox.put_chunks([answer("f", 100), answer("g", 200)], 2)
    sent = [[c.request_id for c in message.output.chunks] for message in outbox._messages]
    assert sent == [["a", "b"], ["c"], ["d"], ["e", "f"], ["g"]]
    failed = codec.chunk_from_pb(outbox._messages[3].output.chunks[0])
    assert isinstance(failed.error, InvalidRequest)
    assert not failed.tensors
    assert "ask with fewer rows at once" in failed.error.message
    near = Outbox()
    near.put_chunks([answer("e", 1000)])
    assert not near._messages[0].output.chunks[0].HasField("error")
