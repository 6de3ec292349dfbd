"""What a notebook that keeps every core busy costs the engine: tokens per second, and per second of processor.

    python -m tests.bench.bench_busy [--rounds 3] [--out results.json]

The engine runs as a worker runs it (threads as it chooses them, OpenMP passive), and as the trap would have it (one
spinning OpenMP thread a core), each while the machine is quiet and while one process a core spins. With two busy on a
core the worker has a right to half: throughput may fall as the processor time it gets does, not more.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from tests.bench.models import make_model

WAYS = {
    "as we do": {"OMP_WAIT_POLICY": "PASSIVE", "threads": "0"},
    "the trap": {"OMP_WAIT_POLICY": "ACTIVE", "GOMP_SPINCOUNT": "INFINITY", "threads": str(os.cpu_count())},
}


def serve_rounds(model: str, threads: int, seconds: float) -> None:
    """Child: for each line on stdin, tokens/s and tokens per processor second as a line on stdout."""
    import time

    from jupyter_dsserve.engine.loader import load_runner
    from jupyter_dsserve.protocol.spec import WorkerSpec
    from tests.bench.bench_engine import ClosedLoop, workload

    spec = WorkerSpec(model, dtype="fp32", device="cpu", max_sequences=16, num_threads=threads)
    runner = load_runner(spec, model, lambda stage, done: None)
    loop = ClosedLoop(runner, workload(runner.tokenizer.vocab_size, 0.0))
    for _ in range(50):
        loop.step()
    print("loaded", flush=True)
    for _ in sys.stdin:
        begun, used, tokens = time.perf_counter(), time.process_time(), loop.num_tokens
        while time.perf_counter() - begun < seconds:
            loop.step()
        tokens = loop.num_tokens - tokens
        print(tokens / (time.perf_counter() - begun), tokens / (time.process_time() - used), flush=True)


def measure(model: str, rounds: int, seconds: float) -> dict[str, dict[str, list[tuple[float, float]]]]:
    found: dict[str, dict[str, list[tuple[float, float]]]] = {way: {"quiet": [], "busy": []} for way in WAYS}
    with ExitStack() as stack:
        engines = {}
        for way, settings in WAYS.items():
            arguments = [sys.executable, "-m", "tests.bench.bench_busy", "--engine", model, settings["threads"]]
            environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"} | settings
            engines[way] = stack.enter_context(
                subprocess.Popen(
                    [*arguments, str(seconds)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    env=environment,
                )
            )
            stack.callback(engines[way].kill)
            assert engines[way].stdout.readline() == "loaded\n"  # type: ignore[union-attr]
            engines[way].send_signal(signal.SIGSTOP)  # the trap's threads spin also while nobody asks
        for _ in range(rounds):
            for around in ("quiet", "busy"):
                for way, engine in engines.items():
                    spinning = [] if around == "quiet" else [_spin() for _ in os.sched_getaffinity(0)]
                    try:
                        found[way][around].append(_round(engine))
                    finally:
                        for process in spinning:
                            process.kill()
                            process.wait()
    return found


def _spin() -> subprocess.Popen[bytes]:
    """A kernel in a loop; it ends by itself should nobody end it."""
    return subprocess.Popen([sys.executable, "-c", "import time; e = time.time() + 120\nwhile time.time() < e: pass"])


def _round(engine: subprocess.Popen[str]) -> tuple[float, float]:
    assert engine.stdin is not None
    assert engine.stdout is not None
    engine.send_signal(signal.SIGCONT)
    engine.stdin.write("\n")
    engine.stdin.flush()
    per_s, per_processor_s = map(float, engine.stdout.readline().split())
    engine.send_signal(signal.SIGSTOP)
    return per_s, per_processor_s


def main() -> None:
    if sys.argv[1:2] == ["--engine"]:
        serve_rounds(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
        return
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--seconds", type=float, default=5)
    options.add_argument("--model", type=Path, default=Path(".cache/bench/S"), help="made there if it is missing")
    options.add_argument("--out", type=Path, help="where to write the figures as JSON")
    chosen = options.parse_args()
    found = measure(str(make_model("S", chosen.model).resolve()), chosen.rounds, chosen.seconds)
    for way, rounds in found.items():
        quiet, busy = (tuple(map(statistics.median, zip(*rounds[a], strict=True))) for a in ("quiet", "busy"))
        print(
            f"{way}: {quiet[0]:.0f} tokens/s quiet, {busy[0]:.0f} busy ({busy[0] / quiet[0]:.2f}); per second of "
            f"processor {quiet[1]:.0f} and {busy[1]:.0f} ({busy[1] / quiet[1]:.2f})"
        )
    if chosen.out:
        chosen.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
