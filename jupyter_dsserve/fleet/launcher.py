"""Starts worker processes on this machine, and nothing else: a worker dials in by itself."""

from __future__ import annotations

import asyncio
import contextlib
import glob
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jupyter_dsserve.fleet import output
from jupyter_dsserve.parent import childs_environment
from jupyter_dsserve.protocol.errors import InvalidRequest
from jupyter_dsserve.protocol.spec import WorkerLaunch

# What opens the registry's database, and the collector of traces.
_GATEWAYS_KEYS = {"PGPASSWORD", "OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS"}


@dataclass(frozen=True, slots=True)
class WorkerProcess:
    """A running worker. Its stdin stays open: when we die, its end tells the worker."""

    process: asyncio.subprocess.Process
    log_path: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    async def wait(self, timeout_s: float) -> int | None:
        """Its exit code, minus the signal's number if one ended it; None if it still runs after ``timeout_s``."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self.process.wait(), timeout_s)
        return self.process.returncode

    async def bound_log(self) -> None:
        """To be called now and then: a worker that prints for days must not fill the disk."""
        if output.is_too_large(self.log_path):
            with contextlib.suppress(OSError):  # a full disk: what is in the file stays there
                await asyncio.to_thread(output.bound, self.log_path)

    async def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()


class LocalLauncher:
    """Each worker writes its output to a file of its own in ``log_dir``."""

    def __init__(self, log_dir: Path) -> None:
        self._log_dir = log_dir
        log_dir.mkdir(parents=True, exist_ok=True, mode=0o700)

    def log_path(self, replica: str) -> Path:
        return self._log_dir / f"{replica}.log"

    def tail(self, replica: str, num_lines: int) -> list[str]:
        return output.tail(self.log_path(replica), num_lines)

    def forget_logs(self, version_id: str) -> None:
        """Remove the output of a version's replicas: another version may get its name."""
        for path in self._log_dir.glob(f"{glob.escape(version_id)}#*.log"):
            output.forget(path)

    async def start(self, launch: WorkerLaunch) -> WorkerProcess:
        """Start it and hand it its launch line. Raises `InvalidRequest` if its interpreter cannot be run.

        Call it from the main thread: the kernel's parent-death signal follows the thread that started the child.
        """
        python = launch.spec.python or sys.executable
        path = self.log_path(launch.replica)
        with output.opened(path) as log:
            try:
                process = await asyncio.create_subprocess_exec(
                    python,
                    "-m",
                    "jupyter_dsserve.worker",
                    stdin=asyncio.subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    env=_environment(launch),
                    # Ctrl-C in our terminal must reach us only: we drain the workers, they do not end by themselves.
                    start_new_session=True,
                )
            except (OSError, ValueError) as fault:
                raise InvalidRequest(
                    f"the interpreter {python!r} cannot be run ({fault}): give the path of a Python that "
                    "has jupyter_dsserve installed",
                    param="python",
                ) from None
        assert process.stdin is not None
        process.stdin.write(launch.to_json().encode() + b"\n")
        with contextlib.suppress(ConnectionError):  # it ended already; `wait` will tell
            await process.stdin.drain()
        return WorkerProcess(process, path)


def is_stopped(pid: int) -> bool:
    """Whether a process is held by SIGSTOP or a debugger. False where the system does not say (it is Linux's /proc)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] in ("T", "t")


def _environment(launch: WorkerLaunch) -> Mapping[str, str]:
    """OpenMP threads that spin while they wait take the core from the notebook and from each other: make them sleep."""
    threads = launch.spec.num_threads
    chosen = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)} if threads else {}
    return {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # NVML's order: the ledger's cuda:1 is then the worker's, on unlike GPUs too
        **{name: value for name, value in childs_environment().items() if name not in _GATEWAYS_KEYS},
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        **chosen,
    }
