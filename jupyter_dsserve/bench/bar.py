"""A bar while a load test runs: a widget in a notebook, text in a terminal (tqdm knows which)."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from tqdm.auto import tqdm

from jupyter_dsserve.bench.run import Progress


class BenchBar:
    """``with BenchBar() as bar: run_blocking(target, plan, bar)``"""

    def __enter__(self) -> BenchBar:
        self._bar: Any = tqdm(total=100, bar_format="{desc} {bar} {elapsed}", leave=False)
        return self

    def __call__(self, progress: Progress) -> None:
        self._bar.n = 100 * progress.done
        self._bar.set_description_str(progress.text)

    def __exit__(self, kind: type[BaseException] | None, _value: object, _trace: TracebackType | None) -> None:
        self._bar.close()
