"""Lines that look, and say where."""

from __future__ import annotations

import getpass

from IPython.core.magic_arguments import argument, magic_arguments

from jupyter_dsserve.notebook import session
from jupyter_dsserve.notebook.arguments import parsed, pinned
from jupyter_dsserve.notebook.chronicle import Chronicle, history_of
from jupyter_dsserve.notebook.ledger import Ledger
from jupyter_dsserve.notebook.panel import Panel, panel
from jupyter_dsserve.notebook.traces import Trace, TraceList
from jupyter_dsserve.notebook.views import Deployment, History, Models, Status


class LookingLines:
    """What there is, and what happened."""

    @magic_arguments("dsserve connect")
    @argument("url", nargs="?", default="", help="Of a gateway: http://127.0.0.1:8899; none is the kernel's own.")
    @argument("--key", default="", help="The key that opens it; without it you are asked.")
    def connect(self, line: str) -> Status | Models:
        """Talk to another gateway from now on, with lines, panels and Client()."""
        given = parsed(self.connect, line)
        key = given.key or (getpass.getpass(f"Key for {given.url}: ") if given.url else "")
        return session.connect(given.url, key)

    @magic_arguments("dsserve status")
    @argument("name", nargs="?", default="", help="One deployment; none shows all.")
    def status(self, line: str) -> Status | Deployment:
        """What is served. Starts nothing."""
        name = parsed(self.status, line).name
        return session.client().deployment(name) if name else session.client().status()

    @magic_arguments("dsserve panel")
    @argument("name", nargs="?", default="", help="The deployment; none takes the first.")
    def panel(self, line: str) -> Panel:
        """Versions, sliders and a live plot."""
        return panel(parsed(self.panel, line).name)

    @magic_arguments("dsserve ledger")
    def ledger(self, line: str) -> Ledger:
        """Who holds the memory of every device, and what waits for it."""
        parsed(self.ledger, line)
        return session.client().ledger()

    @magic_arguments("dsserve logs")
    @argument("name", help="demo@v1; of a single version demo is enough.")
    @argument("--lines", type=int, default=50, help="How many of the last.")
    def logs(self, line: str) -> None:
        """What a version's workers wrote."""
        given = parsed(self.logs, line)
        name, version = pinned("logs", given.name, session.versions_of)
        for worker, lines in session.client().logs(name, version, given.lines).items():
            print(f"---- {worker}", *lines, sep="\n")

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

    @magic_arguments("dsserve trace")
    @argument("id", nargs="?", default="", help="A call's id, of an answer's request_id; none lists the last calls.")
    @argument("--deployment", default="", help="Only calls of this one.")
    @argument("--limit", type=int, default=20, help="How many calls to list.")
    def trace(self, line: str) -> Trace | TraceList:
        """Where the time of a call went: a timeline of its spans; without an id the last calls."""
        return session.client().trace(**vars(parsed(self.trace, line)))
