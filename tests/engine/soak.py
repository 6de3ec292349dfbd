"""The engine under everything at once, its books checked after every step.

    python -m tests.engine.soak [--minutes 30]

Thirty-two clients ask a built-in model without a pause: prompts with common beginnings and long ones, penalties,
logprobs, echo, grammars, priorities and time limits, requests that are refused, aborts at random, a step that fails now
and then. Memory for keys and values is scarce. At the end nothing is left and memory has not grown.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

import torch
from tqdm import tqdm

from jupyter_dsserve.demo import builtin_path
from jupyter_dsserve.engine.loader import load_runner
from jupyter_dsserve.engine.loop import Engine
from jupyter_dsserve.engine.memory import resident_bytes
from jupyter_dsserve.engine.ragged import RaggedRunner
from jupyter_dsserve.engine.runner import Step
from jupyter_dsserve.engine.sampling import TorchLogits
from jupyter_dsserve.engine.sequence import Sequence
from jupyter_dsserve.protocol.request import Chunk, SamplingParams
from jupyter_dsserve.protocol.spec import WorkerSpec

NUM_CLIENTS = 32


@dataclass(frozen=True)
class Outcome:
    """``growth`` is of this process's memory in the second half."""

    num_steps: int
    num_tokens: int
    ends: Counter[str]
    num_cached: int
    num_preempted: int
    growth: float


class Clients:
    """Each has one request under way. What they ask follows from ``seed``."""

    def __init__(self, engine: Engine, vocabulary: int, max_context: int, seed: int) -> None:
        self.waiting_for: set[str] = set()
        self.ends: Counter[str] = Counter()
        self.num_tokens = 0
        self._engine = engine
        self._draw = random.Random(seed)
        self._vocabulary = vocabulary
        self._max_context = max_context
        self._numbers = count()
        self._beginnings = [self._tokens(n) for n in (24, 60, 120)]

    def ask(self) -> None:
        """Everybody without a request under way asks; now and then somebody leaves."""
        while len(self.waiting_for) < NUM_CLIENTS:
            sequence = self._sequence()
            self.waiting_for.add(sequence.id)
            self._engine.post(sequence)
        if self._draw.random() < 0.05:
            self._engine.abort(self._draw.choice(sorted(self.waiting_for)))

    def hear(self, chunks: list[Chunk]) -> None:
        for chunk in chunks:
            assert chunk.request_id in self.waiting_for, f"{chunk.request_id} is answered after its end"
            self.num_tokens += chunk.num_tokens
            if chunk.finish_reason:
                self.waiting_for.remove(chunk.request_id)
                self.ends[type(chunk.error).__name__ if chunk.error else chunk.finish_reason.value] += 1

    def _tokens(self, num: int) -> list[int]:
        return [self._draw.randrange(self._vocabulary) for _ in range(num)]

    def _sequence(self) -> Sequence:
        draw = self._draw
        prompt = draw.choice([[], *self._beginnings]) + self._tokens(draw.randint(1, 20))
        if draw.random() < 0.1:
            prompt = self._tokens(draw.randint(self._max_context // 2, self._max_context * 5 // 4))  # some do not fit
        room = max(1, self._max_context - len(prompt))
        sampling = SamplingParams(
            max_tokens=draw.randint(1, min(200, room)),
            temperature=draw.choice([0.0, 0.0, 0.7, 1.0]),
            top_p=draw.choice([1.0, 0.9]),
            seed=draw.randrange(1000),
            stop=draw.choice([(), ("\n\n",)]),
            repetition_penalty=draw.choice([1.0, 1.0, 1.2]),
            presence_penalty=draw.choice([0.0, 0.0, 0.5]),
            logprobs=draw.choice([None, None, None, 3]),
            echo=draw.random() < 0.1,
        )
        deadline_s = time.monotonic() + draw.random() if draw.random() < 0.05 else float("inf")
        id = f"r{next(self._numbers)}"
        arrived_s = time.monotonic()
        return Sequence(id, prompt, sampling, priority=draw.randint(-1, 1), arrived_s=arrived_s, deadline_s=deadline_s)


def failing(forward: Callable[[Step], TorchLogits], draw: random.Random) -> Callable[[Step], TorchLogits]:
    """``forward`` that raises once in two thousand steps, before or after it has written K and V."""

    def one(step: Step) -> TorchLogits:
        luck = draw.random()
        if luck < 0.00025:
            raise RuntimeError("a step that fails before it computes")
        logits = forward(step)
        if luck < 0.0005:
            raise RuntimeError("a step that fails after it computed")
        return logits

    return one


def make_runner() -> RaggedRunner:
    path = str(builtin_path("demo-v1"))
    # Room for some three of the longest at once.
    spec = WorkerSpec(
        path, dtype="fp32", device="cpu", num_threads=1, max_sequences=16, max_context=512, kv_bytes=6 << 20
    )
    runner = load_runner(spec, path, lambda stage, done: None)
    runner.check()
    return runner


def soak(runner: RaggedRunner, seconds: float, num_steps: int = 0, seed: int = 1) -> Outcome:
    """For so long, and at least so many steps. Raises `AssertionError` when a book is wrong or something is left."""
    runner.forward = failing(runner.forward, random.Random(seed))  # type: ignore[method-assign]
    heard: list[Chunk] = []
    engine = Engine(runner, heard.extend)
    clients = Clients(engine, runner.tokenizer.vocab_size, runner.room.max_context, seed)
    begun, half = time.monotonic(), 0
    with tqdm(total=round(seconds), unit="s", leave=False, disable=None) as bar:
        while (passed := time.monotonic() - begun) < seconds or engine.load().num_steps < num_steps:
            clients.ask()
            _turn(engine, clients, heard)
            if not half and passed > seconds / 2:
                half = resident_bytes()
            bar.update(round(passed) - bar.n)
    while clients.waiting_for:
        _turn(engine, clients, heard)
    load = engine.load()
    assert (load.running, load.waiting, load.kv_used) == (0, 0, 0.0), f"something is left: {load}"
    assert not engine._answers, "a sequence is left"
    growth = resident_bytes() / half - 1
    return Outcome(load.num_steps, clients.num_tokens, clients.ends, load.num_cached, load.num_preempted, growth)


def _turn(engine: Engine, clients: Clients, heard: list[Chunk]) -> None:
    heard.clear()
    engine.turn()
    engine.scheduler.check()
    clients.hear(heard)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--minutes", type=float, default=30)
    chosen = options.parse_args()
    torch.set_num_threads(1)
    print(soak(make_runner(), 60 * chosen.minutes))


if __name__ == "__main__":
    main()
