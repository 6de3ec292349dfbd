"""Copies of the stable version's requests for the candidate: answered, compared, and given to nobody."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import aclosing
from dataclasses import dataclass, replace

from jupyter_dsserve.fleet.observations import MIRRORED
from jupyter_dsserve.fleet.version import Version
from jupyter_dsserve.protocol.errors import DSServeError
from jupyter_dsserve.protocol.records import Difference, MirrorStatus
from jupyter_dsserve.protocol.request import Features, Message, Prompt, Request, Texts

# Copies that run at once; one more is dropped: the candidate must not be buried, nor our memory filled.
_MAX_COPIES = 64
_MAX_UNPAIRED = 256
_LAST = 100  # in line: a copy waits for everybody, and is shed before them
_NUM_DIFFERENCES = 5
_MAX_SHOWN = 300  # characters of each text in a difference


@dataclass(slots=True, eq=False)
class _Copy:
    """A request and the two answers to it, once they are there."""

    request: Request
    task: asyncio.Task[None] | None = None
    stable: str | None = None
    candidate: str | None = None


class Mirror:
    """``percent`` of the requests that `begin` is told of go to ``candidate`` too, evenly spread. In memory only."""

    def __init__(self, candidate: Version, percent: float) -> None:
        self._candidate = candidate
        self._percent = percent
        self._due = 0.0
        self._copies: dict[str, _Copy] = {}  # by the request's id, until both have answered
        self._num_running = 0
        self._counts = MirrorStatus(0, 0, 0, 0, 0)
        self._differences: deque[Difference] = deque(maxlen=_NUM_DIFFERENCES)

    def begin(self, request: Request) -> None:
        """Stable begins to answer ``request``. Returns at once, whatever becomes of the copy."""
        self._due += self._percent / 100
        if self._due < 1 - 1e-9:  # ten tenths are one
            return
        self._due -= 1
        if self._num_running >= _MAX_COPIES:
            self._count(dropped=1)
            return
        copy = self._copies[request.id] = _Copy(request)
        self._num_running += 1
        copy.task = asyncio.create_task(self._answer(copy))
        copy.task.add_done_callback(self._ended)
        while len(self._copies) > _MAX_UNPAIRED:  # stable's callers left
            del self._copies[next(iter(self._copies))]

    def end(self, request_id: str, text: str) -> None:
        """Stable has answered a request with ``text``."""
        if copy := self._copies.get(request_id):
            copy.stable = text
            self._compare(copy)

    def stop(self) -> None:
        """Give up the copies that still run."""
        for copy in self._copies.values():
            if copy.task:
                copy.task.cancel()

    @property
    def status(self) -> MirrorStatus:
        return replace(self._counts, differences=list(self._differences))

    async def _answer(self, copy: _Copy) -> None:
        self._count(sent=1)
        said: list[str] = []
        request = replace(copy.request, id=MIRRORED + copy.request.id, priority=_LAST)
        try:
            async with aclosing(self._candidate.generate(request)) as chunks:
                async for chunk in chunks:
                    if chunk.error:
                        raise chunk.error
                    said.append(chunk.text)
            copy.candidate = "".join(said)
            self._compare(copy)
        except DSServeError:
            self._count(failed=1)
            self._copies.pop(copy.request.id, None)

    def _ended(self, _task: asyncio.Task[None]) -> None:
        self._num_running -= 1

    def _compare(self, copy: _Copy) -> None:
        """Once both have answered."""
        if copy.stable is None or copy.candidate is None:
            return
        self._copies.pop(copy.request.id, None)
        if not _is_greedy(copy.request):
            return
        self._count(compared=1, agreed=int(copy.stable == copy.candidate))
        if copy.stable != copy.candidate:
            texts = (prompt_text(copy.request.prompt), copy.stable, copy.candidate)
            self._differences.append(Difference(*(text[:_MAX_SHOWN] for text in texts)))

    def _count(self, **more: int) -> None:
        self._counts = replace(self._counts, **{name: getattr(self._counts, name) + num for name, num in more.items()})


def _is_greedy(request: Request) -> bool:
    """Whether it asks for text, and the same model gives the same text again."""
    is_text = not isinstance(request.prompt, Texts | Features)
    return is_text and (request.sampling.temperature == 0 or request.sampling.top_k == 1)


def prompt_text(prompt: Prompt | Texts | Features) -> str:
    """A prompt for people: a chat as lines of ``role: content``, token ids as they are."""
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, Texts | Features):
        return ""
    parts = (f"{part.role}: {part.content}\n" if isinstance(part, Message) else f"{part} " for part in prompt)
    return "".join(parts).rstrip()
