"""``jupyter dsserve apply``, ``export`` and ``key``: the client's verbs from a shell."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Literal

from traitlets import Bool, Enum, Float, Int, Unicode

from jupyter_dsserve import __version__
from jupyter_dsserve.command import SHARED_ALIASES, SHARED_FLAGS, Command
from jupyter_dsserve.data_dir import holder, read_admin_key
from jupyter_dsserve.manifest import watch
from jupyter_dsserve.notebook.client import Client
from jupyter_dsserve.notebook.onnx import export_onnx
from jupyter_dsserve.notebook.views import Applied
from jupyter_dsserve.protocol.errors import DSServeError
from jupyter_dsserve.protocol.spec import Task


class _AskingCommand(Command):
    """Asks the gateway that runs for you on this machine, or another one."""

    version = __version__
    max_words = 1

    url = Unicode("", help="The gateway, such as http://127.0.0.1:8899; none is yours on this machine.").tag(
        config=True
    )
    key = Unicode("", help="Its key; your own gateway's is found. A file named with --config may hold it too.").tag(
        config=True
    )

    def start(self) -> None:
        super().start()
        logging.getLogger("httpx").setLevel(logging.WARNING)
        if len(self.extra_args) > self.max_words:
            self.quit(f"too much at once: {' and '.join(self.extra_args)}; see --help")
        try:
            self.ask(*self.extra_args, *[""] * (self.max_words - len(self.extra_args)))
        except DSServeError as fault:
            self.quit(fault.message)
        except KeyboardInterrupt:
            self.quit("interrupted: what the gateway has begun goes on")

    def ask(self, *words: str) -> None:
        """``max_words`` of them; what was not given is empty."""
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

    def ask(self, file: str) -> None:  # type: ignore[override]
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
        "Write the deployments file of what is registered, loaded and routed now: jupyter dsserve export [FILE], or "
        "export deployments [FILE]. Without FILE it is printed. export grafana DIR and export alerts DIR write what "
        "jupyter dsserve monitoring DIR does. export onnx MODEL --out DIR writes an encoder or a program as ONNX."
    )
    examples = "jupyter dsserve export deployments.yaml"

    aliases = {
        **SHARED_ALIASES,
        "url": "ExportApp.url",
        "key": "ExportApp.key",
        "data-dir": "ExportApp.dsserve_data_dir",
    }
    flags = SHARED_FLAGS

    # By name: what serves need not be imported to ask.
    _monitoring = ("jupyter_dsserve.gateway.monitoring.MonitoringApp", "Write Grafana's dashboard and the alerts.")
    subcommands = {
        "deployments": (f"{__name__}.DeploymentsApp", "Write the deployments file of what is served."),
        "grafana": _monitoring,
        "alerts": _monitoring,
        "onnx": (f"{__name__}.OnnxApp", "Write an encoder or a torch.export program as ONNX."),
    }

    def ask(self, file: str) -> None:  # type: ignore[override]
        text = self.client().export(file)
        if not file:
            print(text, end="")


class DeploymentsApp(ExportApp):
    name = "jupyter-dsserve-export-deployments"
    subcommands = {}


class OnnxApp(Command):
    name = "jupyter-dsserve-export-onnx"
    version = __version__
    description = (
        "Write an encoder (a directory or hub name) or a *.pt2 as ONNX into a new directory: jupyter dsserve export "
        "onnx MODEL --out DIR. What onnxruntime answers is compared with torch; if they differ, nothing is written."
    )
    examples = "jupyter dsserve export onnx sentence-transformers/all-MiniLM-L6-v2 --out emb-onnx --task embed"

    out = Unicode("", help="The directory to make.").tag(config=True)
    task: Task | Literal[""] = Enum(  # type: ignore[assignment]
        ("", "embed", "classify", "tensor"), "", help="What it is for; empty is as its files say."
    ).tag(config=True)
    tolerance = Float(1e-4, help="How far an answer may be from torch's, as a share of its largest number.").tag(
        config=True
    )
    allow_code = Bool(False, help="Load a *.pt2, which can run code from the file.").tag(config=True)

    aliases = {
        **SHARED_ALIASES,
        "out": "OnnxApp.out",
        "task": "OnnxApp.task",
        "tolerance": "OnnxApp.tolerance",
    }
    flags = {**SHARED_FLAGS, "allow-code": ({"OnnxApp": {"allow_code": True}}, "Load a *.pt2, which can run code.")}

    def start(self) -> None:
        super().start()
        if len(self.extra_args) != 1 or not self.out:
            self.quit("name one model and the directory to make: jupyter dsserve export onnx MODEL --out DIR")
        try:
            print(
                export_onnx(
                    self.extra_args[0],
                    self.out,
                    task=self.task,
                    tolerance=self.tolerance,
                    allow_code=self.allow_code,
                )
            )
        except DSServeError as fault:
            self.quit(fault.message)
        except KeyboardInterrupt:
            self.quit("interrupted: nothing was written")


class KeyApp(_AskingCommand):
    name = "jupyter-dsserve-key"
    description = (
        "API keys of a gateway: jupyter dsserve key create NAME [options], key list, key revoke ID. A new key is "
        "printed this once, alone on standard output."
    )
    examples = "jupyter dsserve key create app --deployments demo --rate 10 --ttl 86400 > app.key"
    max_words = 2

    scope = Unicode("infer", help="infer only asks models, metrics reads /metrics; admin does all.").tag(config=True)
    deployments = Unicode("", help="Those it may ask, such as demo,other; empty is all.").tag(config=True)
    rate = Float(0.0, help="Calls a second; 0 sets no limit, here and below.").tag(config=True)
    burst = Int(0, help="Calls at once before the rate holds; 0 is a second's worth.").tag(config=True)
    tokens_per_min = Int(0, help="Of prompts and answers together.").tag(config=True)
    concurrency = Int(0, help="Calls that run at once.").tag(config=True)
    priority = Int(0, help="0 to 100: none of its requests goes before that; lower goes first.").tag(config=True)
    label = Unicode("", help="What a policy's rule for the header X-DSServe-Key-Label goes by.").tag(config=True)
    ttl_s = Float(0.0, help="It ends after so many seconds; 0 is never.").tag(config=True)

    aliases = {
        **SHARED_ALIASES,
        "url": "KeyApp.url",
        "key": "KeyApp.key",
        "data-dir": "KeyApp.dsserve_data_dir",
        "scope": "KeyApp.scope",
        "deployments": "KeyApp.deployments",
        "rate": "KeyApp.rate",
        "burst": "KeyApp.burst",
        "tokens-per-min": "KeyApp.tokens_per_min",
        "concurrency": "KeyApp.concurrency",
        "priority": "KeyApp.priority",
        "label": "KeyApp.label",
        "ttl": "KeyApp.ttl_s",
    }
    flags = SHARED_FLAGS

    def ask(self, action: str, name: str) -> None:  # type: ignore[override]
        if action == "list" and not name:
            print(repr(self.client().keys()))
        elif action == "revoke" and name:
            print(repr(self.client().revoke(name)))
        elif action == "create" and name:
            made = self.client().key(
                name,
                scope=self.scope,
                deployments=self.deployments.split(",") if self.deployments else None,
                rate=self.rate,
                burst=self.burst,
                tokens_per_min=self.tokens_per_min,
                concurrency=self.concurrency,
                priority=self.priority,
                label=self.label,
                ttl_s=self.ttl_s or None,
            )
            print(made.key)
            print(f"It is shown this once. To take it back: jupyter dsserve key revoke {made.id}", file=sys.stderr)
        else:
            self.quit("say what to do: jupyter dsserve key create NAME, key list, or key revoke ID")


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
