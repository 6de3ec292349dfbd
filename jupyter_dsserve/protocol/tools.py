"""How models call functions: which chat template has which format, and the grammar of a call in each.

``hermes`` (Hermes, Qwen): ``<tool_call>\\n{"name": ..., "arguments": {...}}\\n</tool_call>``, one after another.
``llama3`` (Llama 3.1 and later): the whole answer is ``{"name": ..., "parameters": {...}}``, maybe after
``<|python_tag|>``. ``mistral``: ``[TOOL_CALLS] [{"name": ..., "arguments": {...}}, ...]``.
`gateway.tool_parser` reads what is written here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from jupyter_dsserve.protocol.errors import InvalidRequest
from jupyter_dsserve.protocol.request import Structure, StructureKind, Tools

ToolFormat = Literal["", "hermes", "llama3", "mistral"]
OPEN, CLOSE = "<tool_call>", "</tool_call>"
PYTHON_TAG = "<|python_tag|>"
TOOL_CALLS = "[TOOL_CALLS]"
# What begins or ends a call, and is a special token of some tokenizers: such have no text otherwise.
MARKERS = (OPEN, CLOSE, PYTHON_TAG, TOOL_CALLS)
# Templates that write calls in other ways, although a marker is the same (Qwen3-Coder's, GLM's, newer ones of Mistral).
_OTHERS = ("<function=", "<arg_key>", "[ARGS]")
_COMPOSED = {"$ref", "allOf", "anyOf", "oneOf", "patternProperties"}  # a schema with these does not list all


def tool_format_of(template: str) -> ToolFormat:
    """By what stands in a chat template; empty if it knows no tools, or only formats that nobody here reads."""
    if "tools" not in template or any(other in template for other in _OTHERS):
        return ""
    if OPEN in template:
        return "hermes"
    if TOOL_CALLS in template:
        return "mistral"
    if PYTHON_TAG in template or '"parameters": dictionary' in template:
        return "llama3"
    return ""


def names_of(tools: Tools) -> tuple[str, ...]:
    return tuple(tool["function"]["name"] for tool in json.loads(tools.functions))


def structure_with(
    tools: Tools, format: ToolFormat, markers: Mapping[str, int], answer: Structure | None
) -> Structure | None:
    """The form of an answer that must call one of ``tools.required``, in the model's format (a template that knows no
    tools gets ``hermes``); of one that may, calls or JSON of the form ``answer``; None for anything.

    ``markers`` are special tokens. Raises `InvalidRequest` for an ``answer`` that is no JSON beside tools.
    """
    functions = {tool["function"]["name"]: tool["function"] for tool in json.loads(tools.functions)}
    if not tools.required:
        if answer is None:
            return None
        if answer.kind is not StructureKind.JSON:
            raise InvalidRequest(
                f"tools go with an answer of any form or of JSON, but not with a {answer.kind.value}: send one of them",
                param=answer.param,
            )
    called = {name: function for name, function in functions.items() if not tools.required or name in tools.required}
    lines = _calls(called, format or "hermes", markers, tools.is_parallel)
    if answer is not None:
        lines += ["answer: %json " + _tight(json.loads(answer.source))]
    lines += ["start: calls" + (" | answer" if answer is not None else "")]
    return Structure(StructureKind.GRAMMAR, "\n".join(lines), "tools")


def _calls(
    functions: Mapping[str, Any], format: ToolFormat, markers: Mapping[str, int], is_parallel: bool
) -> list[str]:
    """Rules in Lark's notation, of which ``calls`` is the first."""
    arguments = "parameters" if format == "llama3" else "arguments"
    objects = [
        f"call_{number}: {json.dumps(_head(name, arguments))} args_{number} {json.dumps('}')}"
        for number, name in enumerate(functions)
    ]
    schemas = [
        f"args_{number}: %json {_tight(_closed(function.get('parameters') or {}))}"
        for number, function in enumerate(functions.values())
    ]
    one = "one: " + " | ".join(f"call_{number}" for number in range(len(functions)))

    def mark(marker: str) -> str:
        return f"<[{markers[marker]}]>" if marker in markers else json.dumps(marker)

    if format == "mistral":
        more = ' (", " one)*' if is_parallel else ""
        calls = [f'calls: {mark(TOOL_CALLS)} "[" one{more} "]"']
    elif format == "llama3":
        calls = ["calls: one"]
    else:
        calls = [
            "calls: marked" + (' ("\\n" marked)*' if is_parallel else ""),
            f'marked: {mark(OPEN)} "\\n" one "\\n" {mark(CLOSE)}',
        ]
    return [*calls, one, *objects, *schemas]


def _head(name: str, arguments: str) -> str:
    return f'{{"name": {json.dumps(name)}, "{arguments}": '


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    """A function takes the arguments it declares and no others, unless its schema says so."""
    if schema.keys() & _COMPOSED:
        return schema
    return {"type": "object", "properties": {}, "additionalProperties": False, **schema}


def _tight(schema: Any) -> str:
    """As llguidance takes it, without white space between the parts of what it describes."""
    return json.dumps({**schema, "x-guidance": {"whitespace_flexible": False}} if isinstance(schema, dict) else schema)
