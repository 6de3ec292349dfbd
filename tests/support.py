"""What tests share: an HTTP caller with the project's verbs, and the command line in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import psutil

Json = Any

# Of all callers: httpx would read the certificates again for each, longer than a gateway takes to start.
_TLS = httpx.create_ssl_context(trust_env=False)


class Caller(httpx.AsyncClient):
    """An HTTP client with the key, bypassing proxies."""

    def __init__(self, url: str, key: str) -> None:
        headers = {"Authorization": f"Bearer {key}"}
        super().__init__(base_url=url, headers=headers, timeout=60, trust_env=False, verify=_TLS)

    async def load(self, name: str, version: str, model: str, *, wait: bool = True, **fields: Json) -> Json:
        answer = await self.post("/api/deployments", json={"name": name, "version": version, "model": model, **fields})
        assert answer.status_code == 202, answer.text
        return await self.settled(name, version) if wait else answer.json()

    async def version(self, name: str, version: str) -> Json:
        return (await self.get(f"/api/deployments/{name}/versions/{version}")).json()

    async def settled(self, name: str, version: str, *states: str, timeout_s: float = 60) -> Json:
        """Wait until the version is in one of ``states`` (READY, FAILED or STOPPED unless told)."""
        wanted = states or ("READY", "FAILED", "STOPPED")
        return await until(lambda: self.version(name, version), lambda v: v.get("state") in wanted, timeout_s)

    async def complete(self, model: str = "demo", **fields: Json) -> httpx.Response:
        return await self.post("/v1/completions", json={"model": model, "prompt": "hello", "max_tokens": 5, **fields})

    async def stream_complete(self, model: str = "demo", **fields: Json) -> AsyncIterator[Json]:
        """The data of each server-sent event; the closing [DONE] as that string."""
        body = {"model": model, "prompt": "hello", "max_tokens": 5, "stream": True, **fields}
        async with self.stream("POST", "/v1/completions", json=body) as answer:
            assert answer.status_code == 200, await answer.aread()
            async for line in answer.aiter_lines():
                if line.startswith("data: "):
                    data = line.removeprefix("data: ")
                    yield data if data == "[DONE]" else json.loads(data)


async def until(look: Callable[[], Any], is_there: Callable[[Any], bool] = bool, timeout_s: float = 60) -> Any:
    """Look (``look`` may be a coroutine function) until it is there; fails with what was seen last."""
    end = time.monotonic() + timeout_s
    while True:
        seen = look()
        if asyncio.iscoroutine(seen):
            seen = await seen
        if is_there(seen):
            return seen
        assert time.monotonic() < end, f"not there within {timeout_s} s; last seen: {seen}"
        await asyncio.sleep(0.02)


def worker_pids(parent: int) -> list[int]:
    """The worker processes that ``parent`` started and that still run; not what else it has (pytest may have Python's
    resource tracker, which stays until it ends)."""
    try:
        children = psutil.Process(parent).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return [p.pid for p in children if any(part.startswith("jupyter_dsserve.") for part in _command(p))]


class Peak:
    """The most anonymous and shared memory of a process while the block runs, looked at every 3 ms."""

    def __init__(self) -> None:
        self.num_bytes = 0
        self._pid = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()
        self._look()  # what it holds at the end is seen in any case

    def of(self, pid: int) -> bool:
        self._pid = pid
        return pid > 0

    def _watch(self) -> None:
        while not self._ended.wait(0.003):
            self._look()

    def _look(self) -> None:
        if self._pid:
            try:
                status = Path(f"/proc/{self._pid}/status").read_text()
            except OSError:  # it has ended
                return
            found = re.findall(r"Rss(?:Anon|Shmem):\s+(\d+) kB", status)
            self.num_bytes = max(self.num_bytes, 1024 * sum(map(int, found)))


@contextlib.contextmanager
def held(*pids: int) -> Iterator[None]:
    """While the block runs these processes do nothing: what they were asked is not over before the test has looked. Not
    for long: a gateway gives up a worker that it has not heard for `health.SILENT_S`."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):  # the test has ended it
                os.kill(pid, signal.SIGCONT)


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Command:
    """``jupyter dsserve`` in a process of its own; ended at the latest when the block is left."""

    def __init__(self, data_dir: Path, *options: str, env: Mapping[str, str] | None = None) -> None:
        self.data_dir = data_dir
        port = [] if "--port" in options else ["--port", "0"]
        arguments = ["--data-dir", str(data_dir), *port, *options]
        # A pipe that nobody reads would be full one day, and hold up whoever writes a line.
        self._output = tempfile.TemporaryFile()  # noqa: SIM115  # closed in __exit__
        self.process = subprocess.Popen(
            [str(Path(sys.executable).with_name("jupyter-dsserve")), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
        )

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._output.close()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def key(self) -> str:
        return (self.data_dir / "admin.key").read_text().strip()

    def url(self) -> str:
        """Once the gateway answers."""
        end = time.monotonic() + 60
        while (holder := self._holder()) is None:
            assert time.monotonic() < end, self.said()
            time.sleep(0.05)
        return str(holder["url"])

    async def caller(self) -> Caller:
        """A caller once the gateway answers."""
        holder = await until(self._holder, timeout_s=60)
        return Caller(holder["url"], self.key)

    def _holder(self) -> Json:
        assert self.process.poll() is None, f"it ended: {self.output()}"
        try:
            holder = json.loads((self.data_dir / "gateway.lock").read_text())
        except (OSError, ValueError):
            return None
        return holder if holder["pid"] == self.pid else None  # else a killed one's

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def output(self, timeout_s: float = 30) -> str:
        """Everything it wrote, once it has ended."""
        self.process.wait(timeout_s)
        return self.said()

    def said(self) -> str:
        """What it wrote until now."""
        size = os.fstat(self._output.fileno()).st_size
        return os.pread(self._output.fileno(), size, 0).decode(errors="replace")


class JupyterServer:
    """A Jupyter server with the extension, in a process of its own; ended at the latest when the block is left.

    Settings and runtime files lie below ``home``; two servers with one ``home`` are two of one user.
    """

    token = "jupyter-token"

    def __init__(
        self, home: Path, *options: str, base_url: str = "/", program: str = "jupyter_server", cwd: Path | None = None
    ) -> None:
        self.home = home
        self.data_dir = home / "data/dsserve"
        self.base_url = base_url
        self.log_path = home / f"server-{uuid.uuid4().hex[:6]}.log"
        home.mkdir(parents=True, exist_ok=True)
        self.env = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "JPY"))},
            "JUPYTER_DATA_DIR": str(home / "data"),
            "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
            "JUPYTER_CONFIG_DIR": str(home / "config"),
            "IPYTHONDIR": str(home / "ipython"),
            "PYTHONPATH": str(Path(__file__).parent.parent),
        }
        arguments = [
            "--no-browser",
            "--allow-root",
            "--ServerApp.ip=127.0.0.1",
            f"--ServerApp.port={free_port()}",
            f"--ServerApp.base_url={base_url}",
            f"--IdentityProvider.token={self.token}",
            "--ServerApp.allow_unauthenticated_access=False",
            *options,
        ]
        self.options = arguments
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.env,
                cwd=cwd or home,
            )

    def __enter__(self) -> JupyterServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.end(signal.SIGTERM)

    def end(self, number: signal.Signals, timeout_s: float = 15) -> None:
        """Send the signal, wait for the end, and see to it that it comes."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    @property
    def info(self) -> Json:
        """What it wrote down about itself, once it answers."""
        path = self.home / "runtime" / f"jpserver-{self.process.pid}.json"
        end = time.monotonic() + 90
        while True:
            with contextlib.suppress(OSError, ValueError):  # not there yet, or not written yet; or nobody listens yet
                found = json.loads(path.read_text())
                socket.create_connection(("127.0.0.1", found["port"]), timeout=5).close()
                return found
            assert self.process.poll() is None, self.log_path.read_text()
            assert time.monotonic() < end, self.log_path.read_text()
            time.sleep(0.05)

    @property
    def url(self) -> str:
        """Of the server, without a slash at its end."""
        return str(self.info["url"]).rstrip("/")

    def caller(self, token: str | None = None) -> Caller:
        """A caller of everything below /dsserve, with Jupyter's token."""
        return Caller(f"{self.url}/dsserve", self.token if token is None else token)

    def processes(self) -> list[int]:
        """The gateway (if it is ours) and its workers."""
        return [
            p.pid
            for p in psutil.Process(self.process.pid).children(recursive=True)
            if "jupyter_dsserve" in " ".join(_command(p))
        ]


def _command(process: psutil.Process) -> list[str]:
    """The words of its command line; none if it has ended."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])
