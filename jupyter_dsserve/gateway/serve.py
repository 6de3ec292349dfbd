"""A gateway from its start to a signal or its parent's end."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable

from jupyter_dsserve.gateway.connections import allow_files
from jupyter_dsserve.gateway.server import Gateway
from jupyter_dsserve.parent import on_parent_end
from jupyter_dsserve.protocol.config import GatewayConfig

log = logging.getLogger(__name__)

# How long an orphan gets to end its workers itself; they end with it in any case.
_ORPHAN_S = 3.0


async def serve(
    config: GatewayConfig, on_start: Callable[[Gateway], Awaitable[None]], *, ends_with_parent: bool = False
) -> None:
    """Run a gateway until SIGINT or SIGTERM; a second one stops waiting for requests that still run.

    ``on_start`` is awaited once it answers. With ``ends_with_parent`` it also ends, at once, when stdin closes: nobody
    is left who would stop it. Raises `DSServeError` if the gateway or ``on_start`` cannot go on; no worker is left
    then either.
    """
    allow_files()
    stopping = asyncio.Event()
    gateway = Gateway(config)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, _on_signal, stopping, gateway)
    if ends_with_parent:
        on_parent_end(lambda: _end_orphan(loop, stopping, gateway))
    await gateway.start()
    try:
        await _unless(stopping, on_start(gateway))
        await stopping.wait()
    finally:
        stopping.set()
        if config.notice_s:
            log.info("not ready any more: for %g s calls are still taken, then it stops", config.notice_s)
            await gateway.give_notice()
        log.info("stopping: running requests have %g s to end; a second signal ends them now", config.drain_s)
        await gateway.stop()


def _on_signal(stopping: asyncio.Event, gateway: Gateway) -> None:
    if stopping.is_set():
        gateway.hurry()
    stopping.set()


def _end_orphan(loop: asyncio.AbstractEventLoop, stopping: asyncio.Event, gateway: Gateway) -> None:
    """In the thread that saw stdin close. The loop may be held up: do not wait for it for ever."""
    for _ in range(2):  # stop, and hurry
        loop.call_soon_threadsafe(_on_signal, stopping, gateway)
    time.sleep(_ORPHAN_S)
    os._exit(1)


async def _unless(stopping: asyncio.Event, work: Awaitable[None]) -> None:
    """Do ``work``, but give it up when ``stopping`` is set. Raises what the work raises."""
    working, waiting = asyncio.ensure_future(work), asyncio.ensure_future(stopping.wait())
    await asyncio.wait({working, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if working.done():
        working.result()
    working.cancel()
