"""Fixtures of the tests that go the whole road."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.road.hands import Hands


@pytest.fixture
def hands(tmp_path: Path) -> Iterator[Hands]:
    hands = Hands(tmp_path / "joined.log")
    yield hands
    for process in hands.processes:
        process.kill()
        process.wait()
