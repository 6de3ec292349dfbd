"""`DSServeExtension`: the door from the Jupyter server's settings to the gateway's, and the order of start and stop."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import datetime, timezone
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any

import aiohttp
from jupyter_core.paths import jupyter_data_dir
from jupyter_server.extension.application import ExtensionApp
from traitlets import Bool, Dict, Float, Int, Unicode

from jupyter_dsserve.extension.events import EventRelay
from jupyter_dsserve.extension.forward import Forwarder
from jupyter_dsserve.extension.handlers import HANDLERS
from jupyter_dsserve.extension.keeper import Keeper
from jupyter_dsserve.protocol.config import GatewayConfig
from jupyter_dsserve.protocol.errors import DSServeError

ACTIVITY_S = 5.0
_NEAR = 0.86  # nearer than the names of Jupyter's own classes
_DATA_DIR = str(Path(jupyter_data_dir()) / "dsserve")


class DSServeExtension(ExtensionApp):
    """Serve models with DeepSpeed beside the notebook."""

    name = "jupyter_dsserve"
    load_other_extensions = True

    autostart = Bool(False, help="Start it with the server and load what ran; else at first use.").tag(config=True)
    port = Int(0, min=0, max=65535, help="The gateway's on 127.0.0.1; 0 takes a free one.").tag(config=True)
    grpc_port = Int(None, allow_none=True, help="Of gRPC; 0 takes a free one. None is off.").tag(config=True)
    join_address = Unicode("", help="HOST:PORT for workers of other machines, TLS; empty: none.").tag(config=True)
    join_certfile = Unicode("", help="Its certificate, PEM; empty: one that the gateway makes.").tag(config=True)
    join_keyfile = Unicode("", help="The private key of join_certfile, PEM.").tag(config=True)
    dsserve_data_dir = Unicode(_DATA_DIR, help="Where keys, versions, routes and logs are kept.").tag(config=True)
    drain_s = Float(30.0, min=0, help="Seconds for running requests at an unload; 0 ends them.").tag(config=True)
    stop_s = Float(3.0, min=0, help="Seconds for running requests at the server's end; 0 ends them.").tag(config=True)
    start_wait_s = Float(30.0, min=0, help="Seconds that calls wait for a start; 0 answers 503.").tag(config=True)
    max_body_bytes = Int(16 * 1024 * 1024, min=1, help="The most bytes of a request's body.").tag(config=True)
    max_calls = Int(0, min=0, help="Calls of models at once; more get 429. 0 sets no limit.").tag(config=True)
    max_connections = Int(0, min=0, help="Connections at once; 0: 3/4 of the files that may be open.").tag(config=True)
    allow_code = Bool(False, help="Let versions load files that can run code: torch.export.").tag(config=True)
    database_url = Unicode("", help="postgresql://…, or @FILE with it; empty is SQLite.").tag(config=True)
    limits_url = Unicode("", help="redis://…, or @FILE with it, to share limits of keys.").tag(config=True)
    history_events = Int(100_000, min=0, help="How many events the history keeps; 0: all.").tag(config=True)
    history_days = Float(90.0, min=0, help="Days for which it keeps them; 0 sets no limit.").tag(config=True)
    stats_days = Float(14.0, min=0, help="Days for which it keeps each minute; 0 sets no limit.").tag(config=True)
    traces = Int(200, min=0, help="Of how many calls it keeps what happened when; 0: of none.").tag(config=True)
    open_metrics = Bool(False, help="Let /metrics of the gateway be read without a key.").tag(config=True)
    memory_budget = Unicode("", help="The most to hold of a device: 4GiB; empty: 75 % of the free.").tag(config=True)
    log_json = Bool(False, help="Have the gateway and its workers log in JSON, a record a line.").tag(config=True)
    access_log = Bool(False, help="Log a line for each request of the gateway, beside Jupyter's own.").tag(config=True)
    log_prompts = Bool(False, help="Log the beginning of each prompt: while building; else a leak.").tag(config=True)
    admission = Dict(help="When loads may start, how long they take: the fields of AdmissionSettings.").tag(config=True)

    keeper: Keeper

    @cached_property
    def relay(self) -> EventRelay:
        assert self.serverapp
        assert self.serverapp.event_logger
        return EventRelay(self.keeper, self.forwarder, self.serverapp.event_logger, self.log)

    @cached_property
    def forwarder(self) -> Forwarder:
        return Forwarder()

    def initialize_settings(self) -> None:
        self._tasks: list[asyncio.Task[None]] = []
        self._in_flight = 0
        own = type(self).__name__
        for section in self.config:  # traitlets tells of a setting that nobody knows, and not of a section
            if section != own and get_close_matches(section, [own], cutoff=_NEAR):
                self.log.warning("the settings of %s hold for nothing here: did you mean %s?", section, own)
        config = GatewayConfig.told(
            self.trait_values(), data_dir=Path(self.dsserve_data_dir).expanduser(), restore=self.autostart
        )
        self.keeper = Keeper(config, self.stop_s, self.log, lambda reason: self.relay.gateway_lost(reason))

    def initialize_handlers(self) -> None:
        self.handlers.extend(HANDLERS)

    async def _start_jupyter_server_extension(self, _serverapp: Any) -> None:
        self._tasks = [asyncio.create_task(self._watch()), asyncio.create_task(self.relay.run())]

    async def stop_extension(self) -> None:
        for task in self._tasks:
            task.cancel()
        await self.keeper.stop()
        await self.forwarder.close()

    async def _watch(self) -> None:
        """Serving keeps an idle culler away, also when callers go straight to the gateway's port."""
        if self.autostart:
            with contextlib.suppress(DSServeError):  # the status shows it, and the next use says it
                await self.keeper.address(self.start_wait_s)
        seen = 0
        while True:
            await asyncio.sleep(ACTIVITY_S)
            num_requests, self._in_flight = seen, 0
            with contextlib.suppress(DSServeError, aiohttp.ClientError, OSError):
                if address := self.keeper.running():
                    num_requests, self._in_flight = await self.forwarder.activity(address)
            if (num_requests != seen or self._in_flight) and self.serverapp:
                self.serverapp.web_app.settings["last_activity_times"][self.name] = datetime.now(timezone.utc)
            seen = num_requests

    def current_activity(self) -> int:
        """Requests that run: the server does not shut down for idleness meanwhile."""
        return self._in_flight
