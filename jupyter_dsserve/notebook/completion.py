"""What Tab offers after ``%dsserve`` and ``%%dsserve``: verbs, deployments and versions, flags, their values, paths."""

from __future__ import annotations

import threading
import time
from argparse import Action, ArgumentParser
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jupyter_dsserve.protocol.errors import DSServeError

# Who types waits for it: the kernel does nothing else meanwhile.
_WAIT_S = 0.15
_YOUNG_S = 1.0
_MAX_PATHS = 200
_ID = "dsserve"
_MAGICS = ("%dsserve ", "%%dsserve ")

_MODELS = ("builtin:demo-v1", "builtin:demo-v2")
_PATHS = ("file", "model", "nvme_dir", "json", "python", "prompts", "report")
_VARIABLES = ("object", "tokenizer")
_VERSIONS = ("version", "candidate", "fallback", "compare")
_DEPLOYMENTS = ("name", "deployment", "deployments", "baseline")

Served = Mapping[str, Sequence[str]]  # the versions of each deployment


@dataclass(frozen=True, slots=True)
class Known:
    """What may be named: what is served, and the kernel's variables."""

    served: Served = field(default_factory=dict)
    variables: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Offer:
    """A word that may stand there, and what it is: a notebook shows that beside it."""

    text: str
    kind: str


def _offers(kind: str, words: Iterable[str]) -> list[Offer]:
    return [Offer(word, kind) for word in words]


def offered(line: str, parsers: Mapping[str, ArgumentParser], known: Known) -> list[Offer]:
    """The words that may stand where ``line``, up to the cursor, ends. ``parsers``: of each verb, and of the cell's
    magic as an empty one."""
    words = line.split()
    word = "" if line[-1:].isspace() else words.pop()
    magic, *before = words or [""]
    if magic.startswith("%%"):
        parser = parsers[""]
    elif not before:
        return _beginning(word, _offers("verb", parsers)) if magic else []
    else:
        verb, *before = before
        if verb not in parsers:
            return []
        parser = parsers[verb]
    return _beginning(word, _next(word, before, parser, known))


def _next(word: str, before: Sequence[str], parser: ArgumentParser, known: Known) -> list[Offer]:
    flags = {flag: action for action in parser._actions for flag in action.option_strings}
    places = [action for action in parser._actions if not action.option_strings]
    used: set[Action] = set()
    named: list[str] = []
    wants: tuple[Action, int] | None = None  # whose value comes next, and how many more of it
    for each in before:
        if each in flags:
            action = flags[each]
            used.add(action)
            wants = (action, num) if (num := _num_values(action)) else None
        elif wants:
            wants = (wants[0], wants[1] - 1) if wants[1] > 1 else None
        else:
            named.append(each)
    if wants:
        return _values(wants[0], word, named, known)
    if word.startswith("-"):
        is_open = [a for a in flags.values() if a not in used or "Append" in type(a).__name__]
        return _offers("flag", sorted({flag for a in is_open for flag in a.option_strings if flag.startswith("--")}))
    if not places:
        return []
    place = places[min(len(named), len(places) - 1)]
    if len(named) >= len(places) and place.nargs != "*":
        return []
    return _values(place, word, named, known)


def _num_values(action: Action) -> int:
    return action.nargs if isinstance(action.nargs, int) else 1


def _values(action: Action, word: str, named: Sequence[str], known: Known) -> list[Offer]:
    of = known.served.get(named[0].partition("@")[0], ()) if named else ()
    if action.choices is not None:
        return _offers("value", map(str, action.choices))
    if action.dest in _DEPLOYMENTS:
        pinned = [f"{name}@{version}" for name, versions in known.served.items() for version in versions]
        return [*_offers("deployment", known.served), *_offers("version", pinned)]
    if action.dest in _VERSIONS:
        return _offers("version", of)
    if action.dest == "weights":
        told = {each.partition("=")[0] for each in named[1:]}
        return _offers("version", (f"{version}=" for version in of if version not in told))
    if action.dest in _VARIABLES:
        return _offers("variable", known.variables)
    if action.dest in _PATHS:
        more = {"model": _offers("model", _MODELS), "python": _offers("value", ["kernel"])}.get(action.dest, [])
        return [*more, *_offers("path", _paths(word))]
    return []


def _paths(word: str) -> list[str]:
    """What lies where ``word`` points, as it is written there; directories with a slash at the end."""
    place, slash, name = word.rpartition("/")
    try:
        there = Path(place + slash).expanduser() if place + slash else Path()
        found = [p for p in there.iterdir() if p.name.startswith(name) and (name or not p.name.startswith("."))]
        return sorted(f"{place}{slash}{p.name}{'/' if p.is_dir() else ''}" for p in found[:_MAX_PATHS])
    except (OSError, RuntimeError):  # no such place, no such user's home
        return []


def _beginning(word: str, offers: Sequence[Offer]) -> list[Offer]:
    return [each for each in dict.fromkeys(offers) if each.text and each.text.startswith(word)]


class Glance:
    """What is served, not older than a second, and never waited for: a gateway that is slow to say is not known now,
    and is at the next Tab. ``look`` runs in a thread."""

    def __init__(self, look: Callable[[], Served], clock: Callable[[], float] = time.monotonic) -> None:
        self._look, self._clock = look, clock
        self._seen: tuple[float, Served] | None = None
        self._thread: threading.Thread | None = None

    def __call__(self) -> Served:
        if not self._young():
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="dsserve-glance", daemon=True)
                self._thread.start()
            self._thread.join(_WAIT_S)
        return self._young() or {}

    def _young(self) -> Served | None:
        return self._seen[1] if self._seen and self._clock() < self._seen[0] + _YOUNG_S else None

    def _run(self) -> None:
        try:
            found = self._look()
        except DSServeError:
            return  # whoever runs the line is told
        self._seen = (self._clock(), found)


def install(shell: Any, parsers: Mapping[str, ArgumentParser], served: Callable[[], Served]) -> None:
    """Have ``shell`` complete both magics, instead of what Python would say of their lines. Once, however often."""
    from IPython.core.completer import SimpleCompletion, context_matcher

    def matcher(context: Any) -> dict[str, Any]:
        line = context.text_until_cursor.lstrip()
        if not line.startswith(_MAGICS):
            return {"completions": []}
        names = [name for name in shell.user_ns if not name.startswith("_") and name not in shell.user_ns_hidden]
        found = offered(line, parsers, Known(served(), names))
        # IPython completes what stands behind the last of its delimiters, such as @ and =.
        word = "" if line[-1:].isspace() else line.split()[-1]
        cut = [SimpleCompletion(each.text[len(word) - len(context.token) :], type=each.kind) for each in found]
        return {"completions": cut, "suppress": True, "ordered": True}

    others = [m for m in shell.Completer.custom_matchers if getattr(m, "matcher_identifier", "") != _ID]
    shell.Completer.custom_matchers = [*others, context_matcher(identifier=_ID)(matcher)]
