"""What the gateway logs: a line for each request, as text or as JSON, workers' lines among them, and no prompts."""

from __future__ import annotations

import json
import logging
import re
import signal
import sys
from pathlib import Path

import httpx
import pytest

from jupyter_dsserve.gateway.logs import Flood, Followed, json_formatter
from tests.support import Command, Json, until

TRACEPARENT = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
# As a proxy adds it to what a caller made up.
FORWARDED = {"X-Forwarded-For": "203.0.113.9, 198.51.100.7"}


def lines_of(command: Command) -> list[Json]:
    """Each line of its output is JSON."""
    written, _, _ = command.said().rpartition("\n")
    return [json.loads(line) for line in written.splitlines()]


async def test_json_lines_have_a_record_for_each_call_and_for_each_line_of_a_worker(tmp_path: Path) -> None:
    options = ("--log-json", "--trust-proxy", "127.0.0.0/8", "--load", "demo=toy:step_s=0.01")
    with Command(tmp_path / "data", *options) as command:
        caller = await command.caller()
        async with caller:
            await caller.settled("demo", "v1")
            body = {"model": "demo", "prompt": "a secret word", "max_tokens": 5}
            answer = await caller.post("/v1/completions?who=me", json=body, headers=TRACEPARENT | FORWARDED)
            assert answer.status_code == 200
            assert (await caller.post("/v1/completions", json=body | {"n": -1})).status_code == 400
            assert (await caller.complete("nobody")).status_code == 404
            with pytest.raises(httpx.ReadTimeout):
                await caller.post("/v1/completions", json=body | {"max_tokens": 900}, timeout=0.5)
            await caller.delete("/api/deployments/nobody")
            seen = await until(
                lambda: lines_of(command),
                lambda seen: (
                    {"cancelled"} <= {e.get("event.outcome") for e in seen}
                    and any(e.get("url.path") == "/api/deployments/nobody" for e in seen)
                    and any(e["message"].startswith("demo@v1#0: ready on") for e in seen)
                ),
            )
        assert all(e["@timestamp"] and e["log.level"] and e["message"] and e["service.name"] for e in seen)
        calls = {e["event.outcome"]: e for e in seen if "event.outcome" in e}
        good = calls["ok"]
        assert good["http.request.method"] == "POST"
        assert good["url.path"] == "/v1/completions"
        assert good["http.response.status_code"] == 200
        assert good["client.address"] == "198.51.100.7"
        assert calls["cancelled"]["client.address"] == "127.0.0.1"
        assert 50e6 < good["event.duration"] < 60e9
        assert good["trace.id"] == "a" * 32
        assert good["dsserve.request_id"] == answer.headers["X-Request-Id"]
        assert (good["dsserve.deployment"], good["dsserve.version"]) == ("demo", "v1")
        assert good["dsserve.output_tokens"] == 5
        assert 0 < good["dsserve.first_token_s"] < good["event.duration"] / 1e9
        assert calls["client_error"]["http.response.status_code"] == 404
        assert calls["client_error"]["error.type"] == "NotFound"
        assert calls["cancelled"]["http.response.status_code"] == 499
        others = {e["http.response.status_code"] for e in seen if "url.path" in e and "event.outcome" not in e}
        assert others == {400, 404}  # what only looks is told at the level DEBUG
        worker = [e for e in seen if e.get("dsserve.replica") == "demo@v1#0"]
        assert any(e["message"].startswith("demo@v1#0: ready on") and e["log.level"] == "INFO" for e in worker)
        assert "secret" not in command.said()
        assert "who=me" not in command.said()
        command.signal(signal.SIGTERM)
        assert json.loads(command.output().splitlines()[-1])["message"].startswith("stopping")


async def test_text_has_a_line_for_each_call_and_prompts_only_if_asked(tmp_path: Path) -> None:
    with Command(tmp_path / "data", "--load", "demo=toy:step_s=0.001", "--log-prompts") as command:
        async with await command.caller() as caller:
            await caller.settled("demo", "v1")
            answer = await caller.complete(prompt="a secret word" + "x" * 500)
            assert answer.status_code == 200
        said = await until(command.said, lambda said: "POST /v1/completions 200 " in said)
        [line] = [line for line in said.splitlines() if "POST /v1/completions" in line]
        assert f"· {answer.headers['X-Request-Id']} · demo@v1 " in line
        assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO jupyter_dsserve\.gateway\.access: POST", line)
        written = [path for path in (tmp_path / "data").rglob("*") if path.stat().st_mode & 0o077]
        assert not written, "others may read it"
        assert " → 5 tokens · first " in line
        [prompt] = [line for line in said.splitlines() if "secret" in line]
        assert "(--log-prompts)" in prompt
        assert "(513 characters)" in prompt
        assert "x" * 300 not in prompt


async def test_without_an_access_log_a_call_has_no_line(tmp_path: Path) -> None:
    with Command(tmp_path / "data", "--no-access-log") as command:
        async with await command.caller() as caller:
            assert (await caller.complete("nobody")).status_code == 404
        command.signal(signal.SIGTERM)
        assert "POST" not in command.output()


def test_a_flood_of_errors_from_one_place_is_held_back_and_counted() -> None:
    flood = Flood(most=3, per_s=10)
    assert [flood.held("a.py", 1, now) for now in (0, 1, 2, 3, 4)] == [0, 0, 0, None, None]
    assert flood.held("a.py", 2, 4) == 0
    assert flood.held("a.py", 1, 11) == 2
    assert flood.held("a.py", 1, 12) == 0
    record = logging.LogRecord("x", logging.ERROR, "a.py", 1, "it failed: %s", ("so",), None)
    record.created = 30
    for _ in range(3):
        assert flood.filter(record)
    assert not flood.filter(record)
    record.created = 50
    assert flood.filter(record)
    assert record.getMessage() == "it failed: so (and 1 more like it)"


def test_what_workers_write_is_told_with_their_level_and_a_cut_file_is_followed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("jupyter_dsserve"), "propagate", True)
    caplog.set_level(logging.INFO, "jupyter_dsserve.worker")
    path = tmp_path / "demo@v1#0.log"
    path.write_text("before\n" * 5)
    followed = Followed(tmp_path)
    with path.open("a") as log:
        log.write("2026-01-02 03:04:05,678 WARNING engine.loop: step 5 failed\n  traceback\nhalf a li")
    followed.tell()
    with path.open("a") as log:
        log.write("ne\n")
    (tmp_path / "new@v1#0.log").write_text("2026-01-02 03:04:05,678 ERROR x: no\n")
    followed.tell()
    path.write_text("ne\n")  # cut to its end before a restart
    followed.tell()
    with path.open("a") as log:
        log.write("again\n")
    followed.tell()
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
        ("WARNING", "demo@v1#0: step 5 failed"),
        ("INFO", "demo@v1#0:   traceback"),
        ("INFO", "demo@v1#0: half a line"),
        ("ERROR", "new@v1#0: no"),
        ("INFO", "demo@v1#0: again"),
    ]


def test_an_errors_traceback_is_in_its_record() -> None:
    try:
        raise ValueError("so")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "a.py", 1, "it failed", (), sys.exc_info())
    told = json.loads(json_formatter().format(record))
    assert told["message"] == "it failed"
    assert told["error.stack_trace"].endswith("ValueError: so")
    assert told["log.level"] == "ERROR"
    assert told["log.logger"] == "x"
