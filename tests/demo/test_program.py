"""``make demo``: what it prints works, and nothing of it is left when it ends, however it ends."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support import free_port, is_running

WELCOME = re.compile(r"JupyterLab +(\S+)\s+URL +(\S+)\s+key +(\S+)\s+(curl .*)\n")


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    dirs = {f"JUPYTER_{kind}_DIR": str(tmp_path / kind) for kind in ("RUNTIME", "CONFIG")}
    process = subprocess.Popen(
        [sys.executable, "-m", "jupyter_dsserve.demo", "--port", str(free_port()), "--no-browser"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **dirs, "TMPDIR": str(tmp_path)},
    )
    yield process
    process.kill()
    process.wait()
    assert process.stdout
    process.stdout.close()


def welcome(process: subprocess.Popen[str]) -> str:
    said = ""
    assert process.stdout
    while not WELCOME.search(said):
        line = process.stdout.readline()
        assert line, said
        said += line
    return said


def left(pids: list[int], timeout_s: float) -> list[int]:
    end = time.monotonic() + timeout_s
    while (running := [pid for pid in pids if is_running(pid)]) and time.monotonic() < end:
        time.sleep(0.05)
    return running


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_the_printed_curl_line_answers_and_nothing_is_left_after_the_end(
    demo: subprocess.Popen[str], tmp_path: Path, number: signal.Signals
) -> None:
    found = WELCOME.search(welcome(demo))
    assert found
    *_, curl = found.groups()
    done = subprocess.run(shlex.split(curl), capture_output=True, text=True, timeout=90, check=True)
    assert len(json.loads(done.stdout)["choices"][0]["text"]) > 20
    started = [p.pid for p in psutil.Process(demo.pid).children(recursive=True)]
    assert len(started) >= 4, "JupyterLab, the gateway and two workers"
    demo.send_signal(number)
    assert left([demo.pid, *started], timeout_s=60) == []
    if number == signal.SIGINT:
        assert "stopped: no process is left" in demo.communicate()[0]
        assert list(tmp_path.glob("dsserve-demo-*")) == []


def test_a_lab_that_cannot_start_is_said() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "jupyter_dsserve.demo", "--port", str(free_port()), "--no-browser"],
        env={**os.environ, "JUPYTER_RUNTIME_DIR": "/proc/no-such-place"},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 1
    assert "JupyterLab did not start" in done.stderr
    assert "/proc/no-such-place" in done.stderr
