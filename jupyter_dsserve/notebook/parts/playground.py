"""A prompt, and the answers of two versions side by side."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from html import escape
from typing import Any

import ipywidgets as w

from jupyter_dsserve.notebook.asking import answer_column
from jupyter_dsserve.notebook.client import AsyncClient
from jupyter_dsserve.notebook.parts.common import Fold, button, in_red
from jupyter_dsserve.notebook.views import Answer, Deployment
from jupyter_dsserve.notebook.words import marked
from jupyter_dsserve.protocol.errors import DSServeError

_SHOW_S = 0.25  # at most four updates a second


class Playground(Fold):
    """Asks in a thread of its own, so that a cell may run meanwhile; one question at a time."""

    def __init__(self, name: str, make_client: Callable[[], AsyncClient]) -> None:
        """``make_client`` is called in the thread, for its event loop."""
        self._name, self._make_client = name, make_client
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._cancel: Callable[[], object] = lambda: None
        self.prompt = w.Textarea(placeholder="What both are asked", rows=3, layout={"width": "calc(100% - 4px)"})
        self.max_tokens = w.BoundedIntText(64, min=1, max=100_000, description="tokens", layout={"width": "10em"})
        self.temperature = w.BoundedFloatText(0.0, min=0.0, max=2.0, step=0.1, description="temperature")
        self.temperature.layout.width, self.temperature.style.description_width = "11em", "6.5em"
        self.chosen = [
            w.Dropdown(tooltip=tip, layout={"width": "7em"})
            for tip in ("The version that is asked", "The version that is asked beside it, if any")
        ]
        self.button = button("Ask", "Ask both versions", icon="comment", button_style="primary")
        # Below one another where each would be narrower than that.
        self.columns = [w.HTML(layout={"flex": "1 1 16em", "min_width": "0"}) for _ in range(2)]
        self.button.on_click(lambda _: self._toggle())
        row = [self.chosen[0], w.Label("beside"), self.chosen[1], self.max_tokens, self.temperature, self.button]
        answers = w.HBox(self.columns, layout={"flex_flow": "row wrap"})
        super().__init__("Playground", self.prompt, w.HBox(row, layout={"flex_flow": "row wrap"}), answers)

    def show(self, found: Deployment | None) -> None:
        """The versions there are to ask."""
        ready = [v.version for v in found.versions if v.is_ready] if found else []
        for place, each in enumerate(self.chosen):
            options = (*ready, "") if place else tuple(ready)  # without a second one the first is asked alone
            if options == each.options:
                continue
            kept = each.value
            each.options = options
            wanted = ready[place] if len(ready) > place else ""
            each.value = kept if kept and kept in options else wanted if wanted in options else None

    def stop(self) -> None:
        """Cancel what is being asked."""
        with self._lock:
            self._thread = None
            self._cancel()

    def _toggle(self) -> None:
        if self._thread:
            self.stop()
            return
        models = [each.value for each in self.chosen if each.value]
        text, options = self.prompt.value, {"max_tokens": self.max_tokens.value, "temperature": self.temperature.value}
        with self._lock:
            work = self._run(models, text, options)
            self._thread = threading.Thread(target=lambda: asyncio.run(work), name="dsserve-playground", daemon=True)
            self._thread.start()

    async def _run(self, versions: Sequence[str], prompt: str, options: dict[str, Any]) -> None:
        me, loop, task = threading.current_thread(), asyncio.get_running_loop(), asyncio.current_task()
        assert task
        with self._lock:
            if self._thread is not me:  # stopped before it began
                return
            self._cancel = lambda: loop.call_soon_threadsafe(task.cancel)
        self.button.description, self.button.icon = "Stop", "stop"
        for column in self.columns:
            column.value = ""
        client = self._make_client()
        try:
            asked = [self._ask(client, i, version, prompt, options) for i, version in enumerate(versions)]
            answers = await asyncio.gather(*asked)
            self._mark(list(answers))
        except asyncio.CancelledError:
            pass
        finally:
            with self._lock:
                if self._thread in (me, None):
                    self._thread, self._cancel = None, lambda: None
            self.button.description, self.button.icon = "Ask", "comment"
            await client.aclose()

    async def _ask(
        self, client: AsyncClient, place: int, version: str, prompt: str, options: dict[str, Any]
    ) -> Answer | None:
        """The answer, in its column as it comes; None if there was none."""
        column, text, shown_at = self.columns[place], "", 0.0
        column.value = answer_column(version, "", "asked")
        stream = client.stream(f"{self._name}@{version}", prompt, **options)
        try:
            async with aclosing(aiter(stream)) as pieces:
                async for piece in pieces:
                    text += piece
                    if time.monotonic() > shown_at + _SHOW_S:
                        column.value, shown_at = answer_column(version, escape(text), "answers"), time.monotonic()
        except DSServeError as fault:
            column.value = answer_column(version, f"{escape(text)}{in_red(fault.message)}", "")
        except BaseException:
            column.value = answer_column(version, escape(text), "stopped")
            raise
        if stream.answer:
            column.value = answer_column(version, escape(text), stream.answer.summary)
        return stream.answer

    def _mark(self, answers: Sequence[Answer | None]) -> None:
        if len(answers) == 2 and answers[0] and answers[1]:
            texts = marked(answers[0].text, answers[1].text)
            for column, answer, text in zip(self.columns, answers, texts, strict=True):
                assert answer
                column.value = answer_column(answer.version, text, answer.summary)
