"""Imports go down only, and what must stay light stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import jupyter_dsserve

PACKAGE = Path(jupyter_dsserve.__file__).parent

# What each floor may import of the package, besides itself.
BELOW = {
    "protocol": set(),
    "demo": set(),
    "engine": {"protocol"},
    "worker": {"protocol", "engine"},
    "fleet": {"protocol", "demo"},
    "bench": {"protocol"},
    "gateway": {"protocol", "fleet", "bench"},
    "extension": {"protocol"},
    "notebook": {"protocol", "bench"},
}
# Programs put floors together; nothing imports them.
PROGRAMS = {"demo/__main__.py"}
HEAVY = {"torch", "transformers", "deepspeed"}


def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def _files(floor: str) -> list[Path]:
    return [p for p in (PACKAGE / floor).rglob("*.py") if str(p.relative_to(PACKAGE)) not in PROGRAMS]


@pytest.mark.parametrize("floor", BELOW)
def test_a_floor_imports_only_floors_below_it(floor: str) -> None:
    for path in _files(floor):
        ours = {name.split(".")[1] for name in _imports(path) if name.startswith("jupyter_dsserve.")}
        above = (ours & BELOW.keys()) - BELOW[floor] - {floor}
        assert not above, f"{path.relative_to(PACKAGE)} imports {above}"


@pytest.mark.parametrize("floor", ["protocol", "worker", "fleet", "bench", "gateway", "extension", "notebook"])
def test_torch_is_named_in_the_engine_only(floor: str) -> None:
    for path in _files(floor):
        heavy = {name.split(".")[0] for name in _imports(path)} & HEAVY
        assert not heavy, f"{path.relative_to(PACKAGE)} imports {heavy}"


@pytest.mark.parametrize(
    ("modules", "unwanted"),
    [
        ("gateway.app, jupyter_dsserve.gateway.__main__, jupyter_dsserve.worker.app", {*HEAVY, "jupyter_server"}),
        ("gateway.app", {"aiohttp", "plotly"}),
        ("gateway.bench", {*HEAVY, "jupyter_server", "plotly"}),
        ("extension.app", HEAVY),
        ("notebook.magics, jupyter_dsserve.notebook.panel", {*HEAVY, "jupyter_server"}),
    ],
)
def test_only_the_engine_loads_torch_and_only_the_extension_the_jupyter_server(
    modules: str, unwanted: set[str]
) -> None:
    code = f"import sys, jupyter_dsserve.{modules}\nprint(sorted({unwanted!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_the_extension_stays_thin() -> None:
    assert sum(len(path.read_text().splitlines()) for path in _files("extension")) < 720


def test_the_fleet_is_its_verbs_and_what_they_do_is_elsewhere() -> None:
    assert len((PACKAGE / "fleet/fleet.py").read_text().splitlines()) < 600
