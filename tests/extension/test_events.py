"""What changes on the gateway is an event of the Jupyter server, with a schema."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from jupyter_events import EventLogger
from jupyter_events.schema import EventSchema

from jupyter_dsserve.extension import events
from jupyter_dsserve.extension.events import SCHEMAS, EventRelay, schemas_by_kind
from jupyter_dsserve.extension.keeper import message_of
from jupyter_dsserve.protocol.records import Event, GatewayAddress
from tests.support import Json, JupyterServer, until

ROOT = Path(__file__).parent.parent.parent
BASE = "https://schema.jupyter.org/jupyter_dsserve"
# Kinds that the history has and the Jupyter server need not know.
ONLY_HISTORY = {"measured", "policy", "apply_failed", "replica_left", "registry_failed", "registry_written"}
ONLY_HISTORY |= {"key_created", "key_revoked"}

CONFIG = """
import logging
c.EventLogger.handlers = [logging.FileHandler({path!r})]
"""


def test_each_state_change_of_the_requirements_has_a_schema_that_is_valid() -> None:
    ids = {EventSchema(path).id for path in SCHEMAS}
    assert ids == {f"{BASE}/{name}/v1" for name in ("load", "swap", "step", "rollback", "crash")}
    table = (ROOT / "docs/observability.md").read_text().partition("## Events of the Jupyter server")[2]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", table, re.MULTILINE))
    told = {kind: f"{BASE}/{name}/v1" for name, kinds in rows.items() for kind in re.findall(r"`(\w+)`", kinds)}
    assert told == schemas_by_kind()


def test_every_kind_that_the_fleet_records_is_told_or_left_to_the_history() -> None:
    source = "".join(path.read_text() for path in (ROOT / "jupyter_dsserve/fleet").glob("*.py"))
    recorded = set(re.findall(r"\.?_?record\((?:time\.time\(\), |[\w.]+, )?\"(\w+)\"", source))
    recorded |= set(re.findall(r"(?:done|failed)=\"(\w+)\"", source))
    assert {"ready", "activated", "rollout_step", "rolled_back", "replica_lost", "route"} <= recorded
    assert recorded - ONLY_HISTORY <= schemas_by_kind().keys()
    assert schemas_by_kind().keys() - {"gateway_lost"} <= set(re.findall(r"\"(\w+)\"", source))


class Collected(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Json] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(record.msg)


def relay_to(handler: logging.Handler) -> EventRelay:
    nothing: Any = SimpleNamespace()
    return EventRelay(nothing, nothing, EventLogger(handlers=[handler]), logging.getLogger("test"))


def test_an_event_is_emitted_with_its_own_time_and_what_came_before_the_start_is_not() -> None:
    handler = Collected()
    relay = relay_to(handler)
    relay.emit(Event(7, time.time() - 60, "ready", "demo", "v1", "demo@v1#0", "on cpu"))
    relay.emit(Event(8, time.time(), "key_created", reason="app"))
    at = time.time()
    relay.emit(Event(9, at, "ready", "demo", "v1", "demo@v1#0", "on cpu"))
    [seen] = handler.seen
    assert seen["__schema__"] == f"{BASE}/load/v1"
    assert (seen["kind"], seen["id"], seen["deployment"], seen["version"]) == ("ready", 9, "demo", "v1")
    assert seen["__timestamp__"].startswith(time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at)))


def test_a_listener_that_fails_does_not_end_the_relay(caplog: pytest.LogCaptureFixture) -> None:
    relay = relay_to(Collected())

    def refuse(**_: Any) -> Any:
        raise RuntimeError("no")

    relay._events.add_modifier(modifier=lambda schema_id, data: refuse())
    relay.emit(Event(1, time.time(), "ready", "demo"))
    assert "the event ready of demo was not emitted: no" in caplog.text


async def test_what_the_relay_cannot_read_is_said_once_and_more_than_it_knows_is_no_matter(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "_LOOK_S", 0.001)
    handler = Collected()
    relay = relay_to(handler)
    whole = {"id": 4, "at": time.time() + 60, "kind": "ready", "deployment": "demo", "of_tomorrow": 1}
    told: list[Json] = [{"id": 4}] * 3 + [whole]

    @contextlib.asynccontextmanager
    async def listen(*_: object) -> AsyncIterator[Any]:
        async def lines() -> AsyncIterator[bytes]:
            if told:
                yield b"event: event\n"
                yield f"data: {json.dumps(told.pop(0))}\n".encode()

        yield SimpleNamespace(content=lines())

    relay._keeper = cast(Any, SimpleNamespace(running=lambda: GatewayAddress("http://127.0.0.1:1", "")))
    relay._forwarder = cast(Any, SimpleNamespace(listen=listen))
    task = asyncio.create_task(relay.run())
    try:
        [seen] = await until(lambda: handler.seen)
    finally:
        task.cancel()
    assert (seen["kind"], seen["id"], seen["deployment"]) == ("ready", 4, "demo")
    assert caplog.text.count("the gateway's events cannot be read") == 1


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Its events go into a file, and its gateway logs in JSON."""
    home = tmp_path_factory.mktemp("home")
    (home / "config").mkdir()
    (home / "config/jupyter_server_config.py").write_text(CONFIG.format(path=str(home / "events.log")))
    options = ("--DSServeExtension.log_json=True", "--DSServeExtension.access_log=True")
    with JupyterServer(home, *options) as server:
        yield server


def events_of(server: JupyterServer) -> list[Json]:
    path = server.home / "events.log"
    return [json.loads(line) for line in _lines_of(path)] if path.exists() else []


def _lines_of(path: Path) -> list[str]:
    """Without one that is being written."""
    return path.read_text().rpartition("\n")[0].splitlines()


def is_back(seen: list[Json]) -> bool:
    """Whether something is READY since the gateway was lost: before that the worker, which was lost too, may be."""
    kinds = [e["kind"] for e in seen]
    return "gateway_lost" in kinds and any(
        e["kind"] == "ready" and e["id"] > 0 for e in seen[kinds.index("gateway_lost") :]
    )


async def test_a_real_server_emits_loads_swaps_steps_rollbacks_and_crashes_once_each(server: JupyterServer) -> None:
    async with server.caller() as caller:
        assert events_of(server) == []
        assert (await caller.get("/gateway")).json()["state"] == "OFF"  # to listen starts nothing
        for version in ("v1", "v2"):
            await caller.load("demo", version, "toy:step_s=0.001")
        await caller.post("/api/deployments/demo/rollout", json={"candidate": "v2", "steps": [5, 50, 100]})
        await caller.post("/api/deployments/demo/rollout/rollback")
        await caller.post("/api/deployments/demo/activate", json={"version": "v2"})
        pid = (await caller.version("demo", "v2"))["replicas"][0]["pid"]
        os.kill(pid, signal.SIGKILL)
        seen = await until(lambda: events_of(server), lambda seen: "replica_lost" in {e["kind"] for e in seen})
        by_schema = {e["__schema__"].split("/")[-2]: e for e in seen}
        assert by_schema.keys() == {"load", "swap", "step", "rollback", "crash"}
        assert (by_schema["swap"]["kind"], by_schema["swap"]["version"]) == ("activated", "v2")
        assert by_schema["crash"]["replica"] == "demo@v2#0"
        ids = [e["id"] for e in seen]
        assert ids == sorted(set(ids)), "one was emitted twice, or in another order"
        history = (await caller.get("/api/history")).json()
        told = [e["id"] for e in history if e["kind"] in schemas_by_kind() and e["id"] <= ids[-1]]
        assert ids == told, "one is missing"
        os.kill((await caller.get("/gateway")).json()["pid"], signal.SIGKILL)
        seen = await until(lambda: events_of(server), is_back)
        [lost] = [e for e in seen if e["kind"] == "gateway_lost"]
        assert "ended with code -9" in lost["reason"]


async def test_the_log_of_a_real_server_has_records_of_gateway_and_workers(server: JupyterServer) -> None:
    def records() -> list[Json]:
        return [json.loads(line) for line in _lines_of(server.log_path) if line.startswith("{")]

    async with server.caller() as caller:
        await caller.load("log", "v1", "toy:step_s=0.001")
        assert (await caller.complete("log", prompt="of-nobody-else")).status_code == 200
        seen = await until(records, lambda seen: any(e.get("dsserve.replica") == "log@v1#0" for e in seen))
        seen = await until(records, lambda seen: any(e.get("dsserve.deployment") == "log" for e in seen))
    assert all(e["@timestamp"] and e["log.level"] and e["message"] for e in seen)
    [call] = [e for e in seen if e.get("dsserve.deployment") == "log"]
    assert (call["url.path"], call["event.outcome"]) == ("/v1/completions", "ok")
    assert "of-nobody-else" not in server.log_path.read_text()


def test_of_a_record_the_reason_is_its_message() -> None:
    assert message_of('{"message": "it failed", "log.level": "ERROR"}') == "it failed"
    assert message_of("Traceback:") == "Traceback:"
    assert message_of("[1]") == "[1]"
