"""JupyterLab as ``make demo`` starts it, in Debian's Chromium."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from jupyter_client.blocking import BlockingKernelClient
from playwright.sync_api import Browser, Locator, Page, sync_playwright

from tests.support import Json, free_port

BUILT = Path(__file__).parent.parent.parent / "jupyter_dsserve/labextension"
CHROMIUM = Path("/usr/bin/chromium")
_QUIET = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run")


@dataclass
class Demo:
    """What ``make demo`` printed."""

    process: subprocess.Popen[str]
    notebook: str
    url: str
    key: str
    runtime_dir: Path

    @contextmanager
    def kernel(self) -> Iterator[BlockingKernelClient]:
        """A second client of the kernel that was started last: what it runs is not on the page."""
        path = max(self.runtime_dir.glob("kernel-*.json"), key=lambda path: path.stat().st_mtime)
        client = BlockingKernelClient(connection_file=str(path))
        client.load_connection_file()
        client.start_channels()
        try:
            yield client
        finally:
            client.stop_channels()

    def get(self, path: str) -> Json:
        headers = {"Authorization": f"Bearer {self.key}"}
        return httpx.get(f"{self.url}{path}", headers=headers, timeout=60, trust_env=False).raise_for_status().json()

    def worker_pids(self) -> list[int]:
        versions = self.get("/api/deployments/demo")["versions"]
        return [replica["pid"] for version in versions for replica in version["replicas"]]

    def weights(self) -> dict[str, float]:
        found: dict[str, float] = self.get("/api/deployments/demo/route")["weights"]
        return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not CHROMIUM.exists():
        pytest.skip(f"there is no {CHROMIUM}: apt-get install chromium, and the browser tests run")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", *_QUIET]
        )
        yield browser
        browser.close()


def built_extension(home: Path) -> Path:
    """A folder of JupyterLab's extensions, with ours as this checkout built it and not as it is installed."""
    folder = home / "path/labextensions"
    folder.mkdir(parents=True)
    (folder / "jupyter-dsserve").symlink_to(BUILT)
    return folder


@pytest.fixture(scope="module")
def demo(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    home = tmp_path_factory.mktemp("demo")
    dirs = {f"JUPYTER_{kind}_DIR": str(home / kind.lower()) for kind in ("RUNTIME", "CONFIG")}
    dirs |= {"JUPYTER_PATH": str(built_extension(home).parent)}
    dirs |= {"JUPYTERLAB_WORKSPACES_DIR": str(home / "work"), "JUPYTERLAB_SETTINGS_DIR": str(home / "settings")}
    process = subprocess.Popen(
        [sys.executable, "-m", "jupyter_dsserve.demo", "--port", str(free_port()), "--no-browser"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **dirs, "IPYTHONDIR": str(home / "ipython")},
    )
    try:
        yield _read_welcome(process, home / "runtime")
    finally:
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=90)
        assert "stopped: no process is left" in said


def _read_welcome(process: subprocess.Popen[str], runtime_dir: Path) -> Demo:
    said = ""
    assert process.stdout
    while not (found := re.search(r"JupyterLab +(\S+)\s+URL +(\S+)\s+key +(\S+)\s+curl (.*)", said)):
        line = process.stdout.readline()
        assert line, f"it ended: {said}"
        said += line
    return Demo(process, *found.groups()[:3], runtime_dir)


@pytest.fixture(scope="module")
def page(browser: Browser, demo: Demo) -> Iterator[Page]:
    """The notebook, open, with its kernel running."""
    page = browser.new_page(viewport={"width": 1360, "height": 1000})
    page.goto(f"{demo.notebook}&reset")
    page.locator(".jp-Toolbar-kernelName:visible").wait_for(timeout=60_000)
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=60_000)
    yield page
    page.close()


@dataclass
class Pictures:
    """Where pictures go; ``keeps``: they are for people, by ``--screenshots``."""

    folder: Path
    keeps: bool


@pytest.fixture
def pictures(request: pytest.FixtureRequest, tmp_path: Path) -> Pictures:
    chosen = request.config.getoption("--screenshots")
    folder = Path(chosen or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return Pictures(folder, bool(chosen))


def eventually(look: object, is_there: object = bool, timeout_s: float = 60) -> Json:
    """Look until it is there; fails with what was seen last."""
    end = time.monotonic() + timeout_s
    while True:
        seen = look()  # type: ignore[operator]
        if is_there(seen):  # type: ignore[operator]
            return seen
        assert time.monotonic() < end, f"not there within {timeout_s} s; last seen: {seen}"
        time.sleep(0.1)


def run_at_last(page: Page, cell: Locator) -> None:
    """Once the kernel is connected: what runs before is lost, and nothing says so."""

    def prompt() -> str:
        if cell.locator(".jp-InputPrompt").text_content() == "[ ]:":
            cell.locator(".cm-content").click()
            page.keyboard.press("Control+Enter")
        page.wait_for_timeout(300)
        return cell.locator(".jp-InputPrompt").text_content() or ""

    eventually(prompt, lambda text: re.search(r"\d", text), timeout_s=90)


def used_by(page: Page) -> int:
    """The page's heap in bytes, without what is garbage."""
    session = page.context.new_cdp_session(page)
    session.send("HeapProfiler.enable")
    session.send("HeapProfiler.collectGarbage")
    used: int = session.send("Runtime.getHeapUsage")["usedSize"]
    session.detach()
    return used


def nodes(page: Page) -> int:
    """How many nodes the page has, those that are in no document among them, without what is garbage."""
    session = page.context.new_cdp_session(page)
    session.send("HeapProfiler.collectGarbage")
    num: int = session.send("Memory.getDOMCounters")["nodes"]
    session.detach()
    return num
