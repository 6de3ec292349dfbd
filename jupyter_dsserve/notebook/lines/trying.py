"""Lines that press a version and judge it."""

from __future__ import annotations

from IPython.core.magic_arguments import argument, magic_arguments

from jupyter_dsserve.bench.bar import BenchBar
from jupyter_dsserve.bench.report import Report
from jupyter_dsserve.bench.reports import report_paths, write_reports
from jupyter_dsserve.bench.verdict import Verdict
from jupyter_dsserve.notebook import session
from jupyter_dsserve.notebook.arguments import parsed
from jupyter_dsserve.notebook.client import Client


class TryingLines:
    """The load test, and whether a version may be released."""

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
