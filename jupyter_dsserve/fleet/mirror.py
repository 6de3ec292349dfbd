"""Copies of the stable version's requests for the candidate: answered, compared, and given to nobody."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import aclosing
from dataclasses import replace

from jupyter_dsserve.fleet.observations import MIRRORED
from jupyter_dsserve.fleet.version import Version
from jupyter_dsserve.protocol.errors import DSServeError
from jupyter_dsserve.protocol.records import Difference, MirrorStatus
from jupyter_dsserve.protocol.request import Features, Message, Prompt, Request, Texts

# Copies that run at once; one more is dropped: the candidate must not be buried, nor our memory filled.
_MAX_COPIES = 64
_LAST = 100  # in line: a copy waits for everybody, and is shed before them
_NUM_DIFFERENCES = 5
_MAX_SHOWN = 300  # characters of each text in a difference


class Mirror:
    """``percent`` of what `offer` is given goes to ``candidate`` too, evenly spread. Kept in memory only."""

    def __init__(self, candidate: Version, percent: float) -> None:
        self._candidate = candidate
        self._percent = percent
        self._due = 0.0
        self._copies: set[asyncio.Task[None]] = set()
        self._counts = MirrorStatus(0, 0, 0, 0, 0)
        self._differences: deque[Difference] = deque(maxlen=_NUM_DIFFERENCES)

    def offer(self, request: Request, text: str) -> None:
        """A request that stable has answered with ``text``. Returns at once, whatever becomes of the copy."""
        self._due += self._percent / 100
        if self._due < 1:
            return
        self._due -= 1
        if len(self._copies) >= _MAX_COPIES:
            self._count(dropped=1)
            return
        copy = asyncio.create_task(self._copy(request, text))
        self._copies.add(copy)
        copy.add_done_callback(self._copies.discard)

    def stop(self) -> None:
        """Give up the copies that still run."""
        for copy in list(self._copies):
            copy.cancel()

    @property
    def status(self) -> MirrorStatus:
        return replace(self._counts, differences=list(self._differences))

    async def _copy(self, request: Request, text: str) -> None:
        self._count(sent=1)
        said: list[str] = []
        copy = replace(request, id=MIRRORED + request.id, priority=_LAST)
        try:
            async with aclosing(self._candidate.generate(copy)) as chunks:
                async for chunk in chunks:
                    if chunk.error:
                        raise chunk.error
                    said.append(chunk.text)
        except DSServeError:
            self._count(failed=1)
            return
        if _is_greedy(request):
            self._compare(request, text, "".join(said))

    def _compare(self, request: Request, stable: str, candidate: str) -> None:
        self._count(compared=1, agreed=int(stable == candidate))
        if stable != candidate:
            shown = (text[:_MAX_SHOWN] for text in (prompt_text(request.prompt), stable, candidate))
            self._differences.append(Difference(*shown))

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
