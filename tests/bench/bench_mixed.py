"""Prompts of 4,096 tokens beside prompts of 64, in process on one core: what the short ones' readers feel of them.

    python -m tests.bench.bench_mixed [--rounds 3] [--seconds 20] [--out tests/bench/results]

Sixteen callers ask model S (fp32) without a pause, each for 64 tokens after a prompt of 64; two more ask for 16 after a
prompt of 4,096. A step has a budget of tokens (`max_step_tokens`): a smaller one gives who decodes the next token
sooner, a larger one takes prompts in faster. Cases alternate within a round, and figures are medians over rounds: only
what is compared within one run counts. "gap" is the time between two tokens of a short answer; a figure of which
nothing was seen within the time is null. It takes rounds × 5 cases × (seconds + 1), a good five minutes unless told
otherwise, and writes ``mixed.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import count
from pathlib import Path

from jupyter_dsserve.engine import sequence
from jupyter_dsserve.engine.loader import load_runner
from jupyter_dsserve.engine.loop import Engine
from jupyter_dsserve.engine.ragged import RaggedRunner
from jupyter_dsserve.protocol.request import Chunk, SamplingParams
from jupyter_dsserve.protocol.spec import WorkerSpec
from tests.bench.models import VOCABULARY, make_model

NUM_SHORT = 16
SHORT = (64, 64)  # tokens of the prompt and of the answer
LONG = (4096, 16)
CASES = ((0, 128), (2, 64), (2, 128), (2, 256), (2, 512))  # callers with long prompts, and the step's budget
WARM_S = 1.0


@dataclass(frozen=True)
class Point:
    num_long: int
    max_step_tokens: int
    gap_p50_ms: float | None  # None, here and below: a round saw none
    gap_p95_ms: float | None
    gap_p99_ms: float | None
    short_first_p50_ms: float | None
    short_first_p95_ms: float | None
    long_first_p50_ms: float | None
    output_tokens_per_s: float | None
    prompt_tokens_per_s: float | None


class Callers:
    """Each asks again as soon as it has its answer; `measure` notes times from then on."""

    def __init__(self, runner: RaggedRunner, num_long: int, seed: int) -> None:
        self._engine = Engine(runner, self._hear)
        self._draw = random.Random(seed)
        self._numbers: Iterator[int] = count()
        self._asked: dict[str, tuple[bool, float]] = {}  # is it long, and when
        self._last: dict[str, float] = {}
        self._gaps: list[float] = []
        self._first: dict[bool, list[float]] = {False: [], True: []}
        self._num_tokens = 0
        self._begun = 0.0
        for is_long in [False] * NUM_SHORT + [True] * num_long:
            self._ask(is_long)

    def run(self, seconds: float) -> None:
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            self._engine.turn()

    def measure(self, seconds: float) -> dict[str, float | None]:
        self._gaps, self._first, self._num_tokens = [], {False: [], True: []}, 0
        prompts = self._engine.load().num_prompt
        self._begun = time.perf_counter()
        self.run(seconds)
        took = time.perf_counter() - self._begun
        return {
            "gap_p50_ms": at_ms(self._gaps, 0.5),
            "gap_p95_ms": at_ms(self._gaps, 0.95),
            "gap_p99_ms": at_ms(self._gaps, 0.99),
            "short_first_p50_ms": at_ms(self._first[False], 0.5),
            "short_first_p95_ms": at_ms(self._first[False], 0.95),
            "long_first_p50_ms": at_ms(self._first[True], 0.5),
            "output_tokens_per_s": self._num_tokens / took,
            "prompt_tokens_per_s": (self._engine.load().num_prompt - prompts) / took,
        }

    def _ask(self, is_long: bool) -> None:
        num_prompt, num_output = LONG if is_long else SHORT
        id, now = str(next(self._numbers)), time.perf_counter()
        self._asked[id] = is_long, now
        prompt = [self._draw.randrange(VOCABULARY) for _ in range(num_prompt)]
        self._engine.post(sequence.Sequence(id, prompt, SamplingParams(max_tokens=num_output), arrived_s=now))

    def _hear(self, chunks: list[Chunk]) -> None:
        now = time.perf_counter()
        for chunk in chunks:
            assert chunk.error is None, chunk.error
            is_long, asked = self._asked[chunk.request_id]
            if chunk.num_tokens:
                self._num_tokens += 1
                last = self._last.get(chunk.request_id)
                if last is None:
                    self._first[is_long].append(now - asked)
                elif not is_long:
                    self._gaps.append(now - last)
                self._last[chunk.request_id] = now
            if chunk.finish_reason:
                del self._asked[chunk.request_id], self._last[chunk.request_id]
                self._ask(is_long)


def at_ms(seconds: Sequence[float], share: float) -> float | None:
    """The milliseconds below which ``share`` of ``seconds`` lie; None if there are none."""
    return 1000 * sorted(seconds)[min(len(seconds) - 1, int(share * len(seconds)))] if seconds else None


def median(values: Sequence[float | None]) -> float | None:
    """None unless every round saw one: those that did not were the slow ones."""
    known = [value for value in values if value is not None]
    return round(statistics.median(known), 2) if len(known) == len(values) else None


def measure(runner: RaggedRunner, rounds: int, seconds: float) -> list[Point]:
    found: dict[tuple[int, int], list[dict[str, float | None]]] = {case: [] for case in CASES}
    for number in range(rounds):
        for num_long, budget in CASES:
            runner.max_step_tokens = budget
            callers = Callers(runner, num_long, seed=number)
            callers.run(WARM_S)
            found[num_long, budget].append(callers.measure(seconds))
    names = [field.name for field in fields(Point)][2:]
    return [Point(*case, *(median([each[name] for each in rows]) for name in names)) for case, rows in found.items()]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--models", type=Path, default=Path(".cache/bench"), help="made there if they are missing")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--seconds", type=float, default=20.0, help="of each case in a round")
    options.add_argument("--out", type=Path, help="folder for mixed.json")
    chosen = options.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    folder = str(make_model("S", chosen.models / "S").resolve())
    spec = WorkerSpec(folder, dtype="fp32", device="cpu", max_sequences=NUM_SHORT + 2, max_context=5120, num_threads=1)
    points = measure(load_runner(spec, folder, lambda stage, done: None), chosen.rounds, chosen.seconds)
    for point in points:
        print(point)
    if chosen.out:
        figures = {"model": "S", "short": SHORT, "num_short": NUM_SHORT, "long": LONG, "rounds": chosen.rounds}
        told = json.dumps(figures | {"points": [asdict(p) for p in points]}, indent=1)
        (chosen.out / "mixed.json").write_text(told + "\n")


if __name__ == "__main__":
    main()
