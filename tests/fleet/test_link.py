"""What a worker is told, message by message."""

from __future__ import annotations

import asyncio

import pytest

from jupyter_dsserve.fleet import link
from jupyter_dsserve.protocol import worker_pb2 as pb


def submit(id: str) -> pb.ToWorker:
    return pb.ToWorker(submit=pb.Submit(request_id=id))


def ids(message: pb.ToWorker) -> list[str]:
    return [command.submit.request_id for command in message.several.commands or [message]]


async def test_what_comes_during_a_write_goes_together_and_in_order() -> None:
    commands: asyncio.Queue[pb.ToWorker | None] = asyncio.Queue()
    messages = link.messages(commands)
    commands.put_nowait(submit("a"))
    assert ids(await anext(messages)) == ["a"]
    for id in "bcd":
        commands.put_nowait(submit(id))
    assert ids(await anext(messages)) == ["b", "c", "d"]
    waiting = asyncio.ensure_future(anext(messages, None))
    await asyncio.sleep(0)
    assert not waiting.done(), "nothing is there to tell"
    commands.put_nowait(submit("e"))
    assert ids(await waiting or pb.ToWorker()) == ["e"]


async def test_what_stands_before_the_end_is_told_and_nothing_after_it() -> None:
    commands: asyncio.Queue[pb.ToWorker | None] = asyncio.Queue()
    for each in (submit("a"), submit("b"), None, submit("late")):
        commands.put_nowait(each)
    assert [ids(message) async for message in link.messages(commands)] == [["a", "b"]]


async def test_large_ones_go_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """protobuf ends at 2 GB, and a message is in memory twice while it is written."""
    monkeypatch.setattr(link, "_MAX_TOGETHER_BYTES", 10)
    commands: asyncio.Queue[pb.ToWorker | None] = asyncio.Queue()
    for each in (submit("a" * 20), submit("b" * 20), submit("c"), submit("d"), submit("e"), None):
        commands.put_nowait(each)
    assert [ids(message) async for message in link.messages(commands)] == [["a" * 20], ["b" * 20], ["c", "d"], ["e"]]
