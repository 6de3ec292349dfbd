"""``%dsserve VERB …`` and ``%%dsserve NAME``."""

from __future__ import annotations

import difflib
import getpass
import textwrap
from collections.abc import Callable
from typing import Any

from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import Magics, line_cell_magic, magics_class
from IPython.core.magic_arguments import argument, magic_arguments
from IPython.display import DisplayHandle, display
from IPython.utils.process import arg_split  # type: ignore[attr-defined]

from jupyter_dsserve.bench.bar import BenchBar
from jupyter_dsserve.bench.report import Report
from jupyter_dsserve.bench.reports import report_paths, write_reports
from jupyter_dsserve.bench.verdict import Verdict
from jupyter_dsserve.manifest import watch
from jupyter_dsserve.notebook import session
from jupyter_dsserve.notebook.arguments import (
    fact,
    form,
    models_asked,
    name_and_version,
    parsed,
    percents,
    pinned,
    rule,
    weight,
)
from jupyter_dsserve.notebook.asking import Part, prompt_of, side_by_side, streamed
from jupyter_dsserve.notebook.chronicle import Chronicle, history_of
from jupyter_dsserve.notebook.client import Client
from jupyter_dsserve.notebook.completion import Glance, install
from jupyter_dsserve.notebook.keys import KeyList, ShownKey
from jupyter_dsserve.notebook.ledger import Ledger
from jupyter_dsserve.notebook.panel import Panel, panel
from jupyter_dsserve.notebook.progress import LoadBar
from jupyter_dsserve.notebook.traces import Trace, TraceList
from jupyter_dsserve.notebook.views import (
    Answer,
    Applied,
    Deployment,
    History,
    Models,
    Policy,
    Rollout,
    Status,
    Version,
)
from jupyter_dsserve.protocol.errors import DSServeError
from jupyter_dsserve.protocol.export import Exported


class Moving:
    """An `Applied` that moves on in its place."""

    def __init__(self) -> None:
        self._handle: DisplayHandle | None = None

    def __call__(self, applied: Applied) -> None:
        if self._handle is None:
            self._handle = display(applied, display_id=True)
        else:
            self._handle.update(applied)


@magics_class
class DSServeMagics(Magics):
    """Each verb is a method named after it."""

    @line_cell_magic("dsserve")  # type: ignore[arg-type]
    def dsserve(self, line: str, cell: str | None = None) -> object:
        """Serve models beside the notebook.

        %dsserve VERB …   load, unload, delete, status, route, policy, join, activate, rollout, pause, resume, promote,
                          rollback, logs, ledger, scale, autoscale, key, history, trace, apply, export, panel,
                          bench, validate, connect; %dsserve VERB --help says more
        %%dsserve NAME …  the cell is the prompt, and the answer streams into the output; %dsserve help cell says more
        """
        if cell is not None:
            return _in_one_line(self.ask, line, cell)
        verb, _, rest = line.strip().partition(" ")
        if verb == "help" and rest.strip():
            verb, rest = rest.split()[0], "--help"
        if verb in ("", "help", "--help", "-h"):
            print(_help())
            return None
        if (verb, rest) == ("cell", "--help"):
            print(_said(self.ask).replace("%dsserve", "%%dsserve", 1))
            return None
        if verb not in VERBS:
            near = difflib.get_close_matches(verb, VERBS, n=1)
            raise UsageError(
                f"%dsserve {verb}: " + (f"did you mean {near[0]}?" if near else f"the verbs are {', '.join(VERBS)}")
            )
        method: Callable[[str], object] = getattr(self, verb)
        if {"--help", "-h"} & set(arg_split(rest, strict=False)):  # not within quotes
            print(_said(method))
            return None
        return _in_one_line(method, rest)

    # ---- verbs

    @magic_arguments("dsserve load")
    @argument("name", help="The deployment, such as demo; demo@v2 names the version too.")
    @argument("--model", default="", help="A directory, a hub name or builtin:NAME; none loads a registered version.")
    @argument("--object", default="", help="Instead: the variable that holds a model of this kernel.")
    @argument("--tokenizer", default="", help="The variable that holds its tokenizer.")
    @argument("--version", default="", help="Its name; none takes the next free of v1, v2, …")
    @argument("--dtype", choices=["auto", "fp32", "bf16", "fp16"], help="auto is the checkpoint's own.")
    @argument("--device", help="auto, cpu or cuda:N.")
    @argument("--replicas", type=int, help="How many workers.")
    @argument("--python", help="The workers' interpreter; 'kernel' is this kernel's.")
    @argument("--task", choices=["generate", "embed", "classify", "tensor"], help="What the model is for.")
    @argument("--runner", choices=["auto", "ragged", "padded", "encoder", "program", "toy"], help="The engine.")
    @argument("--max-sequences", type=int, help="How many requests run at once; the rest wait.")
    @argument("--max-context", type=int, help="Tokens; 0 is the model's own.")
    @argument("--kv-bytes", type=int, help="Memory for keys and values; 0 is half of what is free after loading.")
    @argument("--max-step-tokens", type=int, help="The most tokens of one forward pass.")
    @argument("--num-threads", type=int, help="Processor threads; 0 leaves one core to the notebook.")
    @argument("--tp", type=int, help="How many processes (on GPUs: how many of them) share the model.")
    @argument("--zero", choices=["cpu", "nvme"], help="Where the weights lie until their layer computes.")
    @argument("--nvme-dir", help="The folder for --zero nvme; none is the gateway's user's cache.")
    @argument("--quantize", choices=["int8", "int4"], help="Bits of a weight in linear layers.")
    @argument("--min-agreement", type=float, help="With plain transformers, 0 to 1: below it is not served.")
    @argument("--priority", choices=["high", "medium", "low"], help="Who goes first when loads wait for memory.")
    @argument("--note", help="A word about it, in quotes.")
    @argument("--metadata", action="append", help="KEY=VALUE of the run that trained it; may be given several times.")
    @argument("--created-by", help="Who loads it; you unless told.")
    @argument("--no-wait", action="store_true", help="Do not wait until it is READY.")
    def load(self, line: str) -> Version:
        """Load a model as a version of a deployment, and wait until it is READY."""
        given = vars(parsed(self.load, line))
        name, version = name_and_version(given.pop("name"), given.pop("version"))
        wait = not given.pop("no_wait")
        given["metadata"] = dict(map(fact, given["metadata"] or ())) or None
        model = self._object(given.pop("model"), given.pop("object"))
        given["tokenizer"] = self._object(None, given["tokenizer"])
        with LoadBar() as bar:
            return session.client().load(name, model, version, wait=wait, on_progress=bar, **given)

    def _object(self, otherwise: object, name: str) -> object:
        """What the variable ``name`` of the kernel holds."""
        if not name:
            return otherwise
        if otherwise:
            raise UsageError(f"--model {otherwise} and --object {name} name two models: leave one of them out")
        assert self.shell
        if name not in self.shell.user_ns:
            raise UsageError(f"{name!r} is no variable of this kernel: run the cell that makes it first")
        return self.shell.user_ns[name]

    @magic_arguments("dsserve scale")
    @argument("name", help="demo@v1.")
    @argument("replicas", type=int, help="How many workers, from 1 to 64.")
    def scale(self, line: str) -> Version:
        """Change how many workers a loaded version has. New ones wait for memory if need be."""
        given = parsed(self.scale, line)
        return session.client().scale(*pinned("scale", given.name), given.replicas)

    @magic_arguments("dsserve autoscale")
    @argument("name", help="demo@v1.")
    @argument("--min", type=int, help="The fewest workers, 1 unless told; 0 lets it rest while nobody asks it.")
    @argument("--max", type=int, help="The most workers.")
    @argument("--target-in-flight", type=float, help="Requests on a worker at most: 16 unless told.")
    @argument("--target-queue", type=float, help="Those of them that wait at most; 0 does not count.")
    @argument("--idle", dest="idle_s", type=float, help="Seconds without a request until it rests: 600 unless told.")
    @argument("--stable", dest="stable_s", type=float, help="Seconds that must need fewer workers: 60 unless told.")
    @argument("--off", action="store_true", help="End it; the version keeps the workers it has.")
    def autoscale(self, line: str) -> Version:
        """Have as many workers as what is asked of a version needs."""
        given = vars(parsed(self.autoscale, line))
        return session.client().autoscale(*pinned("autoscale", given.pop("name")), **given)

    @magic_arguments("dsserve unload")
    @argument("name", help="demo@v1, or demo for all of its versions.")
    def unload(self, line: str) -> Deployment:
        """Drain a version and end its workers; it stays registered, and `load demo@v1` loads it again."""
        return session.client().unload(*name_and_version(parsed(self.unload, line).name))

    @magic_arguments("dsserve delete")
    @argument("name", help="demo@v1, or demo for all of its versions.")
    def delete(self, line: str) -> None:
        """Unload a version and forget it, with the files of a model that was saved for it."""
        name = parsed(self.delete, line).name
        session.client().delete(*name_and_version(name))
        print(f"{name} is forgotten; what it is answering ends")

    @magic_arguments("dsserve status")
    @argument("name", nargs="?", default="", help="One deployment; none shows all.")
    def status(self, line: str) -> Status | Deployment:
        """What is served. Starts nothing."""
        name = parsed(self.status, line).name
        return session.client().deployment(name) if name else session.client().status()

    @magic_arguments("dsserve route")
    @argument("name", help="The deployment.")
    @argument("weights", nargs="*", help="v1=90 v2=10: percent that sum to 100; none shows them.")
    def route(self, line: str) -> Deployment:
        """Split the traffic between versions."""
        given = parsed(self.route, line)
        return session.client().route(given.name, dict(map(weight, given.weights)) or None)

    @magic_arguments("dsserve policy")
    @argument("name", help="The deployment.")
    @argument("--rate", type=float, help="Calls a second; more get 429. 0 takes any number, as in all limits here.")
    @argument("--burst", type=int, help="Calls at once before the rate holds; 0 is a second's worth.")
    @argument("--max-in-flight", type=int, help="Requests on a replica at once; the others wait in line.")
    @argument("--max-queue", type=int, help="How many may wait; then the last in line gets 429.")
    @argument("--acquire-timeout", dest="acquire_timeout_s", type=float, help="Seconds to wait in line before a 503.")
    @argument("--queue-timeout", dest="queue_timeout_s", type=float, help="Seconds to wait in line before a 504.")
    @argument("--first-token-timeout", dest="first_token_timeout_s", type=float, help="Seconds to the first token.")
    @argument("--timeout", dest="timeout_s", type=float, help="Seconds to the end of an answer.")
    @argument("--fallback", help="The version that answers if the one that should cannot.")
    @argument("--fallback-answer", help="The text if that cannot either, in quotes.")
    @argument("--rule", dest="rules", action="append", help="HEADER=VALUE:VERSION; several times; '' drops them all.")
    @argument("--retry-share", type=float, help="Of what is in flight, 0 to 1, may be asked again of another replica.")
    @argument("--min-retries", type=int, help="So many may be asked again in any case.")
    @argument("--breaker-failures", type=int, help="In a row close a replica's door.")
    @argument("--breaker-share", type=float, help="Of the last 100 answers, 0 to 1, close it too.")
    @argument("--breaker-open", dest="breaker_open_s", type=float, help="Seconds until it is tried again.")
    @argument("--breaker-successes", type=int, help="In a row open the door again.")
    def policy(self, line: str) -> Policy:
        """What a deployment does when things are busy or break: limits, the line, deadlines, who stands in."""
        given = vars(parsed(self.policy, line))
        if given["rules"] is not None:
            given["rules"] = [rule(text) for text in given["rules"] if text]
        return session.client().policy(given.pop("name"), **given)

    @magic_arguments("dsserve join")
    @argument("name", help="demo@v1.")
    def join(self, line: str) -> None:
        """The command for a shell on the gateway's machine that starts one more worker, from whatever environment."""
        name, version = name_and_version(parsed(self.join, line).name)
        if not version:
            raise UsageError(f"%dsserve join {name}: name the version too, such as {name}@v1")
        print(session.client().join(name, version).command)
        print("# Within ssh HOST '…' or bash -c '…' the token would stand in lists of processes: leave the printf out")
        print("# of these quotes, or write the token into a file there and give --token-file FILE in its place.")

    @magic_arguments("dsserve activate")
    @argument("name", help="The deployment, or demo@v2.")
    @argument("version", nargs="?", default="", help="The version that takes all traffic.")
    @argument(
        "--strategy",
        choices=["beside", "recreate"],
        default="beside",
        help="recreate ends the others first, where memory does not hold both; requests wait meanwhile.",
    )
    def activate(self, line: str) -> Deployment:
        """Give a version all traffic, loading it if need be; the others then drain and stop. Nothing is lost."""
        given = parsed(self.activate, line)
        name, version = name_and_version(given.name, given.version)
        if not version:
            raise UsageError(f"%dsserve activate {name}: name the version too, such as {name}@v2")
        with LoadBar() as bar:
            return session.client().activate(name, version, strategy=given.strategy, on_progress=bar)

    @magic_arguments("dsserve rollout")
    @argument("name", help="The deployment, or demo@v2.")
    @argument("candidate", nargs="?", default="", help="The version to give traffic; none shows the rollout.")
    @argument("--steps", help="Its shares in percent, rising: 5,25,50,100 unless told.")
    @argument("--interval", dest="interval_s", type=float, help="The least seconds at each step: 30 unless told.")
    @argument("--min-requests", type=int, help="The least requests of it at each step: 50 unless told.")
    @argument("--max-error-rate", type=float, help="0 to 1; over it the rollout ends at once: 0.1 unless told.")
    @argument("--max-latency-ratio", type=float, help="Times the old version's; the same: 2 unless told.")
    @argument("--mirror", type=float, help="First give it copies of so many percent of the old version's requests.")
    @argument("--block", dest="block_s", type=float, help="Seconds whose requests are compared: 1 unless told.")
    def rollout(self, line: str) -> Rollout:
        """Give a version more and more traffic, as long as it does as well as the one it is to replace."""
        given = vars(parsed(self.rollout, line))
        name, candidate = name_and_version(given.pop("name"), given.pop("candidate"))
        if steps := given.pop("steps"):
            given["steps"] = percents(steps)
        if not candidate and any(value is not None for value in given.values()):
            raise UsageError(f"%dsserve rollout {name}: name the version too, such as {name}@v2")
        return session.client().rollout(name, candidate, **given)

    @magic_arguments("dsserve pause")
    @argument("name", help="The deployment.")
    def pause(self, line: str) -> Rollout:
        """Leave a rollout's weights as they are until `resume`."""
        return session.client().pause(parsed(self.pause, line).name)

    @magic_arguments("dsserve resume")
    @argument("name", help="The deployment.")
    def resume(self, line: str) -> Rollout:
        """Go on with a paused rollout."""
        return session.client().resume(parsed(self.resume, line).name)

    @magic_arguments("dsserve promote")
    @argument("name", help="The deployment.")
    def promote(self, line: str) -> Rollout:
        """Give a rollout's candidate all traffic now; the old version drains and stops."""
        return session.client().promote(parsed(self.promote, line).name)

    @magic_arguments("dsserve rollback")
    @argument("name", help="The deployment.")
    def rollback(self, line: str) -> Deployment:
        """Take a rollout's candidate back; without a rollout, undo the last change of the route."""
        return session.client().rollback(parsed(self.rollback, line).name)

    @magic_arguments("dsserve logs")
    @argument("name", help="demo@v1.")
    @argument("--lines", type=int, default=50, help="How many of the last.")
    def logs(self, line: str) -> None:
        """What a version's workers wrote."""
        given = parsed(self.logs, line)
        name, version = pinned("logs", given.name)
        for worker, lines in session.client().logs(name, version, given.lines).items():
            print(f"---- {worker}", *lines, sep="\n")

    @magic_arguments("dsserve ledger")
    def ledger(self, line: str) -> Ledger:
        """Who holds the memory of every device, and what waits for it."""
        parsed(self.ledger, line)
        return session.client().ledger()

    @magic_arguments("dsserve history")
    @argument("name", nargs="?", default="", help="One deployment; none is all.")
    @argument("--deployment", default="", help="The same, by its name.")
    @argument(
        "--since",
        help="An age such as 30m, 1d, 7d: events and numbers since then, with a plot. A number is the "
        "id of an event: the first ones after it.",
    )
    @argument("--from", dest="start", help="Instead: a time, such as 2026-01-31T09:00, of this machine.")
    @argument("--to", dest="until", help="The end of the time, such as 2026-01-31T17:00 or 1h; now unless told.")
    @argument("--step", help="Between two numbers: 1m, 15m, 1h; by the length of the time unless told.")
    @argument("--limit", type=int, help="How many events: 30 unless told, of a time 1000.")
    def history(self, line: str) -> History | Chronicle:
        """What happened: loads, swaps, routes, crashes, and why; of a time also what versions did, as a plot."""
        return history_of(session.client(), **vars(parsed(self.history, line)))

    @magic_arguments("dsserve apply")
    @argument("file", help="A deployments file, such as deployments.yaml.")
    @argument("--dry-run", action="store_true", help="Only show what would be done.")
    @argument("--prune", action="store_true", help="Delete what the file does not name.")
    @argument("--watch", action="store_true", help="Apply it again whenever it was written, until interrupted.")
    def apply(self, line: str) -> Applied | None:
        """Make the fleet what a deployments file says: load, route, then unload; nothing is lost."""
        given = vars(parsed(self.apply, line))
        file = given.pop("file")
        if not given.pop("watch"):
            return session.client().apply(file, on_progress=Moving(), **given)
        watch(lambda: session.client().apply(file, on_progress=Moving(), **given), file)
        return None

    @magic_arguments("dsserve export")
    @argument("file", nargs="?", default="", help="Where to write the deployments file; none shows it. Or: onnx.")
    @argument("model", nargs="?", default="", help="Of onnx: the version, such as emb@v1.")
    @argument("--out", help="Of onnx: the directory to make.")
    @argument("--tolerance", type=float, default=1e-4, help="Of onnx: how far an answer may be from torch's, a share.")
    @argument("--allow-code", action="store_true", help="Of onnx: load a *.pt2, which can run code from the file.")
    def export(self, line: str) -> Exported | None:
        """Write the deployments file of what is served; or as ONNX what a version serves."""
        given = parsed(self.export, line)
        file = given.file
        if file == "onnx":
            if not given.out:
                raise UsageError("%dsserve export onnx: name the directory to make, such as --out emb-onnx")
            name, version = pinned("export onnx", given.model)
            return session.client().export_onnx(
                name, version, given.out, tolerance=given.tolerance, allow_code=given.allow_code
            )
        if given.model or given.out:
            raise UsageError(f"%dsserve export {file}: only onnx takes a version and --out")
        text = session.client().export(file)
        print(f"written to {file}" if file else text)
        return None

    @magic_arguments("dsserve key")
    @argument("action", choices=["create", "list", "revoke"], help="What to do.")
    @argument("name", nargs="?", default="", help="Of create: whose key it is; of revoke: its id.")
    @argument("--scope", choices=["infer", "admin"], default="infer", help="infer only asks models; admin does all.")
    @argument("--deployments", help="Those it may ask, such as demo,other; all unless told.")
    @argument("--rate", type=float, help="Calls a second; more get 429. 0 takes any number, as in all limits here.")
    @argument("--burst", type=int, help="Calls at once before the rate holds; 0 is a second's worth.")
    @argument("--tokens-per-min", type=int, help="Of prompts and answers together.")
    @argument("--concurrency", type=int, help="Calls that run at once.")
    @argument("--priority", type=int, help="0 to 100: none of its requests goes before that; lower goes first.")
    @argument("--label", help="For the rules of a policy: --rule X-DSServe-Key-Label=LABEL:VERSION.")
    @argument("--ttl", dest="ttl_s", type=float, help="It ends after so many seconds.")
    def key(self, line: str) -> ShownKey | KeyList:
        """Make an API key for an app or a colleague, list those there are, or revoke one."""
        given = vars(parsed(self.key, line))
        action, name = given.pop("action"), given.pop("name")
        client = session.client()
        if action == "list":
            return client.keys()
        if not name:
            needed = "say whose it is, such as app" if action == "create" else "name its id; key list has it"
            raise UsageError(f"%dsserve key {action}: {needed}")
        if action == "revoke":
            return client.revoke(name)
        if names := given.pop("deployments"):
            given["deployments"] = names.split(",")
        made = client.key(name, **given)
        return ShownKey(made, client.url)

    @magic_arguments("dsserve trace")
    @argument("id", nargs="?", default="", help="A call's id, of an answer's request_id; none lists the last calls.")
    @argument("--deployment", default="", help="Only calls of this one.")
    @argument("--limit", type=int, default=20, help="How many calls to list.")
    def trace(self, line: str) -> Trace | TraceList:
        """Where the time of a call went: a timeline of its spans; without an id the last calls."""
        return session.client().trace(**vars(parsed(self.trace, line)))

    @magic_arguments("dsserve panel")
    @argument("name", nargs="?", default="", help="The deployment; none takes the first.")
    def panel(self, line: str) -> Panel:
        """Versions, sliders and a live plot."""
        return panel(parsed(self.panel, line).name)

    @magic_arguments("dsserve bench")
    @argument("name", nargs="?", default="", help="A deployment, or one version of it; none is the only one.")
    @argument("--concurrency", help="How many clients, each asking again when answered: 1,4,16 unless told.")
    @argument("--rate", help="Instead: how many requests arrive each second, at random, such as 1,2,4.")
    @argument("--seconds", type=float, help="How long each point is measured: 10 unless told.")
    @argument("--requests", type=int, help="End each point after so many requests.")
    @argument("--prompt-tokens", help="128, 16-256 or lognormal:MEDIAN:SIGMA:LOW-HIGH; about 64 unless told.")
    @argument("--output-tokens", help="The same for answers.")
    @argument("--slo", help="What is good enough, for goodput: first_token_s=0.5,per_token_s=0.05,latency_s=5.")
    @argument("--seed", type=int, help="Draws prompts, lengths and arrivals; the same seed asks the same.")
    @argument("--chat", action="store_true", help="Ask as a chat.")
    @argument("--ignore-eos", dest="ignore_eos", action="store_true", default=None, help="Answers of full length.")
    @argument("--no-ignore-eos", dest="ignore_eos", action="store_false", help="Answers end where the model ends them.")
    @argument("--drain", dest="drain_s", type=float, help="Seconds for the warm-up, and for the last answers: 30.")
    @argument("--url", default="", help="Another server that speaks OpenAI's API, such as http://127.0.0.1:8000.")
    @argument("--key", default="", help="The key of that server.")
    def bench(self, line: str) -> Report:
        """Press a server and measure it: a table, and a plot of tokens/s and latency over the load."""
        given = vars(parsed(self.bench, line))
        url, key = given.pop("url"), given.pop("key")
        client = Client(url, key) if url else session.client()
        with BenchBar() as bar:
            return client.bench(given.pop("name"), on_progress=bar, **given)

    @magic_arguments("dsserve validate")
    @argument("name", help="The candidate, such as demo@v2.")
    @argument("--baseline", default="", help="The version to compare with, such as demo@v1; none only asks prompts.")
    @argument("--prompts", default="", help="A file of prompts and what is expected, one JSON object a line.")
    @argument("--min-pass", type=float, help="The share of the prompts that must pass, 0 to 1: 1 unless told.")
    @argument("--max-latency-ratio", type=float, help="Times the baseline's (p50): 1.2 unless told; 0 is any.")
    @argument("--max-first-token-ratio", type=float, help="The same of the time to the first token: any unless told.")
    @argument("--min-throughput-ratio", type=float, help="The least tokens/s, in the baseline's: any unless told.")
    @argument(
        "--max-error-rate", type=float, help="The share of the load test's requests that may fail: 0 unless told."
    )
    @argument("--rounds", type=int, default=5, help="How often both versions are pressed, in turns.")
    @argument("--seconds", type=float, help="How long each time: 2 unless told.")
    @argument("--concurrency", type=int, help="By how many clients: 4 unless told.")
    @argument("--prompt-tokens", help="About how long the load test's prompts are: 64 unless told.")
    @argument("--output-tokens", help="How long its answers may be: 32 unless told.")
    @argument("--report", action="append", help="A file for it: *.json, *.md or *.xml (JUnit); several times.")
    def validate(self, line: str) -> Verdict:
        """Whether a version may be released: prompts with what is expected, and a load test beside another version."""
        given = vars(parsed(self.validate, line))
        paths = report_paths(given.pop("report") or ())
        with BenchBar() as bar:
            verdict = session.client().validate(given.pop("name"), on_progress=bar, **given)
        write_reports(verdict, paths)
        return verdict

    @magic_arguments("dsserve connect")
    @argument("url", nargs="?", default="", help="Of a gateway: http://127.0.0.1:8899; none is the kernel's own.")
    @argument("--key", default="", help="The key that opens it; without it you are asked.")
    def connect(self, line: str) -> Status | Models:
        """Talk to another gateway from now on."""
        given = parsed(self.connect, line)
        key = given.key or (getpass.getpass(f"Key for {given.url}: ") if given.url else "")
        return session.connect(given.url, key)

    # ---- the cell

    @magic_arguments("dsserve")
    @argument("name", help="A deployment, or one version of it: demo@v2.")
    @argument("--max-tokens", type=int, default=128, help="The longest answer.")
    @argument("--temperature", type=float, help="0 takes the likeliest token; 1 is the default.")
    @argument("--top-p", type=float, help="Only the likeliest tokens that make up this probability.")
    @argument("--top-k", type=int, help="Only this many of the likeliest tokens; 0 is all.")
    @argument("--seed", type=int, help="The same seed and prompt give the same answer.")
    @argument("--stop", action="append", help="Ends the answer; may be given several times.")
    @argument("--user", help="Keeps their version while the weights stand.")
    @argument("--chat", action="store_true", help="The cell is a message, or turns that begin with user: or assistant:")
    @argument("--system", default="", help="Of a chat: what goes before it, in quotes.")
    @argument("--compare", nargs=2, metavar="VERSION", help="Ask two versions; their answers stand side by side.")
    @argument("--n", type=int, default=1, help="So many answers, side by side; with --seed each has the next one.")
    @argument("--save", default="", metavar="NAME", help="The variable that gets the answer (of several: a list).")
    @argument("--regex", help="The form of the answer: a regular expression, in quotes.")
    @argument("--choice", action="append", help="The answer is one of these; give it several times.")
    @argument("--json", default=None, help="The answer fits this JSON schema: a file's name.")
    def ask(self, line: str, cell: str) -> None:
        """Ask a deployment; the answer streams into the output, and interrupting the cell cancels it."""
        given = vars(parsed(self.ask, line))
        name, save = given.pop("name"), given.pop("save")
        compare, num = given.pop("compare"), given.pop("n")
        models = models_asked(name, compare, num)
        if save and not save.isidentifier():
            raise UsageError(f"--save {save}: write the name of a variable")
        given["structured_outputs"] = form(given.pop("regex"), given.pop("choice"), given.pop("json"))
        prompt = prompt_of(cell, given.pop("chat"), given.pop("system"))
        answers: Answer | list[Answer]
        if len(models) == 1:
            answers = streamed(session.client(), name, prompt, given)
        else:
            seed = given.pop("seed")
            step = 0 if compare else 1
            options = [{**given, "seed": None if seed is None else seed + step * i} for i in range(len(models))]
            parts = [Part(model, model.partition("@")[2] or f"{i}") for i, model in enumerate(models, start=1)]
            answers = side_by_side(session.session().make_client, parts, prompt, options)
        if save:
            assert self.shell
            self.shell.user_ns[save] = answers


VERBS = (
    "load",
    "unload",
    "delete",
    "status",
    "route",
    "policy",
    "join",
    "activate",
    "rollout",
    "pause",
    "resume",
    "promote",
    "rollback",
    "logs",
    "ledger",
    "scale",
    "autoscale",
    "history",
    "trace",
    "key",
    "apply",
    "export",
    "panel",
    "bench",
    "validate",
    "connect",
)


def load_ipython_extension(shell: InteractiveShell) -> None:
    """``%load_ext jupyter_dsserve``."""
    shell.register_magics(DSServeMagics)
    parsers = {verb: getattr(DSServeMagics, verb).parser for verb in VERBS} | {"": DSServeMagics.ask.parser}
    install(shell, parsers, Glance(_served))


def _served() -> dict[str, list[str]]:
    """Starts nothing, and gives up after seconds."""
    return {d.name: [v.version for v in d.versions] for d in session.session().quick.status().deployments}


def _in_one_line(verb: Callable[..., Any], *arguments: str) -> Any:
    """Errors without a traceback, and an interrupt that says what became of the request."""
    try:
        return verb(*arguments)
    except DSServeError as fault:
        raise UsageError(fault.message) from None
    except KeyboardInterrupt:
        raise UsageError("interrupted: what was being answered is cancelled; what was loading goes on") from None


def _help() -> str:
    said = {verb: getattr(DSServeMagics, verb).parser.description.strip().splitlines()[0] for verb in VERBS}
    lines = [f"%dsserve {verb:<9} {text}" for verb, text in said.items()]
    cell = "%%dsserve NAME     The cell is the prompt; the answer streams into the output."
    return "\n".join([*lines, cell, "", "%dsserve help VERB and %dsserve help cell say more."])


def _said(method: Callable[..., Any]) -> str:
    """What IPython made of its arguments."""
    return textwrap.dedent((method.__doc__ or "").removeprefix("::\n")).strip()
