"""The line of loads and the books, on a real machine whose memory limit is a cgroup that the test writes."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from jupyter_dsserve.fleet.admission import Admission
from jupyter_dsserve.fleet.devices import Machine
from jupyter_dsserve.fleet.need import CUDA_BYTES
from jupyter_dsserve.fleet.replica import Replica
from jupyter_dsserve.fleet.version import Version
from jupyter_dsserve.protocol import codec
from jupyter_dsserve.protocol import worker_pb2 as pb
from jupyter_dsserve.protocol.config import AdmissionSettings
from jupyter_dsserve.protocol.records import Origin
from jupyter_dsserve.protocol.spec import WorkerSpec
from jupyter_dsserve.protocol.tensors import ModelInfo
from tests.support import until

MB = 1_000_000


def version(name: str, num_bytes: int, num_replicas: int = 1) -> Version:
    model = f"toy:bytes={num_bytes}"
    spec = WorkerSpec(model, runner="toy")
    return Version("demo", name, spec, model, num_replicas, Origin(), 0.0, is_wanted=True)


Use = Callable[[int], None]


@pytest.fixture
def use(tmp_path: Path) -> Use:
    """Writes how much of its 100 MB the cgroup uses."""
    (tmp_path / "cgroup").mkdir()
    (tmp_path / "own").write_text("0::/\n")
    (tmp_path / "cgroup/memory.max").write_text(f"{100 * MB}\n")
    (tmp_path / "cgroup/memory.stat").write_text("inactive_file 0\n")

    def write(num_bytes: int) -> None:
        (tmp_path / "cgroup/memory.current").write_text(f"{num_bytes}\n")

    write(20 * MB)
    return write


@pytest.fixture
async def admission(tmp_path: Path, use: Use) -> AsyncIterator[Admission]:
    admission = Admission(AdmissionSettings(), machine=Machine(tmp_path / "cgroup", tmp_path / "own"))
    admission.start()
    yield admission
    admission.stop()


async def cpu(admission: Admission) -> tuple[int, int]:
    device = (await admission.status()).devices[0]
    return device.capacity_bytes, device.free_bytes


async def test_unless_told_we_hold_three_quarters_of_what_is_free_at_the_start(admission: Admission) -> None:
    assert await cpu(admission) == (60 * MB, 60 * MB)


async def test_what_other_processes_take_is_not_free_and_is_noticed_when_they_give_it_back(
    admission: Admission, use: Use
) -> None:
    use(70 * MB)  # a kernel trains
    assert await cpu(admission) == (60 * MB, 30 * MB)
    asking = asyncio.create_task(admission.admit(version("v1", 40 * MB), "demo@v1#0"))
    why = await until(lambda: admission.why("demo@v1"))
    assert why.startswith(
        "waits for 38.1 MiB on cpu: of the 57.2 MiB that we may hold 28.6 MiB are free, as the device has no more"
    )
    use(50 * MB)
    assert (await asyncio.wait_for(asking, 30)).parts == {"cpu": 40 * MB}
    assert admission.why("demo@v1") == ""


async def test_what_is_promised_and_not_taken_yet_is_not_free_either(admission: Admission, use: Use) -> None:
    await admission.admit(version("v1", 40 * MB), "demo@v1#0")
    use(60 * MB)  # others took 40, our worker nothing yet
    assert await cpu(admission) == (60 * MB, 0)
    admission.release("demo@v1#0")
    assert await cpu(admission) == (60 * MB, 40 * MB)


async def test_a_place_is_kept_until_it_is_released_whoever_asks_again(admission: Admission) -> None:
    first = await admission.admit(version("v1", 40 * MB), "demo@v1#0")
    assert await admission.admit(version("v1", 40 * MB), "demo@v1#0") is first
    assert (await cpu(admission))[1] == 20 * MB


async def test_who_leaves_the_line_leaves_nothing_behind(admission: Admission) -> None:
    await admission.admit(version("v1", 40 * MB), "demo@v1#0")
    asking = asyncio.create_task(admission.admit(version("v2", 30 * MB), "demo@v2#0"))
    await until(lambda: admission.why("demo@v2"))
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    assert admission.why("demo@v2") == ""
    admission.release("demo@v1#0")
    assert await cpu(admission) == (60 * MB, 60 * MB)


async def test_a_place_given_at_the_moment_its_asker_leaves_is_released(admission: Admission) -> None:
    """The supervisor releases whatever became of the asking."""
    await admission.admit(version("v1", 40 * MB), "demo@v1#0")
    asking = asyncio.create_task(admission.admit(version("v2", 30 * MB), "demo@v2#0"))
    await until(lambda: admission.why("demo@v2"))
    admission.release("demo@v1#0")
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    admission.release("demo@v2#0")
    assert await cpu(admission) == (60 * MB, 60 * MB)


async def test_who_is_next_starts_the_moment_a_place_is_released(admission: Admission) -> None:
    await admission.admit(version("v1", 40 * MB), "demo@v1#0")
    asking = asyncio.create_task(admission.admit(version("v2", 30 * MB), "demo@v2#0"))
    await until(lambda: admission.why("demo@v2"))
    admission.stop()  # nobody looks any more
    admission.release("demo@v1#0")
    assert (await asyncio.wait_for(asking, 30)).parts == {"cpu": 30 * MB}


async def test_a_worker_kept_out_by_its_own_versions_share_holds_nobody_else_up(admission: Admission) -> None:
    twice = version("v1", 20 * MB, num_replicas=2)
    await admission.admit(twice, "demo@v1#0")
    grown = Replica("demo@v1#0", twice.spec.digest, lambda _: None)
    grown.pid = 1
    grown.receive(pb.FromWorker(ready=pb.Ready(device="cpu", info=codec.info_to_pb(ModelInfo()))), 0.0)
    grown.receive(pb.FromWorker(heartbeat=pb.Heartbeat(device_bytes=35 * MB)), 0.0)  # of 48 that it may take in all
    assert await admission.look(twice, grown) == 35 * MB
    second = asyncio.create_task(admission.admit(twice, "demo@v1#1"))
    why = await until(lambda: admission.why("demo@v1"))
    assert why.endswith("; a version of priority high may take 80%, of which its other workers leave too little")
    await asyncio.wait_for(admission.admit(version("v2", 20 * MB), "demo@v2#0"), 30)
    second.cancel()


async def test_one_that_leaves_in_the_moment_it_gets_its_place_has_left(tmp_path: Path, use: Use) -> None:
    settings = AdmissionSettings(max_wait_s=60)
    admission = Admission(settings, machine=Machine(tmp_path / "cgroup", tmp_path / "own"))
    admission.start()
    try:
        await admission.admit(version("v1", 40 * MB), "demo@v1#0")
        asking = asyncio.create_task(admission.admit(version("v2", 40 * MB), "demo@v2#0"))
        await until(lambda: admission.why("demo@v2"))
        admission.release("demo@v1#0")  # gives it to the one that waits
        assert asking.cancel()
        await asyncio.wait({asking})
        assert asking.cancelled()
        admission.release("demo@v2#0")  # as its slot does at its end
        assert await cpu(admission) == (60 * MB, 60 * MB)
    finally:
        admission.stop()


async def test_processes_are_looked_at_beside_the_loop() -> None:
    threads = set()

    class Noted(Machine):
        def work_s(self, pid: int) -> float:
            threads.add(threading.current_thread())
            return super().work_s(pid)

        def taken(self, device: str, pid: int, *, with_children: bool) -> int:
            threads.add(threading.current_thread())
            return super().taken(device, pid, with_children=with_children)

    admission = Admission(AdmissionSettings(), machine=Noted())
    admission.start()
    replica = Replica("demo@v1#0", "", lambda _: None)
    replica.pid = os.getpid()
    loaded = Version("demo", "v1", WorkerSpec("builtin:demo-v1", tp=2), "", 1, Origin(), 0.0, is_wanted=True)
    try:
        assert await admission.work_s(replica) > 0
        assert await admission._taken(loaded, replica, "cpu") > MB
        assert len(threads) >= 1
        assert threading.main_thread() not in threads
    finally:
        admission.stop()


async def test_where_a_driver_does_not_tell_who_holds_a_gpu_the_worker_does() -> None:
    """Else what it has taken would be counted twice: as gone from the device, and as still to be taken."""

    class InContainer(Machine):
        def taken(self, device: str, pid: int, *, with_children: bool) -> int:
            return 0

    admission = Admission(AdmissionSettings(), machine=InContainer())
    replica = Replica("demo@v1#0", "", lambda _: None)
    replica.pid = 1
    loaded = Version("demo", "v1", WorkerSpec("builtin:demo-v1", tp=2), "", 1, Origin(), 0.0, is_wanted=True)
    assert await admission._taken(loaded, replica, "cuda:1") == 0  # it has not said anything yet
    replica.receive(pb.FromWorker(heartbeat=pb.Heartbeat(device_bytes=60 * MB)), 0.0)
    assert await admission._taken(loaded, replica, "cuda:1") == CUDA_BYTES + 30 * MB  # of each of its two
    assert await admission._taken(loaded, replica, "cpu") == 0
