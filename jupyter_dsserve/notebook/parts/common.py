"""What the parts of a panel share."""

from __future__ import annotations

import time
from collections.abc import Callable
from html import escape
from typing import Any

import ipywidgets as w

from jupyter_dsserve.notebook.views import ink
from jupyter_dsserve.protocol.errors import DSServeError

# Runs what a hand asks for, and says in the panel what became of it: what a callback prints or raises nobody sees.
Act = Callable[[Callable[[], str]], None]

_ASK_S = 2.0


def button(description: str, tooltip: str = "", **more: Any) -> w.Button:
    return w.Button(description=description, tooltip=tooltip, layout={"width": "6.5em"}, **more)


class Fold(w.Accordion):  # type: ignore[misc]  # ipywidgets has no types
    """Something that can be folded away, and is at first. While it is, nothing is asked for it."""

    def __init__(self, title: str, *children: w.Widget) -> None:
        self.trouble = w.HTML()
        super().__init__([w.VBox([*children, self.trouble])], titles=[title], selected_index=None)
        self._asked_at = 0.0

    @property
    def is_open(self) -> bool:
        return self.selected_index is not None

    def refresh(self) -> None:
        """Ask and show, if it is open, and was not asked a moment ago."""
        if not self.is_open or time.monotonic() < self._asked_at + _ASK_S:
            return
        self._asked_at = time.monotonic()
        try:
            self.ask()
        except DSServeError as fault:
            self.trouble.value = in_red(fault.message)
        else:
            self.trouble.value = ""

    def ask(self) -> None:
        """Get what it shows from the gateway."""


def scrolled(name: str, height: str) -> w.HTML:
    """What is cut at ``height`` and scrolls, by keyboard too: the box keeps the focus when its words change."""
    return w.HTML(tooltip=name, tabbable=True, layout={"max_height": height, "overflow": "auto"})


def close_all(widget: Any) -> None:
    """ipywidgets' own ``close`` leaves what a widget is made of in the kernel and in the browser."""
    for part in [*getattr(widget, "children", ()), getattr(widget, "layout", None), getattr(widget, "style", None)]:
        if isinstance(part, w.Widget):
            close_all(part)
    w.Widget.close(widget)


def in_red(text: str) -> str:
    return f'<span style="color:{ink("#D55E00")}">{escape(text)}</span>' if text else ""


def small(*lines: str) -> str:
    return "".join(f'<div style="font-size:80%;line-height:1.4">{escape(line)}</div>' for line in lines if line)
