"""`Trace`: what happened in one call, as a timeline; `TraceList`: the last calls, a line each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, overload

from jupyter_dsserve.bench.table import Bundle, Column, frame, table
from jupyter_dsserve.notebook.views import Shown, footnote
from jupyter_dsserve.protocol.traces import Span, TraceRecord, TraceSummary

_WIDTH = 40  # characters of the bars in the text
_SPANS = (
    Column("span", style="white-space:pre"),  # blanks set names off to the right
    Column("from ms", is_number=True),
    Column("takes ms", is_number=True),
    Column("", style="white-space:pre"),
    "",
)
_TOOK, _FIRST = Column("took", is_number=True), Column("first token", is_number=True)
_CALLS = ("when", "request", "model", _TOOK, _FIRST, "tokens", "")
# In the bars' place names stand for themselves; these say more than time.
_TOLD = {
    "dsserve.replica": "",
    "dsserve.end": "",
    "error.type": "",
    "dsserve.batch_sequences": "batch ",
    "dsserve.num_steps": "steps ",
    "http.response.status_code": "HTTP ",
}


@dataclass(frozen=True, slots=True, repr=False)
class Trace(Shown, TraceRecord):
    """A call as it was when it was asked for: ``spans``, parents first, in seconds from its arrival."""

    @property
    def title(self) -> str:
        return f"{self.id}  {', '.join(filter(None, _cells(self)))}"

    def depths(self) -> list[int]:
        """How far down in the tree each span stands."""
        found: dict[str, int] = {}
        for span in self.spans:
            found[span.span_id] = found.get(span.parent_id, -1) + 1
        return list(found.values())

    def figure(self) -> Any:
        """A plotly figure: a bar for each span on the time axis."""
        from jupyter_dsserve.notebook.timeline import timeline_figure

        return timeline_figure(self)

    def _rows(self) -> Bundle:
        rows = [
            (
                f"{'  ' * depth}{span.name}",
                f"{1000 * span.start_s:.1f}",
                f"{1000 * span.duration_s:.1f}",
                _bar(span, self.duration_s),
                told_of(span),
            )
            for span, depth in zip(self.spans, self.depths(), strict=True)
        ]
        return table(_SPANS, rows)

    def _repr_mimebundle_(self, **_: object) -> Bundle:
        rows = self._rows()
        return {
            "text/plain": f"{self.title}\n{rows['text/plain']}",
            "text/html": f"{footnote(self.title)}{rows['text/html']}",
        }

    def _ipython_display_(self) -> None:
        """In a notebook: the timeline as a widget (which needs nothing from the network), and below it the table."""
        from IPython.core.getipython import get_ipython
        from IPython.display import display

        if getattr(get_ipython(), "kernel", None):  # a terminal would show its source
            from jupyter_dsserve.bench.fitted import fitted

            plot = fitted(self.figure())._repr_mimebundle_()
            display({**plot, "text/html": "", "text/plain": ""}, raw=True)  # where no widget shows, the table says it
        display(self._repr_mimebundle_(), raw=True)


@dataclass(frozen=True, slots=True, repr=False)
class TraceList(Shown, Sequence[TraceSummary]):
    """The last calls, the newest first."""

    traces: list[TraceSummary] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.traces)

    @overload
    def __getitem__(self, index: int) -> TraceSummary: ...
    @overload
    def __getitem__(self, index: slice) -> list[TraceSummary]: ...
    def __getitem__(self, index: int | slice) -> TraceSummary | list[TraceSummary]:
        return self.traces[index]

    def to_frame(self) -> Any:
        """A pandas DataFrame, a row for each call. Raises ImportError without pandas."""
        return frame([asdict(trace) for trace in self.traces])

    def _repr_mimebundle_(self, **_: object) -> Bundle:
        if not self:
            return {"text/plain": "no calls yet", "text/html": "no calls yet"}
        return table(_CALLS, [(_time(t), t.id, *_cells(t)) for t in self])


def told_of(span: Span) -> str:
    """What a span says besides its times, in a few words."""
    said = {name: value for name in _TOLD if (value := span.attributes.get(name)) is not None}
    return ", ".join(f"{_TOLD[name]}{value}" for name, value in said.items())


def _cells(trace: TraceSummary) -> tuple[str, ...]:
    model = f"{trace.deployment}@{trace.version}" if trace.version else trace.model
    first = "" if trace.first_token_s is None else f"{1000 * trace.first_token_s:.0f} ms"
    return (
        model,
        f"{1000 * trace.duration_s:.0f} ms",
        first,
        f"{trace.input_tokens} → {trace.output_tokens}",
        trace.outcome,
    )


def _time(trace: TraceSummary) -> str:
    return datetime.fromtimestamp(trace.at).astimezone().strftime("%H:%M:%S")


def _bar(span: Span, whole_s: float) -> str:
    scale = _WIDTH / max(whole_s, 1e-9)
    start = min(_WIDTH - 1, int(span.start_s * scale))
    return "·" * start + "█" * max(1, min(_WIDTH - start, round(span.duration_s * scale)))
