"""``jupyter dsserve bench``: press any server that speaks OpenAI's API, and print what it gave."""

from __future__ import annotations

import contextlib
import resource
from dataclasses import fields
from pathlib import Path
from typing import Any

from traitlets import Bool, Float, Int, TraitType, Unicode

from jupyter_dsserve import __version__
from jupyter_dsserve.bench.bar import BenchBar
from jupyter_dsserve.bench.plan import Plan
from jupyter_dsserve.bench.report import Report
from jupyter_dsserve.bench.run import run_blocking
from jupyter_dsserve.bench.target import Target
from jupyter_dsserve.command import SHARED_ALIASES, SHARED_FLAGS, Command
from jupyter_dsserve.data_dir import holder, read_admin_key
from jupyter_dsserve.protocol.errors import DSServeError

_LENGTHS = "128, a range 16-256, or lognormal:MEDIAN:SIGMA:LOW-HIGH"


def _option(kind: type[TraitType[Any, Any]], initial: Any, help: str) -> Any:
    return kind(initial, help=help).tag(config=True)


class BenchApp(Command):
    """Its traits are the fields of `Plan`; zero and empty leave one to its default."""

    name = "jupyter-dsserve-bench"
    version = __version__
    description = (
        "Press a server that speaks OpenAI's API and measure what it gives: jupyter dsserve bench MODEL [options].\n\n"
        "Without --url it is the gateway that runs for you on this machine. --concurrency keeps so many requests under "
        "way (a client asks again when it is answered); --rate lets so many arrive each second, at random, whether "
        "earlier ones are answered or not. Several numbers make a sweep. The first wave warms up and is not counted. "
        "Ctrl-C ends it and prints what was measured by then."
    )
    examples = (
        "jupyter dsserve bench demo --concurrency 1,4,16,64\n"
        "jupyter dsserve bench demo --rate 1,2,4 --slo first_token_s=0.5,per_token_s=0.05 --plot sweep.html\n"
        "jupyter dsserve bench --url http://127.0.0.1:8000 --prompt-tokens 16-256 --output-tokens 128 --json sweep.json"
    )

    url = _option(Unicode, "", "The server, such as http://127.0.0.1:8000/v1; none is your gateway on this machine.")
    key = _option(Unicode, "", "Its API key; your own gateway's is found. A file named with --config may hold it too.")
    model = _option(Unicode, "", "The model; may stand first without --model. None is the only one that is served.")
    concurrency = _option(Unicode, "", "How many clients, each asking again when answered; 1,4,16 unless told.")
    rate = _option(Unicode, "", "Instead: how many requests arrive each second (Poisson), such as 1,2,4.")
    seconds = _option(Float, 0.0, "How long each point is measured; 0 is 10 s, or 600 s at most with --requests.")
    requests = _option(Int, 0, "End each point after so many requests; 0 goes by time alone.")
    prompt_tokens = _option(Unicode, "64", f"About how long prompts are: {_LENGTHS}.")
    output_tokens = _option(Unicode, "64", f"How long answers may be: {_LENGTHS}.")
    slo = _option(
        Unicode,
        "",
        "What is good enough, for goodput: some of first_token_s=0.5,per_token_s=0.05,latency_s=5.",
    )
    seed = _option(
        Int, 0, "Draws prompts, lengths and arrivals. The same seed asks the same: take another if the server caches."
    )
    chat = _option(Bool, False, "Ask /v1/chat/completions instead of /v1/completions.")
    ignore_eos = Bool(
        None, allow_none=True, help="Have answers go on to their full length; unless told, only if the server is ours."
    ).tag(config=True)
    drain_s = _option(Float, 30.0, "The most seconds for a point's warm-up, and for its last answers.")
    json = _option(Unicode, "", "A file for everything that was measured, as JSON.")
    plot = _option(Unicode, "", "A file for the plot, such as sweep.html; it needs no network to be looked at.")

    aliases = {
        **SHARED_ALIASES,
        "url": "BenchApp.url",
        "key": "BenchApp.key",
        "model": "BenchApp.model",
        "concurrency": "BenchApp.concurrency",
        "rate": "BenchApp.rate",
        "seconds": "BenchApp.seconds",
        "requests": "BenchApp.requests",
        "prompt-tokens": "BenchApp.prompt_tokens",
        "output-tokens": "BenchApp.output_tokens",
        "slo": "BenchApp.slo",
        "seed": "BenchApp.seed",
        "drain": "BenchApp.drain_s",
        "json": "BenchApp.json",
        "plot": "BenchApp.plot",
        "data-dir": "BenchApp.dsserve_data_dir",
    }
    flags = {
        **SHARED_FLAGS,
        "chat": ({"BenchApp": {"chat": True}}, "Ask /v1/chat/completions instead of /v1/completions."),
        "ignore-eos": ({"BenchApp": {"ignore_eos": True}}, "Answers go on to their full length."),
        "no-ignore-eos": ({"BenchApp": {"ignore_eos": False}}, "Answers end where the model ends them."),
    }

    def start(self) -> None:
        super().start()
        words = [*([self.model] if self.model else []), *self.extra_args]
        if len(words) > 1:
            self.quit(f"one model at a time, not {' and '.join(words)}; see jupyter dsserve bench --help")
        try:
            plan, target = self._plan(), target_of(self, self.url, self.key, words[0] if words else "")
            self._check_files()
            _allow_connections()
            with BenchBar() as bar:
                report = run_blocking(target, plan, bar)
        except DSServeError as fault:
            self.quit(fault.message)
        except KeyboardInterrupt:
            self.quit("interrupted")
        print(report)
        self._write(report)
        if not any(point.answered for point in report.points):
            self.quit("no request was answered")

    def _plan(self) -> Plan:
        return Plan.read(**{each.name: getattr(self, each.name) for each in fields(Plan)})

    def _check_files(self) -> None:
        """Before minutes are spent on what cannot be written."""
        for option, name in (("json", self.json), ("plot", self.plot)):
            if name and not Path(name).expanduser().absolute().parent.is_dir():
                self.quit(f"--{option} {name}: there is no such directory")

    def _write(self, report: Report) -> None:
        try:
            if self.json:
                Path(self.json).expanduser().write_text(report.to_json() + "\n")
            if self.plot and report.points:
                report.figure().write_html(Path(self.plot).expanduser(), include_plotlyjs=True)
        except OSError as fault:
            self.quit(f"{fault.filename} cannot be written ({fault.strerror})")


def target_of(command: Command, url: str, key: str, model: str) -> Target:
    """What ``url`` names, or your own gateway; its key is found in either case."""
    path = Path(command.dsserve_data_dir).expanduser()
    held = holder(path)
    own = held.url if held else ""
    if not (url or own):
        command.quit(f"no gateway runs on {path}: name a server with --url, or start jupyter dsserve")
    target = Target.at(url or own, key, model)
    is_own = bool(own) and target.url == Target.at(own).url
    return Target(target.url, target.key or read_admin_key(path), model) if is_own else target


def _allow_connections() -> None:
    """Each request under way is an open file, of which many systems allow 1024 until one asks for more."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # then errors say so
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
