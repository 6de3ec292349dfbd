"""The form that an answer of OpenAI's routes is asked to have."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field

from jupyter_dsserve.gateway.bodies import Body
from jupyter_dsserve.protocol.errors import InvalidRequest
from jupyter_dsserve.protocol.request import Structure, StructureKind


class JsonSchema(Body):
    name: str
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    description: str | None = None
    strict: bool | None = None  # every answer keeps to its schema


class ResponseFormat(Body):
    """OpenAI's way to ask for JSON."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    def structure(self) -> Structure | None:
        """Raises `InvalidRequest` for a ``json_schema`` that lacks its schema."""
        if self.type == "text":
            return None
        if self.type == "json_object":
            return Structure(StructureKind.JSON, '{"type": "object"}', "response_format")
        if self.json_schema is None:
            raise InvalidRequest(
                "response_format has type 'json_schema' and no json_schema: send "
                '{"type": "json_schema", "json_schema": {"name": ..., "schema": {...}}}',
                param="response_format",
            )
        return Structure(StructureKind.JSON, json.dumps(self.json_schema.schema_), "response_format")


class StructuredOutputs(Body):
    """vLLM's way to ask for a form: one of the four."""

    regex: Annotated[str, Field(min_length=1)] | None = None
    choice: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)] | None = None
    json_: Annotated[dict[str, Any] | str | None, Field(alias="json")] = None
    grammar: Annotated[str, Field(min_length=1)] | None = None

    def structure(self) -> Structure:
        """Raises `InvalidRequest` unless just one is given."""
        schema = json.dumps(self.json_) if isinstance(self.json_, dict) else self.json_
        given = {
            StructureKind.REGEX: self.regex,
            StructureKind.CHOICE: None if self.choice is None else json.dumps(self.choice),
            StructureKind.JSON: schema,
            StructureKind.GRAMMAR: self.grammar,
        }
        found = [Structure(kind, source) for kind, source in given.items() if source is not None]
        if len(found) != 1:
            named = ", ".join(structure.kind.value for structure in found) or "none"
            raise InvalidRequest(
                f"structured_outputs has {named}: give it one of regex, choice, json and grammar",
                param="structured_outputs",
            )
        return found[0]
