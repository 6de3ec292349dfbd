"""``jupyter dsserve``: the gateway in the foreground, without a Jupyter server."""

from __future__ import annotations

import asyncio
import difflib
import ipaddress
import logging
import sys
from pathlib import Path

from jupyter_core.application import JupyterApp, base_aliases, base_flags
from jupyter_core.paths import jupyter_data_dir
from traitlets import Bool, Float, Int, List, Unicode, default

from jupyter_dsserve import __version__
from jupyter_dsserve.gateway.serve import serve
from jupyter_dsserve.gateway.server import Gateway
from jupyter_dsserve.protocol.config import GatewayConfig
from jupyter_dsserve.protocol.errors import DSServeError

log = logging.getLogger(__name__)


class DSServeApp(JupyterApp):
    name = "jupyter-dsserve"
    version = __version__
    description = "Serve models with DeepSpeed over REST. Ctrl-C drains and stops; a second Ctrl-C ends at once."
    examples = "jupyter dsserve --load demo=builtin:demo-v1"

    ip = Unicode("127.0.0.1", help="The address to listen on; anything but loopback needs --insecure.").tag(config=True)
    port = Int(8899, min=0, max=65535, help="The port to listen on; 0 takes a free one.").tag(config=True)
    dsserve_data_dir = Unicode(help="Where keys, versions, routes and logs are kept.").tag(config=True)
    load = List(
        Unicode(), help="NAME=MODEL to serve from the start, as version v1 if NAME is new; may be given several times."
    ).tag(config=True)
    drain_s = Float(30.0, min=0, help="Seconds that running requests get to end at the stop; 0 ends at once.").tag(
        config=True
    )
    max_body_bytes = Int(16 * 1024 * 1024, min=1, help="The most bytes a request's body may have.").tag(config=True)
    insecure = Bool(False, help="Allow addresses other than loopback although the traffic is not encrypted.").tag(
        config=True
    )

    aliases = {
        "log-level": base_aliases["log-level"],
        "config": base_aliases["config"],
        "ip": "DSServeApp.ip",
        "port": "DSServeApp.port",
        "data-dir": "DSServeApp.dsserve_data_dir",
        "load": "DSServeApp.load",
        "drain": "DSServeApp.drain_s",
    }
    flags = {
        "debug": base_flags["debug"],
        "insecure": ({"DSServeApp": {"insecure": True}}, "Allow addresses other than loopback, unencrypted."),
    }

    @default("dsserve_data_dir")
    def _default_data_dir(self) -> str:
        return str(Path(jupyter_data_dir()) / "dsserve")

    def parse_command_line(self, argv: list[str] | None = None) -> None:
        """As traitlets does, but an option it does not know is an error: traitlets only warns and goes on."""
        own = [f"DSServeApp.{name}" for name in self.class_trait_names(config=True)]
        known = [*self.aliases, *self.flags, *own, "help", "help-all", "version", "generate-config"]
        for word in sys.argv[1:] if argv is None else argv:
            name = word.removeprefix("--").partition("=")[0]
            if word.startswith("--") and name and name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                self._quit(
                    f"there is no option --{name}" + (f": did you mean --{near[0]}?" if near else "; see --help")
                )
        super().parse_command_line(argv)

    def start(self) -> None:
        super().start()
        if self.extra_args:
            self._quit(f"not understood: {' '.join(self.extra_args)}; see jupyter dsserve --help")
        ours = logging.getLogger("jupyter_dsserve")
        ours.handlers, ours.level, ours.propagate = self.log.handlers, self.log.level, False
        try:
            asyncio.run(serve(self._config(), self._say_where))
        except DSServeError as fault:
            self._quit(fault.message)

    def _config(self) -> GatewayConfig:
        if not self.insecure and not _is_loopback(self.ip):
            self._quit(
                f"--ip {self.ip} is reachable from other machines, and traffic and keys would cross the network "
                "unencrypted: put a TLS proxy in front of 127.0.0.1, or add --insecure if you mean it"
            )
        return GatewayConfig(
            data_dir=Path(self.dsserve_data_dir).expanduser(),
            ip=self.ip,
            port=self.port,
            drain_s=self.drain_s,
            max_body_bytes=self.max_body_bytes,
            loads=tuple(self._load_pair(text) for text in self.load),
        )

    def _load_pair(self, text: str) -> tuple[str, str]:
        name, sign, model = text.partition("=")
        if not (name and sign and model):
            self._quit(f"--load {text}: write NAME=MODEL, such as demo=builtin:demo-v1")
        return name, model

    async def _say_where(self, gateway: Gateway) -> None:
        log.info("serving at %s", gateway.url)
        log.info("the admin key lies in %s", gateway.config.data_dir / "admin.key")

    def _quit(self, message: str) -> None:
        self.log.critical(message)
        self.exit(1)


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
