"""Fixtures: a real gateway in the test's own event loop, with real worker processes."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from jupyter_dsserve.gateway.server import Gateway
from jupyter_dsserve.protocol.config import GatewayConfig
from tests.postgres import Postgres, programs, running
from tests.support import Caller

# What a test wants printed after all of them.
TABLE = pytest.StashKey[list[str]]()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in config.stash.get(TABLE, []):
        terminalreporter.write_line(line)


def pytest_configure(config: pytest.Config) -> None:
    """Only tests of GPUs see one: the others say what is so on every machine."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--screenshots", metavar="DIR", help="where the browser tests leave their pictures")


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    bin = programs()
    if bin is None:
        pytest.skip("PostgreSQL is not installed here: apt-get install postgresql")
    with running(bin) as server:
        yield server


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
async def gateway(data_dir: Path) -> AsyncIterator[Gateway]:
    gateway = Gateway(GatewayConfig(data_dir, port=0, drain_s=5, max_body_bytes=100_000))
    await gateway.start()
    yield gateway
    await gateway.stop()


@pytest.fixture
async def caller(gateway: Gateway) -> AsyncIterator[Caller]:
    async with Caller(gateway.url, gateway.admin_key) as caller:
        yield caller
