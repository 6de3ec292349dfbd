"""What the way through the Jupyter server costs: the same calls straight to the gateway and below /dsserve, in one run.

    python -m tests.bench.bench_forward [--rounds 5] [--out results.json]

The Jupyter server's loop carries every kernel's traffic, so the first figure is its processor time, for a call and for
a streamed token; the second is how much longer callers wait. A toy answers, so that nothing else counts. Rounds
alternate; figures are medians of them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

import aiohttp
import psutil

from tests.support import JupyterServer

CALLS, STREAMS, TOKENS = 300, 8, 200
AT_ONCE = 8


@dataclass(frozen=True)
class Round:
    """``call_ms`` and ``first_token_ms`` are medians; ``us`` is the Jupyter server's processor time, microseconds."""

    call_ms: float
    call_us: float
    first_token_ms: float
    token_us: float


async def measure(url: str, key: str, jupyter: psutil.Process) -> Round:
    headers = {"Authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession(headers=headers, trust_env=False) as session:

        async def call(max_tokens: int, stream: bool) -> float:
            """Seconds to the whole answer, or to the first token of a stream that is then read to its end."""
            body = {"model": "demo", "prompt": "hello", "max_tokens": max_tokens, "stream": stream}
            begun, first = time.perf_counter(), 0.0
            async with session.post(f"{url}/v1/completions", json=body) as answer:
                assert answer.status == 200, await answer.text()
                async for _ in answer.content.iter_any():
                    first = first or time.perf_counter() - begun
            return first

        async def several(num: int) -> list[float]:
            return [await call(1, False) for _ in range(num)]

        used = _processor_s(jupyter)
        calls = list(chain(*await asyncio.gather(*(several(CALLS // AT_ONCE) for _ in range(AT_ONCE)))))
        call_us = 1e6 * (_processor_s(jupyter) - used) / len(calls)
        used = _processor_s(jupyter)
        firsts = await asyncio.gather(*(call(TOKENS, True) for _ in range(STREAMS)))
        token_us = 1e6 * (_processor_s(jupyter) - used) / (STREAMS * TOKENS)
    return Round(1000 * statistics.median(calls), call_us, 1000 * statistics.median(firsts), token_us)


def _processor_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


async def compare(rounds: int, home: Path) -> dict[str, object]:
    with JupyterServer(home) as server:
        jupyter = psutil.Process(server.process.pid)
        async with server.caller() as caller:
            await caller.load("demo", "v1", "toy:step_s=0.005")
            straight = (await caller.post("/gateway")).json()
        ways = {"straight": (straight["url"], straight["key"]), "through": (f"{server.url}/dsserve", server.token)}
        seen: dict[str, list[Round]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, (url, key) in ways.items():
                seen[way].append(await measure(url, key, jupyter))
    return {way: _medians(found) for way, found in seen.items()} | {
        "rounds": {way: [asdict(r) for r in found] for way, found in seen.items()}
    }


def _medians(rounds: list[Round]) -> dict[str, float]:
    return {name: round(statistics.median(getattr(r, name) for r in rounds), 2) for name in asdict(rounds[0])}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--out", type=Path)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        found = asyncio.run(compare(chosen.rounds, Path(directory)))
    for way in ("straight", "through"):
        print(f"{way:<9}", found[way])
    if chosen.out:
        chosen.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
