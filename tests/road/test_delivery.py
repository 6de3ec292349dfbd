"""The worked example of docs/delivery.md, run as it stands but for toys instead of models."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from pathlib import Path

import pytest

from tests.support import Command

PAGE = (Path(__file__).parent.parent.parent / "docs/delivery.md").read_text()


@pytest.mark.timeout(600)  # eight commands, each of which imports its own
async def test_the_worked_example_tries_the_candidate_and_begins_its_rollout(tmp_path: Path) -> None:
    repository, data = tmp_path / "repository", tmp_path / "data"
    repository.mkdir()
    files = [re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)[0] for language in ("yaml", "json", "bash")]
    toys = files[0].replace("builtin:demo-v1", "toy:step_s=0.02").replace("builtin:demo-v2", "toy:step_s=0.0201")
    # Short, and with a threshold that a machine with other work keeps too.
    script = files[2].replace("--seconds 1 ", "--seconds 0.5 --output-tokens 6 ").replace("ratio 1.5", "ratio 4")
    assert "--output-tokens 6 --max-latency-ratio 4" in script
    for name, text in (("deployments.yaml", toys), ("prompts.jsonl", files[1]), ("deliver.sh", script)):
        (repository / name).write_text(text)
    with Command(data / "dsserve", "--load", "demo=toy:step_s=0.02") as command:
        async with await command.caller() as caller:
            await caller.settled("demo", "v1")

            async def deliver() -> tuple[int, str]:
                path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
                work = await asyncio.create_subprocess_exec(
                    *("bash", "deliver.sh"),
                    cwd=repository,
                    env={**os.environ, "JUPYTER_DATA_DIR": str(data), "PATH": path, "NO_PROXY": "127.0.0.1"},
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.STDOUT,
                )
                said, _ = await work.communicate()
                return work.returncode or 0, said.decode()

            # A candidate that cannot do what is wanted ends the job before any traffic comes to it.
            (repository / "prompts.jsonl").write_text('{"prompt": "x", "max_tokens": 4, "expect": {"equals": "?"}}')
            status, said = await deliver()
            assert status == 1, said
            assert not (repository / "rollout.json").exists()
            assert "FAILED" in said, said
            assert "FAILED" in (repository / "validation.md").read_text()

            (repository / "prompts.jsonl").write_text(files[1])
            status, said = await deliver()
            assert status == 0, said
            assert json.loads((repository / "validation.json").read_text())["passed"]
            rollout = (await caller.get("/api/deployments/demo/rollout")).json()
            assert (rollout["candidate"], rollout["state"]) == ("v2", "PROGRESSING")
            assert not (repository / "auth.header").exists()
