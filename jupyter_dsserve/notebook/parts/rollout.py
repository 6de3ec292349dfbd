"""A gray release in a panel: what it is told, how far it is, and what it decided why."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import Any

import ipywidgets as w

from jupyter_dsserve.notebook.client import Client
from jupyter_dsserve.notebook.parts.common import Act, button
from jupyter_dsserve.notebook.views import Deployment, Rollout, colour_of, ink
from jupyter_dsserve.protocol.errors import InvalidRequest
from jupyter_dsserve.protocol.records import RolloutState

_COLOURS = {
    RolloutState.PROGRESSING: "#56B4E9",
    RolloutState.PAUSED: "#888888",
    RolloutState.PROMOTED: "#009E73",
    RolloutState.ROLLED_BACK: "#D55E00",
}


class RolloutControls(w.VBox):  # type: ignore[misc]  # ipywidgets has no types
    """Starts a rollout and takes part in it by hand."""

    def __init__(self, name: str, client: Client, act: Act) -> None:
        self._name, self._client, self._act = name, client, act
        self._is_paused = False
        self.candidate = w.Dropdown(tooltip="The version to give traffic, step by step", layout={"width": "6em"})
        self.steps = w.Text("5, 25, 50, 100", tooltip="Its shares in percent, rising", layout={"width": "9em"})
        self.interval = w.BoundedFloatText(
            30.0, min=0.1, max=86400.0, tooltip="The least seconds at each step", layout={"width": "4.5em"}
        )
        self.requests = w.BoundedIntText(
            50, min=1, max=10**9, tooltip="The least answers of the candidate at each step", layout={"width": "5em"}
        )
        self.start = button("Rollout", "Begin a gray release of the candidate", icon="play", button_style="primary")
        self.pause = button("Pause", "Leave the shares as they are")
        self.promote = button("Promote", "Give the candidate all traffic now")
        self.rollback = button("Rollback")
        self.view = w.HTML()
        self.start.on_click(lambda _: act(self._start))
        self.pause.on_click(lambda _: act(self._pause_or_resume))
        self.promote.on_click(lambda _: act(self._by_hand(client.promote, "gets all traffic")))
        self.rollback.on_click(lambda _: act(self._roll_back))
        words = [w.HBox([w.Label("Gray release of"), self.candidate]),
                 w.HBox([w.Label("in steps"), self.steps, w.Label("%,")]),
                 w.HBox([w.Label("each"), self.interval, w.Label("s")]),
                 w.HBox([w.Label("and"), self.requests, w.Label("requests")])]  # fmt: skip
        buttons = w.HBox([self.start, self.pause, self.promote, self.rollback], layout={"flex_flow": "row wrap"})
        super().__init__([w.HBox([*words, buttons], layout={"flex_flow": "row wrap"}), self.view])

    def show(self, found: Deployment | None) -> None:
        rollout = found.rollout if found else None
        is_running = rollout is not None and not rollout.is_over
        self._choose(found, rollout)
        for each in (self.candidate, self.steps, self.interval, self.requests):
            each.disabled = is_running
        self.start.disabled = is_running or self.candidate.value is None
        self.start.tooltip = (
            "Begin a gray release of the candidate"
            if self.candidate.value
            else "Load a second version first, and give the first one all traffic"
        )
        self._is_paused = rollout is not None and rollout.state is RolloutState.PAUSED
        self.pause.description = "Resume" if self._is_paused else "Pause"
        self.pause.disabled = self.promote.disabled = not is_running
        self.rollback.disabled = found is None
        self.rollback.tooltip = "Take the candidate back" if is_running else "Back to the shares before the last change"
        shown = rollout_html(rollout) if rollout else ""
        if self.view.value != shown:
            self.view.value = shown

    def _choose(self, found: Deployment | None, rollout: Rollout | None) -> None:
        """The candidates there are; the one that was chosen stays."""
        names = candidates(found)
        if rollout and not rollout.is_over:
            names = [rollout.candidate]
        if tuple(names) != self.candidate.options:
            kept = self.candidate.value
            self.candidate.options = tuple(names)
            self.candidate.value = kept if kept in names else next(iter(names), None)

    def _start(self) -> str:
        if not self.candidate.value:
            raise InvalidRequest("load a second version first: a rollout needs one to give traffic to")
        self._client.rollout(
            self._name,
            self.candidate.value,
            steps=_percents(self.steps.value),
            interval_s=self.interval.value,
            min_requests=self.requests.value,
        )
        return f"the rollout of {self.candidate.value} has begun"

    def _pause_or_resume(self) -> str:
        verb = self._client.resume if self._is_paused else self._client.pause
        return self._by_hand(verb, "goes on" if self._is_paused else "waits; its share stays")()

    def _roll_back(self) -> str:
        found = self._client.rollback(self._name, wait=False)
        return "back to " + " ".join(f"{name}={weight:g}" for name, weight in found.weights.items())

    def _by_hand(self, verb: Callable[[str], Any], said: str) -> Callable[[], str]:
        def act() -> str:
            rollout: Rollout = verb(self._name)
            return f"{rollout.candidate} {said}"

        return act


def candidates(found: Deployment | None) -> list[str]:
    """The versions that a rollout can give traffic, the newest first: those beside which one other has all the rest."""
    versions = reversed(found.versions) if found else []
    weights = found.weights if found else {}
    return [v.version for v in versions if len(weights.keys() - {v.version}) == 1]


def rollout_html(rollout: Rollout) -> str:
    """How far it is, as a row of steps; its reason; and what is compared, with the evidence as bars."""
    colour = _COLOURS[rollout.state]
    at = len(rollout.steps) if rollout.state is RolloutState.PROMOTED else rollout.step
    steps = []
    for i, step in enumerate(rollout.steps):
        is_here = i == at and not rollout.is_over
        filled = colour if i < at or is_here else "transparent"
        is_end = i == at and rollout.state is RolloutState.ROLLED_BACK
        border = colour if i <= at else "#8888"
        text = "#000" if filled != "transparent" else "inherit"
        weight = "bold" if is_here else "normal"
        style = f"border:1px solid {border};background:{filled};color:{text};font-weight:{weight}"
        said = f"{step:g} %{' ✕' if is_end else ' ✓' if i < at else ''}"
        steps.append(f'<span style="{style};border-radius:8px;padding:0 8px;margin-right:4px">{said}</span>')
    title = (
        f'<b style="color:{ink(colour)}">{rollout.state.value}</b> rollout of '
        f'<b style="color:{ink(colour_of(rollout.candidate))}">{escape(rollout.candidate)}</b> beside '
        f'<b style="color:{ink(colour_of(rollout.stable))}">{escape(rollout.stable)}</b> &nbsp; {"".join(steps)}'
    )
    lines = "".join(
        f"<div>{_evidence_bar(measure.against)} {escape(line)}</div>"
        for measure, line in zip(rollout.measures, rollout.lines, strict=False)
    )
    more = "".join(f"<div>{escape(line)}</div>" for line in rollout.lines[len(rollout.measures) :])
    reason = f"<div>{escape(rollout.reason)}</div>" if rollout.reason else ""
    return f'<div style="line-height:1.6">{title}{reason}<div style="font-size:80%">{lines}{more}</div></div>'


def _evidence_bar(share: float) -> str:
    """``share``, 0 to 1, of the evidence that rolls it back."""
    box = "display:inline-block;width:5em;height:6px;border:1px solid #8888;margin-right:4px"
    return f'<span style="{box};background:linear-gradient(90deg,#D55E00 {100 * share:.0f}%,transparent 0)"></span>'


def _percents(text: str) -> list[float]:
    try:
        return [float(part) for part in text.replace("%", "").split(",")]
    except ValueError:
        raise InvalidRequest(f"steps {text!r}: write percents, such as 5, 25, 50, 100") from None
