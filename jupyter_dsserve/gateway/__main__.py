"""``python -m jupyter_dsserve.gateway``: as the Jupyter extension starts it, and ending when that does.

stdin's first line is the `GatewayConfig`; what it has to say goes to stderr; where it answers stands in the data
directory. People start ``jupyter dsserve``.
"""

from __future__ import annotations

import asyncio
import logging
import sys

from jupyter_dsserve.gateway.logs import follow_workers, set_up_logs
from jupyter_dsserve.gateway.serve import serve
from jupyter_dsserve.gateway.server import Gateway
from jupyter_dsserve.parent import launch_line
from jupyter_dsserve.protocol.config import GatewayConfig
from jupyter_dsserve.protocol.errors import DSServeError


def main() -> None:
    config = GatewayConfig.from_json(launch_line("people start `jupyter dsserve`"))
    ours, handler = logging.getLogger("jupyter_dsserve"), logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    set_up_logs(ours, is_json=config.log_json, access=config.access_log)
    try:
        asyncio.run(serve(config, _tell_workers_lines, ends_with_parent=True))
    except DSServeError as fault:
        if not config.log_json:
            sys.exit(fault.message)
        ours.critical(fault.message)
        sys.exit(1)


async def _tell_workers_lines(gateway: Gateway) -> None:
    """Until the gateway stops; without ``log_json`` they are in their files only."""
    if gateway.config.log_json:
        await follow_workers(gateway.config.data_dir / "logs")


if __name__ == "__main__":
    main()
