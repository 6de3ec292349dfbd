"""A bar while something runs: a widget in a notebook, text in a terminal (tqdm knows which)."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from tqdm.auto import tqdm
from tqdm.notebook import tqdm_notebook

from jupyter_dsserve.bench.run import Progress


class Bar:
    """Goes from 0 to 100. In a terminal ``leave`` keeps it; a notebook takes it off the page at its end: a page that is
    loaded again, or is made of the saved notebook, would show an error or a time in its place."""

    def __init__(self, leave: bool) -> None:
        self._place: Any = None
        options: dict[str, Any] = {"total": 100, "bar_format": "{desc} {bar} {elapsed}", "leave": leave}
        if not issubclass(tqdm, tqdm_notebook):
            self._bar: Any = tqdm(**options)
            return
        from IPython.display import display

        self._bar = tqdm(**options, display=False)
        self._place = display(self._bar.container, display_id=True)

    def show(self, done: float, text: str) -> None:
        """``done``: 0 to 1."""
        self._bar.n = 100 * done
        self._bar.set_description_str(text)

    def close(self) -> None:
        self._bar.close()
        if self._place is not None:
            self._place.update({"text/plain": ""}, raw=True)
            self._bar.container.close()


class BenchBar:
    """``with BenchBar() as bar: run_blocking(target, plan, bar)``"""

    def __enter__(self) -> BenchBar:
        self._bar = Bar(leave=False)
        return self

    def __call__(self, progress: Progress) -> None:
        self._bar.show(progress.done, progress.text)

    def __exit__(self, kind: type[BaseException] | None, _value: object, _trace: TracebackType | None) -> None:
        self._bar.close()
