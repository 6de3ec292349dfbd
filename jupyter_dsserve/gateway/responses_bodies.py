"""What may stand in a body of `/v1/responses`. As in `openai_bodies`, what we do not honour is refused by name."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field

from jupyter_dsserve.gateway.bodies import Body, MaxTokens, Priority, TimeoutS, new_id, no
from jupyter_dsserve.gateway.openai_bodies import NumLikely
from jupyter_dsserve.gateway.tool_bodies import (
    A_WORD,
    ALLOWED,
    NAMED,
    Chosen,
    FunctionBody,
    ToolChoice,
    checked_arguments,
    chosen_by,
    functions_only,
    kind_of_choice,
    refuse_two_forms,
    tools_of,
)
from jupyter_dsserve.protocol.errors import InvalidRequest
from jupyter_dsserve.protocol.request import Message, Request, SamplingParams, Structure, StructureKind, ToolCall, Tools

LOGPROBS = "message.output_text.logprobs"


class ItemPart(Body):
    """A piece of a message, or of what a function gave."""

    type: Annotated[
        Literal["input_text", "output_text", "refusal"],
        no("models here read text", 'send {"type": "input_text", "text": ...}'),
    ]
    text: str | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None
    prompt_cache_breakpoint: dict[str, str] | None = None


class Item(Body):
    """A message, a call of a function, or what it gave: what is sent, and what was answered and is sent again."""

    type: Annotated[
        Literal["message", "function_call", "function_call_output"],
        no("it is none of message, function_call and function_call_output"),
    ] = "message"
    id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: str | list[ItemPart] | None = None
    phase: Literal["commentary", "final_answer"] | None = None
    call_id: Annotated[str, Field(min_length=1)] | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[ItemPart] | None = None

    def message(self, at: str) -> Message:
        """``at`` is where it stands in the body. Raises `InvalidRequest` if it lacks what its type needs."""
        needed = {
            "message": ("role", "content"),
            "function_call": ("call_id", "name", "arguments"),
            "function_call_output": ("call_id", "output"),
        }[self.type]
        if lacking := [name for name in needed if getattr(self, name) is None]:
            raise InvalidRequest(
                f"field '{at}.{lacking[0]}' is missing: a {self.type} has {', '.join(needed)}", param=at
            )
        if self.type == "message":
            return Message("system" if self.role == "developer" else str(self.role), _text(self.content))
        if self.type == "function_call_output":
            return Message("tool", _text(self.output), self.name or "", tool_call_id=str(self.call_id))
        arguments = checked_arguments(str(self.arguments), f"{at}.arguments")
        return Message("assistant", "", tool_calls=(ToolCall(str(self.call_id), str(self.name), arguments),))


def _text(content: str | list[ItemPart] | None) -> str:
    if isinstance(content, list):
        return "".join(part.text or part.refusal or "" for part in content)
    return content or ""


class TextFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    description: str | None = None
    strict: bool | None = None

    def structure(self) -> Structure | None:
        """Raises `InvalidRequest` for a ``json_schema`` that lacks its name or schema."""
        if self.type == "text":
            return None
        if self.type == "json_object":
            return Structure(StructureKind.JSON, '{"type": "object"}', "text.format")
        if self.schema_ is None or self.name is None:
            raise InvalidRequest("text.format has type 'json_schema': send name and schema too", param="text.format")
        return Structure(StructureKind.JSON, json.dumps(self.schema_), "text.format")

    def told(self) -> dict[str, Any]:
        return self.model_dump(by_alias=True) if self.type == "json_schema" else {"type": self.type}


class TextBody(Body):
    format: TextFormat | None = None
    verbosity: Annotated[Literal["medium"] | None, no("models are not told how much to say")] = None


class ResponseTool(FunctionBody):
    type: Annotated[Literal["function"], functions_only]


class ResponseNamedTool(Body):
    type: Annotated[Literal["function"], functions_only]
    name: str

    def chosen(self) -> Chosen:
        return "required", [self.name]


class ResponseAllowedTools(Body):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[ResponseNamedTool], Field(min_length=1, max_length=128)]

    def chosen(self) -> Chosen:
        return self.mode, [tool.name for tool in self.tools]


ResponseToolChoice = Annotated[
    Annotated[ToolChoice, A_WORD] | Annotated[ResponseNamedTool, NAMED] | Annotated[ResponseAllowedTools, ALLOWED],
    Discriminator(kind_of_choice),
]


class ReasoningBody(Body):
    """Asks for nothing: models are not told how long to think."""

    effort: Annotated[Literal["none"] | None, no("models are not told how long to think")] = None
    summary: Annotated[None, no("nothing is thought aloud")] = None
    generate_summary: Annotated[None, no("nothing is thought aloud")] = None


class ResponseStreamOptions(Body):
    include_obfuscation: Annotated[Literal[False] | None, no("events are not padded with random characters")] = None


class ResponseBody(Body):
    """Without a store: the conversation is in ``input``, every time."""

    model: str
    input: str | Annotated[list[Item], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: MaxTokens | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    text: TextBody | None = None
    tools: Annotated[list[ResponseTool], Field(max_length=128)] | None = None
    tool_choice: ResponseToolChoice | None = None
    parallel_tool_calls: bool | None = None
    include: list[str] | None = None
    top_logprobs: NumLikely | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    metadata: dict[str, str] | None = None
    user: str | None = None
    # ours
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    top_k: Annotated[int, Field(ge=0, lt=2**31)] = 0
    priority: Priority = 0
    timeout_s: TimeoutS | None = None
    # accepted because they change nothing in the answer
    max_tool_calls: int | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None
    safety_identifier: str | None = None
    # accepted as far as they ask for nothing
    background: Annotated[Literal[False] | None, no("whoever asks waits for the answer")] = None
    reasoning: ReasoningBody | None = None
    service_tier: Annotated[Literal["auto", "default"] | None, no("there is one tier; priority orders requests")] = None
    store: Annotated[Literal[False] | None, no("answers are not stored")] = None
    truncation: Annotated[Literal["disabled"] | None, no("a prompt is taken whole")] = None
    access_programs: Annotated[None, no("there are none")] = None
    background_options: Annotated[None, no("whoever asks waits for the answer")] = None
    context_management: Annotated[None, no("nothing is stored")] = None
    conversation: Annotated[None, no("nothing is stored", "send the conversation as input")] = None
    image: Annotated[None, no("answers are text")] = None
    moderation: Annotated[None, no("nothing is moderated")] = None
    previous_response_id: Annotated[None, no("answers are not stored", "send the conversation as input")] = None
    prompt: Annotated[None, no("no prompts are stored", "send input and instructions")] = None

    def request(self) -> Request:
        """Raises `InvalidRequest` for fields that do not go together."""
        structure, tools = self.format.structure(), self._called()
        refuse_two_forms(tools, structure is not None)
        sampling = SamplingParams(
            max_tokens=self.max_output_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=self.top_k,
            seed=self.seed,
            structure=structure,
            logprobs=(self.top_logprobs or 0) if self.wants_logprobs else None,
        )
        return Request(new_id("resp"), self._turns(), sampling, self.priority, self.timeout_s, tools)

    @property
    def format(self) -> TextFormat:
        return (self.text.format if self.text else None) or TextFormat(type="text")

    @property
    def wants_logprobs(self) -> bool:
        return LOGPROBS in (self.include or ()) or bool(self.top_logprobs)

    def _called(self) -> Tools | None:
        return tools_of(self.tools or (), chosen_by(self.tool_choice), self.parallel_tool_calls)

    def _turns(self) -> tuple[Message, ...]:
        turns = [Message("system", self.instructions)] if self.instructions else []
        if isinstance(self.input, str):
            return (*turns, Message("user", self.input))
        return (*turns, *_joined([item.message(f"input.{number}") for number, item in enumerate(self.input)]))


def _joined(turns: Sequence[Message]) -> list[Message]:
    """What an assistant said and called in one answer are items of their own, and one turn to a chat template."""
    joined: list[Message] = []
    for turn in turns:
        last = joined[-1] if joined else None
        if turn.tool_calls and last and last.role == "assistant":
            joined[-1] = Message("assistant", last.content, last.name, last.tool_calls + turn.tool_calls)
        else:
            joined.append(turn)
    return joined
