"""What README and docs say works: every snippet is run, every route is listed."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jupyter_dsserve.extension.app import DSServeExtension
from jupyter_dsserve.gateway.server import ROUTES
from jupyter_dsserve.protocol.config import GatewayConfig
from tests.notebook.conftest import Kernel
from tests.support import Command, JupyterServer

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text()


def snippets(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


async def test_every_snippet_of_the_readme_runs_as_it_stands(tmp_path: Path) -> None:
    """In a home directory of its own, and at whatever port is free instead of 8899."""
    data_dir = tmp_path / ".local/share/jupyter/dsserve"
    with Command(data_dir, "--load", "demo=builtin:demo-v1", "--grpc-port", "0") as command:
        async with await command.caller() as caller:
            assert (await caller.settled("demo", "v1", timeout_s=120))["state"] == "READY"
            url = str(caller.base_url).rstrip("/")
            path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
            home = {**os.environ, "HOME": str(tmp_path), "NO_PROXY": "127.0.0.1", "PATH": path}
            shell = "set -e\n" + "\n".join(snippets("bash")).replace("http://127.0.0.1:8899", url)
            said = await _run(["bash", "-c", shell], home, tmp_path)
            assert '"finish_reason"' in said
            assert '"weights":{"v1":90' in said.replace(" ", "")
            assert re.search(r"^concurrency +1 +4 +16$", said, re.MULTILINE)
            assert re.search(r"^errors +0 +0 +0$", said, re.MULTILINE)
            assert (tmp_path / "sweep.html").exists()
            grpc = (await caller.get("/api/status")).json()["grpc"]
            code = "\n".join(snippets("python")).replace("http://127.0.0.1:8899", url).replace("127.0.0.1:50051", grpc)
            assert (
                len(await _run([sys.executable, "-c", code], home, tmp_path)) > 5
            )  # drawn at random: of what length, who knows
            assert (await caller.get("/api/deployments/demo/route")).json()["weights"] == {"v2": 100}
        command.process.terminate()
        command.output()


async def _run(arguments: list[str], env: dict[str, str], cwd: Path) -> str:
    run = asyncio.to_thread(subprocess.run, arguments, env=env, cwd=cwd, capture_output=True, text=True, timeout=120)
    done = await run
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_first_answer_of_the_readme_takes_twelve_lines_in_a_notebook(tmp_path: Path) -> None:
    (snippet,) = snippets("ipython")
    assert len(snippet.splitlines()) <= 12
    with JupyterServer(tmp_path) as server:
        kernel = Kernel(server)
        try:
            outputs = [kernel.run(cell, timeout_s=120) for cell in snippet.strip().split("\n\n")]
        finally:
            kernel.close()
    assert [output.errors for output in outputs if output.is_error] == []
    assert "demo@v1: READY" in outputs[0].shown[-1]["text/plain"]
    # Drawn at random, so both may end long before they must.
    assert outputs[1].text.strip()
    assert re.search(r"\[demo@v1 · \d+ tokens", outputs[2].shown[-1]["text/plain"])
    assert "Panel(" in outputs[3].shown[-1]["text/plain"]


def test_the_readme_has_snippets_of_each_kind() -> None:
    assert [len(snippets(kind)) for kind in ("ipython", "bash", "python")] == [1, 3, 2]


def test_the_table_of_settings_is_complete_and_true() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", README.partition("`DSServeExtension.`")[2], re.MULTILINE))
    traits = DSServeExtension.class_own_traits(config=True)
    assert set(rows) == set(traits)
    for name in ("autostart", "port", "start_wait_s", "stop_s", "drain_s"):
        assert rows[name].strip("`") in (str(traits[name].default_value), f"{traits[name].default_value:g}")


def test_what_is_set_in_jupyter_reaches_the_gateway(tmp_path: Path) -> None:
    given: dict[str, Any] = {"join_address": "0.0.0.0:8870", "join_certfile": "box.pem", "join_keyfile": "box.key"}
    given |= {"max_calls": 3, "max_connections": 7, "traces": 9, "open_metrics": True}
    config = GatewayConfig.told(DSServeExtension(**given).trait_values(), data_dir=tmp_path)
    assert {name: getattr(config, name) for name in given} == given


def test_every_picture_of_the_readme_exists() -> None:
    pictures = re.findall(r"!\[.+?\]\((.*?)\)", README)
    assert pictures
    assert all((ROOT / picture).exists() for picture in pictures)


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
    real = {
        (method.upper(), path.replace("\\.", "."))
        for path, handler in ROUTES
        for method in ("get", "post", "put", "delete")
        if method in vars(handler)
    }
    as_pattern = {(method, re.sub(r"\{\w+\}", "([^/]+)", path)) for method, path in _documented()}
    assert as_pattern | {("GET", "/v1/models")} == real


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(?:\w+/)*(\w+\.(?:py|sh|proto|tsx?))`", ARCHITECTURE))))
def test_every_file_the_map_names_exists(name: str) -> None:
    places = (ROOT / "jupyter_dsserve", ROOT / "labextension/src", ROOT / "tests")
    assert any(list(place.rglob(name)) for place in places)
