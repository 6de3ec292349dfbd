"""What may stand in a body of OpenAI's routes, and how it becomes the protocol's dataclasses.

Fields that we know and do not honour are declared with the one value that asks for nothing, so that asking for more is
refused by name. docs/openai.md lists every field of OpenAI's; a test compares.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Protocol

from pydantic import Discriminator, Field, Tag, ValidationError, ValidatorFunctionWrapHandler, WrapValidator
from pydantic_core import PydanticCustomError

from jupyter_dsserve.gateway.bodies import Body, MaxTokens, No, Priority, TimeoutS, TokenId, new_id
from jupyter_dsserve.protocol.errors import InvalidRequest
from jupyter_dsserve.protocol.request import (
    Message,
    Prompt,
    Request,
    SamplingParams,
    Structure,
    StructureKind,
    Text,
    Texts,
    ToolCall,
    Tools,
    text_size,
)


def no(why: str, remedy: str = "leave it out") -> WrapValidator:
    """Refuses what the type does not take, saying why instead of naming the type."""

    def refusing(value: object, inner: ValidatorFunctionWrapHandler) -> object:
        try:
            return inner(value)
        except ValidationError:
            raise PydanticCustomError("refused", "{reason}", {"reason": f"{why}: {remedy}"}) from None

    return WrapValidator(refusing)


functions_only = no("models here call functions only", 'send {"type": "function", ...}')
FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
Stop = Annotated[str, Field(min_length=1, max_length=1000)]
TokenIdText = Annotated[str, Field(pattern=r"^\d{1,9}$")]  # OpenAI's way: JSON has no other keys
_MAX_CHOICES = 2048  # of a call: as many as OpenAI takes prompts


@dataclass(frozen=True, slots=True)
class Requests:
    """What one call asks: ``num_choices`` requests for each of its prompts, in a row."""

    id: str
    num_choices: int
    all: tuple[Request, ...]


class _OpenAIBody(Body):
    """What completions and chat share."""

    model: str
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, lt=2**31)] = 0
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: bool = False
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] = 1.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[TokenIdText, Annotated[float, Field(ge=-100, le=100)]] | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=64)] | None = None
    min_tokens: Annotated[int, Field(ge=0, lt=2**31)] = 0
    user: str | None = None
    priority: Priority = 0
    timeout_s: TimeoutS | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def _requests(
        self, kind: str, prompts: Sequence[Prompt], sampling: SamplingParams, tools: Tools | None = None
    ) -> Requests:
        """``n`` requests for each prompt, in the order of their choices' index. The i-th of a prompt has the seed + i.

        Raises `InvalidRequest` for too many.
        """
        id, n = new_id(kind), self.n or 1
        if n * len(prompts) > _MAX_CHOICES:
            raise InvalidRequest(
                f"{len(prompts)} prompts with n={n} make {n * len(prompts)} choices, over the limit of {_MAX_CHOICES} "
                "a call: make several calls",
                param="n",
            )
        asked = [
            (prompt, sampling if sampling.seed is None else replace(sampling, seed=_wrapped(sampling.seed + i)))
            for prompt in prompts
            for i in range(n)
        ]
        ids = [f"{id}-{i}" for i in range(len(asked))] if len(asked) > 1 else [id]
        requests = (
            Request(own, prompt, one, self.priority, self.timeout_s, tools)
            for own, (prompt, one) in zip(ids, asked, strict=True)
        )
        return Requests(id, n, tuple(requests))

    def sampling(self, max_tokens: int | None, logprobs: int | None) -> SamplingParams:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,  # OpenAI's default
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=self.top_k,
            seed=self.seed,
            stop=stop,
            ignore_eos=self.ignore_eos,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            logit_bias=tuple(sorted((int(token), bias) for token, bias in (self.logit_bias or {}).items())),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            min_tokens=self.min_tokens,
            logprobs=logprobs,
            structure=self._structure(),
        )

    def _structure(self) -> Structure | None:
        """Raises `InvalidRequest` if two forms are asked for, or half of one."""
        asked = self.response_format.structure() if self.response_format else None
        if self.structured_outputs is None:
            return asked
        if asked:
            raise InvalidRequest(
                "both response_format and structured_outputs give the answer a form: send one of them",
                param="structured_outputs",
            )
        return self.structured_outputs.structure()


class StreamOptions(Body):
    include_usage: bool | None = None
    include_obfuscation: Annotated[No | None, no("events are not padded with random characters")] = None


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


NumLikely = Annotated[int, Field(ge=0, le=20)]
TokenIds = list[TokenId]


class CompletionBody(_OpenAIBody):
    prompt: str | TokenIds | Annotated[list[str], Field(min_length=1)] | Annotated[list[TokenIds], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    logprobs: NumLikely | None = None
    echo: bool | None = None
    best_of: int | None = None
    suffix: Annotated[None, no("text is written at the end of a prompt only")] = None

    def requests(self) -> Requests:
        """Raises `InvalidRequest` if nothing is asked for."""
        max_tokens = 16 if self.max_tokens is None else self.max_tokens
        if max_tokens == 0 and not self.echo:
            raise InvalidRequest(
                "max_tokens is 0: ask for at least 1, or for the prompt itself with echo", param="max_tokens"
            )
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise InvalidRequest(
                f"best_of is {self.best_of} and n is {self.n or 1}: all choices are given here, none is picked; "
                "leave best_of out and ask for as many as you want with n",
                param="best_of",
            )
        sampling = replace(self.sampling(max_tokens, self.logprobs), echo=bool(self.echo))
        return self._requests("cmpl", self._prompts(), sampling)

    def _prompts(self) -> list[Prompt]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        ids = tuple(p for p in self.prompt if isinstance(p, int))
        several: list[Prompt] = [p if isinstance(p, str) else tuple(p) for p in self.prompt if not isinstance(p, int)]
        return several or [ids]


class Part(Body):
    """A piece of a message. ``prompt_cache_breakpoint`` is ignored: what was computed before is found without it."""

    type: Annotated[Literal["text", "refusal"], no("models here read text", 'send {"type": "text", "text": ...}')]
    text: str | None = None
    refusal: str | None = None
    prompt_cache_breakpoint: dict[str, str] | None = None


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


class ChatMessage(Body):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    name: str | None = None
    refusal: str | None = None
    tool_calls: Annotated[list[CallBody], Field(max_length=128)] | None = None
    tool_call_id: str | None = None
    audio: Annotated[None, no("models here read text")] = None
    function_call: Annotated[None, no("it is deprecated", "use tool_calls")] = None

    def message(self, at: str) -> Message:
        """``at`` is where it stands in the body. Raises `InvalidRequest` for what does not go together."""
        if self.content is None and self.role != "assistant":
            raise InvalidRequest(f"field '{at}.content' is missing: a message of role {self.role!r} needs it", param=at)
        if (self.role == "tool") != (self.tool_call_id is not None):
            raise InvalidRequest(
                f"{at} has the role {self.role!r}: a message of role 'tool' has a tool_call_id, and no other has",
                param=f"{at}.tool_call_id",
            )
        if self.tool_calls and self.role != "assistant":
            raise InvalidRequest(
                f"{at} has the role {self.role!r} and tool_calls: only an assistant's has such",
                param=f"{at}.tool_calls",
            )
        calls = [
            call.call(f"{at}.tool_calls.{number}.function.arguments")
            for number, call in enumerate(self.tool_calls or ())
        ]
        role = "system" if self.role == "developer" else self.role
        return Message(role, self._text(), self.name or "", tuple(calls), self.tool_call_id or "")

    def _text(self) -> str:
        if isinstance(self.content, list):
            return "".join(part.text or part.refusal or "" for part in self.content)
        return self.content or self.refusal or ""


class ChatBody(_OpenAIBody):
    """The fields of the second half ask for what there is not here, except with the values that ask for nothing."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: MaxTokens | None = None
    max_completion_tokens: MaxTokens | None = None
    logprobs: bool | None = None
    top_logprobs: NumLikely | None = None
    tools: Annotated[list[ToolBody], Field(max_length=128)] | None = None
    tool_choice: ChatToolChoice | None = None
    parallel_tool_calls: bool | None = None
    # accepted because they change nothing in the answer
    metadata: dict[str, str] | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None
    safety_identifier: str | None = None
    # accepted as far as they ask for nothing
    store: Annotated[No | None, no("answers are not stored")] = None
    service_tier: Annotated[Literal["auto", "default"] | None, no("there is one tier; priority orders requests")] = None
    modalities: Annotated[list[Literal["text"]] | None, no("answers are text")] = None
    reasoning_effort: Annotated[Literal["none"] | None, no("models are not told how long to think")] = None
    verbosity: Annotated[Literal["medium"] | None, no("models are not told how much to say")] = None
    audio: Annotated[None, no("answers are text")] = None
    function_call: Annotated[None, no("it is deprecated", "use tool_choice")] = None
    functions: Annotated[None, no("they are deprecated", "use tools")] = None
    moderation: Annotated[None, no("nothing is moderated")] = None
    prediction: Annotated[None, no("nothing is predicted")] = None
    web_search_options: Annotated[None, no("nothing is searched")] = None

    def requests(self) -> Requests:
        """Raises `InvalidRequest` for fields that do not go together."""
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequest(
                f"top_logprobs is {self.top_logprobs}, but logprobs is not true: set it too", param="top_logprobs"
            )
        sampling = self.sampling(
            self.max_completion_tokens or self.max_tokens, (self.top_logprobs or 0) if self.logprobs else None
        )
        turns = tuple(m.message(f"messages.{number}") for number, m in enumerate(self.messages))
        return self._requests("chatcmpl", [turns], sampling, self.called())

    def called(self) -> Tools | None:
        """Raises as `tools_of` does."""
        functions = [tool.function for tool in self.tools or ()]
        tools = tools_of(functions, chosen_by(self.tool_choice), self.parallel_tool_calls)
        refuse_two_forms(tools, self.response_format is not None and self.response_format.type != "text")
        return tools


# OpenAI's own limits.
MAX_TEXTS = 2048
# Of one request to a worker: enough to fill batches, and few enough that a long list spreads over the replicas.
_TEXTS_A_REQUEST = 32
# Nor more characters, but for one long text: a worker tokenizes a request at one go, and others wait for it meanwhile.
_CHARS_A_REQUEST = 1 << 18


class TextsBody(Body):
    """Texts, or the token ids of texts, each for itself."""

    model: str
    input: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=MAX_TEXTS)]
        | Annotated[TokenIds, Field(min_length=1)]
        | Annotated[list[Annotated[TokenIds, Field(min_length=1)]], Field(min_length=1, max_length=MAX_TEXTS)]
    )
    user: str | None = None
    priority: Priority = 0
    timeout_s: TimeoutS | None = None

    def texts(self) -> list[Text]:
        given: list[Any] = self.input if isinstance(self.input, list) else [self.input]
        if isinstance(given[0], int):
            given = [given]
        return [text if isinstance(text, str) else tuple(text) for text in given]

    def requests(self) -> list[Request]:
        return requests_of(self.texts(), self.priority, self.timeout_s)


def requests_of(texts: Sequence[Text], priority: int, timeout_s: float | None) -> list[Request]:
    """The texts of a call, cut into requests that can run side by side."""
    parts: list[list[Text]] = []
    num_chars = 0
    for text in texts:
        num_chars += text_size(text)
        if not parts or len(parts[-1]) == _TEXTS_A_REQUEST or num_chars > _CHARS_A_REQUEST:
            parts.append([])
            num_chars = text_size(text)
        parts[-1].append(text)
    return [Request(new_id("texts"), Texts(tuple(part)), priority=priority, timeout_s=timeout_s) for part in parts]


class EmbeddingsBody(TextsBody):
    """``dimensions`` keeps the first of each vector's numbers and makes its length 1 again."""

    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1, lt=2**31)] | None = None


def _wrapped(seed: int) -> int:
    """Back into 64 bits with sign."""
    return (seed + 2**63) % 2**64 - 2**63
