"""``python -m jupyter_dsserve.worker``: stdin's first line is the `WorkerLaunch`, its end is the parent's death."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys

from jupyter_dsserve.protocol.spec import WorkerLaunch
from jupyter_dsserve.worker.app import WorkerApp
from jupyter_dsserve.worker.parent import end_with_parent


def main() -> None:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # Ctrl-C in the gateway's terminal is the gateway's to handle: it drains us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    launch = WorkerLaunch.from_json(_first_line())
    end_with_parent()
    code = asyncio.run(WorkerApp(launch).run())
    logging.shutdown()
    # Not sys.exit: threads inside native libraries can hold up a normal exit, and only exit returns GPU memory.
    os._exit(code)


def _first_line() -> str:
    """Byte by byte, so that nothing after the line is buffered away from the thread that waits for the end."""
    line = bytearray()
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            sys.exit("jupyter_dsserve.worker: stdin ended before the launch line; a gateway starts workers, not people")
        line += byte
    return line.decode()


if __name__ == "__main__":
    main()
