"""What a request costs the gateway: processor time of its process by request, of two checkouts in turn.

    python -m tests.bench.bench_road --base OTHER_CHECKOUT [--rounds 61] [--requests 200] [--out results.json]
    python -m tests.bench.bench_road --base-options "--traces 0" --options "--trace-sample 0.1" --otlp

Two gateways, one of this checkout and one of another (an older one, say), each with two replicas of a toy that takes no
time; a bare client asks one for a whole round and then the other. Each gateway's process is pinned to one core, the
client and the workers have the rest. Counted is the gateway's own processor time, so that what else runs on the machine
matters little; but a busy neighbour takes caches away too, so rounds are short and many, and figures are medians and
lower quartiles.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil

from tests.support import Caller, Command, until

CLIENTS = 16
TOY = "toy:step_s=0"
HERE = Path(__file__).parent.parent.parent


@contextlib.contextmanager
def collector() -> Iterator[str]:
    """One that takes OTLP over HTTP and forgets it; where it is."""

    class Door(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Door) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


async def asked(url: str, key: str, num_requests: int, body: dict[str, object]) -> None:
    waiting = iter(range(num_requests))
    await asyncio.gather(*(_client(url, key, waiting, json.dumps(body).encode()) for _ in range(CLIENTS)))


async def _client(url: str, key: str, waiting: object, raw: bytes) -> None:
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {key}\r\n"
    message = f"{head}Content-Length: {len(raw)}\r\n\r\n".encode() + raw
    for _ in waiting:  # type: ignore[attr-defined]
        writer.write(message)
        answer = await reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200"), answer
        if b"chunked" in answer:
            await reader.readuntil(b"0\r\n\r\n")
        else:
            length = next(line for line in answer.split(b"\r\n") if line.lower().startswith(b"content-length:"))
            await reader.readexactly(int(length.split(b":")[1]))
    writer.close()


class Side:
    """One checkout's gateway."""

    def __init__(self, tree: Path, data_dir: Path, options: Sequence[str]) -> None:
        self.command = Command(data_dir, *options, env={"PYTHONPATH": str(tree), "PYTHONSAFEPATH": "1"})

    async def start(self, core: int) -> Caller:
        caller = await self.command.caller()
        await caller.load("demo", "v1", TOY, replicas=2)
        await until(
            lambda: caller.version("demo", "v1"), lambda v: [r["state"] for r in v["replicas"]] == ["READY", "READY"]
        )
        self.process = psutil.Process(self.command.pid)
        for thread in self.process.threads():
            os.sched_setaffinity(thread.id, {core})
        self.url = str(caller.base_url).rstrip("/")
        return caller

    async def round(self, num_requests: int, body: dict[str, object]) -> tuple[float, float]:
        """(processor µs by request of the gateway, requests/s)."""
        before, begun = self._cpu_s(), time.perf_counter()
        await asked(self.url, self.command.key, num_requests, body)
        spent = time.perf_counter() - begun
        return 1e6 * (self._cpu_s() - before) / num_requests, num_requests / spent

    def _cpu_s(self) -> float:
        """Of all its threads, from the scheduler's own count in nanoseconds."""
        tasks = Path(f"/proc/{self.command.pid}/task").glob("*/schedstat")
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


async def measure(
    base: Path,
    rounds: int,
    num_requests: int,
    body: dict[str, object],
    options: tuple[Sequence[str], Sequence[str]] = ((), ()),
) -> list[tuple[float, float]]:
    """(µs of the other checkout, of this one) in each round, each started with its ``options``."""
    core = max(os.sched_getaffinity(0))
    found = []
    with tempfile.TemporaryDirectory() as directory:
        trees = (("base", base, options[0]), ("here", HERE, options[1]))
        sides = [Side(tree, Path(directory) / name, given) for name, tree, given in trees]
        with sides[0].command, sides[1].command:
            for side in sides:
                await (await side.start(core)).aclose()
            os.sched_setaffinity(0, os.sched_getaffinity(0) - {core} or {core})
            for number in range(-1, rounds):  # round -1 warms both up
                order = sides if number % 2 else sides[::-1]
                took = {side: await side.round(num_requests, body) for side in order}
                (was, was_rate), (now, now_rate) = took[sides[0]], took[sides[1]]
                if number >= 0:
                    found.append((was, now))
                    print(f"round {number}: {was:.0f} µs ({was_rate:.0f}/s), here {now:.0f} µs ({now_rate:.0f}/s)")
    return found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--base", type=Path, default=HERE, help="the other checkout; this one unless told")
    options.add_argument("--base-options", default="", help="of jupyter dsserve there, such as '--traces 0'")
    options.add_argument("--options", default="", help="of it here")
    options.add_argument("--otlp", action="store_true", help="send traces from here to a collector that takes them")
    options.add_argument("--rounds", type=int, default=61)
    options.add_argument("--requests", type=int, default=200, help="in a round")
    options.add_argument("--tokens", type=int, default=16, help="of an answer")
    options.add_argument("--stream", action="store_true")
    options.add_argument("--out", help="where to write the figures as JSON")
    chosen = options.parse_args()
    body = {"model": "demo", "prompt": "hello", "max_tokens": chosen.tokens, "stream": chosen.stream}
    given = (chosen.base_options.split(), chosen.options.split())
    with collector() if chosen.otlp else contextlib.nullcontext() as url:
        if url:
            given[1].extend(["--otlp-endpoint", url])
        rounds = asyncio.run(measure(chosen.base.resolve(), chosen.rounds, chosen.requests, body, given))
    sides = {name: sorted(times) for name, times in zip(("base", "here"), zip(*rounds, strict=True), strict=True)}
    median, quartile = ({name: times[len(times) // part] for name, times in sides.items()} for part in (2, 4))
    figures = {
        "clients": CLIENTS,
        "answer_tokens": chosen.tokens,
        "is_stream": chosen.stream,
        "requests": chosen.requests,
        "options": {"base": chosen.base_options, "here": chosen.options, "otlp": chosen.otlp},
        "median_us": median,
        "lower_quartile_us": quartile,
        "rounds": rounds,
    }
    for name, found in (("median", median), ("lower quartile", quartile)):
        ratio = found["here"] / found["base"]
        print(f"{name}: {found['base']:.0f} µs, here {found['here']:.0f} µs: {ratio:.3f} of it ({len(rounds)} rounds)")
    if chosen.out:
        Path(chosen.out).write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
