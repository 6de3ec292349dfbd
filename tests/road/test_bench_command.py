"""``jupyter dsserve bench`` in a process of its own, against ``jupyter dsserve``."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support import Command

PROGRAM = str(Path(sys.executable).with_name("jupyter-dsserve"))


@pytest.fixture
async def served(data_dir: Path) -> AsyncIterator[Command]:
    """toy: a fast one; bad: one that always fails."""
    fast, bad = ("--load", "toy=toy:step_s=0.002"), ("--load", "bad=toy:fail_rate=1")
    with Command(data_dir, *fast, *bad) as command:
        async with await command.caller() as caller:
            await caller.settled("toy", "v1", "READY")
            await caller.settled("bad", "v1", "READY")
        yield command
        command.process.terminate()
        command.output()


def begun(data_dir: Path, *words: str) -> subprocess.Popen[str]:
    arguments = [PROGRAM, "bench", "--data-dir", str(data_dir), *words]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(data_dir: Path, *words: str) -> tuple[int, str, str]:
    """Its exit status, what it printed and what it complained of."""
    process = begun(data_dir, *words)
    said, complained = process.communicate(timeout=60)
    return process.returncode, said, complained


def rows(said: str) -> list[str]:
    """The table's lines: above it stands a title, and below what there is to say besides (that asking came late)."""
    return said.split("\n\n")[1].splitlines()


async def test_it_finds_the_gateway_and_its_key_and_leaves_a_table_json_and_a_plot(
    served: Command, data_dir: Path, tmp_path: Path
) -> None:
    words = ["toy", "--concurrency", "1,3", "--seconds", "60", "--requests", "60", "--output-tokens", "5-15"]
    files = ["--json", str(tmp_path / "a.json"), "--plot", str(tmp_path / "a.html")]
    status, said, complained = await asyncio.to_thread(run, data_dir, *words, "--slo", "latency_s=5", *files)
    assert status == 0, complained
    assert "concurrency 3: " in complained, "no progress was shown"
    table = {line.rsplit(maxsplit=2)[0].strip(): line.split()[-2:] for line in rows(said)}
    assert table["concurrency"] == ["1", "3"]
    tree = json.loads((tmp_path / "a.json").read_text())
    assert [point["load"]["value"] for point in tree["points"]] == [1, 3]
    assert table["answered"] == [str(point["answered"]) for point in tree["points"]]
    assert all(point["answered"] == 60 and point["goodput_per_s"] > 0 for point in tree["points"])
    page = (tmp_path / "a.html").read_text()
    assert "a token after, ms" in page
    assert len(page) > 1_000_000, "plotly itself is not in it"


async def test_ctrl_c_prints_what_was_measured_by_then(served: Command, data_dir: Path) -> None:
    process = begun(data_dir, "toy", "--concurrency", "1,2", "--seconds", "30", "--output-tokens", "5")
    assert process.stderr
    seen = ""
    while not re.search(r"concurrency 1: 1 in flight, \d\d+ answered", seen):  # some of them in the time that counts
        piece = await asyncio.to_thread(process.stderr.read, 20)
        assert piece, seen
        seen += piece
    process.send_signal(signal.SIGINT)
    said, complained = await asyncio.to_thread(process.communicate, timeout=60)
    assert process.returncode == 0
    assert "It was interrupted" in said
    assert "Traceback" not in complained


async def test_what_it_cannot_do_is_said_in_a_line(served: Command, data_dir: Path, tmp_path: Path) -> None:
    wrongs = (
        (data_dir, "", "name the model: "),
        (data_dir, "toy --concurency 3", "did you mean --concurrency?"),
        (data_dir, "toy --json /no/such/directory/a.json", "there is no such directory"),
        (data_dir, "bad --requests 4 --concurrency 2 --output-tokens 4", "the toy was told to fail"),
        (tmp_path / "empty", "toy", "start jupyter dsserve"),
    )
    found = await asyncio.gather(*(asyncio.to_thread(run, path, *words.split()) for path, words, _ in wrongs))
    for (_, words, named), (status, _, complained) in zip(wrongs, found, strict=True):
        assert status == 1, words
        assert named in complained
        assert "Traceback" not in complained


def test_its_help_has_every_option_with_a_sentence(data_dir: Path) -> None:
    status, said, _ = run(data_dir, "--help")
    assert status == 0
    for option in ("url", "key", "concurrency", "rate", "seconds", "prompt-tokens", "slo", "chat", "json", "plot"):
        assert f"--{option}" in said
    assert "jupyter dsserve bench demo --concurrency 1,4,16,64" in said
