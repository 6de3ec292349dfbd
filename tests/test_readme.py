"""What README and docs say works: every snippet is run, every route is listed."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jupyter_dsserve.gateway import control, generate, openai
from tests.support import Command

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text()


def snippets(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


async def test_every_snippet_of_the_readme_runs_as_it_stands(tmp_path: Path) -> None:
    """In a home directory of its own, and at whatever port is free instead of 8899."""
    data_dir = tmp_path / ".local/share/jupyter/dsserve"
    with Command(data_dir, "--load", "demo=builtin:demo-v1") as command:
        async with await command.caller() as caller:
            assert (await caller.settled("demo", "v1", timeout_s=120))["state"] == "READY"
            url = str(caller.base_url).rstrip("/")
            home = {**os.environ, "HOME": str(tmp_path), "NO_PROXY": "127.0.0.1"}
            shell = "set -e\n" + "\n".join(snippets("bash")).replace("http://127.0.0.1:8899", url)
            said = await _run(["bash", "-c", shell], home)
            assert '"finish_reason"' in said
            assert '"weights": {"v1": 90' in said
            code = "\n".join(snippets("python")).replace("http://127.0.0.1:8899", url)
            assert len(await _run([sys.executable, "-c", code], home)) > 5  # drawn at random: of what length, who knows
            assert (await caller.get("/api/deployments/demo/route")).json()["weights"] == {"v2": 100}
        command.process.terminate()
        command.output()


async def _run(arguments: list[str], env: dict[str, str]) -> str:
    run = asyncio.to_thread(subprocess.run, arguments, env=env, capture_output=True, text=True, timeout=120)
    done = await run
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_readme_has_snippets_of_both_kinds() -> None:
    assert (len(snippets("bash")), len(snippets("python"))) == (2, 1)


def _documented() -> set[tuple[str, str]]:
    """(method, path) pairs of the table of routes."""
    found, last = set(), ""
    for cell in re.findall(r"^\| (`.*?) \|", ARCHITECTURE.partition("## Routes")[2], re.MULTILINE):
        for route in re.findall(r"`(.*?)`", cell):
            *methods, path = route.split()
            before = last[: last.rindex("/")] if path.startswith("…") else ""
            last = before + path.removeprefix("…").partition("?")[0].replace("[", "").replace("]", "")
            found |= {(method, last) for method in methods or ["POST"]}
    return found


def test_the_table_of_routes_is_complete_and_true() -> None:
    ours = [*openai.ROUTES, *generate.ROUTES, *control.ROUTES]
    real = {
        (method.upper(), path)
        for path, handler in ours
        for method in ("get", "post", "put", "delete")
        if method in vars(handler)
    }
    as_pattern = {(method, re.sub(r"\{\w+\}", "([^/]+)", path)) for method, path in _documented()}
    assert as_pattern | {("GET", "/v1/models")} == real


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(?:\w+/)?(\w+\.(?:py|sh|proto))`", ARCHITECTURE))))
def test_every_file_the_map_names_exists(name: str) -> None:
    assert list((ROOT / "jupyter_dsserve").rglob(name)) or list(ROOT.rglob(f"tests/{name}"))
