"""What a worker loads: the runner of its spec, checked, so that it can serve at once. In the engine's thread."""

from __future__ import annotations

from collections.abc import Callable

from jupyter_dsserve.engine.batcher import BatchRunner
from jupyter_dsserve.engine.group import RankGroup
from jupyter_dsserve.engine.host import start_reading_ahead
from jupyter_dsserve.engine.program import ProgramRunner, load_program
from jupyter_dsserve.engine.runner import Runner, Span, Step
from jupyter_dsserve.engine.sequence import Sequence
from jupyter_dsserve.engine.toy import load_toy, load_toy_encoder
from jupyter_dsserve.protocol.request import SamplingParams
from jupyter_dsserve.protocol.spec import WorkerLaunch

Progress = Callable[[str, float], None]  # a stage, and how far it is to READY, 0 to 1

_LOADED = 0.9  # of the progress to READY; the rest is warming


def load_runner(launch: WorkerLaunch, group: RankGroup | None, progress: Progress) -> Runner:
    """For the task ``generate``. A token was really generated: that is what READY means."""
    runner = _loaded(launch, group, _part(progress))
    sequence = Sequence("warm-up", [0], SamplingParams(), slot=0)
    runner.forward(Step([Span(sequence, start=0, num_tokens=1, is_sampled=True)], num_decoding=0)).sample([sequence])
    return runner


def load_batch_runner(launch: WorkerLaunch, progress: Progress) -> BatchRunner:
    """For the other tasks."""
    runner = _loaded_batch(launch, _part(progress))
    progress("warming", _LOADED)
    runner.check()
    return runner


def _part(progress: Progress) -> Progress:
    """Loading is the most of it, but not all."""
    return lambda stage, fraction: progress(stage, _LOADED * fraction)


def _loaded(launch: WorkerLaunch, group: RankGroup | None, progress: Progress) -> Runner:
    spec = launch.spec
    if spec.runner == "toy":
        toy = load_toy(spec.model, spec.max_context, progress)
        progress("warming", 1.0)
        return toy
    progress("importing torch", 0.0)
    start_reading_ahead(launch.model_path)
    # Only here: a toy worker must not pay for torch.
    from jupyter_dsserve.engine.loader import load_checked

    return load_checked(spec, launch.model_path, progress, group)


def _loaded_batch(launch: WorkerLaunch, progress: Progress) -> BatchRunner:
    spec = launch.spec
    if spec.runner == "toy":
        return load_toy_encoder(spec, progress)
    if spec.runner == "program":
        program = load_program(spec, launch.model_path)
        progress("loaded", 1.0)
        return ProgramRunner(program, spec.max_sequences)
    progress("importing torch", 0.0)
    start_reading_ahead(launch.model_path)
    from jupyter_dsserve.engine.encoder import load_encoder

    return load_encoder(spec, launch.model_path, progress)
