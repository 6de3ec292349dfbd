"""`Chronicle`: what versions did in a time, and what happened to them: a plot, and two tables."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any

from jupyter_dsserve.bench.table import Bundle
from jupyter_dsserve.notebook.client import Client
from jupyter_dsserve.notebook.past import Mark, marks_of
from jupyter_dsserve.notebook.stats import StatsTable, seconds_of
from jupyter_dsserve.notebook.views import History, Shown
from jupyter_dsserve.protocol.errors import InvalidRequest

# Below one another: side by side they are wider than a page, and each would be cut.
_BOX = "max-height:24em;overflow:auto;font-size:85%;margin-top:1em"


@dataclass(frozen=True, slots=True, repr=False)
class Chronicle(Shown):
    """``stats`` in steps of minutes, and the ``events`` of the same time; both have `to_frame`."""

    stats: StatsTable
    events: History

    def figure(self) -> Any:
        """A plotly figure: requests/s, latencies and errors of each version, with a mark where traffic was moved."""
        from jupyter_dsserve.notebook.past_figure import past_figure

        return past_figure(self.stats, self._marks())

    def _marks(self) -> list[Mark]:
        return marks_of(self.events)

    def _repr_mimebundle_(self, **_: object) -> Bundle:
        tables = self._tables()
        return {**tables, "text/html": f"{self._pictures()}{tables['text/html']}"}

    def _pictures(self) -> str:
        from jupyter_dsserve.notebook.past_figure import past_pictures

        return f"<div>{past_pictures(self.stats, self._marks())}</div>"

    def _tables(self) -> Bundle:
        numbers, events = self.stats._repr_mimebundle_(), self.events._repr_mimebundle_()
        title = f"in steps of {self.stats.step_s // 60} min"
        boxes = "".join(f'<div style="{_BOX}">{part["text/html"]}</div>' for part in (numbers, events))
        return {
            "text/plain": f"{title}\n{numbers['text/plain']}\n\n{events['text/plain']}",
            "text/html": f"{escape(title)}{boxes}",
        }

    def _ipython_display_(self) -> None:
        """In a notebook: the plot as a widget (which needs nothing from the network), or as a picture where none shows;
        below it the tables."""
        from IPython.core.getipython import get_ipython
        from IPython.display import display

        if self.stats.series and getattr(get_ipython(), "kernel", None):  # a terminal would show its source
            from jupyter_dsserve.bench.fitted import fitted

            plot = fitted(self.figure())._repr_mimebundle_()
            display({**plot, "text/html": self._pictures(), "text/plain": ""}, raw=True)
        display(self._tables(), raw=True)


def history_of(
    client: Client,
    *,
    name: str = "",
    deployment: str = "",
    since: str | None = None,
    start: str | None = None,
    until: str | None = None,
    step: str | None = None,
    limit: int | None = None,
) -> History | Chronicle:
    """What ``%dsserve history`` shows: the last events, or of a time the numbers too. Raises `InvalidRequest`."""
    if name and deployment and name != deployment:
        raise InvalidRequest(f"{name} and --deployment {deployment} name two deployments: leave one of them out")
    if since and start:
        raise InvalidRequest(f"--since {since} and --from {start} are two beginnings: leave one of them out")
    which, begin = name or deployment, start or since
    id = int(since) if since and _is_number(since) else None
    if id is not None and (until or step):
        raise InvalidRequest(f"--since {since} is the id of an event, which goes without --to and --step: give a time")
    if id is not None or (begin is None and until is None and step is None):
        return client.history(which, since=id, limit=limit or 30)
    begin = begin or "24h"
    step_s = None if step is None else int(step) if _is_number(step) else seconds_of(step, "step")
    stats = client.stats(which, since=begin, until=until, step_s=step_s)
    return Chronicle(stats, client.history(which, since=begin, until=until, limit=limit or 1000))


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()
