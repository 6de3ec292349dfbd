"""A gateway whose registry is a PostgreSQL server: it needs no disk of its own, and there is one on a database."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from pathlib import Path

import psycopg
import pytest

from jupyter_dsserve.fleet import database, registry
from jupyter_dsserve.fleet.database import database_url
from jupyter_dsserve.fleet.registry import Registry
from jupyter_dsserve.gateway.server import Gateway
from jupyter_dsserve.protocol.config import GatewayConfig
from jupyter_dsserve.protocol.errors import Conflict
from tests.postgres import PASSWORD, Postgres
from tests.support import Caller, Command, until

FAST = "toy:step_s=0.001"


@pytest.fixture
def url(postgres: Postgres) -> str:
    return postgres.database()


def gateway_on(url: str, data_dir: Path) -> Gateway:
    return Gateway(GatewayConfig(data_dir, port=0, drain_s=5, database_url=url))


def kinds(url: str) -> list[str]:
    with psycopg.connect(url) as connection:
        return [kind for (kind,) in connection.execute("SELECT kind FROM history ORDER BY id").fetchall()]


async def test_a_killed_gateway_comes_back_in_another_data_directory_with_everything(url: str, tmp_path: Path) -> None:
    with Command(tmp_path / "one", "--database-url", url) as command:
        async with await command.caller() as caller:
            await caller.load("demo", "v1", FAST)
            await caller.load("demo", "v2", FAST)
            weights = {"v1": 90.0, "v2": 10.0}
            await caller.put("/api/deployments/demo/route", json={"weights": weights})
            command.signal(signal.SIGKILL)
    (tmp_path / "url").write_text(url)
    with Command(tmp_path / "two", "--database-url", f"@{tmp_path / 'url'}") as command:
        async with await command.caller() as caller:
            for version in weights:
                await caller.settled("demo", version, "READY")
            assert (await caller.get("/api/deployments/demo")).json()["weights"] == weights
            assert (await caller.complete()).status_code == 200
            history = (await caller.get("/api/history")).json()
            assert [e["kind"] for e in history].count("registered") == 2
            command.signal(signal.SIGTERM)
            command.output()


async def test_a_second_gateway_is_refused_and_told_who_has_the_database(url: str, tmp_path: Path) -> None:
    first = gateway_on(url, tmp_path / "one")
    await first.start()
    with pytest.raises(Conflict, match=f"held by another gateway.*process {os.getpid()} on {socket.gethostname()}"):
        await gateway_on(url, tmp_path / "two").start()
    async with Caller(first.url, first.admin_key) as caller:
        assert (await caller.load("demo", "v1", FAST))["state"] == "READY"
    await first.stop()
    again = gateway_on(url, tmp_path / "two")
    await again.start()
    await again.stop()


async def test_what_changes_while_the_server_is_away_is_written_when_it_is_back(
    postgres: Postgres, url: str, tmp_path: Path
) -> None:
    gateway = gateway_on(url, tmp_path)
    await gateway.start()
    async with Caller(gateway.url, gateway.admin_key) as caller:
        await caller.load("demo", "v1", FAST)
        await caller.load("demo", "v2", FAST)
        postgres.stop()
        try:
            swapped = await caller.post("/api/deployments/demo/activate", json={"version": "v2"})
            assert swapped.status_code == 200
            refused = await caller.post("/api/deployments", json={"name": "demo", "version": "v3", "model": FAST})
            assert refused.status_code == 503
            assert PASSWORD not in refused.text
            assert (await caller.complete()).headers["X-DSServe-Version"] == "v2"
            history = (await caller.get("/api/history")).json()
            assert any("the route of demo" in e["reason"] for e in history if e["kind"] == "registry_failed")
        finally:
            postgres.start()
        await until(lambda: kinds(url), lambda found: "registry_written" in found)
        with psycopg.connect(url) as connection:
            assert connection.execute("SELECT weights FROM deployments").fetchall() == [({"v2": 100.0},)]
        assert "activated" in kinds(url)
    await gateway.stop()


async def test_a_gateway_that_lost_its_database_to_another_says_so_and_takes_it_back_when_that_ends(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_LOOK_S", 0.1)
    monkeypatch.setattr(database, "_TRIES", 1)
    gateway = gateway_on(url, tmp_path / "one")
    await gateway.start()
    async with Caller(gateway.url, gateway.admin_key) as caller:
        await caller.load("demo", "v1", FAST)
        other = _taken_over(url, tmp_path)
        await until(  # at first the broken connection itself is told
            lambda: caller.post("/api/deployments", json={"name": "demo", "version": "v2", "model": FAST}),
            lambda answer: answer.status_code == 503 and "held by another gateway" in answer.text,
        )
        assert (await caller.complete()).status_code == 200
        assert "registry_failed" not in kinds(url)
        other.close()
        await until(lambda: kinds(url), lambda found: "registry_written" in found)
        assert (await caller.load("demo", "v2", FAST))["state"] == "READY"
    await gateway.stop()


def _taken_over(url: str, tmp_path: Path) -> Registry:
    """Another gateway's registry, in place of the one whose connection is ended here."""
    for _ in range(20):
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'jupyter_dsserve%%'"
                " AND datname = current_database()"
            )
        other = Registry(database_url(url, tmp_path))
        with contextlib.suppress(Conflict):  # ours was faster
            other.open(10)
            return other
        other.close()
    raise AssertionError("the lease could not be taken")


@pytest.mark.parametrize("wrong", [PASSWORD + "x", ""])
async def test_the_password_stands_in_no_output(url: str, tmp_path: Path, wrong: str) -> None:
    (tmp_path / "url").write_text(url.replace(PASSWORD, wrong))
    with Command(tmp_path / "data", "--database-url", f"@{tmp_path / 'url'}", "--debug") as command:
        output = command.output()
    assert command.process.returncode == 1
    assert "cannot be used" in output
    assert not wrong or wrong not in output
