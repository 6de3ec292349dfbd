"""`Ledger`: who holds the memory of every device, as a table and a picture of bars."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any

from jupyter_dsserve.protocol.records import DeviceMemory, LedgerStatus
from jupyter_dsserve.protocol.sizes import shown

_HEAD = ("", "holds", "taken", "expected", "")


@dataclass(frozen=True, slots=True)
class Ledger(LedgerStatus):
    """The books as they were when they were asked for."""

    def figure(self) -> Any:
        """A plotly figure: a bar for each device, a piece for each holder."""
        from jupyter_dsserve.notebook.figures import ledger_figure

        return ledger_figure(self)

    def __str__(self) -> str:
        parts = []
        for device in self.devices:
            rows = [_HEAD, *_rows(device)]
            widths = [max(len(row[i]) for row in rows) for i in range(len(_HEAD))]
            lines = [
                "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
                for row in rows
            ]
            parts += [_title(device), *(line.rstrip() for line in lines[: len(rows) if len(rows) > 1 else 0])]
        return "\n".join([*parts, *self.waits()])

    def waits(self) -> list[str]:
        """What waits, the next first, a sentence each."""
        return [f"{w.replica} ({w.priority}) {w.reason}" for w in self.waiting]

    def _repr_mimebundle_(self, **_: object) -> dict[str, str]:
        tables = []
        for device in self.devices:
            body = "".join(f"<tr>{_html_row(row, 'td')}</tr>" for row in _rows(device))
            table = f"<table><tr>{_html_row(_HEAD, 'th')}</tr>{body}</table>" if body else ""
            tables.append(f"<b>{escape(_title(device))}</b>{table}")
        waits = "".join(f"<div>{escape(wait)}</div>" for wait in self.waits())
        return {"text/plain": str(self), "text/html": "".join(tables) + waits}

    def _ipython_display_(self) -> None:
        """In a notebook: the table, and the picture as a widget (which needs nothing from the network)."""
        from IPython.core.getipython import get_ipython
        from IPython.display import display

        display(self._repr_mimebundle_(), raw=True)
        if getattr(get_ipython(), "kernel", None):  # a terminal would show its source
            import plotly.graph_objects as go

            display(go.FigureWidget(self.figure()))


def _title(device: DeviceMemory) -> str:
    return (
        f"{device.id}: {shown(device.free_bytes)} free of the {shown(device.capacity_bytes)} that may be held, of "
        f"{shown(device.device_bytes)} in all"
    )


def _rows(device: DeviceMemory) -> list[tuple[str, ...]]:
    """Ours first, then other processes, of which only is known what they have."""
    ours = [(h.replica, shown(h.bytes), shown(h.taken_bytes), shown(h.expected_bytes), h.note) for h in device.held]
    return [*ours, *((o.owner, "", shown(o.bytes), "", "") for o in device.others)]


def _html_row(cells: tuple[str, ...], tag: str) -> str:
    first, *rest = map(escape, cells)
    return f'<{tag} style="text-align:left">{first}</{tag}>' + "".join(
        f'<{tag} style="text-align:right">{cell}</{tag}>' for cell in rest
    )
