"""`Ledger`: who holds the memory of every device, as a table and a picture of bars."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any

from jupyter_dsserve.bench.table import Column, Head, frame, html_table, text_table
from jupyter_dsserve.notebook.views import Shown
from jupyter_dsserve.protocol.records import DeviceMemory, LedgerStatus
from jupyter_dsserve.protocol.sizes import shown

_NOTE = Column("", style="min-width:10em")  # a word a line is hard to read
_HEAD: Head = ("", *(Column(name, is_number=True) for name in ("holds", "taken", "expected")), _NOTE)


@dataclass(frozen=True, slots=True, repr=False)
class Ledger(Shown, LedgerStatus):
    """The books as they were when they were asked for."""

    def to_frame(self) -> Any:
        """A pandas DataFrame, a row for each holder of each device. Raises ImportError without pandas."""
        held = [(d.id, h.replica, True, h.bytes) for d in self.devices for h in d.held]
        others = [(d.id, o.owner, False, o.bytes) for d in self.devices for o in d.others]
        names = ("device", "owner", "is_ours", "num_bytes")
        return frame([dict(zip(names, row, strict=True)) for row in (*held, *others)])

    def figure(self) -> Any:
        """A plotly figure: a bar for each device, a piece for each holder."""
        from jupyter_dsserve.notebook.figures import ledger_figure

        return ledger_figure(self)

    def __str__(self) -> str:
        parts = []
        for device in self.devices:
            rows = _rows(device)
            parts += [_title(device), *([text_table(_HEAD, rows)] if rows else [])]
        return "\n".join([*parts, *self.waits()])

    def waits(self) -> list[str]:
        """What waits, the next first, a sentence each."""
        return [f"{w.replica} ({w.priority}) {w.reason}" for w in self.waiting]

    def _repr_mimebundle_(self, **_: object) -> dict[str, str]:
        tables = []
        for device in self.devices:
            rows = _rows(device)
            tables.append(f"<b>{escape(_title(device))}</b>{html_table(_HEAD, rows) if rows else ''}")
        waits = "".join(f"<div>{escape(wait)}</div>" for wait in self.waits())
        return {"text/plain": str(self), "text/html": "".join(tables) + waits}

    def _ipython_display_(self) -> None:
        """In a notebook: the table, and the picture as a widget (which needs nothing from the network)."""
        from IPython.core.getipython import get_ipython
        from IPython.display import display

        display(self._repr_mimebundle_(), raw=True)
        if getattr(get_ipython(), "kernel", None):  # a terminal would show its source
            from jupyter_dsserve.bench.fitted import fitted

            plot = fitted(self.figure())._repr_mimebundle_()
            display({**plot, "text/html": "", "text/plain": ""}, raw=True)  # where no widget shows, the table says it


def _title(device: DeviceMemory) -> str:
    return (
        f"{device.id}: {shown(device.free_bytes)} free of the {shown(device.capacity_bytes)} that may be held, of "
        f"{shown(device.device_bytes)} in all"
    )


def _rows(device: DeviceMemory) -> list[tuple[str, ...]]:
    """Ours first, then other processes, of which only is known what they have."""
    ours = [(h.replica, shown(h.bytes), shown(h.taken_bytes), shown(h.expected_bytes), h.note) for h in device.held]
    return [*ours, *((o.owner, "", shown(o.bytes), "", "") for o in device.others)]
