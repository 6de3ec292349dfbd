"""The functions that a chat or a response offers to the model, what it called earlier, and what it must call now."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Protocol

from pydantic import Discriminator, Field, Tag

from jupyter_dsserve.gateway.bodies import Body, no
from jupyter_dsserve.protocol.errors import InvalidRequest
from jupyter_dsserve.protocol.request import ToolCall, Tools

functions_only = no("models here call functions only", 'send {"type": "function", ...}')
FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class CalledFunction(Body):
    name: FunctionName
    arguments: str


class CallBody(Body):
    """A call that the model made earlier."""

    id: Annotated[str, Field(min_length=1)]
    type: Annotated[Literal["function"], functions_only]
    function: CalledFunction

    def call(self, at: str) -> ToolCall:
        """Raises `InvalidRequest` for arguments that are no JSON object."""
        return ToolCall(self.id, self.function.name, checked_arguments(self.function.arguments, at))


def checked_arguments(arguments: str, at: str) -> str:
    """Raises `InvalidRequest`, naming the field ``at``, unless they are a JSON object: templates write one."""
    try:
        is_object = isinstance(json.loads(arguments or "{}"), dict)
    except (ValueError, RecursionError):  # the latter for lists within lists within lists
        is_object = False
    if not is_object:
        raise InvalidRequest(
            f"field {at!r} is {json.dumps(arguments[:80])}: send the JSON object that the call had", param=at
        )
    return arguments or "{}"


class FunctionBody(Body):
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolBody(Body):
    type: Annotated[Literal["function"], functions_only]
    function: FunctionBody


ToolChoice = Literal["none", "auto", "required"]
Chosen = tuple[ToolChoice | None, Sequence[str] | None]  # and among which functions; None: among all


class NamedFunction(Body):
    name: str


class NamedTool(Body):
    type: Annotated[Literal["function"], functions_only]
    function: NamedFunction

    def chosen(self) -> Chosen:
        return "required", [self.function.name]


class AmongTools(Body):
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1, max_length=128)]


class AllowedTools(Body):
    type: Literal["allowed_tools"]
    allowed_tools: AmongTools

    def chosen(self) -> Chosen:
        return self.allowed_tools.mode, [tool.function.name for tool in self.allowed_tools.tools]


def kind_of_choice(choice: object) -> str:
    """Which of three it is to be: so an error is of that one alone. In brackets as a branch's name, for `validated`."""
    kind = choice.get("type", "") if isinstance(choice, dict) else getattr(choice, "type", None)
    return "[a word]" if kind is None else "[allowed]" if kind == "allowed_tools" else "[named]"


A_WORD, NAMED, ALLOWED = Tag("[a word]"), Tag("[named]"), Tag("[allowed]")
ChatToolChoice = Annotated[
    Annotated[ToolChoice, A_WORD] | Annotated[NamedTool, NAMED] | Annotated[AllowedTools, ALLOWED],
    Discriminator(kind_of_choice),
]


def tools_of(
    functions: Sequence[FunctionBody], chosen: Chosen, is_parallel: bool | None, param: str = "tools"
) -> Tools | None:
    """What may be called, and what must be.

    Of some that only may be called, the model is told of no others. Where one of some must be, it is told of all, and
    the answer's form leaves it no others: so the prompt's beginning stays the same, and need not be computed again.
    Raises `InvalidRequest` for a choice among no functions, or of none of them.
    """
    choice, among = chosen
    names = [function.name for function in functions]
    if len(set(names)) < len(names):
        raise InvalidRequest(f"{param} has two functions of one name: {', '.join(names)}", param=param)
    if not names:
        if choice not in (None, "none", "auto") or among:
            told = ", ".join(among or ()) or choice
            raise InvalidRequest(f"tool_choice is {told!r}, but there are no tools: send some", param="tool_choice")
        return None
    if choice == "none":
        return None
    if unknown := set(among or ()) - set(names):
        raise InvalidRequest(
            f"tool_choice is {unknown.pop()!r}, but the functions are {', '.join(names)}: choose one of them",
            param="tool_choice",
        )
    allowed = [name for name in names if among is None or name in among]
    is_required = choice == "required"
    told_of = [
        {
            "type": "function",
            "function": function.model_dump(include={"name", "description", "parameters"}, exclude_none=True),
        }
        for function in functions
        if is_required or function.name in allowed
    ]
    return Tools(json.dumps(told_of), tuple(allowed) if is_required else (), is_parallel is not False)


def chosen_by(choice: ToolChoice | Chooses | None) -> Chosen:
    """Of any route's ``tool_choice``."""
    return (choice, None) if choice is None or isinstance(choice, str) else choice.chosen()


class Chooses(Protocol):
    def chosen(self) -> Chosen: ...


def refuse_two_forms(tools: Tools | None, has_form: bool) -> None:
    """Raises `InvalidRequest` if a function must be called, and the answer must have another form too."""
    if tools and tools.required and has_form:
        raise InvalidRequest(
            "tool_choice wants a call, and the answer is to have a form of its own: ask for one of them",
            param="tool_choice",
        )
