"""``python -m jupyter_dsserve.worker``: stdin's first line is the `WorkerLaunch`, its end is the parent's death.

With ``--join`` people start it: then the gateway is asked for that line, and nobody is the parent (`join`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys

from jupyter_dsserve.parent import end_with_parent, launch_line
from jupyter_dsserve.protocol.spec import WorkerLaunch
from jupyter_dsserve.worker.app import WorkerApp
from jupyter_dsserve.worker.dial import Dial
from jupyter_dsserve.worker.join import launch_asked


def main() -> None:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if sys.argv[1:]:
        launch, dial, joiner = launch_asked(sys.argv[1:])
    else:
        # Ctrl-C in the gateway's terminal is the gateway's to handle: it drains us.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        launch = WorkerLaunch.from_json(launch_line("a gateway starts workers; people join with --join"))
        dial, joiner = Dial(launch.gateway), None
        end_with_parent()
    _keep_to(launch.spec.device)
    code = asyncio.run(WorkerApp(launch, dial, joiner).run())
    logging.shutdown()
    # Not sys.exit: threads inside native libraries can hold up a normal exit, and only exit returns GPU memory.
    os._exit(code)


def _keep_to(device: str) -> None:
    """To be called before anything looks for GPUs.

    DeepSpeed works on one wherever torch sees one, for a version on the CPU too, and takes memory there.
    """
    if device == "cpu":
        os.environ |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    elif device.startswith("cuda"):
        os.environ.pop("DS_ACCELERATOR", None)  # it finds out by itself


if __name__ == "__main__":
    main()
