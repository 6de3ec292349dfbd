"""The JupyterLab extension: that it is built, installed, and goes into the wheel."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import jupyter_dsserve

ROOT = Path(__file__).parent.parent
BUILT = ROOT / "jupyter_dsserve/labextension"
INSTALLED = Path(sys.prefix) / "share/jupyter/labextensions/jupyter-dsserve"
NOT_BUILT = "the JupyterLab extension was not built at the installation: is there a registry of JavaScript packages?"


def test_it_is_built() -> None:
    for name in ("package.json", "static/style.js", "schemas/jupyter-dsserve/plugin.json"):
        assert (BUILT / name).exists(), NOT_BUILT
    load = json.loads((BUILT / "package.json").read_text())["jupyterlab"]["_build"]["load"]
    assert (BUILT / load).exists(), "its entry is missing: remove the folder and build it again"


def test_jupyterlab_has_it_as_it_was_built() -> None:
    assert (INSTALLED / "package.json").read_text() == (BUILT / "package.json").read_text(), "run `make install` again"
    done = subprocess.run(
        [sys.executable, "-m", "jupyter", "labextension", "list"], capture_output=True, text=True, check=True
    )
    line = next(line for line in (done.stdout + done.stderr).splitlines() if "jupyter-dsserve" in line)
    assert re.search(rf"v{re.escape(jupyter_dsserve.__version__)}\b.*enabled.*OK", line), line


def test_its_version_is_the_packages() -> None:
    assert json.loads((ROOT / "labextension/package.json").read_text())["version"] == jupyter_dsserve.__version__


def test_its_files_name_no_registry() -> None:
    for name in ("yarn.lock", ".yarnrc.yml", "package.json"):
        assert "://" not in (ROOT / "labextension" / name).read_text(), name


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The names in a wheel that is made of what is built here."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        env={**os.environ, "SKIP_JUPYTER_BUILDER": "1"},
        capture_output=True,
        check=True,
    )
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path).namelist()


def test_the_wheel_brings_it_so_that_nobody_needs_node(wheel: list[str]) -> None:
    place = f"jupyter_dsserve-{jupyter_dsserve.__version__}.data/data/share/jupyter/labextensions/jupyter-dsserve/"
    brought = {name.removeprefix(place) for name in wheel if name.startswith(place)}
    there = {str(p.relative_to(BUILT)) for p in BUILT.rglob("*") if p.is_file()}
    assert brought == there | {"install.json"}
    assert {"package.json", "static/style.js"} <= brought


def test_the_wheel_has_it_once_and_without_its_source(wheel: list[str]) -> None:
    assert not [name for name in wheel if "labextension/" in name or name.endswith((".ts", ".tsx"))]
