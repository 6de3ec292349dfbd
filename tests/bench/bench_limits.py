"""Whether keys are held to their limits under ten times their load, and what that does to another key's callers.

    python -m tests.bench.bench_limits [--seconds 120]

Two keys, each with 5 calls a second and 10,000 tokens a minute: one asks 50 times a second for little, the other for
100,000 tokens a minute. A neighbour with a key of its own asks before, meanwhile and after.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.bench.bench_idle import p99
from tests.support import Caller, Command

RATE, TOKENS_PER_MIN, TIMES = 5, 10_000, 10
_PROMPT = "x"  # one token of a toy
_FEW, _MANY = 3, 199  # tokens of an answer
# Nobody reads what it says: a full pipe would hold the gateway up.
QUIET = ("--load", "demo=toy:step_s=0.002", "--no-access-log", "--log-level", "ERROR")
_CLIENTS = 4


@dataclass
class Flood:
    """What became of one key's calls."""

    statuses: Counter[int] = field(default_factory=Counter)
    num_tokens: int = 0


@dataclass(frozen=True)
class Held:
    """``calls`` and ``tokens`` are what was let through, as a share of what the limit allows; 1 is just that. Latencies
    are of the neighbour's calls, ``failures`` how many of them were not answered."""

    calls: float
    tokens: float
    p99_alone_s: list[float]
    p99_beside_s: float
    failures: int
    statuses: dict[str, dict[int, int]]

    @property
    def p99_ratio(self) -> float:
        return self.p99_beside_s / (sum(self.p99_alone_s) / len(self.p99_alone_s))


async def _flood(caller: Caller, per_s: float, max_tokens: int, seconds: float) -> Flood:
    """Ask so often, whether earlier calls are answered or not."""
    found, running = Flood(), set[asyncio.Task[None]]()

    async def ask() -> None:
        answer = await caller.complete(prompt=_PROMPT, max_tokens=max_tokens)
        found.statuses[answer.status_code] += 1
        if answer.status_code == 200:
            found.num_tokens += answer.json()["usage"]["total_tokens"]

    begun, num = time.monotonic(), 0
    while (passed := time.monotonic() - begun) < seconds:
        while num < passed * per_s:
            running.add(task := asyncio.create_task(ask()))
            task.add_done_callback(running.discard)
            num += 1
        await asyncio.sleep(0.01)
    await asyncio.gather(*running)
    return found


async def _neighbour(caller: Caller, seconds: float) -> tuple[list[float], int]:
    end, took, failures = time.monotonic() + seconds, list[float](), 0

    async def client() -> None:
        nonlocal failures
        while (started := time.monotonic()) < end:
            failures += (await caller.complete(prompt=_PROMPT, max_tokens=8)).status_code != 200
            took.append(time.monotonic() - started)
            await asyncio.sleep(0.02)

    await asyncio.gather(*(client() for _ in range(_CLIENTS)))
    return took, failures


async def _key(caller: Caller, **limits: Any) -> Caller:
    made = await caller.post("/api/keys", json={"name": "bench", **limits})
    return Caller(str(caller.base_url), made.json()["key"])


async def measure(seconds: float) -> Held:
    with tempfile.TemporaryDirectory() as folder, Command(Path(folder), *QUIET) as command:
        async with await command.caller() as caller:
            await caller.settled("demo", "v1")
            limits = {"rate": RATE, "burst": RATE, "tokens_per_min": TOKENS_PER_MIN}
            often, much, other = [await _key(caller, **each) for each in (limits, limits, {})]
            async with often, much, other:
                before, failed = await _neighbour(other, seconds / 4)
                calls, tokens, (beside, failed_beside) = await asyncio.gather(
                    _flood(often, TIMES * RATE, _FEW, seconds),
                    _flood(much, TIMES * TOKENS_PER_MIN / 60 / (1 + _MANY), _MANY, seconds),
                    _neighbour(other, seconds),
                )
                after, failed_after = await _neighbour(other, seconds / 4)
    return Held(
        calls=calls.statuses[200] / (RATE * seconds),
        tokens=tokens.num_tokens / (TOKENS_PER_MIN * seconds / 60),
        p99_alone_s=[p99(before), p99(after)],
        p99_beside_s=p99(beside),
        failures=failed + failed_beside + failed_after,
        statuses={"calls": dict(calls.statuses), "tokens": dict(tokens.statuses)},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0, help="whole minutes: tokens are counted by the minute")
    found = asyncio.run(measure(parser.parse_args().seconds))
    print(json.dumps(asdict(found) | {"p99_ratio": round(found.p99_ratio, 3)}, indent=1))


if __name__ == "__main__":
    main()
