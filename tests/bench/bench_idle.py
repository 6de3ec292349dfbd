"""What idle event streams cost: the gateway's memory, and the latency of inference beside them.

    python -m tests.bench.bench_idle [--num 1000] [--rounds 3] [--seconds 5]

A gateway with a toy model in a process of its own; ``num`` connections on ``/api/events`` that read what comes. Rounds
without and with them take turns, because a machine's speed drifts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from tests.support import Caller, Command

TOY = "toy:step_s=0.005"
_CLIENTS = 4  # that ask one after the other


@dataclass(frozen=True)
class Idle:
    """``bytes_each``: of the gateway's memory. Latencies are of completions, one value a round, in seconds."""

    num: int
    bytes_each: float
    alone_p99_s: list[float]
    beside_p99_s: list[float]

    @property
    def p99_ratio(self) -> float:
        return statistics.median(self.beside_p99_s) / statistics.median(self.alone_p99_s)


class Readers:
    """``num`` event streams that are read to nowhere."""

    def __init__(self, url: str, key: str) -> None:
        self._at, self._key = urlsplit(url), key
        self._open: list[tuple[asyncio.StreamWriter, asyncio.Task[None]]] = []

    async def connect(self, num: int) -> None:
        """Each has had the answer's head when this returns."""
        for _ in range(num):
            reader, writer = await asyncio.open_connection(self._at.hostname, self._at.port)
            ask = f"GET /api/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {self._key}\r\n\r\n"
            writer.write(ask.encode())
            head = await reader.readuntil(b"\r\n\r\n")
            assert b" 200 " in head, head
            self._open.append((writer, asyncio.create_task(_drop(reader))))

    async def close(self) -> None:
        for writer, task in self._open:
            task.cancel()
            writer.close()
        await asyncio.gather(*(task for _, task in self._open), return_exceptions=True)
        self._open.clear()


async def _drop(reader: asyncio.StreamReader) -> None:
    while await reader.read(1 << 16):
        pass


async def latencies(caller: Caller, seconds: float) -> list[float]:
    """Of completions that a few clients ask for one after the other."""
    end, took = time.monotonic() + seconds, list[float]()

    async def client() -> None:
        while (started := time.monotonic()) < end:
            answer = await caller.complete(max_tokens=4)
            assert answer.status_code == 200, answer.text
            took.append(time.monotonic() - started)

    await asyncio.gather(*(client() for _ in range(_CLIENTS)))
    return took


def p99(values: Sequence[float]) -> float:
    return sorted(values)[min(len(values) - 1, int(0.99 * len(values)))]


async def measure(num: int, rounds: int, seconds: float) -> Idle:
    """Raises `AssertionError` for a connection or a call that fails."""
    options = ("--load", f"demo={TOY}", "--no-access-log")  # nobody reads what it says: a full pipe would hold it up
    with tempfile.TemporaryDirectory() as folder, Command(Path(folder), *options) as command:
        async with await command.caller() as caller:
            await caller.settled("demo", "v1")
            await latencies(caller, 1.0)
            process, readers = psutil.Process(command.pid), Readers(str(caller.base_url), command.key)
            before = process.memory_info().rss
            each, alone, beside = 0.0, list[float](), list[float]()
            for turn in range(rounds):
                alone.append(p99(await latencies(caller, seconds)))
                await readers.connect(num)
                beside.append(p99(await latencies(caller, seconds)))
                if turn == 0:
                    each = (process.memory_info().rss - before) / num
                await readers.close()
                await asyncio.sleep(0.5)
            return Idle(num, each, alone, beside)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0)
    given = parser.parse_args()
    found = asyncio.run(measure(given.num, given.rounds, given.seconds))
    print(json.dumps(asdict(found) | {"p99_ratio": round(found.p99_ratio, 3)}, indent=1))


if __name__ == "__main__":
    main()
