"""What of a machine's memory is seen, and whose it is."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from jupyter_dsserve.fleet.devices import CPU, Machine, visible
from jupyter_dsserve.fleet.kernels import kernel_id, notebooks

GB = 10**9


def cgroup_v2(root: Path, own: Path, **limits: tuple[str, int, int]) -> Machine:
    """A machine whose cgroup is ``/a/b``; by the cgroup's last name its limit, use, and pages that can be dropped."""
    own.write_text("0::/a/b\n")
    for name, (limit, used, dropped) in limits.items():
        folder = root / {"top": "", "a": "a", "b": "a/b"}[name]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon 5\ninactive_file {dropped}\n")
    return Machine(root, own)


def ram(machine: Machine) -> tuple[int, int]:
    device = machine.devices()[0]
    assert device.id == "cpu"
    return device.total_bytes, device.free_bytes


def test_without_a_limit_ram_is_the_machines(tmp_path: Path) -> None:
    machine = cgroup_v2(tmp_path / "cg", tmp_path / "own", b=("max", 5, 0))
    total, free = ram(machine)
    assert total == psutil.virtual_memory().total
    assert 0 < free <= total


def test_the_least_limit_of_all_cgroups_above_counts_and_pages_that_can_be_dropped_are_free(tmp_path: Path) -> None:
    machine = cgroup_v2(tmp_path / "cg", tmp_path / "own", b=("max", 5, 0), a=("2000000", 1500000, 400000))
    assert ram(machine) == (2_000_000, 900_000)
    tighter = cgroup_v2(tmp_path / "cg", tmp_path / "own", b=("1000000", 1500000, 0))
    assert ram(tighter) == (1_000_000, 0)


def test_a_container_sees_its_own_limit_as_the_roots(tmp_path: Path) -> None:
    machine = cgroup_v2(tmp_path / "cg", tmp_path / "own", top=("3000000", 1000000, 0))
    assert ram(machine) == (3_000_000, 2_000_000)


def test_limits_of_version_1_count_too(tmp_path: Path) -> None:
    own, folder = tmp_path / "own", tmp_path / "cg/memory/job"
    own.write_text("4:cpu,memory:/job\n2:cpuset:/job\n")
    folder.mkdir(parents=True)
    (folder / "memory.limit_in_bytes").write_text("4000000")
    (folder / "memory.usage_in_bytes").write_text("3000000")
    (folder / "memory.stat").write_text("inactive_file 1\ntotal_inactive_file 500000\n")
    assert ram(Machine(tmp_path / "cg", own)) == (4_000_000, 1_500_000)
    (folder / "memory.limit_in_bytes").write_text(str(2**63 - 4096))  # how it writes none
    assert ram(Machine(tmp_path / "cg", own))[0] == psutil.virtual_memory().total


def test_what_a_process_takes_is_its_own_memory_and_not_what_it_maps(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"1" * 80_000_000)
    code = f"""
import mmap, sys
held = b"1" * 50_000_000
weights = open({str(file)!r}, "rb")
mapped = mmap.mmap(weights.fileno(), 0, prot=mmap.PROT_READ)
print(sum(mapped[::4096]), flush=True)
sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout
        assert child.stdin
        child.stdout.readline()
        machine = Machine()
        taken = machine.taken("cpu", child.pid, with_children=False)
        assert 50_000_000 < taken < 75_000_000
        assert machine.taken("cpu", os.getpid(), with_children=True) > taken + 10_000_000
        assert machine.work_s(child.pid) > 0
        child.stdin.close()
    assert machine.taken("cpu", child.pid, with_children=True) == 0
    assert machine.work_s(child.pid) == 0


def test_what_a_process_reads_and_writes_is_work_too(tmp_path: Path) -> None:
    code = "import sys\nprint(0, flush=True)\nsys.stdin.readline()\n"
    code += f"open({str(tmp_path / 'file')!r}, 'wb').write(bytes(100_000_000))\nprint(1, flush=True)\nsys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout
        assert child.stdin
        child.stdout.readline()
        before = Machine().work_s(child.pid)
        child.stdin.write(b"go\n")
        child.stdin.flush()
        child.stdout.readline()
        assert Machine().work_s(child.pid) - before > 4
        child.stdin.close()


# ---- GPUs: NVML as its documentation says, for there is none here


def fake_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two GPUs; on the first a process of ours, this one, and one whose bytes the driver does not tell."""
    running = {
        0: [SimpleNamespace(pid=os.getpid(), usedGpuMemory=5 * GB), SimpleNamespace(pid=7, usedGpuMemory=None)],
        1: [SimpleNamespace(pid=2**30, usedGpuMemory=11 * GB)],
    }
    nvml = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetUUID=lambda index: f"GPU-{index}f",
        nvmlDeviceGetMemoryInfo=lambda index: SimpleNamespace(total=80 * GB, free=(75, 69)[index] * GB),
        nvmlDeviceGetComputeRunningProcesses=lambda index: running[index],
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)


def test_gpus_are_seen_with_what_is_free_and_who_holds_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvml(monkeypatch)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    machine = Machine()
    assert machine.has_gpus
    assert [(d.id, d.total_bytes, d.free_bytes) for d in machine.devices()[1:]] == [
        ("cuda:0", 80 * GB, 75 * GB),
        ("cuda:1", 80 * GB, 69 * GB),
    ]
    assert machine.taken("cuda:0", os.getpid(), with_children=False) == 5 * GB
    others = machine.others(ours={os.getpid()})
    assert others["cuda:0"] == []
    (other,) = others["cuda:1"]
    assert (other.owner, other.num_bytes) == (f"process {2**30}, which cannot be seen from here", 11 * GB)


def test_a_gpu_has_the_number_that_cuda_gives_it(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvml(monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert [(d.id, d.free_bytes) for d in Machine().devices()[1:]] == [("cuda:0", 69 * GB)]


def failing(*failing_indices: int, told: Callable[[int], Any]) -> Callable[[int], Any]:
    """As NVML's calls fail: with an exception of its own."""

    def call(index: int) -> Any:
        if index in failing_indices:
            raise Exception("Not Supported")
        return told(index)

    return call


def test_a_gpu_whose_memory_the_driver_never_tells_is_left_out_and_the_others_keep_their_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where GPU and processor share their memory, say: the gateway starts all the same."""
    fake_nvml(monkeypatch)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    nvml = sys.modules["pynvml"]
    monkeypatch.setattr(nvml, "nvmlDeviceGetMemoryInfo", failing(0, told=nvml.nvmlDeviceGetMemoryInfo))
    assert [d.id for d in Machine().devices()] == ["cpu", "cuda:1"]


def test_a_gpu_that_is_lost_later_has_nothing_free_and_nobody_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvml(monkeypatch)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    machine, nvml = Machine(), sys.modules["pynvml"]
    for name in ("nvmlDeviceGetMemoryInfo", "nvmlDeviceGetComputeRunningProcesses"):
        monkeypatch.setattr(nvml, name, failing(1, told=getattr(nvml, name)))
    assert [(d.id, d.total_bytes, d.free_bytes) for d in machine.devices()[1:]] == [
        ("cuda:0", 80 * GB, 75 * GB),
        ("cuda:1", 80 * GB, 0),
    ]
    assert machine.others(ours=set())["cuda:1"] == []
    assert machine.taken("cuda:0", os.getpid(), with_children=False) == 5 * GB


@pytest.mark.parametrize(
    ("setting", "shown"),
    [(None, [0, 1, 2]), ("", []), ("2,0", [2, 0]), ("GPU-b,1", [1, 1]), ("1,-1,0", [1]), ("7", []), ("GPU-x", [])],
)
def test_cuda_visible_devices_ends_at_what_names_no_gpu(setting: str | None, shown: list[int]) -> None:
    assert visible(["GPU-a", "GPU-b", "GPU-c"], setting) == shown


def test_without_a_driver_there_are_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert not Machine().has_gpus
    assert [d.id for d in Machine().devices()] == ["cpu"]


# ---- names


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (["python", "-m", "ipykernel_launcher", "-f", "/run/kernel-0a1b-2c.json"], "0a1b-2c"),
        (["python", "-m", "ipykernel_launcher", "--f=/run/kernel-0a1b-2c.json"], "0a1b-2c"),
        (["python", "train.py"], ""),
    ],
)
def test_a_kernel_is_known_by_its_connection_file(line: list[str], found: str) -> None:
    assert kernel_id(line) == found


def test_servers_that_do_not_answer_tell_nothing(tmp_path: Path) -> None:
    (tmp_path / "jpserver-1.json").write_text('{"url": "http://127.0.0.1:9/", "token": "x"}')
    (tmp_path / "jpserver-2.json").write_text("{")
    assert notebooks(tmp_path) == {}


def test_without_a_file_to_look_with_a_process_takes_nothing_and_nothing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_pid: int) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(psutil, "Process", full)
    assert Machine().taken(CPU, os.getpid(), with_children=True) == 0
    assert Machine().work_s(os.getpid()) == 0
