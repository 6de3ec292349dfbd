"""`panel`: a deployment's versions, their shares on sliders, and their latency as it moves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from html import escape
from typing import Any

import ipywidgets as w
import plotly.graph_objects as go

from jupyter_dsserve.notebook.client import Client, Record
from jupyter_dsserve.notebook.feed import Feed
from jupyter_dsserve.notebook.figures import latency_layout, latency_traces
from jupyter_dsserve.notebook.series import Series
from jupyter_dsserve.notebook.session import session
from jupyter_dsserve.notebook.views import Deployment, Version, colour_of, state_text
from jupyter_dsserve.notebook.weights import balanced, whole_percents
from jupyter_dsserve.protocol.errors import DSServeError, InvalidRequest, NotFound
from jupyter_dsserve.protocol.records import VersionState, VersionStats

_LOADED = (VersionState.QUEUED, VersionState.LOADING, VersionState.WARMING, VersionState.READY)
_COMING = (VersionState.LOADING, VersionState.WARMING)

_BUTTON = w.Layout(width="6.5em")

# By deployment. In a module and not in the notebook: there it would be forgotten when the cell runs again, and the old
# panels would live on.
_live: dict[str, Panel] = {}


def panel(name: str = "") -> Panel:
    """A live panel of the deployment ``name``, or of the first there is. One of each: an older one is closed."""
    now = session()
    if not name:
        name = next((d.name for d in now.client.status().deployments), "demo")
    if old := _live.pop(name, None):
        old.close()
    _live[name] = Panel(name, now.quick, now.feed)
    return _live[name]


class _Row(w.HBox):  # type: ignore[misc]  # ipywidgets has no types
    """One version."""

    def __init__(self, version: str) -> None:
        self.label = w.HTML()
        self.progress = w.FloatProgress(max=1.0, layout=w.Layout(width="95%", height="10px", display="none"))
        self.slider = w.IntSlider(
            description=version,
            min=0,
            max=100,
            continuous_update=False,
            style={"handle_color": colour_of(version), "description_width": "4em"},
            layout=w.Layout(width="20em"),
        )
        self.numbers = w.HTML(layout=w.Layout(width="12em"))
        self.activate = w.Button(description="Activate", tooltip=f"Give {version} all traffic", layout=_BUTTON)
        self.load = w.Button(layout=_BUTTON)
        what = w.VBox([self.label, self.progress], layout=w.Layout(flex="1 1 12em"))
        controls = [what, self.slider, self.numbers, self.activate, self.load]
        super().__init__(controls, layout=w.Layout(align_items="center", flex_flow="row wrap"))

    def show(self, version: Version, share: int, stats: VersionStats | None, is_alone: bool) -> None:
        """``share`` of the traffic in percent; ``is_alone``: no other version could take any of it."""
        name = f'<b style="color:{colour_of(version.version)}">{escape(version.version)}</b>'
        self.label.value = f"{name} {escape(state_text(version))}{_small(version.spec.model, version.note)}"
        self.progress.value = version.progress
        self.progress.layout.display = "" if version.state in _COMING else "none"
        self.slider.disabled = is_alone or not version.is_ready
        self.slider.value = share
        self.numbers.value = _numbers(stats)
        self.activate.disabled = version.is_ready and share == 100
        is_loaded = version.state in _LOADED
        self.load.description = "Unload" if is_loaded else "Load"
        self.load.tooltip = f"{self.load.description} {version.version}"
        self.load.disabled = version.state is VersionState.DRAINING


class Panel(w.VBox):  # type: ignore[misc]
    """Lives until `stop`, its Stop button, or the next panel of the same deployment.

    Changed by callbacks in the kernel's main thread (in a subshell's with some kernels) and by the feed's: ``_lock`` is
    held by whoever touches its state, and never while the gateway is asked: one that hangs must not hold up the others.
    """

    def __init__(self, name: str, client: Client, feed: Feed) -> None:
        self.name = name
        self._client, self._feed = client, feed
        self._lock = threading.RLock()
        self._deployment: Deployment | None = None
        self._rows: dict[str, _Row] = {}
        self._series = Series()
        self._is_applying = False  # a slider moves because of us, not because of a hand
        self._num_asked = self._num_shown = 0  # an answer that was overtaken by a later one is not shown
        self._was_shown = False

        self._title = w.HTML(layout=w.Layout(flex="1"))
        self._stop_button = w.Button(description="Stop", icon="stop", tooltip="Stop the live updates", layout=_BUTTON)
        self._message = w.HTML()  # what became of the last action
        self._trouble = w.HTML()  # why no news come
        self._model = w.Text(placeholder="builtin:demo-v2, a directory or a hub name", layout=w.Layout(width="24em"))
        self._version = w.Text(placeholder="version", layout=w.Layout(width="7em"))
        self._load_button = w.Button(description="Load", icon="plus", button_style="primary", layout=_BUTTON)
        self._box = w.VBox()
        self._figure = self._new_figure()
        super().__init__()
        self._arrange()

        self._stop_button.on_click(lambda _: self.stop())
        self._load_button.on_click(lambda _: self._act(self._load_model))
        self.refresh()
        self._feed.listen(self._on_records)

    # ---- what people do

    def stop(self) -> None:
        """End the live updates; the last picture stays."""
        self._feed.forget(self._on_records)
        self._stop_button.disabled = True
        self._say("stopped: run the cell again to go on")

    def close(self) -> None:
        """Stop, and take it off the page, with all that stands in it."""
        self.stop()
        _close_all(self)

    def refresh(self) -> None:
        """Show what the gateway says now."""
        with self._lock:
            self._num_asked += 1
            asked = self._num_asked
        found: Deployment | None = None
        trouble = ""
        try:
            found = self._client.deployment(self.name)
        except NotFound:
            pass  # nothing of it yet
        except DSServeError as fault:
            trouble = fault.message
        with self._lock:
            self._trouble.value = _in_red(trouble)
            if not trouble and asked > self._num_shown and self.comm is not None:
                self._num_shown = asked
                self._apply(found)

    def _load_model(self) -> str:
        model = self._model.value.strip()
        if not model:
            raise InvalidRequest("name a model first: builtin:demo-v2, a directory, or a hub name such as org/name")
        loading = self._client.load(self.name, model, self._version.value.strip(), wait=False)
        self._model.value = self._version.value = ""
        return f"{loading.id} is loading"

    def _toggle(self, version: str, _button: Any) -> None:
        def act() -> str:
            if self._rows[version].load.description == "Unload":
                self._client.unload(self.name, version, wait=False)
                return f"{self.name}@{version} drains and stops"
            self._client.load(self.name, version=version, wait=False)
            return f"{self.name}@{version} is loading"

        self._act(act)

    def _activate(self, version: str, _button: Any) -> None:
        def act() -> str:
            self._client.activate(self.name, version, wait=False)
            return f"{self.name}@{version} gets all traffic as soon as it is READY"

        self._act(act)

    def _on_slide(self, version: str, change: Any) -> None:
        with self._lock:
            if self._is_applying or self._deployment is None:
                return
            ready = [v.version for v in self._deployment.versions if v.is_ready]
            shares = {name: share for name, share in self._shares().items() if name in ready}
            weights = balanced(shares, version, int(change["new"]))
            revision = self._deployment.revision

        def act() -> str:
            self._client.route(self.name, weights, revision=revision)
            return " ".join(f"{name}={weight}" for name, weight in weights.items())

        self._act(act)

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
            self._trouble.value = _in_red(trouble)
            return
        with self._lock:
            if self.comm is None:  # closed meanwhile
                return
            for record in records:
                if isinstance(record, VersionStats) and record.deployment == self.name:
                    self._series.add(record)
        self.refresh()
        with self._lock:
            if self.comm is not None:
                self._draw()

    # ---- what is shown

    def _apply(self, found: Deployment | None) -> None:
        self._deployment = found
        versions = found.versions if found else []
        names = [v.version for v in versions]
        if names != list(self._rows):
            self._remake_rows(names)
        shares = self._shares()
        is_alone = sum(v.is_ready for v in versions) < 2
        self._is_applying = True
        try:
            for version in versions:
                stats = self._series.latest(version.version)
                self._rows[version.version].show(version, shares[version.version], stats, is_alone)
        finally:
            self._is_applying = False
        where = f"served at {self._client.url}/v1" if found else "nothing is loaded yet: name a model below"
        self._title.value = f"<b>{escape(self.name)}</b> <small>{escape(where)}</small>"

    def _shares(self) -> dict[str, int]:
        """Of all versions, in whole percents."""
        assert self._deployment is not None or not self._rows
        weights = dict.fromkeys(self._rows, 0.0) | dict(self._deployment.weights if self._deployment else {})
        return whole_percents(weights)

    def _remake_rows(self, names: list[str]) -> None:
        for gone in set(self._rows) - set(names):
            self._series.forget(gone)
            _close_all(self._rows.pop(gone))
        rows = {}
        for name in names:
            row = self._rows.get(name)
            if row is None:
                row = _Row(name)
                row.slider.observe(partial(self._on_slide, name), names="value")
                row.load.on_click(partial(self._toggle, name))
                row.activate.on_click(partial(self._activate, name))
            rows[name] = row
        self._rows = rows
        self._box.children = tuple(rows.values())

    def _draw(self) -> None:
        """All lines in one message to the browser."""
        now = time.time()
        traces = [trace for name in self._rows for trace in latency_traces(name, self._series.latencies(name, now))]
        with self._figure.batch_update():
            # Not from the start: what is drawn before it stands on the page does not know how wide that is.
            self._figure.layout.autosize = True
            for new, old in zip(traces, self._figure.data, strict=False):
                old.update({"x": new.x, "y": new.y, "name": new.name, "line": new.line, "legendgroup": new.legendgroup})
        if len(traces) > len(self._figure.data):
            self._figure.add_traces(traces[len(self._figure.data) :])
        elif len(traces) < len(self._figure.data):
            self._figure.data = self._figure.data[: len(traces)]

    def _say(self, text: str, is_error: bool = False) -> None:
        self._message.value = _in_red(text) if is_error else escape(text)

    def _new_figure(self) -> Any:
        figure = go.FigureWidget(layout=latency_layout(self.name))
        figure._config = {**figure._config, "responsive": True, "displaylogo": False}  # as wide as the page
        return figure

    def _arrange(self) -> None:
        head = w.HBox([self._title, self._stop_button])
        form = w.HBox([w.Label("Load another version:"), self._model, self._version, self._load_button])
        self.children = (head, self._trouble, self._box, form, self._message, self._figure)

    def _repr_mimebundle_(self, **options: Any) -> Any:
        """A figure that is displayed a second time takes no more updates (plotly): that one gets a new figure."""
        with self._lock:
            if self._was_shown:
                self._figure.close()
                self._figure = self._new_figure()
                self._arrange()
            self._was_shown = True
        return super()._repr_mimebundle_(**options)


def _close_all(widget: Any) -> None:
    """ipywidgets' own ``close`` leaves what a widget is made of in the kernel and in the browser."""
    parts = [*getattr(widget, "children", ()), getattr(widget, "layout", None), getattr(widget, "style", None)]
    for part in parts:
        if isinstance(part, w.Widget) and part is not _BUTTON:  # which all panels share
            _close_all(part)
    w.Widget.close(widget)


def _in_red(text: str) -> str:
    return f'<span style="color:#D55E00">{escape(text)}</span>' if text else ""


def _numbers(stats: VersionStats | None) -> str:
    if stats is None:
        return ""
    p50, p95 = (f"{1000 * s:.0f} ms" if s is not None else "–" for s in (stats.p50_s, stats.p95_s))
    return _small(f"p50 {p50} · p95 {p95}", f"{stats.requests} answers, {stats.errors} errors")


def _small(*lines: str) -> str:
    return "".join(f'<div style="font-size:80%;line-height:1.4">{escape(line)}</div>' for line in lines if line)
