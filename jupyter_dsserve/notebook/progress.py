"""A bar while a model is saved, and a version loads: a widget in a notebook, text in a terminal."""

from __future__ import annotations

from types import TracebackType

from jupyter_dsserve.bench.bar import Bar
from jupyter_dsserve.notebook.saved import Saving
from jupyter_dsserve.notebook.views import Version, state_text


class LoadBar:
    """``with LoadBar() as bar: client.load(…, on_progress=bar)``"""

    def __enter__(self) -> LoadBar:
        self._bar: Bar | None = None
        return self

    def __call__(self, now: Version | Saving) -> None:
        self._bar = self._bar or Bar(leave=True)
        self._bar.show(now.progress, str(now) if isinstance(now, Saving) else f"{now.id} {state_text(now)}")

    def __exit__(self, kind: type[BaseException] | None, _value: object, _trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()
