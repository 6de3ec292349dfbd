"""What a worker writes stays within bounds, and its end can be read, however long the worker runs."""

from __future__ import annotations

import asyncio
import logging
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from jupyter_dsserve.fleet import output
from jupyter_dsserve.fleet.launcher import LocalLauncher, WorkerProcess
from jupyter_dsserve.gateway.logs import Followed

PRINTS = "import sys\nfor line in sys.stdin:\n    print(line, end='', flush=True)\n"


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(output, "MAX_BYTES", 1000)
    monkeypatch.setattr(output, "_KEPT_BYTES", 50)
    return tmp_path / "demo@v1#0.log"


def lines(first: int, last: int) -> list[str]:
    return [f"line {number:04}" for number in range(first, last)]


def written(*several: str) -> bytes:
    return "".join(f"{line}\n" for line in several).encode()


def test_a_worker_that_goes_on_printing_keeps_its_file_which_is_bounded(path: Path) -> None:
    with output.opened(path) as log:
        child = subprocess.Popen([sys.executable, "-c", PRINTS], stdin=subprocess.PIPE, stdout=log)
    assert child.stdin
    worker = WorkerProcess(child, path)  # type: ignore[arg-type]  # of which only the log is looked at
    for start in range(0, 2000, 40):  # 400 bytes each
        child.stdin.write(written(*lines(start, start + 40)))
        child.stdin.flush()
        while not output.tail(path, 1) or output.tail(path, 1)[0] != f"line {start + 39:04}":
            assert child.poll() is None
        asyncio.run(worker.bound_log())
        assert sum(each.stat().st_size for each in path.parent.iterdir()) <= 2 * 1000 + 400
    child.stdin.close()
    child.wait()
    assert len(list(path.parent.iterdir())) == 2
    assert output.tail(path, 100) == lines(1900, 2000)
    assert {stat.S_IMODE(each.stat().st_mode) for each in path.parent.iterdir()} == {0o600}


def test_of_what_is_far_too_much_the_end_is_kept(path: Path) -> None:
    path.write_bytes(written(*lines(0, 1000)))
    output.bound(path)
    assert (path.stat().st_size, output.tail(path, 1000)) == (0, lines(900, 1000))


@pytest.mark.parametrize("num_lines", [3, 20])
def test_a_worker_that_starts_anew_goes_on_after_the_end_of_what_went_before(path: Path, num_lines: int) -> None:
    path.write_bytes(written(*lines(0, 20)))
    output.bound(path)
    path.write_bytes(written(*lines(20, 20 + num_lines)))
    with output.opened(path) as log:
        log.write(written("begun anew"))
    assert output.tail(path, 100) == [*lines(15 + num_lines, 20 + num_lines), "begun anew"]
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_a_short_file_is_left_as_it_is(path: Path) -> None:
    path.write_bytes(written(*lines(0, 4)))
    with output.opened(path) as log:
        log.write(written("begun anew"))
    assert output.tail(path, 100) == [*lines(0, 4), "begun anew"]
    assert not output.tail(path, 0)
    assert not output.tail(path.with_name("other.log"), 10)


def test_both_files_go_with_the_version(path: Path) -> None:
    launcher = LocalLauncher(path.parent)
    path.write_bytes(written(*lines(0, 4)))
    output.bound(path)
    other = path.with_name("demo@v10#0.log")
    other.write_bytes(b"")
    launcher.forget_logs("demo@v1")
    assert list(path.parent.iterdir()) == [other]


def test_a_file_that_began_anew_is_followed_from_its_beginning(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("jupyter_dsserve"), "propagate", True)
    caplog.set_level(logging.INFO, "jupyter_dsserve.worker")
    path.write_bytes(written(*lines(0, 20)))
    followed = Followed(path.parent)
    output.bound(path)
    path.write_bytes(written("a new line"))
    followed.tell()
    followed.tell()
    assert [record.getMessage() for record in caplog.records] == ["demo@v1#0: a new line"]
