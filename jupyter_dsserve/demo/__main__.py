"""``python -m jupyter_dsserve.demo``: JupyterLab with a notebook, and the deployment ``demo`` in two versions.

v1 has 90 % of the traffic, v2 has 10. Everything is kept in a temporary directory that goes away with it. Runs from a
checkout, whose notebooks it opens.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import webbrowser
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from ipykernel.ipkernel import IPythonKernel
from jupyter_core.paths import jupyter_runtime_dir

from jupyter_dsserve.data_dir import holder, read_admin_key
from jupyter_dsserve.notebook.client import Client
from jupyter_dsserve.notebook.views import Version, state_text
from jupyter_dsserve.parent import die_by
from jupyter_dsserve.protocol.errors import DSServeError

_NOTEBOOKS = Path(__file__).parent.parent.parent / "notebooks"
_FIRST = "01_first_answer.ipynb"
_PROMPT = {"model": "demo", "prompt": "def fibonacci(n):", "max_tokens": 60, "temperature": 0.6, "seed": 1}
# JupyterLab asks whether one wants its news, over what is to be seen here.
_LAB_DEFAULTS = {"@jupyterlab/apputils-extension:notification": {"fetchNews": "false"}}
_START_S = 60.0
_STOP_S = 15.0


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--port", type=int, default=8899, help="JupyterLab's port, or the next that is free")
    options.add_argument("--no-browser", action="store_true", help="do not open a browser")
    chosen = options.parse_args()
    if not _NOTEBOOKS.is_dir():
        sys.exit(f"demo: there is no {_NOTEBOOKS}: run it from a checkout of the repository")
    signal.signal(signal.SIGTERM, _as_interrupt)
    with tempfile.TemporaryDirectory(prefix="dsserve-demo-") as directory:
        lab = _Lab(Path(directory), chosen.port)
        try:
            lab.wait_until_it_answers()
            _serve_two_versions(Client(f"{lab.url}/dsserve", lab.token))
            _print_welcome(lab)
            if not chosen.no_browser:
                webbrowser.open(lab.doorway())
            lab.process.wait()
        except KeyboardInterrupt:
            print("\nstopping", flush=True)
        except DSServeError as fault:
            sys.exit(f"demo: {fault.message}")
        finally:
            lab.stop()


class _Lab:
    """JupyterLab in a process of its own, with settings and files in ``directory``."""

    def __init__(self, directory: Path, port: int) -> None:
        self.token = secrets.token_hex(16)
        self.data_dir = directory / "dsserve"
        self._directory, self._work = directory, directory / "notebooks"
        shutil.copytree(_NOTEBOOKS, self._work)
        for notebook in self._work.glob("*.ipynb"):
            _tell_language(notebook)
        config = directory / "config"
        defaults = config / "labconfig/default_setting_overrides.json"
        defaults.parent.mkdir(parents=True)
        defaults.write_text(json.dumps(_LAB_DEFAULTS))
        self._log = directory / "jupyter.log"
        self.url = ""
        arguments = [
            "--no-browser",
            "--allow-root",
            "--ServerApp.ip=127.0.0.1",
            f"--ServerApp.port={port}",
            f"--ServerApp.root_dir={self._work}",
            f"--DSServeExtension.dsserve_data_dir={self.data_dir}",
        ]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "jupyterlab", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Not an argument: whoever may list the processes of this machine could read the token there.
                env={**os.environ, "JUPYTER_TOKEN": self.token, "JUPYTER_CONFIG_DIR": str(config)},
                start_new_session=True,  # Ctrl-C comes to us, and we stop it in good order
                preexec_fn=partial(die_by, signal.SIGTERM),  # and it does not outlive us
            )

    @property
    def notebook(self) -> str:
        return f"{self.url}/lab/tree/{_FIRST}?token={self.token}"

    def doorway(self) -> str:
        """A page of ours that leads to the notebook: a browser's arguments are no place for the token."""
        page = self._directory / "open.html"
        page.write_text(f'<meta http-equiv="refresh" content="0;url={self.notebook}">')
        return page.as_uri()

    def wait_until_it_answers(self) -> None:
        """Raises `DSServeError` with the end of its log if it does not."""
        end = time.monotonic() + _START_S
        while time.monotonic() < end and self.process.poll() is None:
            if info := self._info():
                self.url = f"http://127.0.0.1:{info['port']}"
                with contextlib.suppress(httpx.HTTPError):
                    if httpx.get(f"{self.url}/api", trust_env=False).is_success:
                        return
            time.sleep(0.1)
        said = "\n".join(self._log.read_text(errors="replace").splitlines()[-15:])
        raise DSServeError(f"JupyterLab did not start:\n{said}")

    def _info(self) -> Any:
        """What the server wrote down about itself: it may have taken another port than we said."""
        record = Path(jupyter_runtime_dir()) / f"jpserver-{self.process.pid}.json"
        return json.loads(record.read_text() or "null") if record.exists() else None

    def stop(self) -> None:
        """It drains and stops the gateway, and that its workers. A second Ctrl-C changes nothing any more."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        self.process.terminate()
        try:
            self.process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        end = time.monotonic() + _STOP_S
        while (held := holder(self.data_dir)) and time.monotonic() < end:
            time.sleep(0.05)
        print(f"the gateway still runs: {held}" if held else "stopped: no process is left")


def _tell_language(notebook: Path) -> None:
    """As JupyterLab writes it down once the kernel runs: else a notebook has changed as soon as it is opened."""
    written = json.loads(notebook.read_text("utf-8"))
    written["metadata"]["language_info"] = IPythonKernel.language_info
    notebook.write_text(json.dumps(written, indent=1, ensure_ascii=False) + "\n", "utf-8")


def _as_interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _serve_two_versions(client: Client) -> None:
    print("==> loading demo@v1 and demo@v2 with DeepSpeed, each in a process of its own", flush=True)
    tell = _Teller()
    for name in ("v1", "v2"):
        client.load("demo", f"builtin:demo-{name}", name, note="the built-in model", wait=False)
    for name in ("v1", "v2"):
        client.load("demo", version=name, on_progress=tell)
    client.route("demo", {"v1": 90, "v2": 10})


class _Teller:
    """One line for each change of state."""

    def __init__(self) -> None:
        self._told: dict[str, str] = {}

    def __call__(self, version: Version) -> None:
        if self._told.get(version.id) != version.state.value:
            self._told[version.id] = version.state.value
            print(f"    {version.id} is {state_text(version)}", flush=True)


def _print_welcome(lab: _Lab) -> None:
    held = holder(lab.data_dir)
    assert held
    key = read_admin_key(lab.data_dir)
    print(f"""
demo is served: v1 answers 90 % of the calls, v2 10 %. Ctrl-C stops everything.

  JupyterLab   {lab.notebook}

  URL   {held.url}
  key   {key}

  curl -s {held.url}/v1/completions -H "Authorization: Bearer {key}" -d '{json.dumps(_PROMPT)}'
""", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
