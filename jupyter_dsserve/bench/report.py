"""What a load test found, and how it shows itself: a table, a plot, JSON, a data frame."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, astuple, dataclass
from html import escape
from typing import Any, Literal

from jupyter_dsserve.bench.measure import Point, Quantiles
from jupyter_dsserve.bench.plan import Plan, Slo
from jupyter_dsserve.bench.table import Column, frame, html_table, text_table

# An idle machine wakes us within a millisecond.
_LATE_S = 0.02


@dataclass(frozen=True, slots=True)
class Report:
    """``url`` and ``model`` were asked from ``begun`` (ISO 8601, UTC) on, as ``plan`` says; a `Point` for each load.

    ``tokens_counted_by`` ``pieces``: the server told no usage for some answer, and each piece of its text counts as a
    token. ``error_details``: what the server said first, for each kind of error.
    """

    url: str
    model: str
    begun: str
    plan: Plan
    points: tuple[Point, ...]
    tokens_counted_by: Literal["usage", "pieces"]
    error_details: dict[str, str]
    is_interrupted: bool

    def to_json(self) -> str:
        """The whole tree, with the lengths and the SLO of the plan as they are written."""
        tree = asdict(self)
        for name in ("prompt_tokens", "output_tokens", "slo"):
            tree["plan"][name] = str(getattr(self.plan, name))
        return json.dumps(tree, indent=1)

    def rows(self) -> list[dict[str, Any]]:
        """A flat record for each point: ``{"concurrency": 4.0, "first_token_s_p95": 0.02, …}``."""
        return [_flat(point) for point in self.points]

    def to_frame(self) -> Any:
        """A pandas DataFrame of `rows`. Raises ImportError without pandas, which is no dependency of ours."""
        return frame(self.rows())

    def figure(self) -> Any:
        """A plotly figure: tokens/s, time to the first token and time a token, over the load."""
        from jupyter_dsserve.bench.figures import sweep_figure

        return sweep_figure(self)

    def __str__(self) -> str:
        head, rows = self._table(_quantile_lines)
        return "\n".join([self._title(), "", text_table(head, rows), "", *self.notes()]).rstrip()

    def _repr_mimebundle_(self, **_: object) -> dict[str, str]:
        notes = "".join(f"<div>{escape(note)}</div>" for note in self.notes())
        html = f"<b>{escape(self._title())}</b>{html_table(*self._table(_quantile_line))}{notes}"
        return {"text/plain": str(self), "text/html": html}

    def _ipython_display_(self) -> None:
        """In a notebook: the table, and the plot as a widget (which needs nothing from the network), or as a picture
        where none shows."""
        from IPython.core.getipython import get_ipython
        from IPython.display import display

        display(self._repr_mimebundle_(), raw=True)
        if self.points and getattr(get_ipython(), "kernel", None):  # a terminal would show its source
            from jupyter_dsserve.bench.fitted import fitted
            from jupyter_dsserve.bench.picture import sweep_svg

            figure = self.figure()
            plot = fitted(figure)._repr_mimebundle_()
            words = {"text/plain": figure.layout.title.text, "text/html": sweep_svg(figure)}
            display({**plot, **words}, raw=True)

    def notes(self) -> list[str]:
        """What a reader of the figures must know, in sentences; often nothing."""
        said = [f"{kind}: {detail}" for kind, detail in self.error_details.items()]
        if self.is_interrupted:
            said.append("It was interrupted: the last point is shorter than planned, and others may be missing.")
        if self.tokens_counted_by == "pieces":
            said.append("The server tells no usage: each piece of text was counted as one token.")
        cold = [str(point.load) for point in self.points if not point.is_warm]
        if cold:
            said.append(
                f"At {', '.join(cold)} the first wave had not ended after {self.plan.drain_s:g} s (drain_s): "
                "the server was still warming up when it was measured."
            )
        empty = [f"{point.load} within {point.window_s:.3g} s" for point in self.points if not point.num_counted]
        if empty:
            said.append(f"No request began at {', '.join(empty)}, so that none was counted: give more seconds.")
        late = [f"{1000 * p.lag_s:.0f} ms at {p.load}" for p in self.points if p.lag_s > _LATE_S]
        if late:
            said.append(
                f"Asking itself came late, by {', '.join(late)} (p95): latencies are too long by as much. Ask from a "
                "machine that has time to spare."
            )
        return said

    def _title(self) -> str:
        plan = self.plan
        span = f"{plan.requests} requests" if plan.requests else f"{plan.seconds:g} s"
        lengths = f"prompts of {plan.prompt_tokens} tokens, answers of {plan.output_tokens}"
        return f"{self.model} at {self.url}: {lengths}, {span} a point, seed {plan.seed}"

    def _table(self, lines_of: Callable[[str, str], list[Line]]) -> tuple[list[Column], list[tuple[str, ...]]]:
        """Measures downwards, loads across; ``lines_of`` the percentiles of a label and a name."""
        kind = "concurrency" if self.plan.concurrency else "requests/s asked"
        head = [Column(kind), *(Column(f"{point.load.value:g}", is_number=True) for point in self.points)]
        slo = f"goodput requests/s ({self.plan.slo})"
        goodput: list[Line] = [(slo, lambda p: f"{p.goodput_per_s:.2f}")] if self.plan.slo != Slo() else []
        times = [line for name in _TIMES for line in lines_of(*name)]
        return head, [(label, *map(of, self.points)) for label, of in (*goodput, *_LINES, *times, *_MEANS)]


Line = tuple[str, Callable[[Point], str]]

_LINES: list[Line] = [
    ("output tokens/s", lambda p: f"{p.output_tokens_per_s:.1f}"),
    ("requests/s", lambda p: f"{p.requests_per_s:.2f}"),
    ("requests in flight", lambda p: f"{p.in_flight:.1f}"),
    ("answered", lambda p: str(p.answered)),
    ("errors", lambda p: " ".join(f"{count} × {kind}" for kind, count in p.errors.items()) or "0"),
    ("unfinished", lambda p: str(p.unfinished)),
]
_TIMES = (
    ("first token", "first_token_s"),
    ("a token after", "per_token_s"),
    ("between pieces", "gap_s"),
    ("whole answer", "latency_s"),
)
_MEANS: list[Line] = [
    ("tokens a prompt, mean", lambda p: _number(p.prompt_tokens)),
    ("tokens an answer, mean", lambda p: _number(p.output_tokens)),
]


def _quantile_lines(label: str, name: str) -> list[Line]:
    return [
        (f"{label}, ms, {q}", lambda p, q=q: _ms(getattr(getattr(p, name), q)))  # type: ignore[misc]
        for q in ("p50", "p95", "p99")
    ]


def _quantile_line(label: str, name: str) -> list[Line]:
    """In one line: a page is wide, and a plot stands below."""
    return [(f"{label}, ms: p50 · p95 · p99", lambda p: " · ".join(_ms(s) for s in astuple(getattr(p, name))))]


def _ms(seconds: float | None) -> str:
    return "–" if seconds is None else f"{1000 * seconds:.1f}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}"


def _flat(point: Point) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in Point.__slots__:
        value = getattr(point, name)
        if name == "load":
            found[point.load.kind] = point.load.value
        elif isinstance(value, Quantiles):
            found |= {f"{name}_{q}": getattr(value, q) for q in Quantiles.__slots__}
        elif name == "errors":
            found["errors"] = sum(value.values())
        else:
            found[name] = value
    return found
