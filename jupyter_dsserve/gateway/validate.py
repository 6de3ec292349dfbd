"""``jupyter dsserve validate``: whether a candidate version may be released, as a CI job asks it."""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

from traitlets import Float, Int, List, Unicode

from jupyter_dsserve import __version__
from jupyter_dsserve.bench.bar import BenchBar
from jupyter_dsserve.bench.plan import Plan
from jupyter_dsserve.bench.prompts import Prompt, read_prompts
from jupyter_dsserve.bench.validate import Trial, validate
from jupyter_dsserve.bench.verdict import Thresholds, Verdict
from jupyter_dsserve.command import SHARED_ALIASES, SHARED_FLAGS, Command
from jupyter_dsserve.gateway.bench import target_of
from jupyter_dsserve.protocol.errors import DSServeError

_FAILED, _COULD_NOT_RUN = 1, 2


def _option(kind: Any, initial: Any, help: str) -> Any:
    return kind(initial, help=help).tag(config=True)


class ValidateApp(Command):
    name = "jupyter-dsserve-validate"
    version = __version__
    description = (
        "Try a candidate version: jupyter dsserve validate demo@v2 --baseline demo@v1 --prompts prompts.jsonl. It asks "
        "the prompts, presses both versions in turns, prints what it saw, and ends with 0 if all thresholds are kept, "
        "with 1 if not, with 2 if it could not be found out. Any server that speaks OpenAI's API will do."
    )
    examples = (
        "jupyter dsserve validate demo@v2 --baseline demo@v1 --prompts prompts.jsonl --report out.junit.xml\n"
        "jupyter dsserve validate demo@v2 --prompts prompts.jsonl --min-pass 0.9 --report out.json --report out.md"
    )

    url = _option(Unicode, "", "The server, such as http://127.0.0.1:8000/v1; none is your gateway on this machine.")
    key = _option(
        Unicode,
        "",
        "Its API key, or @FILE with it, so that it stands in no list of processes; your own gateway's is found.",
    )
    baseline = _option(Unicode, "", "The version to compare with, such as demo@v1; none: only prompts are asked.")
    prompts = _option(Unicode, "", "A file of prompts and what is expected, one JSON object a line; see the docs.")
    report = List(Unicode(), help="A file for the report: *.json, *.md or *.xml (JUnit); several may be given.").tag(
        config=True
    )
    min_pass = _option(Float, 1.0, "The share of the prompts that must pass, 0 to 1.")
    max_latency_ratio = _option(Float, 1.2, "The most that latency (p50) may be, in the baseline's; 0 is any.")
    max_first_token_ratio = _option(Float, 0.0, "The same of the time to the first token; 0 is any.")
    min_throughput_ratio = _option(Float, 0.0, "The least that tokens/s may be, in the baseline's; 0 is any.")
    max_error_rate = _option(Float, 0.0, "The share of the load test's requests that may fail, 0 to 1.")
    rounds = _option(Int, 5, "How often both versions are pressed, in turns.")
    seconds = _option(Float, 2.0, "How long each time.")
    concurrency = _option(Int, 4, "By how many clients.")
    prompt_tokens = _option(Unicode, "64", "About how long the load test's prompts are, as for bench.")
    output_tokens = _option(Unicode, "32", "How long its answers may be, as for bench.")

    aliases = {
        **SHARED_ALIASES,
        "data-dir": "ValidateApp.dsserve_data_dir",
        **{
            name.replace("_", "-"): f"ValidateApp.{name}"
            for name in (
                *("url", "key", "baseline", "prompts", "report", "rounds", "seconds", "concurrency"),
                *("prompt_tokens", "output_tokens", *(each.name for each in fields(Thresholds))),
            )
        },
    }
    flags = SHARED_FLAGS

    def start(self) -> None:
        super().start()
        if len(self.extra_args) != 1:
            self.quit("name one candidate: jupyter dsserve validate demo@v2 [options]; see --help")
        try:
            self._check_files()
            with BenchBar() as bar:
                verdict = validate(self._trial(self.extra_args[0]), bar)
        except DSServeError as fault:
            self.quit(fault.message)
        except KeyboardInterrupt:
            self.quit("interrupted")
        except Exception as fault:  # 1 would say that it was found out
            self.log.exception("it could not be found out")
            self.quit(f"{type(fault).__name__}: {fault}")
        sys.stdout.write(f"{verdict}\n")
        self._write(verdict)
        self.exit(0 if verdict.has_passed else _FAILED)

    def quit(self, message: str) -> NoReturn:
        self.log.critical(message)
        self.exit(_COULD_NOT_RUN)
        raise SystemExit(_COULD_NOT_RUN)

    def _trial(self, candidate: str) -> Trial:
        plan = Plan.read(
            concurrency=self.concurrency,
            seconds=self.seconds,
            prompt_tokens=self.prompt_tokens,
            output_tokens=self.output_tokens,
        )
        thresholds = Thresholds(**{each.name: getattr(self, each.name) for each in fields(Thresholds)})
        if self.rounds < 1:
            self.quit(f"--rounds {self.rounds}: give 1 or more")
        key = self._read(self.key[1:]).strip() if self.key.startswith("@") else self.key
        target = target_of(self, self.url, key, candidate)
        return Trial(target, self.baseline, self._prompts(), thresholds, plan, self.rounds)

    def _prompts(self) -> list[Prompt]:
        return read_prompts(self._read(self.prompts), self.prompts) if self.prompts else []

    def _read(self, name: str) -> str:
        try:
            return Path(name).expanduser().read_text()
        except (OSError, UnicodeDecodeError) as fault:
            self.quit(f"{name} cannot be read ({getattr(fault, 'strerror', None) or fault})")

    def _check_files(self) -> None:
        """Before minutes are spent on what cannot be written."""
        for name in self.report:
            path = Path(name).expanduser().absolute()
            if path.suffix not in _WRITTEN:
                self.quit(f"--report {name}: name a file that ends in {', '.join(_WRITTEN)}")
            if not path.parent.is_dir():
                self.quit(f"--report {name}: there is no such directory")

    def _write(self, verdict: Verdict) -> None:
        for name in self.report:
            path = Path(name).expanduser()
            try:
                path.write_text(_WRITTEN[path.suffix](verdict))
            except OSError as fault:
                self.quit(f"{name} cannot be written ({fault.strerror})")


_WRITTEN = {".json": Verdict.to_json, ".md": Verdict.to_markdown, ".xml": Verdict.to_junit}
