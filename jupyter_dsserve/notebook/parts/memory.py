"""The memory ledger, in a panel: who holds what of each device."""

from __future__ import annotations

from html import escape

import ipywidgets as w

from jupyter_dsserve.notebook.client import Client
from jupyter_dsserve.notebook.ledger import Ledger
from jupyter_dsserve.notebook.parts.common import Fold, scrolled
from jupyter_dsserve.notebook.views import colour_of
from jupyter_dsserve.protocol.records import DeviceMemory
from jupyter_dsserve.protocol.sizes import shown


class Memory(Fold):
    """The ledger's books, a bar for each device above them."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.bars = w.HTML()
        self.books = scrolled("Who holds the memory", "18em")
        super().__init__("Memory", self.bars, self.books)

    def ask(self) -> None:
        ledger: Ledger = self._client.ledger()
        self.bars.value = "".join(bar(device) for device in ledger.devices)
        table = ledger._repr_mimebundle_()["text/html"]
        self.books.value = f'<div style="font-size:85%">{table}</div>'


def bar(device: DeviceMemory) -> str:
    """As HTML, for which no page needs plotly: pieces in the colours of their versions, what other processes have in
    grey, and what is free."""
    pieces = [(h.replica, h.bytes, colour_of(h.owner.partition("@")[2])) for h in device.held]
    pieces += [(o.owner, o.bytes, "rgba(128,128,128,.6)") for o in device.others]
    pieces.append(("free", device.free_bytes, "transparent"))
    whole = sum(num_bytes for _, num_bytes, _ in pieces) or 1
    shares = "".join(
        f'<div title="{escape(name)}: {shown(num_bytes)}" style="width:{100 * num_bytes / whole:.2f}%;'
        f'background:{colour};border-right:1px solid var(--jp-layout-color0,#fff)"></div>'
        for name, num_bytes, colour in pieces
        if num_bytes
    )
    style = "display:flex;height:14px;max-width:52em;margin:4px 0;border:1px solid #8888;background:#8882"
    return f'<div style="{style}">{shares}</div>'
