"""What may stand in a body of OpenAI's completions and chats, and how it becomes the protocol's dataclasses.

Fields that we know and do not honour are declared with the one value that asks for nothing, so that asking for more is
refused by name. docs/openai.md lists every field of OpenAI's; a test compares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import Field

from jupyter_dsserve.gateway.bodies import Body, MaxTokens, No, Priority, TimeoutS, TokenId, TokenIds, new_id, no
from jupyter_dsserve.gateway.form_bodies import ResponseFormat, StructuredOutputs
from jupyter_dsserve.gateway.tool_bodies import (
    CallBody,
    ChatToolChoice,
    ToolBody,
    chosen_by,
    refuse_two_forms,
    tools_of,
)
from jupyter_dsserve.protocol.errors import InvalidRequest
from jupyter_dsserve.protocol.request import Message, Prompt, Request, SamplingParams, Structure, Tools

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


NumLikely = Annotated[int, Field(ge=0, le=20)]


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


def _wrapped(seed: int) -> int:
    """Back into 64 bits with sign."""
    return (seed + 2**63) % 2**64 - 2**63
