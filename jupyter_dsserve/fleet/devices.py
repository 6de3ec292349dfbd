"""What this machine has: memory of its GPUs (through NVML, where a driver answers) and RAM, and who holds it."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from jupyter_dsserve.fleet.kernels import kernel_id, notebooks

log = logging.getLogger(__name__)

CPU = "cpu"
_SHOWN_PROCESSES = 8
_LEAST_SHARE = 0.002  # of RAM: a process that holds less is not worth naming
_BYTES_PER_S = 20e6
_NO_LIMIT = 1 << 60  # what cgroup v1 writes for none is near 2**63


# A process that is gone or somebody else's; or we have no file left to look with.
_UNTOLD = (psutil.Error, OSError)


@dataclass(frozen=True, slots=True)
class Device:
    """Memory, in bytes: all of it, and what nobody uses now. ``id`` is ``cpu`` (RAM) or ``cuda:N``."""

    id: str
    total_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class OtherProcess:
    """A process that is none of ours. ``owner`` says what it is: ``kernel of train.ipynb``, or its name."""

    owner: str
    pid: int
    num_bytes: int
    is_kernel: bool = False


class Machine:
    """Looks, each time it is asked. ``cgroups`` and ``own_cgroup`` are where Linux shows memory limits."""

    def __init__(self, cgroups: Path = Path("/sys/fs/cgroup"), own_cgroup: Path = Path("/proc/self/cgroup")) -> None:
        self._limits = _limit_files(cgroups, own_cgroup)
        self._gpus = _Gpus()

    @property
    def has_gpus(self) -> bool:
        return bool(self._gpus.handles)

    def devices(self) -> list[Device]:
        """RAM, and every GPU that our workers see. Quick."""
        memory = psutil.virtual_memory()
        total, free = memory.total, memory.available
        for limit in self._limits:
            if (found := limit.read()) is not None:
                total, free = min(total, found[0]), min(free, found[1])
        return [Device(CPU, total, free), *self._gpus.devices()]

    def others(self, ours: set[int]) -> dict[str, list[OtherProcess]]:
        """By device, the processes that hold most of it, and all kernels that hold some, but for ``ours``. Takes a
        while: call it in a thread."""
        held = {CPU: _ram_of_processes(), **self._gpus.processes()}
        total = {d.id: d.total_bytes for d in self.devices()}
        named = _Names()
        found: dict[str, list[OtherProcess]] = {}
        for device, processes in held.items():
            least = _LEAST_SHARE * total.get(device, 0) if device == CPU else 0
            largest = sorted((n, pid) for pid, n in processes.items() if pid not in ours and n > least)[::-1]
            each = [named.process(pid, n) for n, pid in largest]
            found[device] = [o for rank, o in enumerate(each) if rank < _SHOWN_PROCESSES or o.is_kernel]
        return found

    def taken(self, device: str, pid: int, *, with_children: bool) -> int:
        """Bytes of ``device`` that the process ``pid`` holds now; 0 if it is gone or the system does not say.

        Of RAM it is memory of its own: pages of mapped files come and go as the system likes. To find children it reads
        of every process on the machine, milliseconds for each hundred: call it in a thread, and `work_s` too.
        """
        pids = {pid, *_children(pid)} if with_children else {pid}
        if device == CPU:
            return sum(map(_own_bytes, pids))
        return sum(n for p, n in self._gpus.processes().get(device, {}).items() if p in pids)

    def work_s(self, pid: int) -> float:
        """What a process and its children have done so far: seconds of processor time, and one for every 20 MB they
        read or wrote (a download, a slow disk). 0 if it is gone."""
        total = 0.0
        for each in (pid, *_children(pid)):
            with suppress(*_UNTOLD, AttributeError):  # macOS does not count what is read
                process = psutil.Process(each)
                times = process.cpu_times()
                total += times.user + times.system
                moved = process.io_counters()
                total += (moved.read_bytes + moved.read_chars + moved.write_chars) / _BYTES_PER_S
        return total


# ---- RAM


@dataclass(frozen=True, slots=True)
class _Limit:
    """The files of a cgroup: its limit, what it uses, and the statistics with the file pages that can be dropped."""

    limit: Path
    usage: Path
    stat: Path
    droppable: str

    def read(self) -> tuple[int, int] | None:
        """The limit and what is left of it, in bytes; None if there is none."""
        try:
            text = self.limit.read_text().strip()
            if text == "max" or int(text) >= _NO_LIMIT:
                return None
            used = int(self.usage.read_text())
            lines = [line.split() for line in self.stat.read_text().splitlines()]
        except (OSError, ValueError):
            return None
        dropped = next((int(line[1]) for line in lines if line[0] == self.droppable), 0)
        return int(text), max(0, int(text) - max(0, used - dropped))


def _limit_files(root: Path, own: Path) -> list[_Limit]:
    """Those of our cgroup and of all above it, in versions 1 and 2. A container often sees its own as the root."""
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        return []
    found = []
    for number, controllers, path in (line for line in lines if len(line) == 3):
        if number == "0":
            found += [
                _Limit(f / "memory.max", f / "memory.current", f / "memory.stat", "inactive_file")
                for f in _up(root, path)
            ]
        elif "memory" in controllers.split(","):
            found += [
                _Limit(
                    f / "memory.limit_in_bytes", f / "memory.usage_in_bytes", f / "memory.stat", "total_inactive_file"
                )
                for f in _up(root / "memory", path)
            ]
    return [limit for limit in found if limit.limit.is_file()]


def _up(root: Path, path: str) -> list[Path]:
    folder = root / path.strip("/")
    return [one for one in (folder, *folder.parents) if one.is_relative_to(root)]


def _own_bytes(pid: int) -> int:
    """Memory of its own: resident, without what it shares or has mapped from files."""
    try:
        process = psutil.Process(pid)
        memory = process.memory_info()
        return memory.rss - memory.shared if sys.platform == "linux" else process.memory_full_info().uss
    except _UNTOLD:
        return 0


def _ram_of_processes() -> dict[int, int]:
    return {pid: n for pid in psutil.pids() if (n := _own_bytes(pid))}


def _children(pid: int) -> list[int]:
    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except _UNTOLD:
        return []


# ---- GPUs


class _Gpus:
    """Those that CUDA shows to our workers, by the number it gives them. None where NVML is not there."""

    def __init__(self) -> None:
        self.handles: dict[str, Any] = {}
        try:
            import pynvml

            pynvml.nvmlInit()
            handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
            ids = [str(pynvml.nvmlDeviceGetUUID(handle)) for handle in handles]
        except Exception as fault:  # not installed, no driver, an old one: whatever it is, there is no GPU to count on
            log.debug("no GPUs: %s", fault)
            return
        self._nvml = pynvml
        shown = visible(ids, os.environ.get("CUDA_VISIBLE_DEVICES"))
        self._total: dict[str, int] = {}  # as it was at first
        for number, index in enumerate(shown):
            try:
                id, total = f"cuda:{number}", int(pynvml.nvmlDeviceGetMemoryInfo(handles[index]).total)
            except Exception as fault:  # one that shares the machine's RAM, say
                log.warning("cuda:%d is in no books: the driver does not tell its memory (%s)", number, fault)
                continue
            self.handles[id], self._total[id] = handles[index], total

    def devices(self) -> list[Device]:
        """One that does not answer any more has nothing free."""
        found = []
        for id, handle in self.handles.items():
            try:
                free = int(self._nvml.nvmlDeviceGetMemoryInfo(handle).free)
            except Exception as fault:
                log.warning("%s does not answer: %s", id, fault)
                free = 0
            found.append(Device(id, self._total[id], free))
        return found

    def processes(self) -> dict[str, dict[int, int]]:
        """By device, the bytes of each process; those whose bytes the driver does not tell are left out."""
        found: dict[str, dict[int, int]] = {}
        for id, handle in self.handles.items():
            try:
                running = self._nvml.nvmlDeviceGetComputeRunningProcesses(handle)
            except Exception as fault:  # not told under WSL, nor by a GPU that is lost
                log.debug("%s does not tell who holds its memory: %s", id, fault)
                running = []
            found[id] = {int(p.pid): int(p.usedGpuMemory) for p in running if p.usedGpuMemory}
        return found


def visible(ids: Sequence[str], setting: str | None) -> list[int]:
    """Which of the GPUs ``ids`` (UUIDs, in the order of their bus) CUDA shows, by number, for a setting of
    ``CUDA_VISIBLE_DEVICES``: it ends at the first entry that names none."""
    if setting is None:
        return list(range(len(ids)))
    found: list[int] = []
    for entry in (part.strip() for part in setting.split(",")):
        if entry.isdigit() and int(entry) < len(ids):
            found.append(int(entry))
        elif entry.startswith("GPU-") and (named := [i for i, id in enumerate(ids) if id.startswith(entry)]):
            found.append(named[0])
        else:
            break
    return found


# ---- names


class _Names:
    """What processes are. The Jupyter servers are asked once, at the first kernel."""

    def __init__(self) -> None:
        self._notebooks: Mapping[str, str] | None = None

    def process(self, pid: int, num_bytes: int) -> OtherProcess:
        try:
            process = psutil.Process(pid)
            line, name = process.cmdline(), process.name()
        except psutil.NoSuchProcess:
            return OtherProcess(f"process {pid}, which cannot be seen from here", pid, num_bytes)
        except psutil.Error:
            return OtherProcess(f"process {pid} of another user", pid, num_bytes)
        if not (kernel := kernel_id(line)):
            return OtherProcess(f"{name} (process {pid})", pid, num_bytes)
        if self._notebooks is None:
            self._notebooks = notebooks()
        notebook = self._notebooks.get(kernel)
        owner = f"kernel of {notebook}" if notebook else f"Jupyter kernel {pid}"
        return OtherProcess(owner, pid, num_bytes, is_kernel=True)
