"""What the client returns: the protocol's records, and how they show themselves."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from html import escape
from typing import Any, overload
from zlib import crc32

from jupyter_dsserve.bench.table import Bundle, Column, frame, html_table, table, text_table
from jupyter_dsserve.protocol.policy import Policy as PolicyRecord
from jupyter_dsserve.protocol.records import (
    ApplyState,
    ApplyStatus,
    DeploymentStatus,
    Event,
    GatewayState,
    GatewayStatus,
    Measure,
    MirrorStatus,
    RolloutState,
    RolloutStatus,
    VersionState,
    VersionStatus,
)

# Okabe and Ito (2008), without black and yellow: told apart by colour-blind people, readable on light and dark.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
# As many as have no common factor with the colours: thirty versions differ in one or the other.
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
_SIGNS = {VersionState.READY: "●", VersionState.FAILED: "✕", VersionState.STOPPED: "○"}

_KEPT = "\u00a0"  # a blank at which no line ends
# A long path breaks where it has to, and leaves the note its room.
_MODEL = Column("model", style="overflow-wrap:anywhere;min-width:8em")
_VERSIONS = ("version", "state", "traffic", "workers", _MODEL, "note")
_EVENTS = ("when", "what", "of", "why")


class Shown:
    """What a record shows in a cell is what it prints, too: ``print(client.deployment("demo"))``. Those whose HTML is
    asked for alone (other notebooks than Jupyter's do) have it.

    A dataclass makes a repr of its own unless it is told ``repr=False``.
    """

    __slots__ = ()

    def _repr_mimebundle_(self, **_: object) -> Bundle:
        raise NotImplementedError

    def _repr_html_(self) -> str:
        return self._repr_mimebundle_()["text/html"]

    def __repr__(self) -> str:
        return self._repr_mimebundle_()["text/plain"]


def colour_of(version: str) -> str:
    """The colour of a version, everywhere: v1, v2, … take the colours in turn, other names by their letters."""
    return COLOURS[_number(version) % len(COLOURS)]


def ink(colour: str) -> str:
    """``colour`` for words: nearer to that of the words around, to be read on a light page and on a dark one."""
    return f"color-mix(in srgb, {colour} 60%, currentColor)"


def dash_of(version: str) -> str:
    """The dash of a version's line, for those who do not see its colour."""
    return DASHES[_number(version) % len(DASHES)]


def _number(version: str) -> int:
    number = re.search(r"\d{1,6}$", version)
    return int(number[0]) - 1 if number else crc32(version.encode())


@dataclass(frozen=True, slots=True, repr=False)
class Version(Shown, VersionStatus):
    """A version as it was when it was asked for."""

    def __repr__(self) -> str:
        """In one line, for lists of them."""
        return f"<{self.id}: {state_text(self)}, {self.weight:g} % of the traffic, {self.spec.model}>"

    @property
    def id(self) -> str:
        return f"{self.deployment}@{self.version}"

    @property
    def is_ready(self) -> bool:
        return self.state is VersionState.READY

    def _repr_mimebundle_(self, **_: object) -> Bundle:
        return _versions([self], f"{self.id}: {state_text(self)}")


@dataclass(frozen=True, slots=True, repr=False)
class Rollout(Shown, RolloutStatus):
    """A rollout as it was when it was asked for."""

    @property
    def is_over(self) -> bool:
        return self.state in (RolloutState.PROMOTED, RolloutState.ROLLED_BACK)

    @property
    def summary(self) -> str:
        """In one line."""
        name = f"rollout of {self.deployment}@{self.candidate} beside {self.stable}"
        return f"{name}: {self.state.value} at {self.weight:g} % of {', '.join(f'{s:g}' for s in self.steps)}"

    @property
    def lines(self) -> list[str]:
        """The figures, one measure a line, and the last differences of mirrored answers."""
        told = [f"{100 * m.against:3.0f} % of a rollback: {_measured(m)}" for m in self.measures]
        if self.mirror:
            told.append(_mirrored(self.mirror))
            for each in self.mirror.differences:
                told += [
                    f"  {each.prompt!r}",
                    f"    {self.stable}: {each.stable!r}",
                    f"    {self.candidate}: {each.candidate!r}",
                ]
        return told

    def _repr_mimebundle_(self, **_: object) -> Bundle:
        return _texts(self.summary, self.reason, *self.lines)


def _measured(measure: Measure) -> str:
    if "latency" in measure.name:
        bound = f"at least {measure.lower_bound:.2f} ×" if measure.lower_bound else "no bound yet"
        return f"{measure.name} {measure.candidate:.2f} × stable's ({bound}, limit {measure.limit:.2f} ×)"
    return f"{measure.name} {measure.candidate:.3f}, stable's {measure.stable:.3f} (limit {measure.limit:g} worse)"


def _mirrored(mirror: MirrorStatus) -> str:
    share = f"{100 * mirror.agreed / mirror.compared:.1f} % of {mirror.compared}" if mirror.compared else "none of 0"
    return f"{mirror.sent} copies: {share} greedy answers agree; {mirror.failed} failed, {mirror.dropped} dropped"


def _texts(title: str, *lines: str) -> Bundle:
    shown = [line for line in lines if line]
    html = "".join(f"<br>{escape(line)}" for line in shown)
    return {"text/plain": "\n".join([title, *shown]), "text/html": f"<b>{escape(title)}</b>{html}"}


@dataclass(frozen=True, slots=True, repr=False)
class Deployment(Shown, DeploymentStatus):
    """A deployment as it was when it was asked for."""

    versions: list[Version]  # type: ignore[assignment]  # the same records, which can show themselves
    rollout: Rollout | None = None

    def to_frame(self) -> Any:
        """A pandas DataFrame, a row for each version. Raises ImportError without pandas."""
        return frame([_record(version) for version in self.versions])

    def _repr_mimebundle_(self, **_: object) -> Bundle:
        shares = " ".join(f"{name}={weight:g}" for name, weight in self.weights.items()) or "no version has weight"
        shown = _versions(self.versions, f"{self.name}: {shares}", _traffic_bar(self))
        if self.rollout is None:
            return shown
        below = _texts(self.rollout.summary, self.rollout.reason)
        return {
            "text/plain": f"{shown['text/plain']}\n{below['text/plain']}",
            "text/html": f"{shown['text/html']}{below['text/html']}",
        }


@dataclass(frozen=True, slots=True, repr=False)
class Status(Shown):
    """The gateway, and everything on it."""

    gateway: GatewayStatus
    deployments: list[Deployment] = field(default_factory=list)

    def to_frame(self) -> Any:
        """A pandas DataFrame, a row for each version. Raises ImportError without pandas."""
        return frame([_record(version) for each in self.deployments for version in each.versions])

    def _repr_mimebundle_(self, **_: object) -> Bundle:
        if self.gateway.state is not GatewayState.RUNNING:
            why = f": {self.gateway.reason}" if self.gateway.reason else "; it starts when a model is loaded"
            text = f"the gateway is {self.gateway.state.value}{why}"
            return {"text/plain": text, "text/html": escape(text)}
        if not self.deployments:
            text = f"nothing is served at {self.gateway.url} yet: %dsserve load NAME --model MODEL"
            return {"text/plain": text, "text/html": escape(text)}
        parts = [d._repr_mimebundle_() for d in self.deployments]
        if self.gateway.grpc:
            parts.append(_texts(f"gRPC at {self.gateway.grpc}"))
        return {kind: "\n".join(part[kind] for part in parts) for kind in ("text/plain", "text/html")}


@dataclass(frozen=True, slots=True, repr=False)
class Models(Shown):
    """The deployments at ``url`` that a key may ask now."""

    url: str
    names: list[str]

    def _repr_mimebundle_(self, **_: object) -> Bundle:
        names = ", ".join(self.names) or "nothing yet: no deployment that it is for has a READY version"
        text = f"with this key you may ask, at {self.url}: {names}"
        return {"text/plain": text, "text/html": escape(text)}


@dataclass(frozen=True, slots=True, repr=False)
class Policy(Shown, PolicyRecord):
    """A deployment's policy as it was when it was asked for. Shows what differs from the defaults."""

    def _repr_mimebundle_(self, **_: object) -> Bundle:
        defaults = PolicyRecord()
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        set_here = {name: value for name, value in given.items() if value != getattr(defaults, name)}
        if rules := set_here.pop("rules", ()):
            set_here |= {f"rule {r.header}={r.value}": r.version for r in rules}
        lines = [f"{name}: {value}" for name, value in set_here.items()] or ["no limits: the policy is the default one"]
        return {"text/plain": "\n".join(lines), "text/html": "<br>".join(map(escape, lines))}


@dataclass(frozen=True, slots=True, repr=False)
class Applied(Shown, ApplyStatus):
    """A deployments file: its plan, and how far it is."""

    @property
    def plan(self) -> str:
        """A line for each change, and what is left alone."""
        return self._listed(["-"] * len(self.changes))

    def __str__(self) -> str:
        """The plan, with what is done already."""
        waiting = "-" if self.state is ApplyState.PLANNED else "…"
        return self._listed(["✓" if i < self.num_done else waiting for i in range(len(self.changes))])

    def _listed(self, signs: Sequence[str]) -> str:
        lines = [f"{sign} {change}" for sign, change in zip(signs, self.changes, strict=True)]
        left = [f"not in the file, and left alone: {', '.join(self.left_alone)}"] if self.left_alone else []
        return "\n".join([*(lines or ["nothing to do: the fleet is as the file says"]), *left])

    def _repr_mimebundle_(self, **_: object) -> Bundle:
        return {"text/plain": str(self), "text/html": f"<pre>{escape(str(self))}</pre>"}


@dataclass(frozen=True, slots=True, repr=False)
class History(Shown, Sequence[Event]):
    """What happened, oldest first. Shown as a table, in this machine's time."""

    events: list[Event] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.events)

    @overload
    def __getitem__(self, index: int) -> Event: ...
    @overload
    def __getitem__(self, index: slice) -> list[Event]: ...
    def __getitem__(self, index: int | slice) -> Event | list[Event]:
        return self.events[index]

    def to_frame(self) -> Any:
        """A pandas DataFrame, a row for each event; ``at`` is seconds since the epoch. Raises ImportError without
        pandas."""
        return frame([asdict(event) for event in self.events])

    def _repr_mimebundle_(self, **_: object) -> Bundle:
        if not self:
            return {"text/plain": "nothing has happened yet", "text/html": "nothing has happened yet"}
        return table(_EVENTS, [_event_cells(event) for event in self])


@dataclass(frozen=True, slots=True)
class Answer:
    """What a version said. ``latency_s`` and ``first_token_s`` are seconds as the caller saw them (the second is None
    if the answer came in one piece). ``request_id`` is what `Client.trace` takes."""

    text: str
    model: str
    version: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    latency_s: float
    first_token_s: float | None = None
    request_id: str = ""

    def __str__(self) -> str:
        return self.text

    @property
    def summary(self) -> str:
        """Who answered, how much and how fast, in one line."""
        first = f" · first token {1000 * self.first_token_s:.0f} ms" if self.first_token_s is not None else ""
        end = "" if self.finish_reason in ("stop", "length") else f" · {self.finish_reason}"
        name = f"{self.model.partition('@')[0]}@{self.version}"
        return f"{name} · {self.completion_tokens} tokens · {self.latency_s:.2f} s{first}{end}"

    def _repr_mimebundle_(self, **_: object) -> Bundle:
        return {
            "text/plain": f"{self.text}\n[{self.summary}]",
            "text/html": f"<pre>{escape(self.text)}</pre>{footnote(self.summary)}",
        }


@dataclass(frozen=True, slots=True)
class Classified:
    """What a classifier says of a text: the likeliest ``label``, and the score of every one."""

    label: str
    scores: dict[str, float]


def footnote(text: str) -> str:
    """A line below an answer."""
    return f'<div style="opacity:.6;font-size:85%">{escape(text)}</div>'


def state_text(version: VersionStatus) -> str:
    """``READY``, ``LOADING weights 40 %``, ``FAILED: reason``; what a slower runner serves says why."""
    if version.reason:
        return f"{version.state.value}: {version.reason}"
    if version.state in (VersionState.LOADING, VersionState.WARMING):
        is_news = version.stage.upper() != version.state.value
        stage = f" {version.stage}" if version.stage and is_news else ""
        return f"{version.state.value}{stage} {100 * version.progress:.0f} %"
    slower = next((r.runner for r in version.replicas if r.runner.startswith("padded")), "")
    return f"{version.state.value}, {slower}" if slower else version.state.value


def _versions(versions: Sequence[Version], title: str, picture: str = "") -> Bundle:
    rows = [_cells(v) for v in versions]
    colours = [ink(colour_of(v.version)) for v in versions]
    # A narrow page breaks a reason, and no state from its sign and no number from its unit.
    whole = [(name, state.replace(" ", _KEPT, 1), share.replace(" ", _KEPT), *r) for name, state, share, *r in rows]
    return {
        "text/plain": f"{title}\n{text_table(_VERSIONS, rows)}",
        "text/html": f"<b>{escape(title)}</b>{picture}{html_table(_VERSIONS, whole, colours)}",
    }


def _record(version: Version) -> dict[str, Any]:
    """Flat, for a data frame."""
    ready = [r for r in version.replicas if r.state is VersionState.READY]
    facts = {name: getattr(version, name) for name in ("deployment", "version", "weight", "reason", "note")}
    facts |= {"state": version.state.value, "workers": len(ready), "model": version.spec.model}
    return facts | {f"metadata.{name}": value for name, value in version.metadata.items()}


def _cells(version: Version) -> tuple[str, ...]:
    sign = _SIGNS.get(version.state, "◐")
    ready = [r for r in version.replicas if r.state is VersionState.READY]
    shut = [r.trouble or f"breaker {r.breaker}" for r in ready if r.trouble or r.breaker != "closed"]
    workers = f"{len(ready)} ({len(shut)} shut: {shut[0]})" if shut else str(len(ready))
    share = f"{version.weight:g} %" if version.weight else "–"
    facts = ", ".join(f"{name}={value}" for name, value in version.metadata.items())
    note = "; ".join(filter(None, (version.note, facts, version.info.note)))
    return (version.version, f"{sign} {state_text(version)}", share, workers, version.spec.model, note)


def _event_cells(event: Event) -> tuple[str, ...]:
    when = datetime.fromtimestamp(event.at).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    version = f"{event.deployment}@{event.version}" if event.version else event.deployment
    return (when, event.kind, event.replica or version, event.reason)


def _traffic_bar(deployment: Deployment) -> str:
    """One bar, 100 % wide, a piece for each version that has weight."""
    pieces = "".join(
        f'<div style="width:{version.weight:g}%;background:{colour_of(version.version)}" '
        f'title="{escape(version.version)}: {version.weight:g} %"></div>'
        for version in deployment.versions
        if version.weight
    )
    return f'<div style="display:flex;height:8px;max-width:32em;background:#8884">{pieces}</div>'
