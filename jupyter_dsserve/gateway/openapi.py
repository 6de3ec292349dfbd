"""``/openapi.json``: every route, made from the table of routes, what its methods say of themselves (`describe`), and
the types of bodies and answers."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from http.client import responses
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode

from jupyter_dsserve import __version__
from jupyter_dsserve.gateway.describe import Description, describes, description_of
from jupyter_dsserve.gateway.handlers import Handler, methods_of
from jupyter_dsserve.protocol.errors import (
    DSServeError,
    Forbidden,
    HeadersTooLarge,
    InvalidRequest,
    TooLarge,
    TooManyRequests,
    Unauthorized,
    Unavailable,
)

Json = dict[str, Any]
Routes = Sequence[tuple[str, type[Handler]]]

_GROUP = re.compile(r"\(\[\^/\]\+\)")  # a part of a path
_RETRY = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer", "minimum": 0}}}
_ANSWERED_BY = {
    "X-Request-Id": {
        "description": "Of the call, for /api/traces/{id}.",
        "schema": {"type": "string"},
    },
    "X-DSServe-Version": {"description": "The version that answered.", "schema": {"type": "string"}},
    "X-DSServe-Degraded": {"description": "Who stands in for it.", "schema": {"type": "string"}},
}
_TAGS = {"v1": "OpenAI", "v2": "Open Inference Protocol", "api": "Control", "health": "Health"}


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one route, and what it says of itself."""

    method: str
    path: str  # such as /api/keys/{id}
    handler: type[Handler]
    description: Description
    parts: tuple[str, ...]  # the names of the path's

    @property
    def id(self) -> str:
        return "_".join([self.method, *re.findall(r"\w+", self.path)])


def operations(routes: Routes) -> Iterator[Operation]:
    """Those that are described, in the order of the table."""
    for method, path, handler, parts in _methods(routes):
        if description := description_of(getattr(handler, method)):
            yield Operation(method, path, handler, description, parts)


def undescribed(routes: Routes) -> list[str]:
    """The methods that do not say what they take and give, such as ``GET /api/keys (Keys.get)``."""
    return [
        f"{method.upper()} {path} ({handler.__name__}.{method})"
        for method, path, handler, _ in _methods(routes)
        if not description_of(getattr(handler, method))
    ]


def document(routes: Routes) -> Json:
    """The OpenAPI 3.1 document of what is described in ``routes``."""
    found = list(operations(routes))
    schemas = _Schemas(found)
    paths: dict[str, Json] = {}
    for operation in found:
        paths.setdefault(operation.path, {})[operation.method] = _told(operation, schemas)
    key = {"type": "http", "scheme": "bearer", "description": "The admin key, or an API key with the scope named."}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "jupyter_dsserve",
            "version": __version__,
            "description": "Models served beside the notebook: deployments, their versions, and the way of the "
            "traffic between them. A model is a deployment (demo) or one of its versions (demo@v1).",
        },
        "servers": [{"url": "."}],
        "paths": paths,
        "components": {"schemas": schemas.definitions, "securitySchemes": {"key": key}},
    }


def _methods(routes: Routes) -> Iterator[tuple[str, str, type[Handler], tuple[str, ...]]]:
    """Method, path, handler and the names of the path's parts. What answers any path has no methods."""
    for pattern, handler in routes:
        for method in methods_of(handler):
            function = getattr(handler, method)
            names = tuple(list(inspect.signature(function).parameters)[1 : 1 + len(_GROUP.findall(pattern))])
            path = _GROUP.sub("{}", pattern).replace(r"\.", ".")
            if path.count("{}") != len(names) or re.search(r"[\\*+?()|\[\]^$]", path):
                raise ValueError(f"{pattern} ({handler.__name__}.{method}): parts are ([^/]+), one a parameter")
            yield method, path.format(*(f"{{{name}}}" for name in names)), handler, names


class _Generator(GenerateJsonSchema):
    """Of answers every field is there."""

    def field_is_required(self, field: Any, total: bool) -> bool:
        if self.mode == "serialization" and field["type"] == "dataclass-field":
            return True
        return super().field_is_required(field, total)


class _Schemas:
    """The types that operations name, as JSON schemas: those of bodies as they may come, of answers as they go."""

    def __init__(self, found: Sequence[Operation]) -> None:
        wanted: dict[tuple[str, JsonSchemaMode], tuple[str, JsonSchemaMode, TypeAdapter[Any]]] = {}
        for kind, mode in (each for operation in found for each in _types(operation)):
            wanted.setdefault((repr(kind), mode), (repr(kind), mode, TypeAdapter(kind)))
        template = "#/components/schemas/{model}"
        schemas, told = TypeAdapter.json_schemas(wanted.values(), ref_template=template, schema_generator=_Generator)
        self._schemas: Mapping[tuple[str, JsonSchemaMode], Json] = schemas
        self.definitions: Json = told.get("$defs", {})

    def of(self, kind: Any, mode: JsonSchemaMode) -> Json:
        return dict(self._schemas[repr(kind), mode])


def _types(operation: Operation) -> Iterator[tuple[Any, JsonSchemaMode]]:
    told = operation.description
    if told.body is not None:
        yield told.body, "validation"
    for kind in (*told.path.values(), *told.query.values(), *told.headers.values()):
        yield kind, "validation"
    for kind in (*told.gives.values(), told.events, operation.handler.error_type):
        if kind is not None:
            yield kind, "serialization"


def _told(operation: Operation, schemas: _Schemas) -> Json:
    told, handler = operation.description, operation.handler
    found: Json = {
        "operationId": operation.id,
        "summary": told.summary,
        "tags": [_TAGS.get(operation.path.split("/")[1], "Others")],
        "security": [] if handler.is_open else [{"key": [handler.scope]}],
        "responses": _responses(operation, schemas),
    }
    if text := inspect.getdoc(getattr(handler, operation.method)) or (vars(handler).get("__doc__") or ""):
        found["description"] = inspect.cleandoc(text)
    if parameters := _parameters(operation, schemas):
        found["parameters"] = parameters
    if told.body is not None:
        content: Json = {"schema": schemas.of(told.body, "validation")}
        if told.example:
            content["example"] = dict(told.example)
        found["requestBody"] = {"required": told.needs_body, "content": {"application/json": content}}
    return found


def _parameters(operation: Operation, schemas: _Schemas) -> list[Json]:
    told = operation.description
    text = {"type": "string", "minLength": 1}
    found = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": schemas.of(told.path[name], "validation") if name in told.path else text,
            **({"example": _EXAMPLES[name]} if name in _EXAMPLES else {}),
        }
        for name in operation.parts
    ]
    for place, kinds in (("query", told.query), ("header", told.headers)):
        for name, kind in kinds.items():
            schema = schemas.of(kind, "validation")
            said = {"description": schema.pop("description")} if "description" in schema else {}
            found.append({"name": name, "in": place, "required": False, **said, "schema": schema})
    return found


_EXAMPLES = {"name": "demo", "model": "demo", "version": "v1"}


def _responses(operation: Operation, schemas: _Schemas) -> Json:
    told, handler = operation.description, operation.handler
    has_body = operation.method != "head"
    headers = _ANSWERED_BY if handler.scope == "infer" and told.body is not None else {}
    found: Json = {}
    for status, kind in told.gives.items():
        good: Json = {"description": responses[status], **({"headers": headers} if headers else {})}
        content: Json = {told.media: {"schema": schemas.of(kind, "serialization")}} if kind is not None else {}
        if told.events is not None:
            item = schemas.of(told.events, "serialization")
            content["text/event-stream"] = {"x-itemSchema": item}
        if content and has_body:
            good["content"] = content
        found[str(status)] = good
    shape = {"application/json": {"schema": schemas.of(handler.error_type, "serialization")}}
    for kind in _errors(operation):
        if str(kind.status) in found:  # a route's own answer, such as OIP's 503
            continue
        bad: Json = {"description": _said_of(kind), **({"content": shape} if has_body else {})}
        if issubclass(kind, Unavailable | TooManyRequests):
            bad["headers"] = _RETRY
        found[str(kind.status)] = bad
    return dict(sorted(found.items()))


def _errors(operation: Operation) -> Iterator[type[DSServeError]]:
    yield InvalidRequest  # a path, a header or a body that cannot be read
    if not operation.handler.is_open:
        yield Unauthorized
        yield Forbidden
    if operation.description.body is not None:
        yield TooLarge
    yield HeadersTooLarge
    yield from operation.description.errors


def _said_of(kind: type[DSServeError]) -> str:
    return kind.__name__ + (f": {inspect.cleandoc(kind.__doc__)}" if kind.__doc__ else "")


# ---- the routes


class OpenAPI(Handler):
    """Needs no key: it tells nothing that is not in the package."""

    is_open = True

    @describes("This document: OpenAPI 3.1.", {200: Json})
    async def get(self) -> None:
        # Made once, which takes a part of a second: not on the loop.
        self.answer(await asyncio.to_thread(made, tuple(self.settings["described"])))


made = cache(document)

ROUTES: list[tuple[str, type[Handler]]] = [(r"/openapi\.json", OpenAPI)]
