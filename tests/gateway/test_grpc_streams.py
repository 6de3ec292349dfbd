"""Streams of gRPC whose answers cannot be written."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from jupyter_dsserve.gateway.grpc.call import each


async def test_an_answer_that_cannot_be_told_ends_the_stream_and_all_on_it() -> None:
    ended: list[int] = []

    async def requests() -> AsyncIterator[int]:
        for number in range(3):
            yield number
        await asyncio.Event().wait()  # the caller sends no more, and stays

    async def answer(number: int) -> None:
        if number == 2:
            raise ValueError("cannot be written")
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(number)

    with pytest.raises(ValueError, match="cannot be written"):
        await asyncio.wait_for(each(requests(), answer), 30)
    assert sorted(ended) == [0, 1]
