"""How long a decoding step takes by the number of sequences in it, measured once in WARMING.

A rollout needs it: a candidate with a small share of the traffic runs in small batches and looks fast.
"""

from __future__ import annotations

from collections.abc import Callable

from jupyter_dsserve.engine.runner import Runner, Span, Step
from jupyter_dsserve.engine.sequence import Sequence
from jupyter_dsserve.protocol.request import SamplingParams

BATCHES = (1, 2, 4, 8, 16)
# The best of several rounds counts, as what else runs on the machine only adds: at least two (the first call of a size
# pays for what later ones find there), at most ten, and none begins after so many seconds.
_LEAST_ROUNDS, _MOST_ROUNDS, _ENOUGH_S = 2, 10, 0.3
_MAX_FIRST_S = 1.0  # of the first round: a slow model is not kept from serving by this


def measured_steps(runner: Runner, clock: Callable[[], float]) -> tuple[tuple[int, float], ...]:
    """Pairs of a batch and the seconds of its best step, for those of `BATCHES` that the runner has slots for.

    ``clock`` gives monotonic seconds. Larger batches are left out once a second is spent. A step of few sequences never
    takes longer than one of more: where it did, something else ran.
    """
    began = clock()
    best: dict[int, float] = {}
    for batch in BATCHES:
        if batch > runner.room.num_slots or clock() - began > _MAX_FIRST_S:
            break
        best[batch] = _step_s(runner, batch, clock)
    for number in range(1, _MOST_ROUNDS):
        if number >= _LEAST_ROUNDS and clock() - began > _ENOUGH_S:
            break
        best = {batch: min(before, _step_s(runner, batch, clock)) for batch, before in best.items()}
    return tuple((batch, min(best[more] for more in best if more >= batch)) for batch in best)


def _step_s(runner: Runner, batch: int, clock: Callable[[], float]) -> float:
    sequences = [Sequence(f"warm-up {slot}", [0], SamplingParams(), slot=slot) for slot in range(batch)]
    began = clock()
    step = Step([Span(s, start=0, num_tokens=1, is_sampled=True) for s in sequences], num_decoding=batch)
    runner.forward(step).sample(sequences)
    took = clock() - began
    for sequence in sequences:
        sequence.slot = -1  # a runner that keeps a cache by sequence may let go of it
    return took
