"""``python -m jupyter_dsserve.gateway``: as the Jupyter extension starts it, and ending when that does.

stdin's first line is the `GatewayConfig`; what it has to say goes to stderr; where it answers stands in the data
directory. People start ``jupyter dsserve``.
"""

from __future__ import annotations

import asyncio
import logging
import sys

from jupyter_dsserve.gateway.serve import serve
from jupyter_dsserve.gateway.server import Gateway
from jupyter_dsserve.parent import launch_line
from jupyter_dsserve.protocol.config import GatewayConfig
from jupyter_dsserve.protocol.errors import DSServeError


def main() -> None:
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s: %(message)s")
    logging.getLogger("jupyter_dsserve").setLevel(logging.INFO)
    logging.getLogger("jupyter_dsserve.gateway.access").setLevel(logging.CRITICAL)  # Jupyter's log has its own
    config = GatewayConfig.from_json(launch_line("people start `jupyter dsserve`"))
    try:
        asyncio.run(serve(config, _nothing_more, ends_with_parent=True))
    except DSServeError as fault:
        sys.exit(fault.message)


async def _nothing_more(_gateway: Gateway) -> None:
    pass


if __name__ == "__main__":
    main()
