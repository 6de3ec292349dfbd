"""A real kernel beside a real Jupyter server."""

from __future__ import annotations

import os
import queue
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager, start_new_kernel

from jupyter_dsserve.notebook.address import set_connected
from tests.support import JupyterServer


@dataclass
class Output:
    """What one cell showed."""

    text: str = ""
    errors: str = ""
    is_error: bool = False
    shown: list[dict[str, Any]] = field(default_factory=list)
    places: dict[str, int] = field(default_factory=dict)  # in ``shown``, of what may still change
    replaced: list[dict[str, Any]] = field(default_factory=list)  # what was shown for a while

    @property
    def html(self) -> str:
        return "\n".join(data.get("text/html", "") for data in self.shown)


class Kernel:
    """An IPython kernel that takes ``server`` for its own (as one does under JupyterHub)."""

    def __init__(self, server: JupyterServer) -> None:
        self.server = server
        hub = {"JUPYTERHUB_SERVICE_URL": f"{server.url}/", "JUPYTERHUB_API_TOKEN": server.token}
        started: tuple[KernelManager, BlockingKernelClient] = start_new_kernel(env={**os.environ, **hub})
        self.manager, self.client = started
        self.run("%load_ext jupyter_dsserve")

    def run(self, code: str, timeout_s: float = 60) -> Output:
        self.begin(code)
        return self.finish(timeout_s)

    def run_until(self, code: str, is_there: Callable[[Output], bool], timeout_s: float = 30) -> Output:
        """Again and again, for it shows what happens in the background."""
        end = time.monotonic() + timeout_s
        while not is_there(output := self.run(code)):
            assert time.monotonic() < end, f"not there within {timeout_s} s; last seen: {output}"
        return output

    def begin(self, code: str) -> None:
        self._asked = self.client.execute(code)
        self._output = Output()

    def finish(self, timeout_s: float = 60) -> Output:
        """What the cell showed, once it has ended."""
        end = time.monotonic() + timeout_s
        while not self._take(end - time.monotonic()):
            pass
        return self._output

    def wait_for_text(self, timeout_s: float = 30) -> str:
        end = time.monotonic() + timeout_s
        while not self._output.text:
            assert not self._take(end - time.monotonic()), "the cell ended without a word"
        return self._output.text

    def _take(self, left_s: float) -> bool:
        """One message; True if it was the cell's last."""
        assert left_s > 0, f"not within its time; so far: {self._output}"
        try:
            message = self.client.get_iopub_msg(timeout=left_s)
        except queue.Empty:
            raise AssertionError(f"not within its time; so far: {self._output}") from None
        if message["parent_header"].get("msg_id") != self._asked:
            return False
        kind, content = message["msg_type"], message["content"]
        if kind == "stream":
            if content["name"] == "stdout":
                self._output.text += content["text"]
            else:
                self._output.errors += content["text"]
        elif kind in ("execute_result", "display_data"):
            if id := content.get("transient", {}).get("display_id"):
                self._output.places[id] = len(self._output.shown)
            self._output.shown.append(content["data"])
        elif kind == "update_display_data":
            place = self._output.places[content["transient"]["display_id"]]
            self._output.replaced.append(self._output.shown[place])
            self._output.shown[place] = content["data"]
        elif kind == "error":
            self._output.is_error = True
            self._output.errors += "\n".join(content["traceback"])
        return bool(kind == "status" and content["execution_state"] == "idle")

    def is_error_reply(self) -> bool:
        """Whether the cell ended in an error, for which a notebook stops a run of all cells."""
        while True:
            reply = self.client.get_shell_msg(timeout=60)
            if reply["parent_header"].get("msg_id") == self._asked:
                return bool(reply["content"]["status"] == "error")

    def interrupt(self) -> None:
        self.manager.interrupt_kernel()

    def restart(self) -> None:
        self.manager.restart_kernel(now=True)
        self.client.wait_for_ready(timeout=60)

    def close(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture(autouse=True)
def own_gateway() -> Iterator[None]:
    """What one test connects to is not where the next one's clients ask."""
    yield
    set_connected("", "")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JupyterServer]:
    with JupyterServer(tmp_path_factory.mktemp("home"), base_url="/user/ann/") as server:
        yield server


@pytest.fixture(scope="module")
def kernel(server: JupyterServer) -> Iterator[Kernel]:
    kernel = Kernel(server)
    yield kernel
    kernel.close()
