"""``jupyter dsserve validate`` in a process of its own, against ``jupyter dsserve``."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn
from xml.etree import ElementTree

import pytest

from jupyter_dsserve.gateway.validate import ValidateApp
from tests.engine.test_loop import toy_text
from tests.support import Command

PROGRAM = str(Path(sys.executable).with_name("jupyter-dsserve"))
QUICK = ("--rounds", "2", "--seconds", "0.5", "--output-tokens", "4")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    """demo@v1, and demo@v2 that takes three times as long a step."""
    with Command(tmp_path_factory.mktemp("served") / "data", "--load", "demo=toy:step_s=0.004") as command:
        asyncio.run(_load_both(command))
        yield command


async def _load_both(command: Command) -> None:
    async with await command.caller() as caller:
        await caller.load("demo", "v2", "toy:step_s=0.012", wait=False)
        await caller.settled("demo", "v1")
        await caller.settled("demo", "v2")


async def run(*words: str) -> tuple[int, str]:
    """Its exit status, and what it said."""
    arguments = [PROGRAM, "validate", *words]
    work = asyncio.to_thread(subprocess.run, arguments, capture_output=True, text=True, timeout=150, check=False)
    done = await work
    return done.returncode, done.stdout + done.stderr


@pytest.mark.timeout(600)  # five commands at once
async def test_it_ends_with_what_a_ci_job_wants_to_know(served: Command, tmp_path: Path) -> None:
    chat = {"name": "chat", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 9}
    lines = [
        {"name": "good", "prompt": "hello", "max_tokens": 9, "expect": {"equals": toy_text("hello", 9)}},
        chat | {"expect": {"regex": "^[a-z ]+$"}},
    ]
    prompts, bad = tmp_path / "prompts.jsonl", tmp_path / "bad.jsonl"
    prompts.write_text("\n".join(map(json.dumps, lines)))
    bad.write_text(json.dumps({"prompt": "hello", "expect": {"contains": "Paris"}}))
    here = ("--data-dir", str(served.data_dir))
    against = ("--baseline", "demo@v1", *QUICK)
    reports = [tmp_path / f"out{end}" for end in (".json", ".md", ".junit.xml")]
    written = [word for path in reports for word in ("--report", str(path))]

    passed, failed, slow, absent, wrong = await asyncio.gather(
        run("demo@v2", *here, "--prompts", str(prompts), *against, "--max-latency-ratio", "50", *written),
        run("demo@v1", *here, "--prompts", str(bad)),
        run("demo@v2", *here, *against, "--max-latency-ratio", "0.01"),  # which no machine is too slow for
        run("demo@v9", *here, "--prompts", str(prompts)),
        run("demo@v2", *here, "--prompts", str(tmp_path / "none.jsonl")),
    )
    assert passed[0] == 0, passed[1]
    assert "demo@v2 against demo@v1: passed" in passed[1]
    tree = json.loads(reports[0].read_text())
    assert (tree["passed"], [case["name"] for case in tree["cases"]]) == (True, ["good", "chat"])
    assert len(tree["baseline_cases"]) == 2
    ratio = next(c["ratio"] for c in tree["compared"] if c["name"] == "a token after, p50")
    assert ratio > 0
    assert "| prompts | passed |" in reports[1].read_text()
    assert ElementTree.parse(reports[2]).getroot().attrib["failures"] == "0"
    assert failed[0] == 1, failed[1]
    assert "it does not contain 'Paris'" in failed[1]
    assert slow[0] == 1, slow[1]
    assert "times the baseline" in slow[1]
    assert (absent[0], "v9" in absent[1]) == (2, True), absent[1]
    assert (wrong[0], "none.jsonl cannot be read" in wrong[1]) == (2, True), wrong[1]


async def test_a_server_that_is_named_is_asked_with_a_key_from_a_file(served: Command, tmp_path: Path) -> None:
    prompts, key = tmp_path / "p.jsonl", tmp_path / "key"
    prompts.write_text('{"prompt": "hello", "max_tokens": 4}')
    async with await served.caller() as caller:
        url = str(caller.base_url)
        made = await caller.post("/api/keys", json={"name": "ci", "deployments": ["demo"]})
        key.write_text(made.json()["key"] + "\n")
    words = ("demo@v2", "--url", url, "--prompts", str(prompts), "--data-dir", str(tmp_path / "none"))
    assert (await run(*words, "--key", f"@{key}"))[0] == 0
    status, said = await run(*words, "--key", "wrong")
    assert (status, "401" in said) == (2, True), said


def test_a_fault_that_nobody_thought_of_is_no_verdict(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: object) -> NoReturn:
        raise ZeroDivisionError("nobody thought of it")

    monkeypatch.setattr("jupyter_dsserve.gateway.validate.validate", fail)
    app = ValidateApp()
    app.initialize(["demo@v2", "--url", "http://127.0.0.1:1/v1", "--data-dir", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        app.start()
    assert ended.value.code == 2
