"""How answers begin: whoever fails before that can still be replaced, and leaves nothing running."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from jupyter_dsserve.fleet.road import Road, begun, configured, later
from jupyter_dsserve.protocol.errors import (
    DeadlineExceeded,
    DSServeError,
    EngineFailure,
    InvalidRequest,
    TooManyRequests,
    Unavailable,
)
from jupyter_dsserve.protocol.policy import Policy
from jupyter_dsserve.protocol.request import Chunk, FinishReason, Request


class Answer:
    """An answer of some pieces; an error ends it (or is raised before it began)."""

    def __init__(self, *pieces: str | DSServeError, is_endless: bool = False) -> None:
        self._pieces, self._is_endless = pieces, is_endless
        self.is_closed = False

    async def chunks(self) -> AsyncGenerator[Chunk, None]:
        try:
            for index, piece in enumerate(self._pieces):
                if isinstance(piece, DSServeError):
                    if index == 0 and isinstance(piece, Unavailable):
                        raise piece
                    yield Chunk("r", finish_reason=FinishReason.ERROR, error=piece)
                    return
                yield Chunk("r", piece, 1)
            if self._is_endless:
                await asyncio.Event().wait()
            yield Chunk("r", finish_reason=FinishReason.STOP)
        finally:
            self.is_closed = True


async def told(*answers: Answer) -> dict[int, str]:
    text: dict[int, str] = {}
    async for number, chunk in await begun([answer.chunks() for answer in answers]):
        said = type(chunk.error).__name__ if chunk.error else chunk.text
        text[number] = text.get(number, "") + said
    return text


async def test_answers_come_whole_with_their_numbers() -> None:
    assert await told(Answer("a", "b")) == {0: "ab"}
    assert await told(Answer("a", "b"), Answer("c"), Answer("d", "e")) == {0: "ab", 1: "c", 2: "de"}


@pytest.mark.parametrize("fault", [Unavailable("busy"), EngineFailure("broken")])
@pytest.mark.parametrize("num_others", [0, 2])
async def test_a_fault_of_ours_before_anything_was_told_is_raised_and_ends_the_others(
    fault: DSServeError, num_others: int
) -> None:
    answers = [Answer(fault), *(Answer(is_endless=True) for _ in range(num_others))]
    with pytest.raises(type(fault)):
        await begun([answer.chunks() for answer in answers])
    await asyncio.sleep(0)
    assert answers[0].is_closed


async def test_what_came_before_a_fault_is_told_and_so_is_the_callers_own_mistake() -> None:
    assert await told(Answer("a", EngineFailure("broken"))) == {0: "aEngineFailure"}
    assert await told(Answer(InvalidRequest("too long"))) == {0: "InvalidRequest"}


async def test_a_fault_that_nobody_foresaw_ends_one_of_several_too() -> None:
    async def broken() -> AsyncGenerator[Chunk, None]:
        yield Chunk("r", "a", 1)
        raise KeyError("oh")

    numbered = await begun([broken(), Answer("b").chunks()])

    async def ends() -> dict[int, Chunk]:
        return {number: chunk async for number, chunk in numbered if chunk.finish_reason}

    last = await asyncio.wait_for(ends(), 30)
    assert isinstance(last[0].error, EngineFailure)
    assert "KeyError" in last[0].error.message
    assert last[1].finish_reason is FinishReason.STOP


@pytest.mark.parametrize("num_answers", [1, 3])
async def test_leaving_early_ends_all_of_them(num_answers: int) -> None:
    answers = [Answer("a", is_endless=True) for _ in range(num_answers)]
    numbered = await begun([answer.chunks() for answer in answers])
    async for _ in numbered:
        break
    await numbered.aclose()
    assert all(answer.is_closed for answer in answers)


@pytest.mark.parametrize("num_answers", [1, 3])
async def test_leaving_before_they_begin_ends_all_of_them(num_answers: int) -> None:
    answers = [Answer(is_endless=True) for _ in range(num_answers)]
    asking = asyncio.create_task(begun([answer.chunks() for answer in answers]))
    await asyncio.sleep(0.01)
    asking.cancel()
    await asyncio.wait({asking})
    assert all(answer.is_closed for answer in answers)


async def test_the_configured_answer_is_one_for_each_request() -> None:
    requests = [Request("a", "x"), Request("b", "y")]
    chunks = [(n, c.request_id, c.text, c.finish_reason) async for n, c in configured("Later.", requests)]
    assert chunks == [(0, "a", "Later.", FinishReason.STOP), (1, "b", "Later.", FinishReason.STOP)]


def test_a_request_that_is_asked_again_has_only_the_rest_of_its_time() -> None:
    assert later(Request("r", "x", timeout_s=5.0), 3.0).timeout_s == 2.0
    endless = Request("r", "x")
    assert later(endless, 1000.0) is endless
    with pytest.raises(DeadlineExceeded, match="time limit of 5 s"):
        later(Request("r", "x", timeout_s=5.0), 5.0)


def test_the_shorter_limit_holds_the_requests_or_the_policys() -> None:
    road = Road(Policy(timeout_s=4))
    asked = [Request("a", "x"), Request("b", "x", timeout_s=2), Request("c", "x", timeout_s=9)]
    assert [r.timeout_s for r in road.limited(asked)] == [4, 2, 4]
    assert Road().limited(asked) is asked


def test_calls_over_the_rate_are_refused_with_the_time_to_wait() -> None:
    road = Road()
    road.set_policy(Policy(rate=0.1, burst=1), now=0.0)
    road.admit("demo", now=0.0)
    with pytest.raises(TooManyRequests) as refused:
        road.admit("demo", now=2.0)
    assert refused.value.retry_after_s == 8
    road.admit("demo", now=10.0)
