"""What HTTP, routing and the wire cost: tokens/s over HTTP against the same engine in process, in one run.

    python -m tests.bench.bench_http [--rounds 5] [--clients 16] [--out results.json]

Gateway and worker together, or the engine alone, are pinned to one core with one thread; the clients have another.
Both do the same work: the same prompts and answer lengths, ``--clients`` at a time, streaming. Rounds alternate, so
that a machine that is slower for a minute is so for both; the figure is the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jupyter_dsserve.engine.loop import Engine
from jupyter_dsserve.engine.sequence import Sequence
from jupyter_dsserve.protocol.request import Chunk, SamplingParams
from jupyter_dsserve.protocol.spec import WorkerSpec
from tests.bench.models import make_model
from tests.support import Command


@dataclass(frozen=True)
class Task:
    prompt: list[int]
    max_tokens: int


def workload(num_tasks: int, vocabulary: int = 8192) -> list[Task]:
    """Prompts log-normal 16 to 256 tokens (median 64), answers uniform 16 to 128; the same every time."""
    draw = random.Random(7)
    lengths = [int(min(256, max(16, draw.lognormvariate(math.log(64), 0.8)))) for _ in range(num_tasks)]
    return [Task([draw.randrange(vocabulary) for _ in range(n)], draw.randint(16, 128)) for n in lengths]


def spec(model: str) -> WorkerSpec:
    return WorkerSpec(model=model, dtype="fp32", device="cpu", num_threads=1)


# ---- in process


def serve_engine_rounds(model: str, num_tasks: int, clients: int) -> None:
    """Child process: a round for each line on stdin, its tokens/s as a line on stdout."""
    from jupyter_dsserve.engine.loader import load_runner

    runner = load_runner(spec(model), model, lambda stage, done: None)
    print("loaded", flush=True)
    for _ in sys.stdin:
        print(_engine_round(runner, workload(num_tasks), clients), flush=True)


def _engine_round(runner: Any, tasks: list[Task], clients: int) -> float:
    waiting = iter(
        Sequence(str(i), list(t.prompt), SamplingParams(t.max_tokens, ignore_eos=True)) for i, t in enumerate(tasks)
    )
    num_ended = 0

    def emit(chunks: list[Chunk]) -> None:
        nonlocal num_ended
        for chunk in chunks:
            if chunk.finish_reason:
                num_ended += 1
                _post_next(engine, waiting)

    engine = Engine(runner, emit)
    begun = time.perf_counter()
    for _ in range(clients):
        _post_next(engine, waiting)
    while num_ended < len(tasks):
        engine.turn()
    return sum(t.max_tokens for t in tasks) / (time.perf_counter() - begun)


def _post_next(engine: Engine, waiting: Iterator[Sequence]) -> None:
    if (sequence := next(waiting, None)) is not None:
        engine.post(sequence)


# ---- over HTTP


async def http_round(url: str, key: str, tasks: list[Task], clients: int) -> float:
    """Tokens/s of ``clients`` kept-alive connections that stream. The client is bare: it is not what is measured."""
    waiting = iter(tasks)
    begun = time.perf_counter()
    num_tokens = sum(await asyncio.gather(*(_client(url, key, waiting) for _ in range(clients))))
    assert num_tokens == sum(t.max_tokens for t in tasks), "an answer was cut short"
    return num_tokens / (time.perf_counter() - begun)


async def _client(url: str, key: str, waiting: Iterator[Task]) -> int:
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    num_tokens = 0
    for task in waiting:
        body = {
            "model": "s",
            "prompt": task.prompt,
            "max_tokens": task.max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        raw = json.dumps(body).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {key}\r\n"
        writer.write(f"{head}Content-Length: {len(raw)}\r\n\r\n".encode() + raw)
        num_tokens += await _read_answer(reader)
    writer.close()
    return num_tokens


async def _read_answer(reader: asyncio.StreamReader) -> int:
    """Read one streamed answer to its end; its completion tokens by its usage."""
    answer = bytearray()
    while not answer.endswith(b"0\r\n\r\n"):
        more = await reader.read(65536)
        assert more, bytes(answer)
        answer += more
    assert answer.startswith(b"HTTP/1.1 200"), bytes(answer[:500])
    at = answer.rindex(b'"completion_tokens":') + len(b'"completion_tokens":')
    return int(answer[at : answer.index(b",", at)])


# ---- both


async def measure(
    model: str, rounds: int, num_tasks: int, clients: int, client_cores: set[int]
) -> list[tuple[float, float]]:
    """(in process, over HTTP) tokens/s of each round."""
    arguments = [sys.executable, "-m", "tests.bench.bench_http", "--engine", model, str(num_tasks), str(clients)]
    engine = subprocess.Popen(  # noqa: ASYNC220  (nothing else runs yet)
        arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert engine.stdin is not None
    assert engine.stdout is not None
    found = []
    try:
        with tempfile.TemporaryDirectory() as directory, Command(Path(directory)) as command:
            async with await command.caller() as caller:
                fields = asdict(spec(model))
                for name in ("model", "runner"):
                    del fields[name]
                await caller.load("s", "v1", model, **fields)
                assert engine.stdout.readline() == "loaded\n"
                os.sched_setaffinity(0, client_cores)
                url, key = str(caller.base_url).rstrip("/"), command.key
                for number in range(-1, rounds):  # round -1 warms both up
                    engine.stdin.write("\n")
                    engine.stdin.flush()
                    in_process = float(engine.stdout.readline())
                    over_http = await http_round(url, key, workload(num_tasks), clients)
                    if number >= 0:
                        found.append((in_process, over_http))
                        print(
                            f"round {number}: in process {in_process:.0f} tokens/s, over HTTP {over_http:.0f}",
                            flush=True,
                        )
    finally:
        engine.kill()
        engine.wait()
    return found


def main() -> None:
    if sys.argv[1:2] == ["--engine"]:
        serve_engine_rounds(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
        return
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--clients", type=int, default=16)
    options.add_argument("--tasks", type=int, default=96, help="requests in a round")
    options.add_argument("--model", default=".cache/bench/S", help="made there if it is missing")
    options.add_argument("--out", help="where to write the figures as JSON")
    chosen = options.parse_args()
    model = str(make_model("S", Path(chosen.model)).resolve())
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE")
    rounds = asyncio.run(measure(model, chosen.rounds, chosen.tasks, chosen.clients, cores - {max(cores)} or cores))
    ratios = sorted(http / engine for engine, http in rounds)
    figures = {
        "clients": chosen.clients,
        "in_process_tokens_per_s": statistics.median(e for e, _ in rounds),
        "http_tokens_per_s": statistics.median(h for _, h in rounds),
        "ratio": statistics.median(ratios),
        "ratio_lowest": ratios[0],
        "ratio_highest": ratios[-1],
        "rounds": rounds,
    }
    print(f"over HTTP / in process: {figures['ratio']:.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f}, {len(ratios)} rounds)")
    if chosen.out:
        Path(chosen.out).write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
