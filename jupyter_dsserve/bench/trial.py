"""A `Trial` of what is told in Python: prompts from a file or as they are, the rest by the names of the options."""

from __future__ import annotations

import difflib
import json
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from jupyter_dsserve.bench.plan import Plan
from jupyter_dsserve.bench.prompts import Prompt, read_prompts
from jupyter_dsserve.bench.reports import file_text
from jupyter_dsserve.bench.target import Target
from jupyter_dsserve.bench.validate import Trial
from jupyter_dsserve.bench.verdict import Thresholds
from jupyter_dsserve.protocol.errors import InvalidRequest

Prompts = str | Path | Sequence[Mapping[str, Any]]

# Of each of the rounds; the same as the command's.
_PLAN = {"seconds": 2.0, "concurrency": 4, "prompt_tokens": "64", "output_tokens": "32"}
_THRESHOLDS = tuple(each.name for each in fields(Thresholds))


def trial_of(target: Target, baseline: str = "", prompts: Prompts = (), *, rounds: int = 5, **options: Any) -> Trial:
    """``options`` are the fields of `Thresholds`, and of `Plan` those of a round: ``seconds``, ``concurrency``,
    ``prompt_tokens`` and ``output_tokens``; None is the default. Raises `InvalidRequest` naming what cannot be."""
    given = {name: value for name, value in options.items() if value is not None}
    known = [*_THRESHOLDS, *_PLAN]
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            advice = f"did you mean {near[0]}?" if near else f"use {', '.join(known)}"
            raise InvalidRequest(f"validate has no {name!r}: {advice}", param=name)
    if rounds < 1:
        raise InvalidRequest(f"rounds is {rounds}: give 1 or more", param="rounds")
    plan = Plan.read(**{name: given.pop(name, default) for name, default in _PLAN.items()})
    return Trial(target, baseline, _read(prompts), Thresholds(**given), plan, rounds)


def _read(prompts: Prompts) -> list[Prompt]:
    if isinstance(prompts, str | Path):
        return read_prompts(file_text(prompts), str(prompts)) if str(prompts) else []
    lines: list[str] = []
    for number, each in enumerate(prompts, start=1):
        try:
            if not isinstance(each, Mapping):
                raise TypeError(f'{reprlib.repr(each)} is none, give {{"prompt": …}}')
            lines.append(json.dumps(dict(each)))
        except (TypeError, ValueError, RecursionError) as fault:
            raise InvalidRequest(f"prompts, line {number}: {fault}", param="prompts") from None
    return read_prompts("\n".join(lines)) if lines else []
