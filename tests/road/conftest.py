"""Fixtures of the tests that go the whole road."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from jupyter_dsserve.fleet import watch
from tests.road.hands import Hands


@pytest.fixture
def hands(tmp_path: Path) -> Iterator[Hands]:
    hands = Hands(tmp_path / "joined.log")
    yield hands
    for process in hands.processes:
        process.kill()
        process.wait()


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the gateway has looked at each replica: its own seconds, in which it was not held up itself."""
    counts: Counter[str] = Counter()
    look = watch.Watch.look

    def counted(self: watch.Watch, now: float) -> str:
        counts[self._replica.id] += 1
        return look(self, now)

    monkeypatch.setattr(watch.Watch, "look", counted)
    return counts
