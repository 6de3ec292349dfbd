"""What happened, in a panel: newest first."""

from __future__ import annotations

import time
from html import escape

import ipywidgets as w

from jupyter_dsserve.notebook.parts.common import Fold
from jupyter_dsserve.notebook.past import Past, in_words

_SHOWN = 50


class Events(Fold):
    """The last events of a deployment."""

    def __init__(self, past: Past) -> None:
        self._past = past
        self.table = w.HTML()
        super().__init__("Events", self.table)

    def show(self) -> None:
        rows = "".join(
            f'<tr><td style="white-space:nowrap">{time.strftime("%H:%M:%S", time.localtime(event.at))}</td>'
            f'<td style="white-space:nowrap"><b>{escape(in_words(event))}</b></td><td>{escape(event.reason)}</td></tr>'
            for event in self._past.newest(_SHOWN)
        )
        box = "max-height:18em;overflow:auto;font-size:85%;line-height:1.4"
        self.table.value = f'<div style="{box}"><table>{rows}</table></div>' if rows else "nothing yet"
