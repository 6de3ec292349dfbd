"""The dashboard and the alerts, in a real Prometheus that scrapes a real gateway."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from jupyter_dsserve.gateway.monitoring import ALERTS, PANELS, prometheus_config, rules
from jupyter_dsserve.gateway.server import Gateway
from tests.support import Caller, Command, free_port, until

Json = Any


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed here: apt-get install prometheus")
    return found


def ran(*line: str | Path) -> str:
    done = subprocess.run([str(word) for word in line], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def rule_file(tmp_path: Path) -> Path:
    path = tmp_path / "alerts.yml"
    path.write_text(yaml.safe_dump(rules()))
    return path


def test_the_command_writes_files_that_promtool_takes(tmp_path: Path) -> None:
    with Command(tmp_path / "data") as gateway:
        asyncio.run(_answering(gateway))
        command = Path(sys.executable).with_name("jupyter-dsserve")
        said = ran(command, "monitoring", tmp_path / "out", "--data-dir", tmp_path / "data")
        ran(command, "monitoring", tmp_path / "own", "--key-file", tmp_path / "metrics.key")
        holder = json.loads((tmp_path / "data/gateway.lock").read_text())
    names = ["prometheus.yml", "alerts.yml", "dashboard.json"]
    assert said.split() == [str(tmp_path / "out" / name) for name in names]
    [scrape] = yaml.safe_load((tmp_path / "out/prometheus.yml").read_text())["scrape_configs"]
    assert scrape["static_configs"] == [{"targets": [holder["url"].removeprefix("http://")]}]
    assert scrape["authorization"] == {"credentials_file": str(tmp_path / "data/admin.key")}
    [scrape] = yaml.safe_load((tmp_path / "own/prometheus.yml").read_text())["scrape_configs"]
    assert scrape["authorization"] == {"credentials_file": str(tmp_path / "metrics.key")}
    assert gateway.key not in "".join((tmp_path / "out" / name).read_text() for name in names)
    ran(tool("promtool"), "check", "config", "--lint-fatal", tmp_path / "out/prometheus.yml")


async def _answering(gateway: Command) -> None:
    await (await gateway.caller()).aclose()


def test_the_dashboard_has_each_panel_in_a_place_of_its_own(tmp_path: Path) -> None:
    command = Path(sys.executable).with_name("jupyter-dsserve")
    ran(command, "monitoring", tmp_path, "--data-dir", tmp_path / "none")
    panels = json.loads((tmp_path / "dashboard.json").read_text())["panels"]
    assert len(panels) == len({panel["title"] for panel in panels}) == len({panel["id"] for panel in panels})
    assert len({(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}) == len(panels)


DURATION = "gen_ai_server_request_duration_seconds"
CALLS = f'{DURATION}_count{{deployment="demo",version="v1",outcome="%s"}}'
BUCKET = f'{DURATION}_bucket{{deployment="demo",version="v1",outcome="ok",le="%s"}}'
READY = 'dsserve_version_state{deployment="demo",version="v1",state="READY"}'
MEMORY = 'dsserve_device_bytes{deployment="demo",version="v1"}'
WORKERS = 'dsserve_%s_workers{deployment="demo",version="v1"}'
ROLLED_BACK = 'dsserve_rollout_state{deployment="demo",candidate="v2",state="ROLLED_BACK"}'
BREAKER = 'dsserve_breaker_state{deployment="demo",version="v1",worker="demo@v1#0",state="open"}'
# By alert: series that make it fire after 20 minutes, and such that do not. A value and a step of each minute, as
# promtool writes them.
CASES: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "DSServeDown": ({'up{job="dsserve"}': "1x15 0x20"}, {'up{job="dsserve"}': "1x40"}),
    "DSServeSuccessRate": (
        {CALLS % "ok": "0+9990x40", CALLS % "error": "0+10x40"},
        {CALLS % "ok": "0+99990x40", CALLS % "error": "0+10x40", CALLS % "rate_limited": "0+9000x40"},
    ),
    "DSServeLatency": (
        {BUCKET % "10.24": "0+90x40", BUCKET % "20.48": "0+100x40", BUCKET % "+Inf": "0+100x40"},
        {BUCKET % "5.12": "0+100x40", BUCKET % "10.24": "0+100x40", BUCKET % "+Inf": "0+100x40"},
    ),
    "DSServeMemorySwing": (
        {MEMORY: "100x13 140x1 100x20", READY: "1x40", WORKERS % "ready": "1x40"},
        {MEMORY: "100x13 110x1 100x20", READY: "1x40", WORKERS % "ready": "1x40"},
    ),
    "DSServeBreakerOpen": ({BREAKER: "0x19 1x20"}, {BREAKER: "1x10 0x30"}),
    "DSServeWorkersMissing": (
        {WORKERS % "ready": "1x40", WORKERS % "wanted": "2x40"},
        {WORKERS % "ready": "2x40", WORKERS % "wanted": "2x40"},
    ),
    "DSServeRolloutRolledBack": ({ROLLED_BACK: "0x12 1x40"}, {ROLLED_BACK: "1x60"}),
}


@pytest.mark.parametrize("name", [alert.name for alert in ALERTS])
def test_an_alert_fires_when_it_should_and_not_when_it_should_not(rule_file: Path, name: str) -> None:
    def case(series: dict[str, str], fires: bool) -> Json:
        rows = [{"series": key, "values": values} for key, values in series.items()]
        query = f'count(ALERTS{{alertname="{name}", alertstate="firing"}}) or vector(0)'
        wanted = [{"labels": "{}", "value": 1.0 if fires else 0.0}]
        at = [{"expr": query, "eval_time": "20m", "exp_samples": wanted}]
        return {"interval": "1m", "input_series": rows, "promql_expr_test": at}

    bad, good = CASES[name]
    path = rule_file.with_name("cases.yml")
    path.write_text(
        yaml.safe_dump(
            {"rule_files": [str(rule_file)], "evaluation_interval": "1m", "tests": [case(bad, True), case(good, False)]}
        )
    )
    ran(tool("promtool"), "test", "rules", path)


@pytest.fixture
def prometheus(gateway: Gateway, data_dir: Path, rule_file: Path, tmp_path: Path) -> Iterator[str]:
    """Its URL; it scrapes the gateway every second."""
    config = tmp_path / "prometheus.yml"
    config.write_text(yaml.safe_dump(prometheus_config(gateway.url, data_dir / "admin.key", rule_file, "1s")))
    at = f"127.0.0.1:{free_port()}"
    line = [tool("prometheus"), f"--config.file={config}", f"--storage.tsdb.path={tmp_path / 'series'}"]
    with (tmp_path / "prometheus.log").open("wb") as log:
        process = subprocess.Popen([*line, f"--web.listen-address={at}"], stdout=log, stderr=log)
    yield f"http://{at}"
    process.terminate()
    process.wait(60)


async def test_every_query_has_an_answer_where_prometheus_scrapes_a_gateway(caller: Caller, prometheus: str) -> None:
    await caller.load("demo", "v1", "toy:step_s=0.001")
    await caller.load("demo", "v2", "toy:step_s=0.001")
    await caller.post("/api/deployments/demo/rollout", json={"candidate": "v2"})

    async with httpx.AsyncClient(base_url=f"{prometheus}/api/v1", trust_env=False) as asked:

        async def missing() -> list[str]:
            assert (await caller.complete("demo@v1")).status_code == 200
            assert (await caller.complete("demo@v2")).status_code == 200
            found = [query for panel in PANELS for query in panel.queries.values()]
            return [query for query in found if not (await answer(query))["data"]["result"]]

        async def answer(query: str) -> Json:
            told = query.replace("$deployment", ".*").replace("$__rate_interval", "5s")
            got = await asked.get("/query", params={"query": told})
            assert got.status_code == 200, (told, got.text)
            return got.json()

        await until(_quietly(lambda: asked.get("/query", params={"query": "up"})), timeout_s=30)
        assert await until(missing, lambda left: not left, 90) == []
        loaded = (await asked.get("/rules")).json()["data"]["groups"][0]["rules"]
        assert {rule["name"]: rule["health"] for rule in loaded} == {alert.name: "ok" for alert in ALERTS}
        for rule in ALERTS:
            await answer(rule.query)


def _quietly(look: Callable[[], Any]) -> Callable[[], Any]:
    """None while nobody answers."""

    async def seen() -> Any:
        try:
            return (await look()).status_code == 200
        except httpx.TransportError:
            return None

    return seen
