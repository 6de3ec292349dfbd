"""Real Jupyter servers in processes of their own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.support import Caller, JupyterServer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JupyterServer]:
    """One for the tests of a file, below a base URL with a sign that is escaped in it."""
    with JupyterServer(tmp_path_factory.mktemp("home"), base_url="/user/a%40b/") as server:
        yield server


@pytest.fixture
async def through(server: JupyterServer) -> AsyncIterator[Caller]:
    """A caller with Jupyter's token; demo@v1 is READY behind it."""
    async with server.caller() as caller:
        await caller.load("demo", "v1", "toy:step_s=0.001")
        yield caller


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"
