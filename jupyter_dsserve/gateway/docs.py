"""``/docs``: `/openapi.json` as a page that people read, and ``/``, which says what there is.

The page is made here as a whole and asks nobody else for anything: a gateway often has no internet. Its script only
searches; without it everything is there too.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tornado.escape import url_escape, xhtml_escape
from tornado.template import Loader

from jupyter_dsserve import __version__
from jupyter_dsserve.gateway.answers import Places
from jupyter_dsserve.gateway.describe import describes
from jupyter_dsserve.gateway.handlers import Handler
from jupyter_dsserve.gateway.openapi import made

Json = Mapping[str, Any]
_PART = re.compile(r"\{(\w+)\}")
_BOUNDS = {
    "minimum": "≥ {}",
    "exclusiveMinimum": "> {}",
    "maximum": "≤ {}",
    "exclusiveMaximum": "< {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {}",
    "maxItems": "at most {}",
    "pattern": "/{}/",
}
_MEDIA = {"application/json": "JSON", "text/event-stream": "events"}


@dataclass(frozen=True, slots=True)
class Word:
    """A piece of what a type is: some text, or the name of a schema to go to."""

    text: str
    schema: str = ""


@dataclass(frozen=True, slots=True)
class Field:
    """A row of a table: a parameter, or a property of a schema."""

    name: str
    where: str  # path, query, header; empty for a property
    is_needed: bool
    words: Sequence[Word]
    note: str


def words_of(schema: Json) -> list[Word]:
    """A type in a few words, such as ``list of ToolBody (at most 128) or null``."""
    if "$ref" in schema:
        name = str(schema["$ref"]).rpartition("/")[2]
        return [Word(name, name)]
    if several := schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf"):
        return _joined([words_of(each) for each in several], " or ")
    if "const" in schema or "enum" in schema:
        values = schema["enum"] if "enum" in schema else [schema["const"]]
        return [Word(" or ".join(json.dumps(value, ensure_ascii=False) for value in values))]
    bounds = [form.format(schema[name]) for name, form in _BOUNDS.items() if name in schema]
    limits = [Word(f" ({', '.join(bounds)})")] if bounds else []
    kind = schema.get("type", "anything")
    if kind == "array":
        inner = _joined([words_of(each) for each in schema["prefixItems"]], ", ") if "prefixItems" in schema else []
        return [Word("list of "), *(inner or words_of(schema.get("items") or {})), *limits]
    if kind == "object" and isinstance(of := schema.get("additionalProperties"), dict):
        return [Word("object of "), *words_of(of), *limits]
    return [Word(str(kind)), *limits]


def fields_of(schema: Json) -> list[Field]:
    """Of an object's schema: what it holds, what must be there first."""
    needed = set(schema.get("required", ()))
    found = [
        Field(name, "", name in needed, words_of(told), _note(told))
        for name, told in schema.get("properties", {}).items()
    ]
    return sorted(found, key=lambda field: not field.is_needed)


def parameters_of(operation: Json) -> list[Field]:
    return [
        Field(told["name"], told["in"], told["required"], words_of(told["schema"]), told.get("description", ""))
        for told in operation.get("parameters", ())
    ]


def curl(method: str, path: str, operation: Json) -> str:
    """A command that a shell takes as it stands, once URL and KEY are set."""
    examples = {told["name"]: told.get("example", told["name"].upper()) for told in operation.get("parameters", ())}
    asked = _PART.sub(lambda part: str(examples[part[1]]), path)
    example = _content(operation.get("requestBody", {})).get("example")
    verb = method.upper()
    words = ["curl", *(["-N"] if path == "/api/events" else []), *(["-I"] if verb == "HEAD" else [])]
    if verb not in ("GET", "HEAD") and (verb != "POST" or example is None):
        words += ["-X", verb]
    words.append(f'"$URL{asked}"')
    if operation["security"]:
        words += ["-H", '"Authorization: Bearer $KEY"']
    if example is not None:
        words += ["-d", shlex.quote(json.dumps(example, ensure_ascii=False))]
    return " ".join(words)


def page(told: Json) -> bytes:
    """The document ``told`` as HTML."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for path, methods in told["paths"].items():
        for method, operation in methods.items():
            groups.setdefault(operation["tags"][0], []).append(_shown(method, path, operation))
    schemas = [(name, schema, fields_of(schema)) for name, schema in sorted(told["components"]["schemas"].items())]
    template = Loader(str(Path(__file__).parent)).load("docs.html")
    return template.generate(
        info=told["info"],
        groups=groups,
        schemas=schemas,
        linked=linked,
        words_of=words_of,
        style=_STYLE,
        script=_SCRIPT,
    )


def linked(words: Sequence[Word]) -> str:
    """As HTML: schemas are links to where they stand on the page."""
    return "".join(
        f'<a href="#{url_escape(word.schema)}">{xhtml_escape(word.text)}</a>'
        if word.schema
        else xhtml_escape(word.text)
        for word in words
    )


def _shown(method: str, path: str, operation: Json) -> dict[str, Any]:
    security = operation["security"]
    body = operation.get("requestBody")
    return {
        "id": operation["operationId"],
        "method": method.upper(),
        "path": path,
        "summary": operation["summary"],
        "key": f"key: {security[0]['key'][0]}" if security else "no key",
        "description": operation.get("description", ""),
        "parameters": parameters_of(operation),
        "body": words_of(_content(body)["schema"]) if body else [],
        "curl": curl(method, path, operation),
        "answers": [
            (status, answer["description"], list(_kinds(answer))) for status, answer in operation["responses"].items()
        ],
    }


def _kinds(answer: Json) -> Iterator[tuple[str, list[Word]]]:
    """Each media type with what comes in it."""
    for media, content in answer.get("content", {}).items():
        yield _MEDIA.get(media, media), words_of(content.get("schema") or content.get("x-itemSchema") or {})


def _content(told: Json) -> Json:
    return told.get("content", {}).get("application/json", {})


def _note(told: Json) -> str:
    default = told.get("default")
    said = [f"default {json.dumps(default, ensure_ascii=False)}"] if default not in (None, "", [], {}) else []
    return " · ".join([*([told["description"]] if "description" in told else []), *said])


def _joined(several: Sequence[list[Word]], between: str) -> list[Word]:
    return [word for number, words in enumerate(several) for word in ([Word(between)] if number else []) + words]


# ---- the routes

_STYLE = Path(__file__).with_name("docs.css").read_text()
_SCRIPT = Path(__file__).with_name("docs.js").read_text()


def _allowed(text: str) -> str:
    """As Content-Security-Policy names an inline script or style: by its hash."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


_POLICY = (
    f"default-src 'none'; style-src {_allowed(_STYLE)}; script-src {_allowed(_SCRIPT)}; frame-ancestors 'self'; "
    "base-uri 'none'; form-action 'none'"
)
_page = cache(lambda routes: page(made(routes)))


class Docs(Handler):
    """Needs no key, as the document itself. It loads nothing from anywhere."""

    is_open = True

    @describes("These routes, to be read and searched.", {200: str}, media="text/html")
    async def get(self) -> None:
        shown = await asyncio.to_thread(_page, tuple(self.settings["described"]))
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.set_header("Content-Security-Policy", _POLICY)
        self.finish(shown)


class Root(Handler):
    """A browser is led to the page."""

    is_open = True

    @describes("What answers here, and where it says more.", {200: Places, 303: None})
    def get(self) -> None:
        self.set_header("Vary", "Accept")
        if "text/html" in self.request.headers.get("Accept", ""):
            self.clear_header("Content-Type")
            self.set_status(303)
            self.set_header("Location", "docs")
            self.finish()
            return
        places: Places = {
            "name": "jupyter_dsserve",
            "version": __version__,
            "docs": "docs",
            "openapi": "openapi.json",
            "health": "health/ready",
            "metrics": "metrics",
        }
        self.answer(places)


ROUTES: list[tuple[str, type[Handler]]] = [(r"/docs", Docs), (r"/", Root)]
