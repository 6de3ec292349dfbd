"""Keys, prompts and answers are where they must be and nowhere else: a session with marked ones, and a search for the
marks in everything that it left."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest

from tests.support import Caller, Command, JupyterServer, free_port, until, worker_pids

PROMPT, PASSWORD, HEADER, HUB = "prompt-mark-4711", "password-mark-4712", "collector-mark-4713", "hub-mark-4714"


class Seen:
    """What was looked at, by where it was."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}

    def add(self, where: str, text: str) -> None:
        self._texts[where] = self._texts.get(where, "") + text

    def add_processes(self, pids: list[int], *, environment: bool) -> None:
        for pid in pids:
            self.add(f"command line of {pid}", " ".join(psutil.Process(pid).cmdline()))
            if environment:
                self.add(f"environment of {pid}", json.dumps(psutil.Process(pid).environ()))

    def add_files(self, directory: Path) -> None:
        for path in directory.rglob("*"):
            if path.is_file() and path.name != "admin.key":
                self.add(str(path.relative_to(directory)), path.read_bytes().decode("latin-1"))

    def where(self, secret: str) -> list[str]:
        return [where for where, text in self._texts.items() if secret in text]

    def text(self, where: str) -> str:
        return self._texts[where]


@pytest.fixture
def collector() -> Iterator[tuple[str, list[bytes]]]:
    """Takes OTLP over HTTP: where, and what came."""
    came: list[bytes] = []

    class Door(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            came.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Door) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", came
        server.shutdown()


async def test_what_a_session_leaves_behind_holds_no_key_no_prompt_and_no_answer(
    tmp_path: Path, collector: tuple[str, list[bytes]]
) -> None:
    seen = Seen()
    env = {
        "OTEL_EXPORTER_OTLP_HEADERS": f"x-key={HEADER}",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
        "OTEL_BSP_SCHEDULE_DELAY": "30",
        "JUPYTERHUB_API_TOKEN": HUB,
        "PGPASSWORD": PASSWORD,
    }
    data = tmp_path / "data"
    options = ("--debug", "--log-json", "--otlp-endpoint", collector[0])
    with Command(data, *options, env=env) as command:
        async with await command.caller() as caller:
            events = asyncio.create_task(_events(caller))
            await caller.load("demo", "v1", "toy:step_s=0.001")
            await caller.load("bad", "v1", "toy:step_s=0,fail_rate=1")
            await caller.load("texts", "v1", "toy:step_s=0", task="embed")
            made = (await caller.post("/api/keys", json={"name": "app"})).json()
            answer = (await caller.complete(prompt=PROMPT, max_tokens=40)).json()["choices"][0]["text"]
            assert len(answer) > 20
            key = made["key"]
            async with Caller(str(caller.base_url), key) as app:
                await _ask_in_every_way(app, seen)
            async with Caller(str(caller.base_url), key[:-1] + "~") as stranger:
                seen.add("an error of a wrong key", (await stranger.complete(prompt=PROMPT)).text)
            await caller.delete(f"/api/keys/{made['id']}")
            for path in ("traces", "history", "status", "keys", "export", "ledger"):
                seen.add(f"/api/{path}", (await caller.get(f"/api/{path}")).text)
            for trace in (await caller.get("/api/traces")).json():
                seen.add("/api/traces/ID", (await caller.get(f"/api/traces/{trace['id']}")).text)
            seen.add("/metrics", (await caller.get("/metrics")).text)
            seen.add("logs of a worker", (await caller.get("/api/deployments/bad/versions/v1/logs")).text)
            await asyncio.sleep(1.1)  # so that /api/events has a second of numbers, and the log the workers' lines
            events.cancel()
            seen.add("/api/events", await events)
            workers = worker_pids(command.pid)
            assert len(workers) >= 3
            seen.add_processes([command.pid], environment=False)  # which is the test's own doing
            seen.add_processes(workers, environment=True)
            await until(lambda: b"text_completion demo" in b"".join(collector[1]))
            seen.add("OTLP", b"".join(collector[1]).decode("latin-1"))
        admin_key = command.key
        command.process.terminate()
        seen.add("log", command.output())
    seen.add_files(data)
    _check_that_much_was_seen(seen)
    for secret in (admin_key, key, key[:-1] + "~", PROMPT, answer, json.dumps(answer)[1:-1], PASSWORD, HEADER, HUB):
        assert seen.where(secret) == [], secret[:12]


async def _ask_in_every_way(app: Caller, seen: Seen) -> None:
    chat = {"model": "demo", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 3}
    assert (await app.post("/v1/chat/completions", json=chat)).status_code == 200
    assert [event async for event in app.stream_complete(prompt=PROMPT)][-1] == "[DONE]"
    assert (await app.post("/v1/embeddings", json={"model": "texts", "input": PROMPT})).status_code == 200
    for fields in (
        {"model": "bad"},
        {"model": "nobody"},
        {"max_tokens": 10**7},
        {"max_tokens": -1},
        {"timeout_s": 1e-6},
    ):
        asked = await app.complete(**{"prompt": PROMPT, **fields})
        assert asked.status_code >= 400
        seen.add("errors", asked.text)
    for body in (b'{"model": "demo", "prompt": "' + PROMPT.encode(), b'{"prompt": "x"}'):
        seen.add("errors", (await app.post("/v1/completions", content=body)).text)
    for path in (f"/api/status?token={PROMPT}", f"/no/such?prompt={PROMPT}"):
        seen.add("errors", (await app.get(path)).text)


async def _events(caller: Caller) -> str:
    came = ""
    try:
        async with caller.stream("GET", "/api/events") as answer:
            async for text in answer.aiter_text():
                came += text
    except asyncio.CancelledError:
        return came
    return came


def _check_that_much_was_seen(seen: Seen) -> None:
    """A search of nothing would find nothing."""
    # Before the command has read its options its lines are plain.
    log = [json.loads(line) for line in seen.text("log").splitlines() if " DSServeApp: " not in line[:50]]
    assert {"DEBUG", "INFO", "WARNING"} <= {entry["log.level"] for entry in log}
    assert any(entry.get("dsserve.replica") for entry in log)
    assert seen.text("/api/traces/ID").count('"route"') > 5
    assert '"p95_s"' in seen.text("/api/events")
    assert "replica" in seen.text("OTLP")
    assert "dsserve_requests_total" in seen.text("/metrics")
    assert "NotFound" in seen.text("errors") or "model_not_found" in seen.text("errors")
    assert {"fleet.db", "logs/demo@v1#0.log"} <= set(seen._texts)


async def test_a_database_that_is_away_is_named_without_its_password(tmp_path: Path) -> None:
    url = tmp_path / "url"
    url.write_text(f"postgresql://me:{PASSWORD}@127.0.0.1:{free_port()}/fleet")
    with Command(tmp_path / "data", "--debug", "--database-url", f"@{url}") as command:
        said = await asyncio.to_thread(command.output, 60)
    assert re.search("database|PostgreSQL|connect", said)
    assert PASSWORD not in said


class MarkedServer(JupyterServer):
    token = "jupyter-mark-4715"


@pytest.mark.long
async def test_jupyters_token_stays_in_jupyters_server(tmp_path: Path) -> None:
    seen = Seen()
    with MarkedServer(tmp_path / "home", "--debug") as server:
        async with server.caller() as caller:
            await caller.load("demo", "v1", "toy:step_s=0")
            assert (await caller.complete(prompt=PROMPT)).status_code == 200
            for path in ("traces", "history", "status"):
                seen.add(f"/api/{path}", (await caller.get(f"/api/{path}")).text)
        ours = server.processes()
        assert len(ours) == 2
        seen.add_processes(ours, environment=True)
        admin_key = (server.data_dir / "admin.key").read_text().strip()
    seen.add_files(server.data_dir)
    log = server.log_path.read_text()
    gateways = "\n".join(line for line in log.splitlines() if "gateway" in line)
    assert "the gateway answers at" in gateways
    seen.add("the gateway's part of the log", gateways)
    assert seen.where(server.token) == []
    for secret in (admin_key, PROMPT):
        assert seen.where(secret) == []
        assert secret not in log
