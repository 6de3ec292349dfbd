"""What the routes answer where that is none of the protocol's records: the shapes of JSON, for `gateway.openapi`."""

from __future__ import annotations

from typing import Any, Literal

from typing_extensions import NotRequired, TypedDict

from jupyter_dsserve.fleet.scoring import Sample
from jupyter_dsserve.protocol.records import ApiKey, DeploymentStatus

# ---- errors, by face


class Fault(TypedDict):
    """``type`` is the error's class, ``param`` the field of the request that is at fault, if one is."""

    type: str
    message: str
    param: str | None


class FaultAnswer(TypedDict):
    error: Fault


class OpenAIFault(TypedDict):
    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIFaultAnswer(TypedDict):
    """OpenAI's shape."""

    error: OpenAIFault


class OIPFaultAnswer(TypedDict):
    """The Open Inference Protocol's shape."""

    error: str


# ---- control


class Served(TypedDict):
    """Everything now. ``id`` is that of the gateway's data directory. ``num_requests`` were taken since the start,
    ``in_flight`` of them run. ``grpc`` is where gRPC answers, ``host:port``; empty: nowhere."""

    id: str
    deployments: list[DeploymentStatus]
    num_requests: int
    in_flight: int
    grpc: str


class Samples(TypedDict):
    samples: list[Sample]


class Places(TypedDict):
    """Where to go on from ``/``, relative to it."""

    name: str
    version: str
    docs: str
    openapi: str
    health: str
    metrics: str


class MadeKey(TypedDict):
    """The only time that ``key`` is told."""

    id: str
    key: str
    record: ApiKey


class ExportedDeployment(TypedDict, total=False):
    versions: dict[str, dict[str, Any]]
    route: dict[str, float]
    policy: dict[str, Any]


class Exported(TypedDict):
    """A deployments file as JSON."""

    deployments: dict[str, ExportedDeployment]


class LiveAnswer(TypedDict):
    status: Literal["live"]


class ReadyAnswer(TypedDict):
    status: Literal["ready"]


# ---- inference


class Predicted(TypedDict):
    """``timestamp`` is ISO 8601 in UTC; ``version`` is empty if the policy's own text answered."""

    result: str
    latency_ms: float
    timestamp: str
    version: str


class PromptDetails(TypedDict):
    cached_tokens: int
    audio_tokens: int


class CompletionDetails(TypedDict):
    reasoning_tokens: int
    audio_tokens: int
    accepted_prediction_tokens: int
    rejected_prediction_tokens: int


class TokenUsage(TypedDict):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


class TextLogprobs(TypedDict):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(TypedDict):
    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: str | None


class Completion(TypedDict):
    """Of a stream's events the last but ``[DONE]`` may have no choices, and the ``usage`` if that was asked for."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str | None
    choices: list[TextChoice]
    usage: NotRequired[TokenUsage | None]


class ChatLikely(TypedDict):
    token: str
    logprob: float | None
    bytes: list[int]


class ChatLogprob(ChatLikely):
    top_logprobs: list[ChatLikely]


class ChatLogprobs(TypedDict):
    content: list[ChatLogprob]
    refusal: None


class CalledFunction(TypedDict):
    name: str
    arguments: str


class ToolCall(TypedDict):
    id: str
    type: Literal["function"]
    function: CalledFunction


class ChatMessage(TypedDict):
    """``arguments`` of a call are JSON as the model wrote it."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    annotations: list[Any]
    tool_calls: NotRequired[list[ToolCall]]


class ChatChoice(TypedDict):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: str | None


class ChatCompletion(TypedDict):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    service_tier: Literal["default"]
    system_fingerprint: str | None
    choices: list[ChatChoice]
    usage: TokenUsage


class ChatDelta(TypedDict):
    index: int
    delta: dict[str, Any]
    logprobs: ChatLogprobs | None
    finish_reason: str | None


class ChatChunk(TypedDict):
    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    service_tier: Literal["default"]
    system_fingerprint: str | None
    choices: list[ChatDelta]
    usage: NotRequired[TokenUsage | None]


class ResponseError(TypedDict):
    code: str
    message: str


class ResponseUsage(TypedDict):
    input_tokens: int
    input_tokens_details: dict[str, int]
    output_tokens: int
    output_tokens_details: dict[str, int]
    total_tokens: int


class ResponseReasoning(TypedDict):
    effort: Literal["none"] | None
    summary: None


class ResponseText(TypedDict):
    format: dict[str, Any]
    verbosity: Literal["medium"]


class ResponseAnswer(TypedDict):
    """``output`` are messages and calls of functions; what was asked comes back too."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["completed", "incomplete", "failed", "in_progress"]
    background: Literal[False]
    error: ResponseError | None
    incomplete_details: dict[str, str] | None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    model: str
    output: list[dict[str, Any]]
    parallel_tool_calls: bool
    previous_response_id: None
    prompt_cache_key: str | None
    reasoning: ResponseReasoning
    safety_identifier: str | None
    service_tier: Literal["default"]
    temperature: float
    text: ResponseText
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"]
    usage: ResponseUsage | None
    user: str | None
    metadata: dict[str, str]


class OpenAIModel(TypedDict):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class OpenAIModels(TypedDict):
    object: Literal["list"]
    data: list[OpenAIModel]


class PromptUsage(TypedDict):
    prompt_tokens: int
    total_tokens: int


class Embedding(TypedDict):
    """Numbers, or with ``encoding_format`` ``base64`` their four bytes each, little-endian."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Embeddings(TypedDict):
    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: PromptUsage


class ClassScores(TypedDict):
    index: int
    label: str
    probs: list[float]
    num_classes: int


class Classes(TypedDict):
    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[ClassScores]
    labels: list[str]
    usage: PromptUsage


class PairScore(TypedDict):
    index: int
    object: Literal["score"]
    score: float


class Scores(TypedDict):
    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[PairScore]
    usage: PromptUsage


class RankedDocument(TypedDict):
    text: str


class Ranked(TypedDict):
    index: int
    relevance_score: float
    document: NotRequired[RankedDocument]


class Reranked(TypedDict):
    id: str
    model: str
    usage: PromptUsage
    results: list[Ranked]


# ---- the Open Inference Protocol


class ServerMetadata(TypedDict):
    name: str
    version: str
    extensions: list[str]


class ServerLive(TypedDict):
    live: bool


class ServerReady(TypedDict):
    ready: bool


class ModelReady(TypedDict):
    name: str
    ready: bool


class TensorMetadata(TypedDict):
    """-1 in ``shape``: any size."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(TypedDict):
    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class OutputTensor(TypedDict):
    """Without ``data`` it follows the JSON, or lies in shared memory: ``parameters`` say which."""

    name: str
    shape: list[int]
    datatype: str
    data: NotRequired[list[Any]]
    parameters: NotRequired[dict[str, Any]]


class Inferred(TypedDict):
    model_name: str
    model_version: str
    id: str
    outputs: list[OutputTensor]
