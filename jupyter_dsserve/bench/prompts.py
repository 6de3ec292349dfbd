"""Integration prompts: what is asked, what is expected, and whether an answer is that. Pure functions.

A file holds one JSON object a line::

    {"name": "capital", "prompt": "The capital of France is", "max_tokens": 8, "expect": {"contains": "Paris"}}
    {"messages": [{"role": "user", "content": "Say hi"}], "expect": {"regex": "(?i)^hi", "max_latency_s": 2}}

Every other field goes to the server as it is (``temperature`` is 0 unless told).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import jsonschema
from referencing.exceptions import Unresolvable

from jupyter_dsserve.protocol.errors import InvalidRequest

Json = dict[str, Any]

_OURS = ("model", "stream", "n")
_SHOWN = 200  # characters of an answer in what is wrong with it
_KINDS = ("contains", "equals", "json_schema", "max_latency_s", "regex")


@dataclass(frozen=True, slots=True)
class Expectation:
    """``contains``: all of these. ``regex`` is found somewhere, ``equals`` is the whole answer but for white space
    around it. ``json_schema``: the answer is JSON that fits. ``max_latency_s``: from asking to the answer's end."""

    contains: tuple[str, ...] = ()
    regex: str | None = None
    equals: str | None = None
    json_schema: Json | None = None
    max_latency_s: float | None = None

    @staticmethod
    def read(given: Mapping[str, Any]) -> Expectation:
        """Raises ValueError for what can be none."""
        for name in given:
            if name not in _KINDS:
                near = get_close_matches(name, _KINDS, n=1)
                advice = f"did you mean {near[0]}?" if near else f"use {', '.join(_KINDS)}"
                raise ValueError(f"expect has no {name!r}: {advice}")
        contains = given.get("contains", [])
        parts = [contains] if isinstance(contains, str) else contains
        if not (isinstance(parts, list) and all(isinstance(part, str) for part in parts)):
            raise ValueError(f"contains is {contains!r}: give a text, or a list of them")
        for name in ("regex", "equals"):
            if not isinstance(given.get(name, ""), str):
                raise ValueError(f"{name} is {given[name]!r}: give a text")
        try:
            re.compile(given.get("regex", ""))
        except re.error as fault:
            raise ValueError(f"regex {given['regex']!r} is none: {fault}") from None
        schema = given.get("json_schema")
        if schema is not None:
            try:
                jsonschema.validators.validator_for(schema).check_schema(schema)
            except (jsonschema.SchemaError, AttributeError, TypeError) as fault:
                raise ValueError(f"json_schema is none: {getattr(fault, 'message', fault)}") from None
        most = given.get("max_latency_s")
        if most is not None and (isinstance(most, bool) or not isinstance(most, int | float) or most <= 0):
            raise ValueError(f"max_latency_s is {most!r}: give seconds over 0")
        return Expectation(tuple(parts), given.get("regex"), given.get("equals"), schema, most)


@dataclass(frozen=True, slots=True)
class Prompt:
    """``body`` is what the server is asked, without the model. ``is_chat``: it has messages."""

    name: str
    body: Json = field(repr=False)
    expect: Expectation

    @property
    def is_chat(self) -> bool:
        return "messages" in self.body


def read_prompts(text: str, source: str = "prompts") -> list[Prompt]:
    """Of the lines of a file; empty ones do not count. Raises `InvalidRequest` naming the line."""
    found: list[Prompt] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                found.append(_prompt(json.loads(line), f"line {number}"))
            except ValueError as fault:
                raise InvalidRequest(f"{source}, line {number}: {fault}") from None
    if not found:
        raise InvalidRequest(f"{source} has no prompts: write one JSON object a line")
    return found


def _prompt(given: Any, name: str) -> Prompt:
    if not isinstance(given, dict):
        raise ValueError("write a JSON object")
    body = {key: value for key, value in given.items() if key not in ("name", "expect")}
    if ("prompt" in body) == ("messages" in body):
        raise ValueError("give a prompt or messages")
    if taken := [key for key in _OURS if key in body]:
        raise ValueError(f"{taken[0]} is not yours to give here: it is told on the command line, or is fixed")
    expect = given.get("expect", {})
    if not isinstance(expect, dict):
        raise ValueError(f"expect is {expect!r}: give an object")
    return Prompt(str(given.get("name", name)), {"temperature": 0} | body, Expectation.read(expect))


def problems(expect: Expectation, answer: str, latency_s: float) -> list[str]:
    """What is not as expected, in words; nothing if all is. Raises `InvalidRequest` for an unusable schema."""
    said = repr(answer if len(answer) <= _SHOWN else answer[:_SHOWN] + "…")
    found = [f"it does not contain {part!r}: {said}" for part in expect.contains if part not in answer]
    if expect.regex is not None and not re.search(expect.regex, answer):
        found.append(f"it does not match {expect.regex!r}: {said}")
    if expect.equals is not None and answer.strip() != expect.equals.strip():
        found.append(f"it is not {expect.equals!r}: {said}")
    if expect.json_schema is not None:
        try:
            jsonschema.validate(json.loads(answer), expect.json_schema)
        except json.JSONDecodeError as fault:
            found.append(f"it is no JSON ({fault}): {said}")
        except jsonschema.ValidationError as fault:
            found.append(f"it does not fit the schema ({fault.message[:_SHOWN]}): {said}")
        except RecursionError:
            found.append(f"it nests too deep for its schema to be looked at: {said}")
        except Unresolvable as fault:
            raise InvalidRequest(f"json_schema has a $ref that leads nowhere: {fault}", param="json_schema") from None
    if expect.max_latency_s is not None and latency_s > expect.max_latency_s:
        found.append(f"it took {latency_s:.3f} s, over {expect.max_latency_s:g} s")
    return found
