"""How long a decoding step takes by the number of sequences in it, measured once in WARMING.

A rollout needs it: a candidate with a small share of the traffic runs in small batches and looks fast.
"""

from __future__ import annotations

from collections.abc import Callable

from jupyter_dsserve.engine.runner import Runner, Span, Step
from jupyter_dsserve.engine.sequence import Sequence
from jupyter_dsserve.protocol.request import SamplingParams

BATCHES = (1, 2, 4, 8, 16)
# The first call of a size pays for what the later ones find there (buffers, choices of kernels): the best one counts.
_NUM_LEAST, _NUM_MOST = 2, 3
_ENOUGH_S = 0.1  # of one size
_MAX_S = 2.0  # of all sizes: a slow model is not kept from serving by this


def measured_steps(runner: Runner, clock: Callable[[], float]) -> tuple[tuple[int, float], ...]:
    """Pairs of a batch and the seconds of its best step, for those of `BATCHES` that the runner has slots for.

    ``clock`` gives monotonic seconds. Larger batches are left out once two seconds are spent.
    """
    began = clock()
    measured = []
    for batch in BATCHES:
        if batch > runner.room.num_slots or clock() - began > _MAX_S:
            break
        measured.append((batch, _best_step_s(runner, batch, clock)))
    return tuple(measured)


def _best_step_s(runner: Runner, batch: int, clock: Callable[[], float]) -> float:
    times: list[float] = []
    while len(times) < _NUM_LEAST or (len(times) < _NUM_MOST and sum(times) < _ENOUGH_S):
        sequences = [Sequence(f"warm-up {slot}", [0], SamplingParams(), slot=slot) for slot in range(batch)]
        began = clock()
        step = Step([Span(s, start=0, num_tokens=1, is_sampled=True) for s in sequences], num_decoding=batch)
        runner.forward(step).sample(sequences)
        times.append(clock() - began)
        for sequence in sequences:
            sequence.slot = -1  # a runner that keeps a cache by sequence may let go of it
    return min(times)
