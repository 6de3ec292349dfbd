"""The versions of a panel: a row each, with its share of the traffic on a slider, and a form that loads another."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from functools import partial
from html import escape
from typing import Any, get_args

import ipywidgets as w

from jupyter_dsserve.notebook.client import Client
from jupyter_dsserve.notebook.parts.common import Act, button, close_all, small
from jupyter_dsserve.notebook.series import Series
from jupyter_dsserve.notebook.views import Deployment, Version, colour_of, ink, state_text
from jupyter_dsserve.notebook.weights import balanced, whole_percents
from jupyter_dsserve.protocol.config import Priority
from jupyter_dsserve.protocol.errors import InvalidRequest
from jupyter_dsserve.protocol.records import VersionState, VersionStats
from jupyter_dsserve.protocol.sizes import shown as size_shown
from jupyter_dsserve.protocol.spec import DType

_LOADED = (VersionState.QUEUED, VersionState.LOADING, VersionState.WARMING, VersionState.READY)
_COMING = (VersionState.LOADING, VersionState.WARMING)


class VersionRow(w.HBox):  # type: ignore[misc]  # ipywidgets has no types
    """One version."""

    def __init__(self, version: str) -> None:
        self.label = w.HTML()
        self.progress = w.FloatProgress(max=1.0, layout={"width": "95%", "height": "10px", "display": "none"})
        self.slider = w.IntSlider(
            description=version,
            min=0,
            max=100,
            continuous_update=False,
            style={"handle_color": colour_of(version), "description_width": "3em"},
            layout={"width": "17em"},
        )
        self.numbers = w.HTML(layout={"width": "25em", "max_width": "100%"})
        self.activate = button("Activate", f"Give {version} all traffic")
        self.load = button("Load")
        what = w.VBox([self.label, self.progress], layout={"flex": "1 1 11em"})
        controls = [what, self.slider, self.numbers, self.activate, self.load]
        super().__init__(controls, layout={"align_items": "center", "flex_flow": "row wrap"})

    def show(self, version: Version, share: int, stats: VersionStats | None, per_s: float, held_by: str) -> None:
        """``share`` of the traffic in percent, ``per_s`` requests a second; ``held_by`` says why the slider cannot be
        moved, or is empty."""
        name = f'<b style="color:{ink(colour_of(version.version))}">{escape(version.version)}</b>'
        self.label.value = f"{name} {_state_html(version)}{small(version.spec.model, version.note)}"
        self.progress.value = version.progress
        self.progress.layout.display = "" if version.state in _COMING else "none"
        self.slider.disabled = bool(held_by)
        self.slider.tooltip = held_by or f"Percent of the traffic that {version.version} gets"
        self.slider.value = share
        self.numbers.value = _numbers(version, stats, per_s)
        self.activate.disabled = version.is_ready and share == 100
        is_loaded = version.state in _LOADED
        self.load.description = "Unload" if is_loaded else "Load"
        self.load.tooltip = f"{self.load.description} {version.version}"
        self.load.disabled = version.state is VersionState.DRAINING


class LoadForm(w.HBox):  # type: ignore[misc]
    """Loads another version.

    In a thread of its own, by a client with patience: the gateway first looks into the model's directory, which takes a
    while where that is large or far away, and the kernel's main thread is not to wait for it.
    """

    def __init__(self, name: str, client: Client, act: Act) -> None:
        self._name, self._client, self._act = name, client, act
        self.model = w.Combobox(
            placeholder="directory, hub name or built-in",
            tooltip="The model to load: a built-in one, a directory or a hub name",
            options=["builtin:demo-v1", "builtin:demo-v2"],
            layout={"flex": "1 1 19em", "max_width": "32em"},
        )
        self.version = w.Text(
            placeholder="version", tooltip="What to call it; numbered if empty", layout={"width": "6em"}
        )
        self.dtype = w.Dropdown(
            options=get_args(DType), tooltip="The weights' type; auto is their own", layout={"width": "5em"}
        )
        self.priority = w.Dropdown(
            options=get_args(Priority), tooltip="Who goes first when loads wait for memory", layout={"width": "6.5em"}
        )
        self.button = button("Load", "Load it beside the others", icon="plus", button_style="primary")
        self.button.on_click(lambda _: self._begin())
        fields = [self.model, self.version, self.dtype, self.priority, self.button]
        super().__init__([w.Label("Load another version:"), *fields], layout={"flex_flow": "row wrap"})

    def _begin(self) -> None:
        self.button.disabled = True
        threading.Thread(target=self._run, name="dsserve-load", daemon=True).start()

    def _run(self) -> None:
        try:
            self._act(self._load)
        finally:
            self.button.disabled = False

    def _load(self) -> str:
        model = self.model.value.strip()
        if not model:
            raise InvalidRequest("name a model first: builtin:demo-v2, a directory, or a hub name such as org/name")
        options: dict[str, Any] = {"dtype": self.dtype.value, "priority": self.priority.value}
        chosen = {key: value for key, value in options.items() if value not in ("auto", "high")}  # the defaults
        loading = self._client.load(self._name, model, self.version.value.strip(), wait=False, **chosen)
        self.model.value = self.version.value = ""
        return f"{loading.id} is loading"


class Versions(w.VBox):  # type: ignore[misc]
    """All of a deployment's. ``lock`` is held by whoever touches its state, and by nobody who waits for the gateway.
    ``client`` gives up after seconds, ``patient`` does not."""

    def __init__(self, name: str, client: Client, patient: Client, act: Act, lock: Any) -> None:
        self._name, self._client, self._act, self._lock = name, client, act, lock
        self._deployment: Deployment | None = None
        self._is_applying = False  # a slider moves because of us, not because of a hand
        self.rows: dict[str, VersionRow] = {}
        self.form = LoadForm(name, patient, act)
        self._box = w.VBox()
        super().__init__([self._box, self.form])

    def show(self, found: Deployment | None, series: Series) -> None:
        self._deployment = found
        versions = found.versions if found else []
        names = [v.version for v in versions]
        if names != list(self.rows):
            self._remake_rows(names)
        shares = self._shares()
        self._is_applying = True
        try:
            for version in versions:
                stats, per_s = series.latest(version.version), series.requests_per_s(version.version)
                held_by = _held_by(found, version) if found else ""
                self.rows[version.version].show(version, shares[version.version], stats, per_s, held_by)
        finally:
            self._is_applying = False

    def _toggle(self, version: str, _button: Any) -> None:
        def act() -> str:
            if self.rows[version].load.description == "Unload":
                self._client.unload(self._name, version, wait=False)
                return f"{self._name}@{version} drains and stops"
            self._client.load(self._name, version=version, wait=False)
            return f"{self._name}@{version} is loading"

        self._act(act)

    def _activate(self, version: str, _button: Any) -> None:
        def act() -> str:
            self._client.activate(self._name, version, wait=False)
            return f"{self._name}@{version} gets all traffic as soon as it is READY"

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
            self._client.route(self._name, weights, revision=revision)
            return " ".join(f"{name}={weight}" for name, weight in weights.items())

        self._act(act)

    def _shares(self) -> dict[str, int]:
        """Of all versions, in whole percents."""
        weights: Mapping[str, float] = self._deployment.weights if self._deployment else {}
        return whole_percents(dict.fromkeys(self.rows, 0.0) | dict(weights))

    def _remake_rows(self, names: list[str]) -> None:
        for gone in set(self.rows) - set(names):
            close_all(self.rows.pop(gone))
        self.rows = {name: self.rows.get(name) or self._new_row(name) for name in names}
        self._box.children = tuple(self.rows.values())

    def _new_row(self, name: str) -> VersionRow:
        row = VersionRow(name)
        row.slider.observe(partial(self._on_slide, name), names="value")
        row.load.on_click(partial(self._toggle, name))
        row.activate.on_click(partial(self._activate, name))
        return row


def _held_by(deployment: Deployment, version: Version) -> str:
    """Why the version's share cannot be moved by hand, or nothing."""
    if (rollout := deployment.rollout) and not rollout.is_over:
        return f"a rollout of {rollout.candidate} moves the shares: promote it or roll it back first"
    if not version.is_ready:
        return f"{version.version} is {version.state.value}: it can take traffic once it is READY"
    if sum(v.is_ready for v in deployment.versions) < 2:
        return f"no version but {version.version} can take traffic"
    return ""


def _state_html(version: Version) -> str:
    """Its state in one line; a reason may be longer than that."""
    state, colon, reason = state_text(version).partition(":")
    return f'<span style="white-space:nowrap">{escape(state)}{colon}</span>{escape(reason)}'


def _numbers(version: Version, stats: VersionStats | None, per_s: float) -> str:
    """The last numbers, each above its name."""
    if stats is None:
        return ""
    p50, p95 = (f"{1000 * s:.0f} ms" if s is not None else "–" for s in (stats.p50_s, stats.p95_s))
    ready = sum(r.state is VersionState.READY for r in version.replicas)
    cells = [
        (p50, "p50"),
        (p95, "p95"),
        (f"{per_s:.1f}", "requests/s"),
        (f"{stats.errors} of {stats.requests}", "errors"),
        (f"{ready} of {version.num_replicas}", "workers"),
        (size_shown(stats.device_bytes) if stats.device_bytes else "–", "memory"),
    ]
    shown = "".join(
        f'<div><b>{escape(value)}</b><br><span style="opacity:.6">{name}</span></div>' for value, name in cells
    )
    grid = "display:grid;grid-template-columns:repeat(6,auto);column-gap:8px"
    grid += ";font-size:80%;line-height:1.4;white-space:nowrap"
    return f'<div style="{grid}">{shown}</div>'
