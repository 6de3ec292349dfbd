"""``jupyter dsserve validate``: whether a candidate version may be released, as a CI job asks it."""

from __future__ import annotations

import sys
from dataclasses import fields
from typing import Any, NoReturn

from traitlets import Float, Int, List, Unicode

from jupyter_dsserve import __version__
from jupyter_dsserve.bench.bar import BenchBar
from jupyter_dsserve.bench.reports import file_text, report_paths, write_reports
from jupyter_dsserve.bench.trial import trial_of
from jupyter_dsserve.bench.validate import Trial, validate
from jupyter_dsserve.bench.verdict import Thresholds
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
            reports = report_paths(self.report)
            with BenchBar() as bar:
                verdict = validate(self._trial(self.extra_args[0]), bar)
            sys.stdout.write(f"{verdict}\n")
            write_reports(verdict, reports)
        except DSServeError as fault:
            self.quit(fault.message)
        except KeyboardInterrupt:
            self.quit("interrupted")
        except Exception as fault:  # 1 would say that it was found out
            self.log.exception("it could not be found out")
            self.quit(f"{type(fault).__name__}: {fault}")
        self.exit(0 if verdict.has_passed else _FAILED)

    def quit(self, message: str) -> NoReturn:
        self.log.critical(message)
        self.exit(_COULD_NOT_RUN)
        raise SystemExit(_COULD_NOT_RUN)

    def _trial(self, candidate: str) -> Trial:
        key = file_text(self.key[1:]).strip() if self.key.startswith("@") else self.key
        options = {each.name: getattr(self, each.name) for each in fields(Thresholds)}
        options |= {name: getattr(self, name) for name in ("seconds", "concurrency", "prompt_tokens", "output_tokens")}
        target = target_of(self, self.url, key, candidate)
        return trial_of(target, self.baseline, self.prompts, rounds=self.rounds, **options)
