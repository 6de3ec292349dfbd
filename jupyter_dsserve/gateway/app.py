"""``jupyter dsserve``: the gateway in the foreground, without a Jupyter server."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from pathlib import Path

from traitlets import Bool, Dict, Float, Int, List, Unicode, default

from jupyter_dsserve import __version__
from jupyter_dsserve.command import SHARED_ALIASES, SHARED_FLAGS, Command
from jupyter_dsserve.gateway.logs import follow_workers, set_up_logs
from jupyter_dsserve.gateway.serve import serve
from jupyter_dsserve.gateway.server import Gateway
from jupyter_dsserve.protocol.config import GatewayConfig
from jupyter_dsserve.protocol.errors import DSServeError

log = logging.getLogger(__name__)


class DSServeApp(Command):
    name = "jupyter-dsserve"
    version = __version__
    description = (
        "Serve models with DeepSpeed over REST and gRPC. Ctrl-C drains and stops; a second Ctrl-C ends at once."
    )
    examples = "jupyter dsserve --load demo=builtin:demo-v1"

    ip = Unicode(
        "127.0.0.1", help="The address to listen on; anything but loopback needs TLS (--certfile), or --insecure."
    ).tag(config=True)
    port = Int(8899, min=0, max=65535, help="The port to listen on; 0 takes a free one.").tag(config=True)
    certfile = Unicode(
        "",
        help="The certificate with its chain, PEM, for TLS on --ip and --port, and of gRPC if it has no other; this "
        "machine's own programs go by --local-port then. Empty is no TLS.",
    ).tag(config=True)
    keyfile = Unicode("", help="The private key of certfile, PEM.").tag(config=True)
    local_port = Int(
        0, min=0, max=65535, help="With TLS, the port of 127.0.0.1 that answers without it; 0 takes a free one."
    ).tag(config=True)
    grpc_port = Int(
        None, allow_none=True, min=0, max=65535, help="The port of gRPC; 0 takes a free one. Unset: no gRPC."
    ).tag(config=True)
    grpc_ip = Unicode(
        "", help="The address of gRPC; empty is --ip. Anything but loopback needs TLS, or --insecure."
    ).tag(config=True)
    grpc_certfile = Unicode("", help="The certificate of gRPC with its chain, PEM; empty is certfile.").tag(config=True)
    grpc_keyfile = Unicode("", help="The private key of grpc_certfile, PEM.").tag(config=True)
    join_address = Unicode(
        "", help="HOST:PORT where workers of other machines may join, over TLS (port 0: a free one); empty is nowhere."
    ).tag(config=True)
    join_certfile = Unicode(
        "", help="The certificate they are shown, PEM; empty is one that the gateway makes for itself."
    ).tag(config=True)
    join_keyfile = Unicode("", help="The private key of join_certfile, PEM.").tag(config=True)
    load = List(
        Unicode(), help="NAME=MODEL to serve from the start, as version v1 if NAME is new; may be given several times."
    ).tag(config=True)
    notice_s = Float(
        0.0,
        min=0,
        help="Seconds between the signal to stop and the stop, in which calls are taken while /health/ready says 503 "
        "already: for balancers, some of their probes long.",
    ).tag(config=True)
    drain_s = Float(30.0, min=0, help="Seconds that running requests get to end at the stop; 0 ends at once.").tag(
        config=True
    )
    max_body_bytes = Int(16 * 1024 * 1024, min=1, help="The most bytes a request's body may have.").tag(config=True)
    insecure = Bool(False, help="Allow addresses other than loopback although the traffic is not encrypted.").tag(
        config=True
    )
    allow_code = Bool(False, help="Let versions load files that can run code: torch.export programs.").tag(config=True)

    database_url = Unicode(
        "",
        help="Where versions, routes and history are kept: postgresql://USER@HOST/DATABASE, or @FILE with such a URL, "
        "so that its password stands in no list of processes; empty is SQLite in the data directory.",
    ).tag(config=True)
    history_events = Int(100_000, min=0, help="How many events the history keeps; 0 sets no limit.").tag(config=True)
    history_days = Float(90.0, min=0, help="Days for which the history keeps an event; 0 sets no limit.").tag(
        config=True
    )
    stats_days = Float(14.0, min=0, help="Days for which each minute's numbers are kept; 0 sets no limit.").tag(
        config=True
    )
    memory_budget = Unicode("", help="The most to hold of each device: 4GiB; empty is 75 % of what is free.").tag(
        config=True
    )
    admission = Dict(help="When loads may start, how long they take: the fields of AdmissionSettings.").tag(config=True)

    deployments = Unicode("", help="A deployments file to apply at the start: see jupyter dsserve apply.").tag(
        config=True
    )
    watch = Bool(False, help="Apply the deployments file again whenever it was written.").tag(config=True)

    limits_url = Unicode(
        "",
        help="A Redis in which gateways share the rate and the tokens a minute of keys: redis://HOST:6379/0, or "
        "@FILE with such a URL if a password is in it; empty: each gateway its own.",
    ).tag(config=True)
    max_calls = Int(0, min=0, help="How many calls of models run at once; more get 429. 0 sets no limit.").tag(
        config=True
    )
    max_connections = Int(
        0, min=0, help="How many connections are open at once; 0 is three quarters of the files that may be open."
    ).tag(config=True)
    stall_s = Float(
        60.0, min=0, help="Seconds after which a caller who reads nothing of its answer is cut off; 0 is never."
    ).tag(config=True)
    body_s = Float(120.0, min=0, help="Seconds in which a request's body must have come; 0 sets no limit.").tag(
        config=True
    )
    idle_s = Float(
        75.0, min=0, help="Seconds that a connection may be open without a (whole) request's head; 0 sets no limit."
    ).tag(config=True)
    trust_proxy = List(
        Unicode(),
        help="A proxy whose X-Forwarded-For says who calls, for logs and traces: its address, or a network such as "
        "10.0.0.0/8; may be given several times.",
    ).tag(config=True)
    cors_origin = List(
        Unicode(), help="Pages from this origin may ask from a browser, such as https://app.example; * is any."
    ).tag(config=True)
    open_metrics = Bool(False, help="Let /metrics be read without a key.").tag(config=True)

    log_json = Bool(
        False, help="Log in JSON, a record a line, in the names of Elastic's Common Schema; workers' lines too."
    ).tag(config=True)
    access_log = Bool(True, help="Log a line for each request.").tag(config=True)
    log_prompts = Bool(False, help="Log the beginning of each prompt: of use while building, and else a leak.").tag(
        config=True
    )

    otlp_endpoint = Unicode(
        "",
        help="Where traces are sent by OTLP: http://127.0.0.1:4317 (gRPC) or :4318 (HTTP); empty is "
        "OTEL_EXPORTER_OTLP_ENDPOINT, or nowhere.",
    ).tag(config=True)
    trace_sample = Float(
        None,
        min=0,
        max=1,
        allow_none=True,
        help="The share of calls that are sent, 0 to 1, where the caller does not say; none is OTEL_TRACES_SAMPLER, or "
        "all.",
    ).tag(config=True)
    traces = Int(200, min=0, help="Of how many calls the gateway keeps what happened when; 0 keeps none.").tag(
        config=True
    )

    aliases = {
        **SHARED_ALIASES,
        "cors-origin": "DSServeApp.cors_origin",
        "trust-proxy": "DSServeApp.trust_proxy",
        "max-calls": "DSServeApp.max_calls",
        "traces": "DSServeApp.traces",
        "max-connections": "DSServeApp.max_connections",
        "stall": "DSServeApp.stall_s",
        "otlp-endpoint": "DSServeApp.otlp_endpoint",
        "trace-sample": "DSServeApp.trace_sample",
        "ip": "DSServeApp.ip",
        "port": "DSServeApp.port",
        "certfile": "DSServeApp.certfile",
        "keyfile": "DSServeApp.keyfile",
        "local-port": "DSServeApp.local_port",
        "grpc-port": "DSServeApp.grpc_port",
        "grpc-ip": "DSServeApp.grpc_ip",
        "grpc-certfile": "DSServeApp.grpc_certfile",
        "grpc-keyfile": "DSServeApp.grpc_keyfile",
        "data-dir": "DSServeApp.dsserve_data_dir",
        "join-address": "DSServeApp.join_address",
        "join-certfile": "DSServeApp.join_certfile",
        "join-keyfile": "DSServeApp.join_keyfile",
        "database-url": "DSServeApp.database_url",
        "limits-url": "DSServeApp.limits_url",
        "deployments": "DSServeApp.deployments",
        "load": "DSServeApp.load",
        "notice": "DSServeApp.notice_s",
        "drain": "DSServeApp.drain_s",
        "memory-budget": "DSServeApp.memory_budget",
    }
    flags = {
        **SHARED_FLAGS,
        "log-json": ({"DSServeApp": {"log_json": True}}, "Log in JSON, a record a line."),
        "no-access-log": ({"DSServeApp": {"access_log": False}}, "Log no line for each request."),
        "log-prompts": ({"DSServeApp": {"log_prompts": True}}, "Log the beginning of each prompt."),
        "allow-code": ({"DSServeApp": {"allow_code": True}}, "Let versions load files that can run code."),
        "watch": ({"DSServeApp": {"watch": True}}, "Apply the deployments file again whenever it was written."),
        "open-metrics": ({"DSServeApp": {"open_metrics": True}}, "Let /metrics be read without a key."),
        "insecure": ({"DSServeApp": {"insecure": True}}, "Allow addresses other than loopback, unencrypted."),
    }

    # By name: who serves need not import the client that presses.
    subcommands = {
        "bench": ("jupyter_dsserve.gateway.bench.BenchApp", "Press a server and measure what it gives."),
        "validate": (
            "jupyter_dsserve.gateway.validate.ValidateApp",
            "Try a candidate version by prompts, and against a baseline.",
        ),
        "apply": ("jupyter_dsserve.notebook.commands.ApplyApp", "Make the fleet what a deployments file says."),
        "key": ("jupyter_dsserve.notebook.commands.KeyApp", "Make an API key for an app, list them, revoke one."),
        "monitoring": (
            "jupyter_dsserve.gateway.monitoring.MonitoringApp",
            "Write a configuration of Prometheus, alerts and a Grafana dashboard.",
        ),
        "export": ("jupyter_dsserve.notebook.commands.ExportApp", "Write the deployments file of what is served."),
    }

    @default("log_format")
    def _default_log_format(self) -> str:
        return "%(asctime)s,%(msecs)03d %(levelname)s %(name)s: %(message)s"  # as workers write it

    def start(self) -> None:
        super().start()
        if self.extra_args:
            self.quit(f"not understood: {' '.join(self.extra_args)}; see jupyter dsserve --help")
        set_up_logs(self.log, is_json=self.log_json, access=self.access_log)
        try:
            asyncio.run(serve(self._config(), self._say_where))
        except DSServeError as fault:
            self.quit(fault.message)

    def _config(self) -> GatewayConfig:
        if not (self.insecure or self.certfile or _is_loopback(self.ip)):
            self.quit(
                f"--ip {self.ip} is reachable from other machines, and traffic and keys would cross the network "
                "unencrypted: give --certfile and --keyfile, put a TLS proxy in front of 127.0.0.1, or add --insecure "
                "if you mean it"
            )
        is_private = self.insecure or self.certfile or self.grpc_certfile or _is_loopback(self.grpc_ip or self.ip)
        if self.grpc_port is not None and not is_private:
            self.quit(
                f"--grpc-ip {self.grpc_ip} is reachable from other machines, and calls and keys would cross the "
                "network unencrypted: give --grpc-certfile and --grpc-keyfile, or add --insecure if you mean it"
            )
        loads = tuple(self._load_pair(text) for text in self.load)
        own = {"data_dir": Path(self.dsserve_data_dir).expanduser(), "loads": loads}
        lists = {"cors_origins": tuple(self.cors_origin), "trusted_proxies": tuple(self.trust_proxy)}
        return GatewayConfig.told(self.trait_values(), **lists, **own)

    def _load_pair(self, text: str) -> tuple[str, str]:
        name, sign, model = text.partition("=")
        if not (name and sign and model):
            self.quit(f"--load {text}: write NAME=MODEL, such as demo=builtin:demo-v1")
        return name, model

    async def _say_where(self, gateway: Gateway) -> None:
        if self.log_json:
            self._following = asyncio.create_task(follow_workers(gateway.config.data_dir / "logs"))
        log.info("serving at %s", gateway.public_url)
        if gateway.url != gateway.public_url:
            log.info("programs of this machine ask at %s", gateway.url)
        if gateway.context.grpc_address:
            log.info("gRPC at %s", gateway.context.grpc_address)
        if gateway.fleet.joins.address:
            log.info("workers of other machines join at %s", gateway.fleet.joins.address)
        log.info("the admin key lies in %s", gateway.config.data_dir / "admin.key")


def _is_loopback(ip: str) -> bool:
    if ip == "localhost":
        return True
    try:
        return ipaddress.ip_address(ip).is_loopback
    except ValueError:
        return False


main = DSServeApp.launch_instance

if __name__ == "__main__":
    main()
