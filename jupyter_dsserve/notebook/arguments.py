"""What stands behind ``%dsserve VERB``, read: each function raises `UsageError` for what it is not."""

from __future__ import annotations

import json
import math
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from IPython.core.error import UsageError
from IPython.core.magic_arguments import parse_argstring

from jupyter_dsserve.protocol.policy import Rule

_MAX_ANSWERS = 8


def name_and_version(text: str, version: str = "") -> tuple[str, str]:
    name, _, pinned = text.partition("@")
    if pinned and version and pinned != version:
        raise UsageError(f"{text} and --version {version} name two versions: leave one of them out")
    return name, pinned or version


def pinned(verb: str, text: str, versions_of: Callable[[str], Sequence[str]]) -> tuple[str, str]:
    """``demo@v1`` as a deployment and its version, for verbs that need both; ``demo`` is its only version.
    ``versions_of`` says which ones a deployment has."""
    name, version = name_and_version(text)
    if version:
        return name, version
    known = versions_of(name)
    if len(known) != 1:
        raise UsageError(f"%dsserve {verb} {name}: {one_of(name, known)}")
    return name, known[0]


def one_of(name: str, versions: Sequence[str]) -> str:
    """What to do where a version is to be named: ``name one of demo@v1, demo@v2``."""
    if not versions:
        return f"{name} has no version: load one first"
    return f"name the version too, one of {', '.join(f'{name}@{version}' for version in versions)}"


def weight(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        weight = float(value)
        if not math.isfinite(weight):
            raise ValueError(value)
        return name, weight
    except ValueError:
        raise UsageError(f"weight {text!r}: write VERSION=PERCENT, such as v1=90") from None


def fact(text: str) -> tuple[str, Any]:
    """``loss=2.5`` is a number, ``run=r7`` a text."""
    name, sign, value = text.partition("=")
    if not (name and sign):
        raise UsageError(f"--metadata {text}: write KEY=VALUE, such as loss=2.5")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def rule(text: str) -> Rule:
    """Of ``HEADER=VALUE:VERSION``."""
    header, _, rest = text.partition("=")
    value, _, version = rest.rpartition(":")
    if not (header and value and version):
        raise UsageError(f"rule {text!r}: write HEADER=VALUE:VERSION, such as X-User-Group=beta:v2")
    return Rule(header, value, version)


def percents(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"steps {text!r}: write percents, such as 5,25,50,100") from None


def form(regex: str | None, choice: list[str] | None, schema: str | None) -> dict[str, Any] | None:
    """What ``structured_outputs`` is to be; None for any text."""
    try:
        read = json.loads(Path(schema).expanduser().read_text()) if schema else None
    except (OSError, ValueError) as fault:
        raise UsageError(f"--json {schema}: not a file with a JSON schema ({fault})") from None
    given = {"regex": regex, "choice": choice, "json": read}
    return {kind: value for kind, value in given.items() if value is not None} or None


def models_asked(name: str, compare: list[str] | None, num: int) -> list[str]:
    """Whom a cell asks: ``name``, so many times, or the two versions of it that ``compare`` names (``other@v1`` is of
    another deployment)."""
    if num < 1 or num > _MAX_ANSWERS:
        raise UsageError(f"--n {num}: from 1 to {_MAX_ANSWERS} answers stand side by side")
    if not compare:
        return [name] * num
    if num != 1:
        raise UsageError("--compare asks each version once: leave --n out")
    if "@" in name:
        raise UsageError(f"{name} --compare: name the deployment alone, such as {name.partition('@')[0]}")
    return [each if "@" in each else f"{name}@{each}" for each in compare]


def parsed(method: Callable[..., Any], line: str) -> Namespace:
    """The arguments of a line. IPython leaves the quotes on that hold an argument together: they come off here."""
    try:
        given: Namespace = parse_argstring(method, line)
    except UsageError as fault:
        verb = method.parser.prog.partition(" ")[2] or "cell"  # type: ignore[attr-defined]
        raise UsageError(f"{fault} (%dsserve help {verb} says more)") from None
    for name, value in vars(given).items():
        if isinstance(value, str):
            setattr(given, name, unquoted(value))
        elif isinstance(value, list):
            setattr(given, name, [unquoted(each) for each in value])
    return given


def unquoted(text: str) -> str:
    is_quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"
    return text[1:-1] if is_quoted else text
