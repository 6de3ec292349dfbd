"""What happened, in a panel: newest first."""

from __future__ import annotations

import time

from jupyter_dsserve.bench.table import Column, html_table
from jupyter_dsserve.notebook.parts.common import Fold, scrolled
from jupyter_dsserve.notebook.past import Past, in_words

_SHOWN = 50
_ONE_LINE = "white-space:nowrap"
_HEAD = (Column("when", style=_ONE_LINE), Column("what", style=f"{_ONE_LINE};font-weight:bold"), "why")


class Events(Fold):
    """The last events of a deployment."""

    def __init__(self, past: Past) -> None:
        self._past = past
        self.table = scrolled("Events, the newest first", "16em")
        super().__init__("Events", self.table)

    def show(self) -> None:
        newest = self._past.newest(_SHOWN)
        rows = [(time.strftime("%H:%M:%S", time.localtime(e.at)), in_words(e), e.reason) for e in newest]
        box = "font-size:85%;line-height:1.4"
        self.table.value = f'<div style="{box}">{html_table(_HEAD, rows)}</div>' if rows else "nothing yet"
