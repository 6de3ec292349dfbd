"""Answers for a notebook to score, and what it makes of them. In memory only, and only while a check is registered."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

_MAX_WAITING = 32  # samples of each version; the oldest go first
_MAX_OUT = 256  # handed out and not scored yet
_MAX_UNPAIRED = 64


@dataclass(frozen=True, slots=True)
class Sample:
    """A prompt and its answer, in text; ``id`` is for the score."""

    id: int
    version: str
    prompt: str
    answer: str


class Scoring:
    """Hands out samples of the two versions in equal numbers, and pairs their scores."""

    def __init__(self, stable: str, candidate: str) -> None:
        self._versions = (stable, candidate)
        # Begun anywhere, so that what an earlier rollout's check says late is of no sample here; doubles hold them.
        self._ids = itertools.count(secrets.randbits(52))
        self._waiting: dict[str, deque[Sample]] = {v: deque(maxlen=_MAX_WAITING) for v in self._versions}
        self._out: dict[int, str] = {}
        self._scores: dict[str, deque[float]] = {v: deque(maxlen=_MAX_UNPAIRED) for v in self._versions}
        self._news = asyncio.Event()
        self.failure = ""  # of the check itself, as the notebook says

    def offer(self, version: str, prompt: str, answer: str) -> None:
        self._waiting[version].append(Sample(next(self._ids), version, prompt, answer))
        if all(self._waiting.values()):
            self._news.set()

    async def samples(self, wait_s: float) -> list[Sample]:
        """As many of one version as of the other; none if none come within ``wait_s`` seconds."""
        try:
            await asyncio.wait_for(self._news.wait(), wait_s)
        except asyncio.TimeoutError:
            return []
        self._news.clear()
        num = min(map(len, self._waiting.values()))
        taken = [self._waiting[version].popleft() for _ in range(num) for version in self._versions]
        self._out |= {sample.id: sample.version for sample in taken}
        while len(self._out) > _MAX_OUT:
            del self._out[next(iter(self._out))]
        return taken

    def scored(self, scores: Mapping[int, float]) -> list[tuple[float, float]]:
        """The pairs, stable's first, that these scores complete. Those of unknown samples are left out."""
        for id, score in scores.items():
            if version := self._out.pop(id, None):
                self._scores[version].append(score)
        stable, candidate = (self._scores[version] for version in self._versions)
        return [(stable.popleft(), candidate.popleft()) for _ in range(min(len(stable), len(candidate)))]

    def wake(self) -> None:
        """Let those who wait for samples go: there will be none any more."""
        self._news.set()
