"""The gateway put together: fleet, Tornado application, port, and the order in which they start and stop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import socket
import ssl
import time

from tornado.netutil import bind_sockets
from tornado.web import Application

from jupyter_dsserve.data_dir import DataDir
from jupyter_dsserve.fleet.fleet import Fleet
from jupyter_dsserve.fleet.listener import JoinSettings
from jupyter_dsserve.fleet.registry import Retention
from jupyter_dsserve.fleet.shared_limits import SharedLimits
from jupyter_dsserve.fleet.source import canonical
from jupyter_dsserve.gateway import (
    apply,
    control,
    docs,
    generate,
    keys,
    ledger,
    metrics,
    openai,
    openapi,
    rerank,
    responses,
    road,
    rollout,
    stats,
    texts,
    traces,
)
from jupyter_dsserve.gateway.access import log_request
from jupyter_dsserve.gateway.bodies import LoadBody
from jupyter_dsserve.gateway.calls import Calls
from jupyter_dsserve.gateway.connections import MAX_DISCARDED, MAX_HEADER_BYTES, Connections, Listening, Server
from jupyter_dsserve.gateway.context import Context
from jupyter_dsserve.gateway.grpc.server import GrpcFront
from jupyter_dsserve.gateway.handlers import UnknownPath
from jupyter_dsserve.gateway.otlp import otlp_exporter
from jupyter_dsserve.gateway.proxies import Proxies
from jupyter_dsserve.gateway.tls import ShownCertificate
from jupyter_dsserve.gateway.tracing import Traces
from jupyter_dsserve.gateway.v2 import handlers as v2_handlers
from jupyter_dsserve.gateway.v2 import inference as v2_inference
from jupyter_dsserve.gateway.v2 import repository as v2_repository
from jupyter_dsserve.gateway.v2 import shared_memory as v2_shared_memory
from jupyter_dsserve.protocol.config import GatewayConfig
from jupyter_dsserve.protocol.errors import Conflict

_RENEW_S = 5.0  # until a certificate that was written is shown
_V2 = (v2_handlers, v2_inference, v2_repository, v2_shared_memory)
_OPENAI = (texts, rerank, responses, openai)
_FACES = (*_OPENAI, *_V2, generate, control, ledger, road, rollout, apply, keys, metrics, openapi, docs, stats, traces)
ROUTES = [route for face in _FACES for route in face.ROUTES]


class Gateway:
    """One on a data directory. `start`, then `stop`. ``url`` is where this machine's programs ask; with TLS there is
    ``public_url`` besides, for callers."""

    def __init__(self, config: GatewayConfig) -> None:
        """Takes the data directory and the port. Raises `Conflict` if either is held by another or cannot be used."""
        self.config = config
        proxies = Proxies(config.trusted_proxies)
        self.data_dir = DataDir(config.data_dir)
        self._sockets: list[socket.socket] = []
        self._own_sockets: list[socket.socket] = []
        try:
            self._otlp = otlp_exporter(config.otlp_endpoint, config.trace_sample)
            self.admin_key, id = self.data_dir.admin_key(), self.data_dir.id()
            self.fleet = Fleet(
                config.data_dir,
                config.drain_s,
                allow_code=config.allow_code,
                database=config.database_url,
                retention=Retention(config.history_events, config.history_days, config.stats_days),
                memory_budget_bytes=config.memory_budget_bytes,
                admission=config.admission,
                joining=JoinSettings(config.join_address, config.join_certfile, config.join_keyfile),
            )
            self._limits = SharedLimits(config.limits_url, self._say) if config.limits_url else None
            self._shown = _shown_certificate(config)
            self._sockets = _bind(config.ip, config.port)
            # Programs of this machine find it here, whatever names the certificate is made out to.
            self._own_sockets = _bind("127.0.0.1", config.local_port, "--local-port") if self._shown else self._sockets
            self._grpc = GrpcFront(config) if config.grpc_port is not None else None
        except BaseException:
            self._close_sockets()
            self.data_dir.release()
            raise
        self.public_url = _url("https" if self._shown else "http", config.ip, self._sockets)
        self.url = _url("http", "127.0.0.1", self._own_sockets) if self._shown else self.public_url
        self._watching: asyncio.Task[None] | None = None
        self._connections = Connections(config.stall_s, config.max_connections)
        self._cutting: asyncio.Task[None] | None = None
        self._renewing: asyncio.Task[None] | None = None
        self._hurried = asyncio.Event()
        self.context = Context(
            self.fleet,
            self.admin_key,
            config.max_body_bytes,
            frozenset(config.cors_origins),
            config.open_metrics,
            proxies,
            Calls(config.max_calls),
            Traces(config.traces, self._otlp),
            self._connections,
            log_prompts=config.log_prompts,
            grpc_address=self._grpc.address if self._grpc else "",
            shared_limits=self._limits,
            id=id,
        )
        self.app = make_app(self.context)
        self._server = self._made_server()
        self._tls_server = self._made_server(self._shown.context) if self._shown else None

    async def start(self) -> None:
        """Bring the fleet back, serve ``config.loads``, and answer. Raises `DSServeError` if that cannot be."""
        try:
            await self.fleet.start(self.config.restore)
            for name, model in self.config.loads:
                await make_sure_loaded(self.fleet, name, model)
            if self.config.deployments:
                await apply.apply_file(self.fleet, self.config.deployments)
        except BaseException as fault:
            await self.stop()
            if isinstance(fault, OSError):
                raise Conflict(f"the data directory {self.data_dir.path} cannot be used: {fault}") from fault
            raise
        if self.config.deployments and self.config.watch:
            self._watching = asyncio.create_task(apply.keep_applied(self.fleet, self.config.deployments))
        self._cutting = asyncio.create_task(self._connections.keep_looking())
        self._server.add_sockets(self._own_sockets)
        if self._tls_server and self._shown:
            self._tls_server.add_sockets(self._sockets)
            self._renewing = asyncio.create_task(_keep_renewed(self._tls_server, self._shown))
        if self._grpc:
            await self._grpc.start(self.context)
        self.data_dir.announce(self.url, self.context.grpc_address)

    async def give_notice(self) -> None:
        """Before a `stop`: for ``notice_s`` seconds answer whatever comes, but say that it is not ready, so that a
        balancer sends its calls elsewhere before they would be refused."""
        self._connections.is_leaving = True
        if self._grpc:
            self._grpc.give_notice()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._hurried.wait(), self.config.notice_s)

    async def stop(self) -> None:
        """Take no new connections, let what runs end (at most ``drain_s``), end the workers."""
        self._connections.is_leaving = True
        for task in (self._watching, self._cutting, self._renewing):
            if task:
                task.cancel()
        servers = [server for server in (self._server, self._tls_server) if server]
        for server in servers:
            server.stop()
        if self._grpc:
            self._grpc.drain()
        await self.fleet.stop()
        if self._grpc:
            await self._grpc.stop()
        await asyncio.gather(*(server.close_all_connections() for server in servers))
        if self._otlp:
            await self._otlp.close()
        if self._limits:
            await self._limits.close()
        await asyncio.sleep(0)
        self._close_sockets()
        self.context.regions.close()
        self.data_dir.release()

    def _made_server(self, tls: ssl.SSLContext | None = None) -> Server:
        return Server(
            self.app,
            self._connections,
            ssl_options=tls,
            max_body_size=MAX_DISCARDED * self.config.max_body_bytes,
            max_header_size=MAX_DISCARDED * MAX_HEADER_BYTES,
            idle_connection_timeout=self.config.idle_s or math.inf,
            body_timeout=self.config.body_s or None,
        )

    def _close_sockets(self) -> None:
        for listening in (*self._sockets, *self._own_sockets):
            listening.close()

    def _say(self, kind: str, reason: str) -> None:
        self.fleet.events.record(time.time(), kind, reason=reason)

    def hurry(self) -> None:
        """End what is under way of `give_notice` and `stop` without waiting for running requests."""
        self._hurried.set()
        self.fleet.hurry()


def make_app(context: Context) -> Application:
    routes = [(path, handler, {"context": context}) for path, handler in ROUTES]
    return Application(
        routes,
        default_handler_class=UnknownPath,
        default_handler_args={"context": context},
        log_function=log_request,
        described=ROUTES,
    )


async def make_sure_loaded(fleet: Fleet, name: str, model: str) -> None:
    """What ``--load name=model`` means: registered as v1 and loaded if ``name`` is new, else loaded again.

    Raises `Conflict` naming both models if ``name`` stands for another one.
    """
    known = next((d for d in fleet.status() if d.name == name), None)
    if known is None:
        body = LoadBody(version="v1", model=model)
        await fleet.register(name, "v1", body.spec(), body.replicas, body.origin())
        await fleet.load(name, "v1")
        return
    same = next((v for v in known.versions if v.spec.model == canonical(model)), None)
    if same is None:
        models = ", ".join(f"{v.version} is {v.spec.model}" for v in known.versions)
        raise Conflict(
            f"--load {name}={model}: {name} is known already with another model ({models}); leave --load out, and "
            f"{name} is served as it was and takes {model} as a further version (%dsserve load); "
            "or give it another name"
        )
    await fleet.load(name, same.version)


def _shown_certificate(config: GatewayConfig) -> ShownCertificate | None:
    return ShownCertificate("", config.certfile, config.keyfile) if config.certfile or config.keyfile else None


async def _keep_renewed(server: Server, shown: ShownCertificate) -> None:
    while True:
        await asyncio.sleep(_RENEW_S)
        shown.look()
        server.ssl_options = shown.context


def _url(scheme: str, ip: str, sockets: list[socket.socket]) -> str:
    return f"{scheme}://{f'[{ip}]' if ':' in ip else ip}:{sockets[0].getsockname()[1]}"


def _bind(ip: str, port: int, option: str = "--port") -> list[socket.socket]:
    try:
        return [_listening(bound) for bound in bind_sockets(port, ip)]
    except OverflowError:
        raise Conflict(f"port {port} is none: give a {option} from 0 to 65535") from None
    except OSError as fault:
        if fault.errno == errno.EADDRINUSE:
            raise Conflict(
                f"port {port} on {ip} is taken by another program: stop it, or give another {option}"
            ) from None
        raise Conflict(f"cannot listen on {ip}:{port} ({fault.strerror}): give another --ip or {option}") from None


def _listening(bound: socket.socket) -> Listening:
    listening = Listening(fileno=bound.detach())
    listening.setblocking(False)
    return listening
