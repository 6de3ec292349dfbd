"""What a load test asks: how hard, how long, with what lengths. Read here from the words people write."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeVar

from jupyter_dsserve.protocol.errors import InvalidRequest

Kind = Literal["concurrency", "rate"]
T = TypeVar("T", int, float)

_CONCURRENCY = (1, 4, 16)
_SECONDS = 10.0
# With a number of requests to wait for, the seconds are only there so that it ends.
_SECONDS_FOR_REQUESTS = 600.0


@dataclass(frozen=True, slots=True)
class Lengths:
    """A distribution of token counts, from ``low`` to ``high``.

    ``fixed``: ``low`` always. ``uniform``: each count alike. ``lognormal``: ``median`` and ``sigma`` (of the natural
    logarithm), cut at the bounds.
    """

    kind: Literal["fixed", "uniform", "lognormal"] = "fixed"
    low: int = 64
    high: int = 64
    median: float = 0.0
    sigma: float = 0.0

    @staticmethod
    def read(text: str) -> Lengths:
        """``128``, ``16-256`` or ``lognormal:64:0.8:16-256`` (median, sigma, bounds). Raises `InvalidRequest`."""
        try:
            if not text.startswith("lognormal:"):
                low, _, high = text.partition("-")
                found = Lengths("uniform" if high else "fixed", int(low), int(high or low))
            else:
                _, median, sigma, bounds = text.split(":")
                low, _, high = bounds.partition("-")
                found = Lengths("lognormal", int(low), int(high), float(median), float(sigma))
        except ValueError:
            found = Lengths(low=0)
        is_sane = 1 <= found.low <= found.high < 2**31 and found.median >= 0 and 0 <= found.sigma < math.inf
        if not is_sane or (found.kind == "lognormal" and not 0 < found.median < math.inf):
            raise InvalidRequest(
                f"lengths {text!r}: write a number of tokens (128), a range (16-256), or median, sigma and bounds of a "
                "log-normal distribution (lognormal:64:0.8:16-256)"
            )
        return found

    def __str__(self) -> str:
        if self.kind == "lognormal":
            return f"lognormal:{self.median:g}:{self.sigma:g}:{self.low}-{self.high}"
        return str(self.low) if self.kind == "fixed" else f"{self.low}-{self.high}"


@dataclass(frozen=True, slots=True)
class Slo:
    """The most seconds a request may take to its first token, a token after that, and in all; None: as it likes."""

    first_token_s: float | None = None
    per_token_s: float | None = None
    latency_s: float | None = None

    @staticmethod
    def read(text: str) -> Slo:
        """``first_token_s=0.5,per_token_s=0.05``. Raises `InvalidRequest`."""
        known = [f.name for f in fields(Slo)]
        given: dict[str, float] = {}
        for part in filter(None, text.split(",")):
            name, _, value = part.strip().partition("=")
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                raise InvalidRequest(f"slo {part!r}: " + (f"did you mean {near[0]}?" if near else f"use {known}"))
            given[name] = _positive("slo", value, float)
        return Slo(**given)

    def __str__(self) -> str:
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        return ",".join(f"{name}={value:g}" for name, value in given.items() if value is not None)


@dataclass(frozen=True, slots=True)
class Load:
    """How hard one point presses: so many clients that each ask again when answered, or so many arrivals a second."""

    kind: Kind
    value: float

    def __str__(self) -> str:
        return f"{self.kind} {self.value:g}"


@dataclass(frozen=True, slots=True)
class Plan:
    """A sweep: one point for each number of ``concurrency``, or for each ``rate`` (requests a second).

    A point lasts ``seconds``, or until ``requests`` of them (0: not counted) have ended, whichever comes first, not
    counting its warm-up; longer if no client has asked again by then. ``drain_s`` is the most that its warm-up, a
    client that asks again, and at its end the last answers, are waited for. Prompts and lengths are drawn from
    ``seed``: the same every time. ``ignore_eos`` (answers go on to their full length) None means: if the server is
    ours.
    """

    concurrency: tuple[int, ...] = ()
    rate: tuple[float, ...] = ()
    seconds: float = _SECONDS
    requests: int = 0
    prompt_tokens: Lengths = field(default_factory=Lengths)
    output_tokens: Lengths = field(default_factory=Lengths)
    slo: Slo = field(default_factory=Slo)
    seed: int = 0
    chat: bool = False
    ignore_eos: bool | None = None
    drain_s: float = 30.0

    @staticmethod
    def read(**given: Any) -> Plan:
        """A plan of the fields above; texts such as ``concurrency="1,4,16"`` are read, None is the default.

        Raises `InvalidRequest` naming what cannot be.
        """
        known = [f.name for f in fields(Plan)]
        for name in given.keys() - set(known):
            near = difflib.get_close_matches(name, known, n=1)
            advice = f"did you mean {near[0]}?" if near else f"use {', '.join(known)}"
            raise InvalidRequest(f"a load test has no {name!r}: {advice}")
        read = {name: _READERS[name](value) for name, value in given.items() if value is not None}
        if read.get("concurrency") and read.get("rate"):
            raise InvalidRequest("concurrency and rate are two kinds of load: give one of them")
        if not read.get("rate"):
            read["concurrency"] = read.get("concurrency") or _CONCURRENCY
        read["seconds"] = read.get("seconds") or (_SECONDS_FOR_REQUESTS if read.get("requests") else _SECONDS)
        return Plan(**read)

    @property
    def loads(self) -> list[Load]:
        """The points in their order."""
        return [Load("concurrency", n) for n in self.concurrency] or [Load("rate", r) for r in self.rate]


def _sweep(name: str, kind: type[T], highest: float) -> Callable[[Any], tuple[T, ...]]:
    def read(given: Any) -> tuple[T, ...]:
        if isinstance(given, str):
            given = [part for part in given.split(",") if part.strip()]
        values = given if isinstance(given, Iterable) else [given]
        return tuple(_positive(name, value, kind, highest) for value in values)

    return read


def _positive(name: str, given: Any, kind: type[T], highest: float = math.inf, *, or_zero: bool = False) -> T:
    try:
        value = kind(given)
        if not (math.isfinite(value) and (value > 0 or (or_zero and value == 0)) and value <= highest):
            raise ValueError(given)
        return value
    except (TypeError, ValueError, OverflowError):
        sort = "a whole number" if kind is int else "a number"
        most = f" and at most {highest:g}" if highest < math.inf else ""
        raise InvalidRequest(f"{name} {given!r}: give {sort} over 0{most}") from None


def _lengths(given: Any) -> Lengths:
    return given if isinstance(given, Lengths) else Lengths.read(str(given))


def _slo(given: Any) -> Slo:
    if isinstance(given, Mapping):
        given = ",".join(f"{name}={value}" for name, value in given.items())
    return given if isinstance(given, Slo) else Slo.read(str(given))


_READERS: dict[str, Callable[[Any], Any]] = {
    "concurrency": _sweep("concurrency", int, 4096),
    "rate": _sweep("rate", float, 10_000),
    "seconds": lambda v: _positive("seconds", v, float, 86_400, or_zero=True),
    "requests": lambda v: _positive("requests", v, int, or_zero=True),
    "prompt_tokens": _lengths,
    "output_tokens": _lengths,
    "slo": _slo,
    "seed": int,
    "chat": bool,
    "ignore_eos": bool,
    "drain_s": lambda v: _positive("drain_s", v, float, 3600),
}
