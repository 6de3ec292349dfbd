"""Copies are compared once both have answered; what is too much is dropped and counted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import cast

import pytest

from jupyter_dsserve.fleet import mirror as module
from jupyter_dsserve.fleet.mirror import Mirror, prompt_text
from jupyter_dsserve.fleet.version import Version
from jupyter_dsserve.protocol.errors import EngineFailure
from jupyter_dsserve.protocol.records import Difference
from jupyter_dsserve.protocol.request import Chunk, FinishReason, Message, Request, SamplingParams, Texts


class Candidate:
    """Answers each prompt in capitals as soon as it may; ``fail`` with an error."""

    def __init__(self) -> None:
        self.may_answer = asyncio.Event()
        self.asked: list[Request] = []

    async def generate(self, request: Request) -> AsyncGenerator[Chunk, None]:
        self.asked.append(request)
        await self.may_answer.wait()
        if request.prompt == "fail":
            yield Chunk(request.id, finish_reason=FinishReason.ERROR, error=EngineFailure("oh"))
            return
        yield Chunk(request.id, str(request.prompt).upper(), 1)
        yield Chunk(request.id, "", 1, FinishReason.STOP)


def mirrored(percent: float = 100) -> tuple[Mirror, Candidate]:
    candidate = Candidate()
    return Mirror(cast(Version, candidate), percent), candidate


async def test_answers_are_compared_whoever_is_first() -> None:
    mirror, candidate = mirrored()
    for id, prompt in (("a", "same"), ("b", "other")):
        mirror.begin(Request(id, prompt))
    mirror.end("a", "SAME")  # before the copy
    candidate.may_answer.set()
    await asyncio.sleep(0.01)
    mirror.end("b", "another")
    mirror.end("c", "of no copy")
    status = mirror.status
    assert (status.sent, status.compared, status.agreed, status.failed) == (2, 2, 1, 0)
    assert status.differences == [Difference("other", "another", "OTHER")]
    assert [(r.id, r.priority) for r in candidate.asked] == [("mirror-a", 100), ("mirror-b", 100)]


async def test_only_answers_that_are_the_same_each_time_are_compared() -> None:
    mirror, candidate = mirrored()
    candidate.may_answer.set()
    mirror.begin(Request("a", "x", SamplingParams(temperature=1.0)))
    mirror.begin(Request("b", Texts(("x",))))
    await asyncio.sleep(0.01)
    mirror.end("a", "y")
    mirror.end("b", "")
    assert (mirror.status.sent, mirror.status.compared) == (2, 0)


async def test_a_share_is_spread_evenly() -> None:
    mirror, candidate = mirrored(25)
    for id in map(str, range(40)):
        mirror.begin(Request(id, "x"))
    await asyncio.sleep(0)
    assert [int(r.id.removeprefix("mirror-")) for r in candidate.asked] == list(range(3, 40, 4))
    mirror.stop()


async def test_what_is_too_much_is_dropped_and_counted_and_nothing_is_kept_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_MAX_COPIES", 3)
    monkeypatch.setattr(module, "_MAX_UNPAIRED", 5)
    mirror, candidate = mirrored()
    for id in map(str, range(5)):
        mirror.begin(Request(id, "x"))
    await asyncio.sleep(0)
    assert (mirror.status.sent, mirror.status.dropped) == (3, 2)
    candidate.may_answer.set()
    for id in map(str, range(10, 30)):  # whose callers leave: stable never ends them
        mirror.begin(Request(id, "x"))
        await asyncio.sleep(0.001)
    assert len(mirror._copies) <= 5


async def test_a_copy_that_fails_is_counted() -> None:
    mirror, candidate = mirrored()
    candidate.may_answer.set()
    mirror.begin(Request("a", "fail"))
    await asyncio.sleep(0.01)
    mirror.end("a", "x")
    assert (mirror.status.failed, mirror.status.compared) == (1, 0)


def test_a_prompt_for_people() -> None:
    assert prompt_text("hi") == "hi"
    assert prompt_text((Message("system", "be"), Message("user", "hi"))) == "system: be\nuser: hi"
    assert prompt_text((1, 2)) == "1 2"
