"""Tokens per second of the engine in process: no wire, no tokenizing, a closed loop of sequences.

    OMP_NUM_THREADS=1 taskset -c 0 python tests/bench/bench_engine.py --model DIR --sequences 16 --seconds 10

Prompts are random tokens, log-normal in length (16–256, half of them under 64); answers are uniform, 16–128 tokens. The
clock starts when as many sequences have ended as run at once: all prompts arriving together are not the steady state.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Iterator
from itertools import count

from jupyter_dsserve.engine.loader import load_runner
from jupyter_dsserve.engine.ragged import RaggedRunner
from jupyter_dsserve.engine.scheduler import Scheduler
from jupyter_dsserve.engine.sequence import Sequence
from jupyter_dsserve.protocol.request import SamplingParams
from jupyter_dsserve.protocol.spec import WorkerSpec


def workload(vocab_size: int, temperature: float) -> Iterator[Sequence]:
    draw = random.Random(7)
    for number in count():
        length = int(min(256, max(16, draw.lognormvariate(math.log(64), 0.8))))
        tokens = [draw.randrange(vocab_size) for _ in range(length)]
        yield Sequence(str(number), tokens, SamplingParams(draw.randint(16, 128), temperature, seed=number))


class ClosedLoop:
    """Keeps as many sequences as there are slots running: one ends, the next starts."""

    def __init__(self, runner: RaggedRunner, sequences: Iterator[Sequence]) -> None:
        self.num_tokens = self.num_rows = self.num_steps = self.num_ended = 0
        self._runner = runner
        self._sequences = sequences
        self._scheduler = Scheduler(runner.room, runner.max_step_tokens)

    def step(self) -> None:
        while len(self._scheduler.running) < self._runner.room.num_slots:
            self._scheduler.add(next(self._sequences))
            self._scheduler.admit()
        step = self._scheduler.schedule()
        assert step is not None
        tokens = self._runner.forward(step).sample(step.sampled)
        self._scheduler.advance(step)
        for sequence, token in zip(step.sampled, tokens, strict=True):
            sequence.tokens.append(token)
            if sequence.num_output == sequence.sampling.max_tokens:
                self._scheduler.remove(sequence)
                self.num_ended += 1
        self.num_tokens += len(tokens)
        self.num_rows += sum(span.num_tokens for span in step.spans)
        self.num_steps += 1


def measure(runner: RaggedRunner, seconds: float, temperature: float) -> str:
    loop = ClosedLoop(runner, workload(runner.tokenizer.vocab_size, temperature))
    while loop.num_ended < runner.room.num_slots:
        loop.step()
    loop.num_tokens = loop.num_rows = loop.num_steps = loop.num_ended = 0
    begun = time.perf_counter()
    while time.perf_counter() - begun < seconds:
        loop.step()
    took = time.perf_counter() - begun
    return (
        f"{loop.num_tokens / took:.0f} tokens/s, {loop.num_rows / took:.0f} rows/s, "
        f"{loop.num_steps / took:.1f} steps/s, {loop.num_ended} sequences ended"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="directory of a checkpoint")
    parser.add_argument("--sequences", type=int, default=16, help="that run at once")
    parser.add_argument("--seconds", type=float, default=10, help="of measuring")
    parser.add_argument("--dtype", default="auto", choices=["auto", "fp32", "bf16", "fp16"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--step-tokens", type=int, default=128, help="token budget of a step")
    parser.add_argument("--temperature", type=float, default=0.0)
    args = parser.parse_args()
    spec = WorkerSpec(
        model=args.model,
        dtype=args.dtype,
        max_sequences=args.sequences,
        max_step_tokens=args.step_tokens,
        num_threads=args.threads,
    )
    runner = load_runner(spec, args.model, lambda stage, done: None)
    print(f"{args.model}, {args.sequences} sequences: {measure(runner, args.seconds, args.temperature)}")


if __name__ == "__main__":
    main()
