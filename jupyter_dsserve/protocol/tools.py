"""How models call functions: which chat template has which format, and the grammar of a call in each.

``hermes`` (Hermes, Qwen): ``<tool_call>\\n{"name": ..., "arguments": {...}}\\n</tool_call>``, one after another.
``llama3`` (Llama 3.1 and later): the whole answer is ``{"name": ..., "parameters": {...}}``, maybe after
``<|python_tag|>``. ``mistral``: ``[TOOL_CALLS] [{"name": ..., "arguments": {...}}, ...]``.
``pythonic`` (Llama 3.2 and 4): the whole answer is ``[name(key="text", other=[1, 2]), ...]``, maybe between
``<|python_start|>`` and ``<|python_end|>``. ``qwen3_coder``: ``<tool_call>\\n<function=name>\\n<parameter=key>\\ntext
\\n</parameter>\\n</function>\\n</tool_call>``, one after another.
`gateway.tool_parser` reads what is written here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from jupyter_dsserve.protocol.errors import InvalidRequest
from jupyter_dsserve.protocol.request import Structure, StructureKind, Tools

ToolFormat = Literal["", "hermes", "llama3", "mistral", "pythonic", "qwen3_coder"]
OPEN, CLOSE = "<tool_call>", "</tool_call>"
PYTHON_TAG = "<|python_tag|>"
TOOL_CALLS = "[TOOL_CALLS]"
# What begins or ends a call, and is a special token of some tokenizers: such have no text otherwise.
PYTHON_START, PYTHON_END = "<|python_start|>", "<|python_end|>"
MARKERS = (OPEN, CLOSE, PYTHON_TAG, TOOL_CALLS, PYTHON_START, PYTHON_END)
FUNCTION, FUNCTION_END = "<function=", "</function>"
PARAMETER, PARAMETER_END = "<parameter=", "</parameter>"
# Templates that write calls in other ways, although a marker is the same (GLM's, newer ones of Mistral).
_OTHERS = ("<function=", "<arg_key>", "[ARGS]")
_PYTHONIC = "[func_name1("  # as Meta's prompts say it
_LINE = "\n"
# What the parameters of a function may say where each is written by itself.
_PLAIN = {"type", "properties", "required", "additionalProperties", "title", "description"}
_PLAIN |= {"$defs", "definitions", "$schema", "$id", "default", "examples"}
_MAX_LEAVES = 64  # of one parameter's schema
_MAX_VALUES = 100_000  # that are looked at in all schemas of a request
_MAX_GRAMMAR = 4_000_000  # characters
_COMPOSED = {"$ref", "allOf", "anyOf", "oneOf", "patternProperties"}  # a schema with these does not list all


def tool_format_of(template: str) -> ToolFormat:
    """By what stands in a chat template; empty if it knows no tools, or only formats that nobody here reads."""
    if "tools" not in template:
        return ""
    if all(mark in template for mark in (OPEN, FUNCTION, PARAMETER)):
        return "qwen3_coder"
    if any(other in template for other in _OTHERS):
        return ""
    if _PYTHONIC in template:
        return "" if OPEN in template or "<TOOLCALL>" in template else "pythonic"
    if OPEN in template:
        return "hermes"
    if TOOL_CALLS in template:
        return "mistral"
    if PYTHON_TAG in template or '"parameters": dictionary' in template:
        return "llama3"
    return ""


def types_of(tools: Tools) -> dict[str, dict[str, frozenset[str]]]:
    """Of each function the parameters, and JSON's types that each may have; none where its schema does not say, or
    the schemas before it said too much."""
    found = dict[str, dict[str, frozenset[str]]]()
    num = 0
    for tool in json.loads(tools.functions):
        schema = tool["function"].get("parameters") or {}
        properties = schema.get("properties")
        own = found[tool["function"]["name"]] = dict[str, frozenset[str]]()
        for key, part in properties.items() if isinstance(properties, dict) else ():
            if num > _MAX_VALUES:
                break
            leaves = list(_leaves(part, schema))
            num += sum(1 + len(_values(leaf) or ()) for leaf in leaves)
            own[key] = frozenset(name for leaf in leaves for name in _types(leaf))
    return found


def _leaves(schema: Any, root: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The schemas of which a value fits one, as far as ``root`` has them."""
    todo, seen = [schema], set[str]()
    for _ in range(_MAX_LEAVES):
        if not todo:
            break
        part = todo.pop()
        if not isinstance(part, dict):
            continue
        refers = part.get("$ref")
        branches: list[Any] = next((part[key] for key in ("anyOf", "oneOf") if isinstance(part.get(key), list)), [])
        if isinstance(all_of := part.get("allOf"), list) and len(all_of) == 1:
            branches = all_of
        if isinstance(refers, str) and refers not in seen:
            seen.add(refers)
            _, _, path = refers.partition("#/")
            place, _, name = path.partition("/")
            named = root.get(place)
            todo.append(named.get(name) if isinstance(named, dict) else None)
        elif branches:
            todo += reversed(branches[:_MAX_LEAVES])
        elif not isinstance(refers, str):
            yield part


def _types(leaf: Mapping[str, Any]) -> set[str]:
    own = leaf.get("type")
    if isinstance(own, str):
        return {own}
    if isinstance(own, list):
        return {name for name in own if isinstance(name, str)}
    if "properties" in leaf or "items" in leaf:
        return {"object" if "properties" in leaf else "array"}
    names = {bool: "boolean", int: "integer", float: "number", list: "array", dict: "object", str: "string"}
    return {names.get(type(value), "null") for value in _values(leaf) or ()}


def _values(leaf: Mapping[str, Any]) -> list[Any] | None:
    """Those that alone fit, if the schema lists them."""
    if "const" in leaf:
        return [leaf["const"]]
    return leaf["enum"] if isinstance(leaf.get("enum"), list) else None


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
    one = "one: " + " | ".join(f"call_{number}" for number in range(len(functions)))

    def mark(marker: str) -> str:
        return f"<[{markers[marker]}]>" if marker in markers else json.dumps(marker)

    marked = [
        "calls: marked" + (' ("\\n" marked)*' if is_parallel else ""),
        f'marked: {mark(OPEN)} "\\n" one "\\n" {mark(CLOSE)}',
    ]
    more = ' (", " one)*' if is_parallel else ""
    if format == "pythonic":
        return [f'calls: "[" one{more} "]"', one, *_python_calls(functions)]
    if format == "qwen3_coder":
        return [*marked, one, *_xml_calls(functions)]
    arguments = "parameters" if format == "llama3" else "arguments"
    objects = [
        f"call_{number}: {json.dumps(_head(name, arguments))} args_{number} {json.dumps('}')}"
        for number, name in enumerate(functions)
    ]
    schemas = [
        f"args_{number}: %json {_tight(_closed(function.get('parameters') or {}))}"
        for number, function in enumerate(functions.values())
    ]
    if format == "mistral":
        calls = [f'calls: {mark(TOOL_CALLS)} "[" one{more} "]"']
    elif format == "llama3":
        calls = ["calls: one"]
    else:
        calls = marked
    return [*calls, one, *objects, *schemas]


def _head(name: str, arguments: str) -> str:
    return f'{{"name": {json.dumps(name)}, "{arguments}": '


def _python_calls(functions: Mapping[str, Any]) -> list[str]:
    """``True`` and ``None`` in a list or an object are JSON's words: who reads the calls takes both."""
    rules, num = list[str](), 0
    for number, (name, function) in enumerate(functions.items()):
        schema, properties, required = _listed(name, function, r"[^\s()\[\]{},:=*'\"]+")
        keys = [*required, *(key for key in properties if key not in required)]
        for place, key in enumerate(keys):
            first = len(rules)
            part = properties[key]
            value = '("True" | "False")' if part.get("type") == "boolean" and "enum" not in part else None
            if value is None:
                rules.append(f"value_{number}_{place}: %json {_tight(_rooted(part, schema))}")
                value = f"value_{number}_{place}"
            rules.append(f"arg_{number}_{place}: {json.dumps(key + '=')} {value}")
            # What may stand first, and what may stand after another.
            own = f"arg_{number}_{place} tail_{number}_{place + 1}"
            if key in required:
                rules += [f"lead_{number}_{place}: {own}", f'tail_{number}_{place}: ", " {own}']
            else:
                rules.append(f"lead_{number}_{place}: {own} | lead_{number}_{place + 1}")
                rules.append(f'tail_{number}_{place}: (", " arg_{number}_{place})? tail_{number}_{place + 1}')
            num = _bounded(rules[first:], num)
        rules += [f'lead_{number}_{len(keys)}: ""', f'tail_{number}_{len(keys)}: ""']
        rules.append(f'call_{number}: {json.dumps(name + "(")} lead_{number}_0 ")"')
    return rules


def _xml_calls(functions: Mapping[str, Any]) -> list[str]:
    rules, num = list[str](), 0
    for number, (name, function) in enumerate(functions.items()):
        schema, properties, required = _listed(name, function, r"[^\s<>]+")
        parts = []
        for place, (key, part) in enumerate(properties.items()):
            own = _xml_value(f"value_{number}_{place}", list(_leaves(part, schema)), schema)
            num = _bounded(own, num)
            rules += own
            rules.append(f"arg_{number}_{place}: {json.dumps(f'{PARAMETER}{key}>' + _LINE)} value_{number}_{place}")
            parts.append(f"arg_{number}_{place}" + ("" if key in required else "?"))
        head, end = json.dumps(f"{FUNCTION}{name}>" + _LINE), json.dumps(FUNCTION_END)
        rules.append(f"call_{number}: {head} {' '.join(parts)} {end}")
    return rules


def _xml_value(rule: str, leaves: list[dict[str, Any]], root: Mapping[str, Any]) -> list[str]:
    """Texts stand as they are, up to the end of the parameter; other values are JSON."""
    end = json.dumps(_LINE + PARAMETER_END + _LINE)
    texts = [leaf for leaf in leaves if _values(leaf) is None and (not (types := _types(leaf)) or "string" in types)]
    if texts or not leaves:
        least, most = (texts[0].get(key) if len(texts) == 1 else None for key in ("minLength", "maxLength"))
        least, most = (num if isinstance(num, int) else "" for num in (least, most))
        letters = "*" if least == most == "" else f"{{{least or 0},{most}}}"
        terminal = rule.upper()
        return [
            f"{rule}[suffix={end}]: {terminal}",
            f"{terminal}: /(?s:.{letters})/ & ~/(?s:.*<\\/parameter>.*)/",
        ]
    forms, rules = [], list[str]()
    for place, leaf in enumerate(leaves):
        if (values := _values(leaf)) is not None and "string" in _types(leaf):
            forms += [json.dumps(value if isinstance(value, str) else json.dumps(value)) for value in values]
        else:
            rules.append(f"{rule}_{place}: %json {_tight(_rooted(leaf, root))}")
            forms.append(f"{rule}_{place}")
    return [f"{rule}: ({' | '.join(forms)}) {end}", *rules]


def _listed(name: str, function: Mapping[str, Any], key: str) -> tuple[Any, dict[str, Any], dict[str, None]]:
    """A function's schema, and of its parameters the schemas and those that must be there.

    Raises `InvalidRequest` if the schema says more than that, or a name is none that fits ``key``, a pattern.
    """
    schema = function.get("parameters") or {}
    properties, required = schema.get("properties") or {}, schema.get("required") or []
    if unknown := schema.keys() - _PLAIN:
        raise InvalidRequest(
            f"function {name}: a call that fits {', '.join(sorted(unknown))} cannot be enforced in this model's "
            "format: list the parameters in properties and required",
            param="tools",
        )
    if schema.get("type", "object") != "object" or not isinstance(properties, dict) or not isinstance(required, list):
        raise InvalidRequest(f"function {name}: its parameters cannot be used, they are no object's", param="tools")
    parts: dict[str, Any] = {str(one): properties.get(one, {}) for one in [*properties, *required]}
    if wrong := next((one for one in parts if not re.fullmatch(key, one) or len(one) > 200), None):
        raise InvalidRequest(f"function {name}: {wrong!r} is no parameter in this model's format", param="tools")
    parts = {one: part if isinstance(part, dict) else {} for one, part in parts.items()}
    return schema, parts, dict.fromkeys(map(str, required))


def _rooted(part: Mapping[str, Any], root: Mapping[str, Any]) -> dict[str, Any]:
    """With what it may refer to."""
    if "$ref" not in json.dumps(part):
        return dict(part)
    return {**{key: root[key] for key in ("$defs", "definitions") if key in root}, **part}


def _bounded(rules: list[str], num: int) -> int:
    """``num`` and the characters of the rules that came. Raises `InvalidRequest` if they are too many."""
    num += sum(map(len, rules))
    if num > _MAX_GRAMMAR:
        raise InvalidRequest("the schemas of the functions are too large to be enforced: send fewer", param="tools")
    return num


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    """A function takes the arguments it declares and no others, unless its schema says so."""
    if schema.keys() & _COMPOSED:
        return schema
    return {"type": "object", "properties": {}, "additionalProperties": False, **schema}


def _tight(schema: Any) -> str:
    """As llguidance takes it, without white space between the parts of what it describes."""
    return json.dumps({**schema, "x-guidance": {"whitespace_flexible": False}} if isinstance(schema, dict) else schema)
