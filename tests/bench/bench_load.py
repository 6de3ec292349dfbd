"""What a load takes: seconds by stage, and memory of its own at its peak.

    python -m tests.bench.bench_load [--rounds 3] [--sizes S,M]

Each load runs in a process of its own. Its memory is read from outside every millisecond: anonymous and shared pages,
less what there was after the imports; pages of the mapped file are the system's to take back and counted apart. A cold
load finds the weights outside the page cache, a warm one in it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Nothing here may import torch at the top: the child's imports are what is measured.
_BYTES = {"fp32": 4, "bf16": 2, "float32": 4, "bfloat16": 2}


def load_once(told: str) -> None:
    """Child: says on stdout when the imports are done, waits for a line, loads, and says when which stage began."""
    started = time.perf_counter()
    from jupyter_dsserve.engine.host import start_reading_ahead
    from jupyter_dsserve.protocol.spec import WorkerSpec

    spec = WorkerSpec.from_json(told)
    start_reading_ahead(spec.model)
    from jupyter_dsserve.engine.loader import load_checked

    print(json.dumps({"imports": time.perf_counter() - started}), flush=True)
    sys.stdin.readline()
    began: dict[str, float] = {}
    started = time.perf_counter()
    runner = load_checked(spec, spec.model, lambda stage, done: began.setdefault(stage, time.perf_counter() - started))
    began["end"] = time.perf_counter() - started
    print(json.dumps(began), flush=True)
    sys.stdin.readline()  # the runner's memory is looked at until here
    del runner


@dataclass(frozen=True)
class Loaded:
    """Seconds of the imports and of each stage; MiB at the peak that are the process's own, and of mapped files."""

    imports_s: float
    stages_s: dict[str, float]
    own_mib: float
    mapped_mib: float

    @property
    def load_s(self) -> float:
        return sum(self.stages_s.values())


def measure(model: Path, dtype: str, *, is_cold: bool = False, **fields: Any) -> Loaded:
    """Load ``model`` in a new process, and watch it. ``fields`` are more of its spec."""
    if is_cold:
        for file in model.glob("*.safetensors"):
            _forget(file)
    spec = {"model": str(model), "dtype": dtype, "device": "cpu", "num_threads": 1, **fields}
    command = [sys.executable, "-m", "tests.bench.bench_load", "--child", json.dumps(spec)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin
        assert child.stdout
        imports_s = json.loads(child.stdout.readline())["imports"]
        before = _memory(child.pid)
        with _Peak(child.pid) as peak:
            print(file=child.stdin, flush=True)
            began = json.loads(child.stdout.readline())
        print(file=child.stdin, flush=True)
    names, times = list(began), list(began.values())
    stages = {name: after - at for name, at, after in zip(names, times, times[1:], strict=False)}
    return Loaded(imports_s, stages, peak.own - before[0], peak.mapped - before[1])


class _Peak:
    """The most memory of a process while inside, in MiB."""

    def __init__(self, pid: int) -> None:
        self.own = self.mapped = 0.0
        self._pid, self._is_over = pid, threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> _Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()
        self._look()  # what it holds at the end is seen in any case

    def _watch(self) -> None:
        while not self._is_over.wait(0.001):
            self._look()

    def _look(self) -> None:
        own, mapped = _memory(self._pid)
        self.own, self.mapped = max(self.own, own), max(self.mapped, mapped)


def _memory(pid: int) -> tuple[float, float]:
    """MiB of anonymous and shared pages, and of mapped files'."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    found = {line.split()[0]: int(line.split()[1]) / 1024 for line in lines if line.startswith("Rss")}
    return found["RssAnon:"] + found["RssShmem:"], found["RssFile:"]


def _forget(file: Path) -> None:
    """Have the system drop a file from its page cache."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def weights_mib(model: Path, dtype: str) -> float:
    """What the weights of ``model`` take in ``dtype``."""
    from jupyter_dsserve.engine.checkpoint import weight_bytes

    own = json.loads((model / "config.json").read_text())["dtype"]
    return sum(weight_bytes(str(model)).values()) * _BYTES[dtype] / _BYTES[own] / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", default="S,M")
    args = parser.parse_args()
    from tests.bench.models import make_model

    head = ("model", "dtype", "weights MiB", "cache", "imports s", "load s", "its stages, s", "own MiB", "× weights")
    print("| " + " | ".join((*head, "mapped MiB")) + " |\n|" + "---|" * (len(head) + 1))
    with tempfile.TemporaryDirectory() as folder:
        for size in args.sizes.split(","):
            model = make_model(size, Path(folder) / size)
            for dtype, is_cold in (("fp32", True), ("fp32", False), ("bf16", False)):
                rounds = [measure(model, dtype, is_cold=is_cold) for _ in range(args.rounds)]
                print(_row(size, dtype, weights_mib(model, dtype), is_cold, rounds), flush=True)


def _row(size: str, dtype: str, weights: float, is_cold: bool, rounds: list[Loaded]) -> str:
    def median(values: list[float]) -> float:
        return statistics.median(values)

    stages = {name: median([one.stages_s[name] for one in rounds]) for name in rounds[0].stages_s}
    shown = ", ".join(f"{name} {seconds:.2f}" for name, seconds in stages.items() if seconds >= 0.005)
    own = median([one.own_mib for one in rounds])
    cells = (
        *(size, dtype, f"{weights:.0f}", "cold" if is_cold else "warm", f"{median([r.imports_s for r in rounds]):.2f}"),
        *(f"{median([r.load_s for r in rounds]):.2f}", shown, f"{own:.0f}", f"{own / weights:.2f}"),
        f"{median([r.mapped_mib for r in rounds]):.0f}",
    )
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        load_once(*sys.argv[2:])
    else:
        main()
