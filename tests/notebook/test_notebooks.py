"""The notebooks run from top to bottom, beside a real Jupyter server."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.engine.tiny_encoders import MINILM
from tests.support import JupyterServer

FOLDER = Path(__file__).parent.parent.parent / "notebooks"


def outputs(cell: nbformat.NotebookNode) -> str:
    """What a cell shows, as text."""
    return "".join(o.get("text", "") or o.get("data", {}).get("text/plain", "") for o in cell.get("outputs", []))


@pytest.fixture
def server(tmp_path: Path) -> JupyterServer:
    return JupyterServer(tmp_path / "home", base_url="/user/ann/")


async def executed(
    name: str, server: JupyterServer, changes: Mapping[str, str] | None = None
) -> list[nbformat.NotebookNode]:
    """Its code cells; ``changes`` of what stands in them. Raises what a cell raises."""
    notebook = nbformat.read(FOLDER / name, as_version=4)
    for before, after in (changes or {}).items():
        assert any(before in cell.source for cell in notebook.cells)
        for cell in notebook.cells:
            cell.source = cell.source.replace(before, after)
    hub = {"JUPYTER_DATA_DIR": str(server.home / "data")}
    hub |= {"JUPYTERHUB_SERVICE_URL": f"{server.url}/", "JUPYTERHUB_API_TOKEN": server.token}
    client = NotebookClient(notebook, timeout=120)
    # With pytest's variable a kernel does not show what its children write, as it does for people.
    own = {key: value for key, value in os.environ.items() if key != "PYTEST_CURRENT_TEST"}
    await client.async_execute(env={**own, **hub})
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


async def test_first_answer(server: JupyterServer) -> None:
    with server:
        cells = await executed("01_first_answer.ipynb", server)
        said = {cell.source.splitlines()[0]: outputs(cell) for cell in cells}
        assert "demo@v1: READY" in said["%dsserve load demo --model builtin:demo-v1"]
        assert "demo@v1 · 60 tokens" in said["%%dsserve demo --max-tokens 60 --temperature 0"]
        assert "v1=90 v2=10" in said["%dsserve route demo v1=90 v2=10"]
        counted = said["from collections import Counter"]
        assert "'v1':" in counted
        assert "'v2':" in counted
        assert "Panel(" in said["%dsserve panel demo"]
        async with server.caller() as caller:
            demo = (await caller.get("/api/deployments/demo")).json()
        assert demo["weights"] == {"v1": 90, "v2": 10}
        assert [v["spec"]["model"] for v in demo["versions"]] == ["builtin:demo-v1", "builtin:demo-v2"]


async def test_load_test(server: JupyterServer) -> None:
    with server:
        clients, rate, counted = [outputs(cell) for cell in (await executed("02_load_test.ipynb", server))[1:]]
    assert re.search(r"^concurrency +1 +4 +16$", clients, re.MULTILINE)
    assert re.search(r"^errors +0 +0 +0$", clients, re.MULTILINE)
    assert re.search(r"^goodput requests/s \(.*\) +\d", rate, re.MULTILINE)
    assert re.search(r"^requests/s asked +4 +16$", rate, re.MULTILINE)
    assert re.fullmatch(r"\d+ tokens/s, first token after \d+ ms for 95 in 100\n", counted)


async def test_gray_release(server: JupyterServer) -> None:
    with server:
        started = time.monotonic()
        cells = await executed("03_gray_release.ipynb", server)
        took_s = time.monotonic() - started
    said = [outputs(cell) for cell in cells]
    slower, weights, broken, good, history = said[4], said[5], said[6], said[7], said[8]
    assert "v2 beside v1: ROLLED_BACK" in slower
    assert "latency" in slower
    assert weights == "{'v1': 100.0}"
    assert "v3 beside v1: ROLLED_BACK" in broken
    assert "failed" in broken or "errors" in broken
    assert "v4 beside v1: PROMOTED" in good
    ends = re.findall(r"rollout_(rolled_back|promoted) (v\d)", history)
    assert ends == [("rolled_back", "v2"), ("rolled_back", "v3"), ("promoted", "v4")]
    assert took_s < 90, "it is to take half a minute; a busy machine has three times as long"


async def test_embeddings(server: JupyterServer) -> None:
    """With the encoder that a package brings: what is on the hub, a test cannot count on."""
    with server:
        changes = {"sentence-transformers/all-MiniLM-L6-v2": MINILM}
        said = [outputs(cell) for cell in await executed("04_embeddings.ipynb", server, changes)]
    assert "search@v1: READY" in said[1]
    assert said[2] == "17"
    assert said[3] == "(17, 384)"
    answers = re.findall(r"^\S.*\n   \d\.\d\d  (.*)$", said[4], re.MULTILINE)
    assert answers == [
        "A restore took forty minutes last time.",
        "The on-call phone changes hands on Mondays.",
        "A new version first gets a tenth of the traffic.",
    ]


async def test_call_from_an_app(server: JupyterServer) -> None:
    with server:
        # So many that they are more than the limit allows, also where each takes half a second.
        changes = {'["import sys"] * 8': '["import sys"] * 30'}
        cells = await executed("05_call_from_an_app.ipynb", server, changes)
    said = [outputs(cell) for cell in cells]
    assert not any(o.get("name") == "stderr" for cell in cells for o in cell.outputs), "a warning stands on the page"
    keys, first, limited, refused, another, colleague, revoked = said[1], *said[2:8]
    assert "5 at once" in keys
    assert "dsk_" not in "".join(said), "a key stands in the notebook"
    assert re.fullmatch(r"(v1 '.*'\n){2}\n", first)
    assert 1 <= len(re.findall(r"^v1 ", limited, re.MULTILINE)) <= 15
    assert re.search(r"^429 .*again in \d+ s\)$", limited, re.MULTILINE)
    assert [line.split()[0] for line in refused.splitlines()] == ["Forbidden", "Forbidden", "NotFound"]
    assert re.search(r"\S.*\n(.*\n)*demo@v1 · \d+ tokens", another), "the line about the answer stands above it"
    assert re.search(r"with this key you may ask, at http://127\.0\.0\.1:\d+: demo", colleague)
    assert re.search(r"demo@v1 · \d+ tokens", colleague)
    assert revoked.strip().splitlines()[-1].startswith("401 ")


async def test_serve_what_you_trained(server: JupyterServer) -> None:
    with server:
        cells = await executed("06_serve_what_you_trained.ipynb", server)
        said = [outputs(cell) for cell in cells]
        losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", said[1])]
        assert losses[-1] < losses[0] / 2
        assert "this kernel still holds its own copy" in said[2]
        assert "writer@v2: READY" in said[2]
        assert not any(o.get("name") == "stderr" for o in cells[2].outputs), "a warning stands on the page"
        assert [word for word in ("WARNING", "Writing model shards") if word in said[2]] == [], "whose words are these?"
        assert "as in the kernel: True" in said[3]
        assert "v2 beside v1: PROMOTED" in said[4]
        assert "House style" in said[5]
        assert list((server.data_dir / "saved").glob("*/*")) == [], "what was saved outlives its version"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.name)
def test_notebooks_are_kept_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)


def test_notebooks_can_be_run_one_after_another() -> None:
    """A version never changes: what two of them load under one name is one model."""
    loaded: dict[str, set[str]] = {}
    for path in FOLDER.glob("*.ipynb"):
        for cell in nbformat.read(path, as_version=4).cells:
            for name, model in re.findall(r"^%dsserve load (\S+) .*--model (\S+)", cell.source, re.MULTILINE):
                version = re.search(rf"load {name} .*--model {re.escape(model)}.*--version (\S+)", cell.source)
                loaded.setdefault(f"{name}@{version[1] if version else model}", set()).add(model)
    assert {"demo@builtin:demo-v1", "assistant@v1", "writer@v1"} <= set(loaded)
    assert {name: models for name, models in loaded.items() if len(models) > 1} == {}
