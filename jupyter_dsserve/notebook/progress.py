"""A bar while a model is saved, and a version loads: a widget in a notebook, text in a terminal (tqdm knows which)."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from tqdm.auto import tqdm

from jupyter_dsserve.notebook.saved import Saving
from jupyter_dsserve.notebook.views import Version, state_text


class LoadBar:
    """``with LoadBar() as bar: client.load(…, on_progress=bar)``"""

    def __enter__(self) -> LoadBar:
        self._bar: Any = None
        return self

    def __call__(self, now: Version | Saving) -> None:
        if self._bar is None:
            self._bar = tqdm(total=100, bar_format="{desc} {bar} {elapsed}", leave=True)
        self._bar.n = 100 * now.progress
        self._bar.set_description_str(str(now) if isinstance(now, Saving) else f"{now.id} {state_text(now)}")

    def __exit__(self, kind: type[BaseException] | None, _value: object, _trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()
