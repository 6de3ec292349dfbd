"""``python -m jupyter_dsserve.demo``: the deployment ``demo`` in two versions, v1 with 90 % of the traffic, v2 with 10.

Everything is kept in a temporary directory that goes away with it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
import tempfile
from pathlib import Path

from jupyter_dsserve.fleet.version import SETTLED, Version
from jupyter_dsserve.gateway.bodies import LoadBody
from jupyter_dsserve.gateway.serve import serve
from jupyter_dsserve.gateway.server import Gateway
from jupyter_dsserve.protocol.config import GatewayConfig
from jupyter_dsserve.protocol.errors import DSServeError

_PROMPT = {"model": "demo", "prompt": "def fibonacci(n):", "max_tokens": 60, "temperature": 0.6, "seed": 1}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--port", type=int, default=8899, help="the port to listen on; 0 takes a free one")
    port = options.parse_args().port
    logging.basicConfig(level=logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="dsserve-demo-") as directory:
        try:
            asyncio.run(serve(GatewayConfig(Path(directory), port=port, drain_s=5), _serve_two_versions))
        except DSServeError as fault:
            sys.exit(f"demo: {fault.message}")
    print("stopped: no process is left")


async def _serve_two_versions(gateway: Gateway) -> None:
    fleet = gateway.fleet
    versions = []
    for name in ("v1", "v2"):
        spec = LoadBody(version=name, model=f"builtin:demo-{name}", num_threads=1).spec()
        await fleet.register("demo", name, spec, num_replicas=1, note="the built-in model")
        versions.append(await fleet.load("demo", name))
    print("==> loading demo@v1 and demo@v2 with DeepSpeed, each in a process of its own")
    await _tell_progress(versions)
    await fleet.route("demo", {"v1": 90, "v2": 10})
    _print_welcome(gateway)


async def _tell_progress(versions: list[Version]) -> None:
    """One line for each change of state, until all have settled. Raises `DSServeError` if one of them failed."""
    told: dict[str, str] = {}
    while True:
        for version in versions:
            state = version.state.value
            if told.get(version.name) != state:
                told[version.name] = state
                print(f"    {version.id} is {state} {version.failure}".rstrip(), flush=True)
        if all(v.state in SETTLED for v in versions):
            break
        await asyncio.sleep(0.1)
    if failed := [v for v in versions if not v.is_ready]:
        raise DSServeError(f"{failed[0].id} did not load: {failed[0].failure}")


def _print_welcome(gateway: Gateway) -> None:
    print(f"""
demo is served: v1 answers 90 % of the calls, v2 10 %. Ctrl-C stops it.

  URL   {gateway.url}
  key   {gateway.admin_key}

  curl -s {gateway.url}/v1/completions -H "Authorization: Bearer {gateway.admin_key}" -d '{json.dumps(_PROMPT)}'
""", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
