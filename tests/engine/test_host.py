"""What a process has of its machine: cores, fewer if its cgroups ration its time, and what lies in the page cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from jupyter_dsserve.engine import host


@pytest.fixture
def cgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight cores, and a cgroup ``/outer/inner`` that is ours."""
    monkeypatch.setattr(host.os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(host, "_CGROUPS", tmp_path / "fs")
    monkeypatch.setattr(host, "_OWN_CGROUP", tmp_path / "own")
    (tmp_path / "own").write_text("1:cpu:/elsewhere\n0::/outer/inner\n")
    (tmp_path / "fs/outer/inner").mkdir(parents=True)
    return tmp_path / "fs"


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", 8), ("350000 100000", 3), ("1600000 100000", 8), ("5000 100000", 1)]
)
def test_a_quota_of_time_counts_in_whole_cores_and_never_for_more_than_there_are(
    quota: str, cores: int, cgroups: Path
) -> None:
    (cgroups / "outer/inner/cpu.max").write_text(f"{quota}\n")
    assert host.num_cores() == cores


def test_the_least_quota_on_the_way_up_counts(cgroups: Path) -> None:
    (cgroups / "outer/inner/cpu.max").write_text("max 100000\n")
    (cgroups / "outer/cpu.max").write_text("200000 100000\n")
    (cgroups / "cpu.max").write_text("600000 100000\n")
    assert host.num_cores() == 2


def test_a_container_that_sees_its_cgroup_as_the_root_finds_its_quota_there(cgroups: Path) -> None:
    (cgroups.parent / "own").write_text("0::/\n")
    (cgroups / "cpu.max").write_text("250000 100000\n")
    assert host.num_cores() == 2


def test_without_cgroups_the_bound_cores_count(cgroups: Path) -> None:
    (cgroups.parent / "own").unlink()
    assert host.num_cores() == 8


def test_reading_ahead_reads_all_the_weights_of_a_directory(tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / f"model-{number}.safetensors").write_bytes(bytes(3 << 20))
    before = bytes_read()
    host.start_reading_ahead(str(tmp_path)).join()
    assert 6 << 20 <= bytes_read() - before < 12 << 20, "once"  # some of it may be another thread's


def bytes_read() -> int:
    """What this process has read from files so far."""
    return int(Path("/proc/self/io").read_text().split()[1])


def test_reading_ahead_of_what_is_no_directory_does_nothing() -> None:
    host.start_reading_ahead("org/name").join()
