"""``python -m jupyter_dsserve.engine.follower``: a rank of a tensor-parallel group other than the first.

It loads its share of the model and then does every forward pass that rank 0 does, with the same tokens. Stdin's first
line is the `FollowerLaunch`, calls follow, and its end is rank 0's death.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import signal
import sys
import threading

from jupyter_dsserve.engine.group import BY_ALL_RANKS, FollowerLaunch, read_call
from jupyter_dsserve.parent import die_by, launch_line
from jupyter_dsserve.protocol.errors import DSServeError, EngineFailure

_Calls = queue.SimpleQueue[tuple[str, tuple[object, ...]]]


def main() -> None:
    die_by(signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # rank 0 drains, and ends us
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # What libraries print is no answer to rank 0.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from jupyter_dsserve.engine import loader  # before the launch line comes, as rank 0 imports torch too

    launch = FollowerLaunch.from_json(launch_line("rank 0 of a group starts the others, not people"))
    calls: _Calls = queue.SimpleQueue()
    threading.Thread(target=_read, args=(calls,), name="calls", daemon=True).start()
    try:
        runner = loader.load_runner(launch.spec, launch.model_path, lambda stage, done: None, launch)
    except Exception as fault:
        logging.exception("the load failed")
        error = fault if isinstance(fault, DSServeError) else EngineFailure(f"{type(fault).__name__}: {fault}")
        answer.write(json.dumps({"name": type(error).__name__, "message": error.message, "param": error.param}))
        answer.flush()
        os._exit(1)
    while True:
        method, arguments = calls.get()
        getattr(runner, method)(*arguments)


def _read(calls: _Calls) -> None:
    """In a thread of its own: the end of stdin is noticed even while a collective waits for somebody who is gone."""
    while (call := read_call()) is not None:
        assert call[0] in BY_ALL_RANKS
        calls.put(call)
    os._exit(0)


if __name__ == "__main__":
    main()
