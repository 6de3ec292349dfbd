"""What the workers of a version wrote, in a panel."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import ipywidgets as w

from jupyter_dsserve.notebook.client import Client
from jupyter_dsserve.notebook.parts.common import Fold, scrolled

_LINES = 30


class Logs(Fold):
    """The last lines of one version, chosen from all."""

    def __init__(self, name: str, client: Client) -> None:
        self._name, self._client = name, client
        self.version = w.Dropdown(tooltip="The version whose logs are shown", layout={"width": "8em"})
        self.text = scrolled("The last lines of the logs", "16em")
        super().__init__("Logs", self.version, self.text)

    def show(self, versions: Sequence[str]) -> None:
        """The versions there are to choose from."""
        if tuple(versions) != self.version.options:
            kept = self.version.value
            self.version.options = tuple(versions)
            self.version.value = kept if kept in versions else next(iter(versions), None)

    def ask(self) -> None:
        if not self.version.value:
            self.text.value = "no version is registered yet"
            return
        logs = self._client.logs(self._name, self.version.value, _LINES)
        written = "\n".join(f"{worker}\n" + "\n".join(f"  {line}" for line in lines) for worker, lines in logs.items())
        style = "font-size:80%;line-height:1.4;white-space:pre-wrap"
        self.text.value = f'<pre style="{style}">{escape(written or "nothing was written yet")}</pre>'
