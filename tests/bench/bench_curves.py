"""The engine's cost over size, in process on one core: tokens/s against running sequences, context and model size.

    python -m tests.bench.bench_curves [--out tests/bench/results]

Decoding only, greedy: every sequence has the same context and gets one token a step. The bound drawn in is what the
machine allows, measured in the same run: each step must read all weights and every running sequence's keys and values
once (memory), and multiply (arithmetic). Points are medians over steps; sizes alternate, so that a slow minute is one
for all. Writes ``curves.json`` and ``curves.svg``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from jupyter_dsserve.engine.loader import load_runner
from jupyter_dsserve.engine.loop import Engine
from jupyter_dsserve.engine.ragged import RaggedRunner
from jupyter_dsserve.engine.runner import Span, Step
from jupyter_dsserve.engine.sequence import Sequence
from jupyter_dsserve.protocol.request import Chunk, SamplingParams
from jupyter_dsserve.protocol.spec import WorkerSpec
from tests.bench.models import SIZES, VOCABULARY, make_model

SEQUENCES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
CONTEXTS = (64, 256, 1024, 4096)
STEPS = 12


@dataclass(frozen=True)
class Machine:
    """What one core can do: read memory, and multiply matrices of many rows in fp32."""

    read_bytes_per_s: float
    flops_per_s: float


@dataclass(frozen=True)
class Point:
    model: str
    sequences: int
    context: int
    step_ms: float
    tokens_per_s: float
    bound_tokens_per_s: float


def measure_machine() -> Machine:
    big = torch.ones(64 << 20)  # 256 MiB: beyond every cache
    read_s = _median_s(lambda: big.sum(), 7)
    layer = torch.ops.mkldnn._reorder_linear_weight(torch.randn(1024, 1024), 512)
    rows = torch.randn(512, 1024)
    multiply_s = _median_s(lambda: torch.ops.mkldnn._linear_pointwise(rows, layer, None, "none", [], ""), 15)
    return Machine(big.nbytes / read_s, 2 * 512 * 1024 * 1024 / multiply_s)


def _median_s(work: Callable[[], object], times: int) -> float:
    found = []
    for _ in range(times + 1):
        begun = time.perf_counter()
        work()
        found.append(time.perf_counter() - begun)
    return statistics.median(found[1:])


def decode_step_s(runner: RaggedRunner, num_sequences: int, context: int) -> float:
    """Seconds of a step in which all sequences decode at ``context`` tokens: schedule to sample, medians."""
    sequences = [Sequence(str(i), [7] * context, SamplingParams(), slot=i) for i in range(num_sequences)]
    step = Step([Span(s, context - 1, 1, True) for s in sequences], num_sequences)
    return _median_s(lambda: runner.forward(step).sample(step.sampled), STEPS)


def bound(runner: RaggedRunner, size: str, machine: Machine, num_sequences: int, context: int) -> float:
    """Tokens/s if a step took no longer than its reading or its arithmetic, whichever is more."""
    hidden, intermediate, layers, heads, kv_heads = SIZES[size]
    head_dim = hidden // heads
    layer = 2 * hidden * hidden + 2 * hidden * head_dim * kv_heads + 3 * hidden * intermediate
    weights = layers * layer + hidden * VOCABULARY
    kv = runner._cache.token_bytes * context
    read_s = (4 * weights + num_sequences * kv) / machine.read_bytes_per_s
    attention = 4 * layers * hidden * context
    compute_s = num_sequences * (2 * weights + attention) / machine.flops_per_s
    return num_sequences / max(read_s, compute_s)


def measure(runners: dict[str, RaggedRunner], machine: Machine) -> list[Point]:
    cases = {(size, n, 128) for size in runners for n in SEQUENCES if size == "S" or n <= 64}
    cases |= {("S", 8, context) for context in CONTEXTS}
    points = []
    for size, n, context in sorted(cases, key=lambda case: (case[1], case[2], case[0])):
        step_s = decode_step_s(runners[size], n, context)
        limit = bound(runners[size], size, machine, n, context)
        points.append(Point(size, n, context, round(1000 * step_s, 3), round(n / step_s, 1), round(limit, 1)))
        print(points[-1], flush=True)
    return points


def own_share(runner: RaggedRunner, num_sequences: int = 16) -> float:
    """Share of the loop's time that is not the model's forward pass: schedule, plan, sample, update, detokenize."""
    spent = [0.0]
    compute = runner.compute

    def timed(plan: Any) -> torch.Tensor:
        begun = time.perf_counter()
        logits = compute(plan)
        spent[0] += time.perf_counter() - begun
        return logits

    runner.compute = timed  # type: ignore[method-assign]
    chunks: list[Chunk] = []
    engine = Engine(runner, chunks.extend)
    for i in range(num_sequences):
        engine.post(Sequence(str(i), [i + 1] * 64, SamplingParams(max_tokens=128, ignore_eos=True)))
    for _ in range(20):
        engine.turn()
    spent[0] = 0.0
    begun = time.perf_counter()
    for _ in range(80):
        engine.turn()
    share = 1 - spent[0] / (time.perf_counter() - begun)
    runner.compute = compute  # type: ignore[method-assign]
    return share


def draw(points: list[Point], file: Path) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "curves"  # the same picture for the same points
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for colour, size in zip(("#1f77b4", "#ff7f0e", "#2ca02c"), SIZES, strict=True):
        line = [p for p in points if p.model == size and p.context == 128]
        _line(left, line, [p.sequences for p in line], colour, f"model {size}")
    left.plot([], [], ":", color="grey", label="what memory and arithmetic allow")
    left.set(xlabel="running sequences (context 128)", ylabel="output tokens/s, one core", xscale="log", yscale="log")
    line = [p for p in points if p.model == "S" and p.sequences == 8 and p.context in CONTEXTS]
    _line(right, line, [p.context for p in line], "#1f77b4", "model S, 8 sequences")
    right.set(xlabel="tokens of context", xscale="log", ylim=(0, None))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)


def _line(axes: Any, points: list[Point], x: list[int], colour: str, label: str) -> None:
    axes.plot(x, [p.tokens_per_s for p in points], "o-", color=colour, label=label)
    axes.plot(x, [p.bound_tokens_per_s for p in points], ":", color=colour)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--models", type=Path, default=Path(".cache/bench"), help="made there if they are missing")
    options.add_argument("--out", type=Path, help="folder for curves.json and curves.svg")
    chosen = options.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    runners = {}
    for size in SIZES:
        folder = str(make_model(size, chosen.models / size).resolve())
        many = max(SEQUENCES) if size == "S" else 64
        spec = WorkerSpec(folder, dtype="fp32", device="cpu", max_sequences=many, num_threads=1)
        runners[size] = load_runner(spec, folder, lambda stage, done: None)
    machine = measure_machine()
    print(f"one core reads {machine.read_bytes_per_s / 1e9:.1f} GB/s and does {machine.flops_per_s / 1e9:.0f} GFLOP/s")
    points = measure(runners, machine)
    share = own_share(runners["S"])
    print(f"of a step at 16 sequences of S, {100 * share:.1f} % is the loop's own (all but the forward pass)")
    if chosen.out:
        figures = {"machine": asdict(machine), "own_share": round(share, 4), "points": [asdict(p) for p in points]}
        (chosen.out / "curves.json").write_text(json.dumps(figures, indent=1) + "\n")
        draw(points, chosen.out / "curves.svg")


if __name__ == "__main__":
    main()
