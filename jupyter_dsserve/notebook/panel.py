"""`panel`: a deployment, live: versions and their shares, a rollout, plots, a playground, events, memory, logs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from html import escape
from typing import Any, TypeVar

import ipywidgets as w

from jupyter_dsserve.notebook.client import Record
from jupyter_dsserve.notebook.parts.common import button, close_all, in_red
from jupyter_dsserve.notebook.parts.events import Events
from jupyter_dsserve.notebook.parts.eye import Eye
from jupyter_dsserve.notebook.parts.logs import Logs
from jupyter_dsserve.notebook.parts.memory import Memory
from jupyter_dsserve.notebook.parts.playground import Playground
from jupyter_dsserve.notebook.parts.plots import Plots
from jupyter_dsserve.notebook.parts.rollout import RolloutControls
from jupyter_dsserve.notebook.parts.versions import Versions
from jupyter_dsserve.notebook.past import KEPT, Past
from jupyter_dsserve.notebook.series import WINDOWS_S, Series
from jupyter_dsserve.notebook.session import Session, session
from jupyter_dsserve.notebook.still import still
from jupyter_dsserve.notebook.views import Deployment
from jupyter_dsserve.protocol.errors import DSServeError, NotFound
from jupyter_dsserve.protocol.records import Event, VersionStats

T = TypeVar("T")

# By deployment. In a module and not in the notebook: there it would be forgotten when the cell runs again, and the old
# panels would live on.
_live: dict[str, Panel] = {}


def panel(name: str = "") -> Panel:
    """A live panel of the deployment ``name``, or of the first there is. One of each: an older one is closed, and the
    new one goes on with its curves."""
    now = session()
    if not name:
        name = next((d.name for d in now.client.status().deployments), "demo")
    old = _live.pop(name, None)
    if old:
        old.close()
    _live[name] = Panel(name, now, old.series if old else None, old.span.value if old else WINDOWS_S[0])
    return _live[name]


class Panel(w.VBox):  # type: ignore[misc]  # ipywidgets has no types
    """Lives until `stop`, its Stop button, or the next panel of the same deployment.

    Changed by callbacks in the kernel's main thread (in a subshell's with some kernels) and by the feed's: ``_lock`` is
    held by whoever touches its state, and never while the gateway is asked: one that hangs must not hold up the others.
    """

    def __init__(
        self, name: str, session: Session, series: Series | None = None, window_s: float = WINDOWS_S[0]
    ) -> None:
        self.name = name
        self._client, self._feed = session.quick, session.feed
        self._lock = threading.RLock()
        self._deployment: Deployment | None = None
        self.series = series or Series()
        self._past = Past(name)
        self._num_asked = self._num_shown = 0  # an answer that was overtaken by a later one is not shown
        self._was_shown = False
        self._where = "nothing is known of it yet"  # where it is served, or why it is not
        self._minute = -1.0  # in which the minutes before were told
        self._unread: dict[str, str] = {}  # what of the past could not be read, and why

        self._title = w.HTML(layout={"flex": "1 1 14em"})
        self._stop_button = button("Stop", "Stop the live updates", icon="stop")
        self.span = w.Dropdown(
            options=[(f"{seconds / 60:.0f} min", seconds) for seconds in WINDOWS_S],
            value=window_s,
            tooltip="How much of the past the plots show",
            layout={"width": "6em"},
        )
        self._message = w.HTML()  # what became of the last action
        self._trouble = w.HTML()  # why no news come
        self.versions = Versions(name, self._client, session.client, self._act, self._lock)
        self.rollout = RolloutControls(name, self._client, self._act)
        self.plots = Plots(name)
        self.playground = Playground(name, session.make_client)
        self.events = Events(self._past)
        self.memory = Memory(self._client)
        self.logs = Logs(name, self._client)
        self.eye = Eye(self._on_seen)
        self._folds = [self.playground, self.events, self.memory, self.logs]
        self._head = w.HBox([self._title, self.eye, self.span, self._stop_button], layout={"flex_flow": "row wrap"})
        super().__init__()
        self.add_class("dsserve-panel")
        self._arrange()

        self.plots.span(window_s)
        self.span.observe(lambda _: self._on_span(), names="value")
        self.eye.observe(lambda change: self._on_width(change["new"]), names="is_narrow")
        self._stop_button.on_click(lambda _: self.stop())
        for fold in (self.memory, self.logs):
            fold.observe(lambda change: change["owner"].refresh(), names="selected_index")
        self.refresh()
        self._feed.listen(self._on_records)

    # ---- what people do

    def stop(self) -> None:
        """End the live updates; the last picture stays."""
        self._feed.forget(self._on_records)
        self.playground.stop()
        self._stop_button.disabled = True
        self._say("stopped: run the cell again to go on")

    def close(self) -> None:
        """Stop, and take it off the page, with all that stands in it."""
        self.stop()
        if self.comm is not None:
            self.eye.leave()
        for part in (self.rollout, self.plots.figure, *self._folds, self):  # also what does not stand in it now
            close_all(part)

    def _on_seen(self) -> None:
        if not self._stop_button.disabled:
            self._look()

    def _on_span(self) -> None:
        with self._lock:
            if self.comm is not None:
                self.plots.span(self.span.value)
                self._draw()

    def _on_width(self, is_narrow: bool) -> None:
        with self._lock:
            if self.comm is not None:
                self.plots.fit(is_narrow)
                self._draw()

    def refresh(self) -> None:
        """Show what the gateway says now."""
        with self._lock:
            self._num_asked += 1
            asked = self._num_asked
        found: Deployment | None = None
        others: list[str] = []
        trouble = ""
        try:
            try:
                found = self._client.deployment(self.name)
            except NotFound:
                others = [d.name for d in self._client.status().deployments]
        except DSServeError as fault:
            trouble = fault.message
        with self._lock:
            self._trouble.value = in_red(trouble or next(iter(self._unread.values()), ""))
            if not trouble and asked > self._num_shown and self.comm is not None:
                self._num_shown = asked
                self._show(found, others)

    def _act(self, action: Callable[[], str]) -> None:
        """What a callback prints or raises nobody sees: what became of it is said in the panel."""
        self._say("")
        try:
            self._say(action())
        except DSServeError as fault:
            self._say(fault.message, is_error=True)
        self.refresh()

    # ---- what the gateway tells, in the feed's thread

    def _on_records(self, records: list[Record], trouble: str) -> None:
        if trouble:
            self._trouble.value = in_red(trouble)
            return
        # Nothing at all is said when the stream has just been opened: what happened before, it does not tell.
        events = [r for r in records if isinstance(r, Event)]
        if not records or "history" in self._unread:
            events = [*self._history(), *events]
        with self._lock:
            if self.comm is None:  # closed meanwhile
                return
            for record in records:
                if isinstance(record, VersionStats) and record.deployment == self.name:
                    self.series.add(record)
            if self._past.add(events):
                self.events.show()
        if self.eye.may_see:
            self._look()

    def _look(self) -> None:
        """Ask for everything that is shown, and draw."""
        self._ask_minutes(time.time())
        self.refresh()
        for fold in (self.memory, self.logs):
            fold.refresh()
        with self._lock:
            if self.comm is not None:
                self._draw()

    def _ask_minutes(self, now: float) -> None:
        """What was before the live seconds, once a minute: it grows by one then."""
        if now // 60 == self._minute:
            return
        found = self._read("stats", lambda: self._client.stats(self.name, since=now - WINDOWS_S[-1]))
        with self._lock:
            if "stats" not in self._unread:
                self._minute = now // 60
            if found:
                self.series.fill(found)

    def _history(self) -> list[Event]:
        return list(self._read("history", lambda: self._client.history(self.name, limit=KEPT)) or [])

    def _read(self, what: str, ask: Callable[[], T]) -> T | None:
        """None if there is nothing, or it could not be read: `refresh` says why, and it is asked for again."""
        found, trouble = None, ""
        try:
            found = ask()
        except NotFound:
            pass  # nothing of it yet
        except DSServeError as fault:
            trouble = fault.message
        with self._lock:
            self._unread.pop(what, None)
            if trouble:
                self._unread[what] = trouble
        return found

    # ---- what is shown

    def _show(self, found: Deployment | None, others: Sequence[str]) -> None:
        """``others`` are the deployments that there are, where there is none of this name."""
        had_plots, self._deployment = self._deployment is not None, found
        names = [v.version for v in found.versions] if found else []
        self.series.keep_only(names)
        self.versions.show(found, self.series)
        self.rollout.show(found)
        self.playground.show(found)
        self.logs.show(names)
        self._where = f"served at {self._client.url}/v1" if found else _nothing(others)
        self._title.value = f"<b>{escape(self.name)}</b> <small>{escape(self._where)}</small>"
        if had_plots != (found is not None):
            self._arrange()
            if had_plots:  # that come back another time
                self.plots.renew()

    def _draw(self) -> None:
        now = time.time()
        self.plots.draw(list(self.versions.rows), self.series, self._past.marks(now - self.span.value), now)

    def _say(self, text: str, is_error: bool = False) -> None:
        self._message.value = in_red(text) if is_error else escape(text)

    def _arrange(self) -> None:
        above = (self._head, self._trouble, self.versions)
        if self._deployment is None:  # nothing to draw or to ask
            self.children = (*above, self._message)
            return
        self.children = (*above, self.rollout, self._message, self.plots.figure, *self._folds)

    def _repr_mimebundle_(self, **options: Any) -> Any:
        """A figure that is displayed a second time takes no more updates (plotly): that one gets a new figure. Where no
        widget shows, there is a table with a picture."""
        with self._lock:
            if self._was_shown:
                self.plots.renew()
                self._arrange()
            self._was_shown = True
            now = time.time()
            window_s = self.span.value
            marks, where = self._past.marks(now - window_s), f"{self.name}: {self._where}"
            html = still(self._deployment, where, self.series, marks, now, window_s)
        return {**super()._repr_mimebundle_(**options), "text/html": html}


def _nothing(others: Sequence[str]) -> str:
    if not others:
        return "nothing is loaded yet: name a model below"
    there = f"there {'is' if len(others) == 1 else 'are'} {', '.join(others)}"
    return f"no such deployment: {there} (%dsserve panel {others[0]}); a model that is loaded below makes this one"
