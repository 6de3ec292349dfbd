"""``jupyter dsserve apply`` and ``export``: the client's verbs from a shell."""

from __future__ import annotations

import logging
from pathlib import Path

from traitlets import Bool, Unicode

from jupyter_dsserve import __version__
from jupyter_dsserve.command import SHARED_ALIASES, SHARED_FLAGS, Command
from jupyter_dsserve.data_dir import holder, read_admin_key
from jupyter_dsserve.manifest import watch
from jupyter_dsserve.notebook.client import Client
from jupyter_dsserve.notebook.views import Applied
from jupyter_dsserve.protocol.errors import DSServeError


class _AskingCommand(Command):
    """Asks the gateway that runs for you on this machine, or another one."""

    version = __version__

    url = Unicode("", help="The gateway, such as http://127.0.0.1:8899; none is yours on this machine.").tag(
        config=True
    )
    key = Unicode("", help="Its key; your own gateway's is found. A file named with --config may hold it too.").tag(
        config=True
    )

    def start(self) -> None:
        super().start()
        logging.getLogger("httpx").setLevel(logging.WARNING)
        if len(self.extra_args) > 1:
            self.quit(f"one file at a time, not {' and '.join(self.extra_args)}")
        try:
            self.ask(self.extra_args[0] if self.extra_args else "")
        except DSServeError as fault:
            self.quit(fault.message)
        except KeyboardInterrupt:
            self.quit("interrupted: what the gateway has begun goes on")

    def ask(self, file: str) -> None:
        raise NotImplementedError

    def client(self) -> Client:
        path = Path(self.dsserve_data_dir).expanduser()
        held = holder(path)
        own = held.url if held else ""
        if not (self.url or own):
            self.quit(f"no gateway runs on {path}: start jupyter dsserve, or name one with --url")
        return Client(self.url or own, self.key or (read_admin_key(path) if self.url in ("", own) else ""))


class ApplyApp(_AskingCommand):
    name = "jupyter-dsserve-apply"
    description = (
        "Make the fleet what a deployments file says: jupyter dsserve apply FILE. It prints the plan, loads what is "
        "new, routes once that is READY, and unloads last. What is so already is left alone."
    )
    examples = "jupyter dsserve apply deployments.yaml --dry-run"

    dry_run = Bool(False, help="Only print the plan.").tag(config=True)
    prune = Bool(False, help="Delete deployments and versions that the file does not name.").tag(config=True)
    watch = Bool(False, help="Apply the file again whenever it was written, until Ctrl-C.").tag(config=True)

    aliases = {
        **SHARED_ALIASES,
        "url": "ApplyApp.url",
        "key": "ApplyApp.key",
        "data-dir": "ApplyApp.dsserve_data_dir",
    }
    flags = {
        **SHARED_FLAGS,
        "dry-run": ({"ApplyApp": {"dry_run": True}}, "Only print the plan."),
        "prune": ({"ApplyApp": {"prune": True}}, "Delete what the file does not name."),
        "watch": ({"ApplyApp": {"watch": True}}, "Apply the file again whenever it was written."),
    }

    def ask(self, file: str) -> None:
        if not file:
            self.quit("name the deployments file: jupyter dsserve apply FILE")
        client = self.client()
        if self.watch:
            watch(lambda: self._apply(client, file), file, self.log.error)
        self._apply(client, file)

    def _apply(self, client: Client, file: str) -> None:
        client.apply(file, dry_run=self.dry_run, prune=self.prune, on_progress=_Printed())


class ExportApp(_AskingCommand):
    name = "jupyter-dsserve-export"
    description = (
        "Write the deployments file of what is registered, loaded and routed now: jupyter dsserve export [FILE]. "
        "Without FILE it is printed."
    )
    examples = "jupyter dsserve export deployments.yaml"

    aliases = {
        **SHARED_ALIASES,
        "url": "ExportApp.url",
        "key": "ExportApp.key",
        "data-dir": "ExportApp.dsserve_data_dir",
    }
    flags = SHARED_FLAGS

    def ask(self, file: str) -> None:
        text = self.client().export(file)
        if not file:
            print(text, end="")


class _Printed:
    """The plan once, then each change as it is made."""

    def __init__(self) -> None:
        self._num_said: int | None = None

    def __call__(self, applied: Applied) -> None:
        if self._num_said is None:
            print(applied.plan, flush=True)
            self._num_said = 0
        for change in applied.changes[self._num_said : applied.num_done]:
            print(f"done: {change}", flush=True)
        self._num_said = applied.num_done
