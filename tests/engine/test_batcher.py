"""Which items share a batch and when it goes; and the batcher's claims, on the toy."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence as Seq
from typing import Any

import numpy as np
import pytest

from jupyter_dsserve.engine.batcher import Arrays, Batcher, Item, Limits, Work, next_batch
from jupyter_dsserve.engine.toy import VECTOR_SIZE, ToyEncoder, toy_token
from jupyter_dsserve.protocol.errors import DeadlineExceeded, EngineFailure, InvalidRequest
from jupyter_dsserve.protocol.request import Chunk, FinishReason, Request, Texts, Usage
from jupyter_dsserve.protocol.spec import WorkerSpec
from jupyter_dsserve.protocol.toy import ToySettings

LIMITS = Limits(max_tokens=128, max_rows=64, max_padding=0.1, max_wait_s=0.01)


def items(*lengths: int, arrived: float = 0.0) -> list[Item]:
    return [Item(None, length=length, arrived=arrived) for length in lengths]


def lengths_of(batch: Seq[Item]) -> list[int]:
    return [item.length for item in batch]


class TestPolicy:
    def test_a_full_batch_goes_at_once_and_another_waits_for_company(self) -> None:
        batch, _ = next_batch(items(*[16] * 9), LIMITS, now=0.0)
        assert lengths_of(batch) == [16] * 8
        assert next_batch(items(*[16] * 7), LIMITS, now=0.004) == ([], pytest.approx(0.006))
        assert len(next_batch(items(*[16] * 7), LIMITS, now=0.01)[0]) == 7

    def test_with_nothing_waiting_no_batch_is_ever_due(self) -> None:
        assert next_batch([], LIMITS, now=5.0) == ([], float("inf"))

    def test_the_first_in_line_is_in_the_batch_and_its_neighbours_by_length_join_it(self) -> None:
        oldest, rest = items(20), items(5, 19, 60, 22, 21, 18, arrived=1.0)
        batch, _ = next_batch(oldest + rest, LIMITS, now=2.0)
        assert lengths_of(batch) == [18, 19, 20, 21, 22]
        assert oldest[0] in batch

    def test_rows_are_limited_too(self) -> None:
        batch, _ = next_batch(items(*[1] * 9), Limits(128, 4), now=0.0)
        assert len(batch) == 4

    def test_an_item_over_the_limit_goes_alone(self) -> None:
        assert lengths_of(next_batch(items(500, 500), LIMITS, now=0.0)[0]) == [500]

    def test_different_kinds_never_share_a_batch(self) -> None:
        waiting = [Item("a", kind=(3,)), Item("b", kind=(4,)), Item("c", kind=(3,))]
        assert [item.value for item in next_batch(waiting, LIMITS, now=1.0)[0]] == ["a", "c"]

    @pytest.mark.parametrize("num_waiting", [16, 64])
    def test_a_log_normal_mix_of_lengths_is_padded_by_a_tenth_at_most_and_still_shares_batches(
        self, num_waiting: int
    ) -> None:
        """A closed loop: as many wait as were answered. A plain first-come batch of the same mix is padded by half."""
        draw = random.Random(1)
        texts = iter([min(256, max(3, int(draw.lognormvariate(3, 0.8)))) for _ in range(2000)])
        waiting = items(*(next(texts) for _ in range(num_waiting)))
        num_tokens = num_padded = num_batches = 0
        for step in range(200):
            batch, _ = next_batch(waiting, LIMITS, now=1.0 + step)
            waiting = [item for item in waiting if item not in batch] + items(
                *(next(texts) for _ in batch), arrived=float(step)
            )
            num_tokens += sum(lengths_of(batch))
            num_padded += max(lengths_of(batch)) * len(batch)
            num_batches += 1
        assert 1 - num_tokens / num_padded <= 0.1
        assert num_tokens / num_batches > 40


class Driver:
    """A batcher whose loop the test turns by hand; every batch is due."""

    def __init__(self, runner: ToyEncoder) -> None:
        self.chunks: list[Chunk] = []
        self.batcher = Batcher(runner, self.chunks.extend)

    def post(self, id: str, *texts: str, now: float = 0.0, **given: Any) -> None:
        self.batcher.post(self.batcher.prepare(Request(id, Texts(texts), **given), now))

    def turn(self) -> int:
        """Take in, compute one batch; how many items were in it."""
        self.chunks += self.batcher.take_in(0)
        batch, _ = next_batch(self.batcher._waiting, self.batcher.runner.limits, now=float("inf"))
        self.chunks += self.batcher.step(batch) if batch else []
        return len(batch)


def toy(**settings: float) -> ToyEncoder:
    spec = WorkerSpec("toy:", task="embed", runner="toy", max_step_tokens=64)
    return ToyEncoder(ToySettings(**{"step_s": 0, **settings}), spec)  # type: ignore[arg-type]


def vector(text: str) -> list[float]:
    return [toy_token(text.encode(), index) / 256 for index in range(VECTOR_SIZE)]


def test_texts_of_several_requests_share_a_batch_and_go_back_to_their_own() -> None:
    driver = Driver(toy())
    driver.post("a", "first", "third")
    driver.post("b", "fifth")
    assert driver.turn() == 3
    assert [(c.request_id, c.finish_reason, c.usage) for c in driver.chunks] == [
        ("a", FinishReason.STOP, Usage(10, 0)),
        ("b", FinishReason.STOP, Usage(5, 0)),
    ]
    a, b = (chunk.tensors[0] for chunk in driver.chunks)
    assert (a.name, a.datatype, a.shape) == ("embedding", "FP32", (2, VECTOR_SIZE))
    assert np.allclose(a.array(), [vector("first"), vector("third")])
    assert np.allclose(b.array(), [vector("fifth")])


def test_texts_of_one_request_that_are_computed_apart_come_back_in_their_order() -> None:
    driver = Driver(toy())
    texts = ["x" * 30, "short", "y" * 60, "other", "z" * 28]
    driver.post("a", *texts)
    while not driver.chunks:
        assert driver.turn() < 5
    assert np.allclose(driver.chunks[0].tensors[0].array(), [vector(text) for text in texts])
    assert 0 < driver.batcher.load().padding < 0.1


def test_an_aborted_request_leaves_nothing_waiting() -> None:
    driver = Driver(toy())
    driver.post("a", *["x" * 60] * 10)
    driver.post("b", "short")
    driver.turn()
    driver.batcher.abort("a")
    driver.batcher.abort("nobody")
    assert driver.turn() == 1
    assert [(c.request_id, c.finish_reason) for c in driver.chunks] == [
        ("a", FinishReason.ABORT),
        ("b", FinishReason.STOP),
    ]
    assert driver.batcher.load().waiting == 0


def test_a_better_priority_goes_first_unless_the_other_has_waited_long() -> None:
    driver = Driver(toy())
    driver.post("bulk", "x" * 60, priority=1)
    driver.post("urgent", "y" * 60, now=5.0)
    driver.post("later", "z" * 60, now=11.0)
    for _ in range(3):
        driver.turn()
    assert [chunk.request_id for chunk in driver.chunks] == ["urgent", "bulk", "later"]


def test_a_request_past_its_deadline_is_not_computed_any_further() -> None:
    driver = Driver(toy())
    driver.post("a", "x" * 60, "y" * 60, "z" * 60, timeout_s=2.0)
    driver.post("b", "w" * 60, now=1.0)
    driver.turn()
    assert driver.batcher.expire(now=1.9) == []
    (end,) = driver.batcher.expire(now=2.0)
    assert isinstance(end.error, DeadlineExceeded)
    assert "1 of its 3 parts computed" in end.error.message
    assert driver.turn() == 1
    assert [chunk.request_id for chunk in driver.chunks] == ["b"]
    assert driver.batcher.load().waiting == 0


def test_a_batch_that_raises_ends_its_requests_and_not_the_batcher() -> None:
    class FailsOnce(ToyEncoder):
        has_failed = False

        def forward(self, batch: Seq[Item]) -> Arrays:
            if not self.has_failed:
                self.has_failed = True
                raise RuntimeError("out of memory")
            return super().forward(batch)

    driver = Driver(FailsOnce(ToySettings(step_s=0), WorkerSpec("toy:", max_step_tokens=64)))
    driver.post("a", "x" * 60, "y" * 60)
    driver.turn()
    error = driver.chunks[0].error
    assert isinstance(error, EngineFailure)
    assert "out of memory" in error.message
    driver.post("b", "again")
    assert driver.turn() == 1  # what was left of a went with it
    assert driver.chunks[-1].request_id == "b"


def test_it_serves_from_another_thread_until_it_is_stopped() -> None:
    answered = threading.Event()
    batcher = Batcher(toy(), lambda _chunks: answered.set())
    serving = threading.Thread(target=batcher.run)
    serving.start()
    batcher.post(Work("a", [Item([1], length=1)], 1))
    assert answered.wait(30)
    batcher.stop()
    serving.join(30)
    assert not serving.is_alive()


def test_the_told_share_of_requests_fails() -> None:
    runner = toy(fail_rate=0.5)
    runner.prepare(Request("a", Texts(("x",))))
    with pytest.raises(EngineFailure, match=r"fail_rate=0\.5"):
        runner.prepare(Request("b", Texts(("x",))))


def test_a_prompt_for_another_task_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="embeds texts"):
        toy().prepare(Request("a", "go on"))


def test_a_batcher_whose_gpu_is_lost_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = toy()
    batcher = Batcher(runner, lambda chunks: None)

    def fail(batch: Seq[Item]) -> Arrays:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(runner, "forward", fail)
    batcher.post(Work("a", [Item([1], length=1)], 1))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        batcher.run()
