"""What may stand in a request's body, and how it becomes the protocol's dataclasses.

Unknown fields are refused, with the nearest known name. Fields of OpenAI's that we know and cannot honour yet are
declared with the one value that asks for nothing, so that asking for more is refused by name.
"""

from __future__ import annotations

import difflib
import json
import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from jupyter_dsserve.fleet.autoscale import AutoscaleSettings
from jupyter_dsserve.fleet.rollout import RolloutSpec
from jupyter_dsserve.protocol.errors import InvalidRequest
from jupyter_dsserve.protocol.records import ApiKey, Origin
from jupyter_dsserve.protocol.request import (
    Features,
    Message,
    Prompt,
    Request,
    SamplingParams,
    Structure,
    StructureKind,
    Texts,
)
from jupyter_dsserve.protocol.spec import RUNNERS, DType, Quantize, RunnerName, Strategy, Task, WorkerSpec, Zero
from jupyter_dsserve.protocol.tensors import DATATYPES, Tensor


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


# ---- control

NumReplicas = Annotated[int, Field(ge=1, le=64)]


FactName = Annotated[str, Field(min_length=1, max_length=100)]


def _writable(fact: object) -> object:
    """Whole numbers of more than 64 bits cannot be told again in JSON, and as a float they would be others."""
    if isinstance(fact, int) and not -(2**63) <= fact < 2**64:
        raise ValueError("give a whole number of at most 64 bits, or a string")
    return fact


Fact = Annotated[Annotated[str, Field(max_length=1000)] | int | float | bool | None, BeforeValidator(_writable)]


class LoadBody(Body):
    """A version to load: the fields of `WorkerSpec`, how many workers (none is 1, or as many as it has), the class that
    its loads wait in (none is high, or as it was), and where it comes from."""

    version: str
    model: str
    task: Task = "generate"
    runner: RunnerName | None = None
    dtype: DType = "auto"
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    replicas: NumReplicas | None = None
    priority: Literal["high", "medium", "low"] | None = None
    python: str = ""
    max_sequences: Annotated[int, Field(ge=1, le=4096)] = 64
    max_context: Annotated[int, Field(ge=0, lt=2**31)] = 0
    kv_bytes: Annotated[int, Field(ge=0, lt=2**63)] = 0
    max_step_tokens: Annotated[int, Field(ge=1, lt=2**31)] = 128
    num_threads: Annotated[int, Field(ge=0, le=1024)] = 0
    tp: Annotated[int, Field(ge=1, le=64)] = 1
    zero: Zero = ""
    nvme_dir: str = ""
    quantize: Quantize = ""
    min_agreement: Annotated[float, Field(ge=0, le=1)] | None = None
    note: str = ""
    created_by: Annotated[str, Field(max_length=200)] = ""
    metadata: Annotated[dict[FactName, Fact], Field(max_length=100)] = {}

    @property
    def settings(self) -> dict[str, Any]:
        """What may change of a version."""
        return {"priority": self.priority} if self.priority else {}

    def spec(self) -> WorkerSpec:
        return WorkerSpec(
            model=self.model,
            task=self.task,
            runner=self.runner or ("toy" if self.model.startswith("toy:") else RUNNERS[self.task][0]),
            dtype=self.dtype,
            device=self.device,
            max_sequences=self.max_sequences,
            max_context=self.max_context,
            kv_bytes=self.kv_bytes,
            max_step_tokens=self.max_step_tokens,
            num_threads=self.num_threads,
            python=self.python,
            tp=self.tp,
            zero=self.zero,
            nvme_dir=self.nvme_dir,
            quantize=self.quantize,
            min_agreement=self.min_agreement,
        )

    def origin(self) -> Origin:
        return Origin(self.note, self.created_by, self.metadata)


class DeployBody(LoadBody):
    name: str


class ScaleBody(Body):
    replicas: NumReplicas


class AutoscaleBody(Body):
    """The fields of `AutoscaleSettings`; those left out are its defaults."""

    min: Annotated[int, Field(ge=0, le=64)] = 1
    max: NumReplicas
    target_in_flight: Annotated[float, Field(gt=0)] = 16.0
    target_queue: Annotated[float, Field(ge=0)] = 0.0
    idle_s: Annotated[float, Field(gt=0)] = 600.0
    stable_s: Annotated[float, Field(gt=0)] = 60.0

    def settings(self) -> AutoscaleSettings:
        """Raises `InvalidRequest` if max is below min."""
        return AutoscaleSettings(**self.model_dump())


class RouteBody(Body):
    weights: dict[str, float]
    revision: int | None = None


class ActivateBody(Body):
    version: str
    strategy: Strategy = "beside"


Seconds = Annotated[float, Field(ge=0, le=86_400)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0, lt=2**31)]


class RuleBody(Body):
    header: Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{1,100}$")]
    value: str
    version: str


DeploymentName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]


class KeyBody(Body):
    """A key to make: the fields of `ApiKey`; ``ttl_s`` says in how many seconds it expires, ``expires_at`` when."""

    name: Annotated[str, Field(min_length=1, max_length=100)]
    scope: Literal["infer", "admin"] = "infer"
    deployments: Annotated[list[DeploymentName], Field(min_length=1, max_length=1000)] | None = None
    rate: Annotated[float, Field(ge=0, le=1e9)] = 0.0
    burst: Count = 0
    tokens_per_min: Count = 0
    concurrency: Count = 0
    priority: Annotated[int, Field(ge=0, le=100)] = 0
    ttl_s: Annotated[float, Field(gt=0, le=1e10)] | None = None
    expires_at: Annotated[float, Field(gt=0, le=1e12)] | None = None

    def key(self, at: float) -> ApiKey:
        """``at`` is seconds since the epoch. Raises `InvalidRequest` for what does not go together."""
        if self.scope == "admin" and self.deployments:
            raise InvalidRequest("a key of scope admin may do everything: leave deployments out", param="deployments")
        if self.burst and not self.rate:
            raise InvalidRequest("burst says how many calls of a rate may come at once: give rate too", param="burst")
        if self.ttl_s is not None and self.expires_at is not None:
            raise InvalidRequest("ttl_s and expires_at both say when the key ends: give one of them", param="ttl_s")
        expires_at = at + self.ttl_s if self.ttl_s is not None else self.expires_at
        if expires_at is not None and expires_at <= at:
            raise InvalidRequest(
                f"expires_at is {expires_at:.0f}, which is past: give seconds since the epoch, now {at:.0f}",
                param="expires_at",
            )
        given = self.model_dump(exclude={"ttl_s", "expires_at", "deployments"})
        names = tuple(self.deployments) if self.deployments else None
        return ApiKey("", deployments=names, expires_at=expires_at, **given)


class PolicyBody(Body):
    """The fields of `Policy` that are to change."""

    rate: Annotated[float, Field(ge=0, le=1e9)] | None = None
    burst: Count | None = None
    max_in_flight: Count | None = None
    max_queue: Count | None = None
    acquire_timeout_s: Seconds | None = None
    queue_timeout_s: Seconds | None = None
    first_token_timeout_s: Seconds | None = None
    timeout_s: Seconds | None = None
    fallback: str | None = None
    fallback_answer: Annotated[str, Field(max_length=10_000)] | None = None
    rules: Annotated[list[RuleBody], Field(max_length=100)] | None = None
    retry_share: Share | None = None
    min_retries: Count | None = None
    breaker_failures: Count | None = None
    breaker_share: Share | None = None
    breaker_open_s: Seconds | None = None
    breaker_successes: Annotated[int, Field(ge=1, lt=2**31)] | None = None

    def changes(self) -> dict[str, Any]:
        return self.model_dump(exclude_none=True)


Percent = Annotated[float, Field(ge=0, le=100)]


class RolloutBody(Body):
    """The fields of `RolloutSpec`; ``check``: a notebook scores answers."""

    candidate: str
    steps: Annotated[list[Percent], Field(min_length=1, max_length=100)] = [5.0, 25.0, 50.0, 100.0]
    interval_s: Annotated[float, Field(ge=0.1, le=1_000_000)] = 30.0
    min_requests: Annotated[int, Field(ge=1, lt=2**31)] = 50
    max_error_rate: Annotated[float, Field(ge=0, le=1)] = 0.1
    max_latency_ratio: Annotated[float, Field(ge=1, le=1000)] = 2.0
    mirror: Percent = 0.0
    check: bool = False
    block_s: Annotated[float, Field(ge=0.05, le=60)] = 1.0

    def spec(self) -> RolloutSpec:
        """Raises `InvalidRequest` for steps that do not rise."""
        given = self.model_dump(exclude={"check", "steps"})
        return RolloutSpec(**given, steps=tuple(self.steps), has_check=self.check).checked()


class Score(Body):
    id: int
    score: Annotated[float, Field(ge=0, le=1)]


class ScoresBody(Body):
    """``failure`` says why the check itself does not work, or is empty; ``started_at`` which rollout it is for."""

    scores: Annotated[list[Score], Field(max_length=1000)]
    failure: Annotated[str, Field(max_length=1000)] = ""
    started_at: float | None = None


# ---- inference

Stop = Annotated[str, Field(min_length=1, max_length=1000)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Priority = Annotated[int, Field(ge=-100, le=100)]
TimeoutS = Annotated[float, Field(gt=0, le=86_400)]
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
    # accepted because they change nothing in the answer
    metadata: dict[str, str] | None = None
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def _requests(self, kind: str, prompts: Sequence[Prompt], sampling: SamplingParams) -> Requests:
        """``n`` requests for each prompt, in the order of their choices' index. The i-th of a prompt has the seed + i.

        Raises `InvalidRequest` for too many.
        """
        id, n = _new_id(kind), self.n or 1
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
            Request(own, prompt, one, self.priority, self.timeout_s)
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


MaxTokens = Annotated[int, Field(ge=1, lt=2**31)]
NumLikely = Annotated[int, Field(ge=0, le=20)]
TokenIds = list[TokenId]


class CompletionBody(_OpenAIBody):
    prompt: str | TokenIds | Annotated[list[str], Field(min_length=1)] | Annotated[list[TokenIds], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    logprobs: NumLikely | None = None
    echo: bool | None = None
    # known, and only as far as they ask for nothing
    best_of: Literal[1] | None = None
    suffix: None = None

    def requests(self) -> Requests:
        """Raises `InvalidRequest` if nothing is asked for."""
        max_tokens = 16 if self.max_tokens is None else self.max_tokens
        if max_tokens == 0 and not self.echo:
            raise InvalidRequest(
                "max_tokens is 0: ask for at least 1, or for the prompt itself with echo", param="max_tokens"
            )
        sampling = replace(self.sampling(max_tokens, self.logprobs), echo=bool(self.echo))
        return self._requests("cmpl", self._prompts(), sampling)

    def _prompts(self) -> list[Prompt]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        ids = tuple(p for p in self.prompt if isinstance(p, int))
        several: list[Prompt] = [p if isinstance(p, str) else tuple(p) for p in self.prompt if not isinstance(p, int)]
        return several or [ids]


class TextPart(Body):
    type: Literal["text"]
    text: str


class ChatMessage(Body):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None

    def message(self) -> Message:
        content = self.content if isinstance(self.content, str) else "".join(p.text for p in self.content)
        return Message("system" if self.role == "developer" else self.role, content)


class ChatBody(_OpenAIBody):
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: MaxTokens | None = None
    max_completion_tokens: MaxTokens | None = None
    logprobs: bool | None = None
    top_logprobs: NumLikely | None = None

    def requests(self) -> Requests:
        """Raises `InvalidRequest` for fields that do not go together."""
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequest(
                f"top_logprobs is {self.top_logprobs}, but logprobs is not true: set it too", param="top_logprobs"
            )
        sampling = self.sampling(
            self.max_completion_tokens or self.max_tokens, (self.top_logprobs or 0) if self.logprobs else None
        )
        return self._requests("chatcmpl", [tuple(m.message() for m in self.messages)], sampling)


# OpenAI's own limits.
MAX_TEXTS = 2048
# Of one request to a worker: enough to fill batches, and few enough that a long list spreads over the replicas.
_TEXTS_A_REQUEST = 32


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

    def requests(self) -> list[Request]:
        """The input, cut into requests that can run side by side."""
        given: list[Any] = self.input if isinstance(self.input, list) else [self.input]
        if isinstance(given[0], int):
            given = [given]
        texts = [text if isinstance(text, str) else tuple(text) for text in given]
        return [
            Request(
                _new_id("texts"),
                Texts(tuple(texts[at : at + _TEXTS_A_REQUEST])),
                priority=self.priority,
                timeout_s=self.timeout_s,
            )
            for at in range(0, len(texts), _TEXTS_A_REQUEST)
        ]


class EmbeddingsBody(TextsBody):
    """``dimensions`` keeps the first of each vector's numbers and makes its length 1 again."""

    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1, lt=2**31)] | None = None


# Known parameters of the protocol ask for what JSON cannot carry (binary data, shared memory).
NoParameters = Annotated[dict[str, Any], Field(max_length=0)] | None


class InputTensor(Body):
    """``data`` is nested as ``shape`` says, or flat."""

    name: str
    shape: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(max_length=64)]
    datatype: Literal[
        "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64"
    ]
    data: list[Any]
    parameters: NoParameters = None

    def tensor(self) -> Tensor:
        """Raises `InvalidRequest` naming the input if the data are not such numbers, or not as many as the shape."""
        dtype = DATATYPES[self.datatype]
        try:
            found = np.array(self.data) if self.data else np.empty(0, dtype)
        except ValueError:
            raise self._refused("data is nested unevenly: nest it as the shape says, or send it flat") from None
        if found.dtype.kind not in _KINDS[dtype.kind]:
            raise self._refused(f"data holds other things than {self.datatype}: send only such")
        if dtype.kind in "iu" and found.size:
            limits: Any = np.iinfo(dtype)
            least, most = limits.min, limits.max
            if not least <= found.min() <= found.max() <= most:
                raise self._refused(f"data has numbers outside {self.datatype}, {least} to {most}")
        if found.size != math.prod(self.shape) or (found.ndim > 1 and found.shape != tuple(self.shape)):
            raise self._refused(f"data has the shape {list(found.shape)}, not {self.shape}, which is what shape says")
        if not np.isfinite(found).all():
            raise self._refused("data has NaN or an infinity, which JSON does not know")
        with np.errstate(over="ignore"):
            array = found.astype(dtype)
        if not np.isfinite(array).all():
            raise self._refused(f"data has numbers too large for {self.datatype}: send smaller ones")
        try:
            return Tensor.of(self.name, array.reshape(self.shape))
        except ValueError as fault:
            raise self._refused(f"an array of the shape {self.shape} cannot be: {fault}") from None

    def _refused(self, what: str) -> InvalidRequest:
        return InvalidRequest(f"input {self.name!r}: {what}", param=self.name)


_KINDS = {"b": "b", "i": "iu", "u": "iu", "f": "iuf"}


class OutputTensor(Body):
    name: str
    parameters: NoParameters = None


class InferBody(Body):
    id: str = ""
    inputs: Annotated[list[InputTensor], Field(min_length=1)]
    outputs: list[OutputTensor] | None = None
    parameters: NoParameters = None

    def request(self) -> Request:
        return Request(_new_id("infer"), Features(tuple(each.tensor() for each in self.inputs)))


class PredictBody(Body):
    """``max_length`` is the most new tokens."""

    model: str
    input_text: str
    max_length: MaxTokens = 64

    def request(self) -> Request:
        return Request(_new_id("pred"), self.input_text, SamplingParams(max_tokens=self.max_length))


def _new_id(kind: str) -> str:
    return f"{kind}-{uuid.uuid4().hex}"


def _wrapped(seed: int) -> int:
    """Back into 64 bits with sign."""
    return (seed + 2**63) % 2**64 - 2**63


# ---- reading

B = TypeVar("B", bound=Body)


def read_body(kind: type[B], raw: bytes) -> B:
    """The body as ``kind``. Raises `InvalidRequest` naming the first field that is wrong, its value, and the remedy."""
    try:
        found = json.loads(raw)
        # Half a surrogate pair is a string to Python, but nothing can carry it further.
        json.dumps(found, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as fault:
        raise InvalidRequest(f"the body is not JSON ({fault}): send a JSON object") from None
    if not isinstance(found, dict):
        raise InvalidRequest(f"the body is a JSON {type(found).__name__}: send a JSON object")
    return validated(kind, found)


def validated(kind: type[B], found: object, at: str = "") -> B:
    """As `read_body`, for what is JSON already; ``at`` is where it stands in a larger body."""
    try:
        return kind.model_validate(found)
    except ValidationError as fault:
        raise _refused(kind, fault, at) from None


def _refused(kind: type[Body], fault: ValidationError, at: str) -> InvalidRequest:
    # For a field with alternatives pydantic reports each of them: the first error says enough.
    first = fault.errors(include_url=False)[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    where = ".".join([*([at] if at else []), *(str(part) for part in first["loc"] if not _is_alternative(part))])
    if first["type"] == "extra_forbidden":
        return InvalidRequest(f"unknown field {where!r}{_nearest(kind, name)}", param=where)
    if first["type"] == "missing":
        return InvalidRequest(f"field {where!r} is missing: {_needed(kind)}", param=where)
    return InvalidRequest(f"field {where!r} is {_shown(first['input'])}: {_remedy(first)}", param=where)


def _is_alternative(part: int | str) -> bool:
    """Whether a piece of a location names a branch of a union (pydantic's words) instead of a field of ours."""
    return isinstance(part, str) and ("[" in part or part in ("str", "constrained-str", "int", "float", "bool"))


def _remedy(error: Mapping[str, Any]) -> str:
    message = str(error["msg"])
    return message[0].lower() + message[1:]


def _needed(kind: type[Body]) -> str:
    return "needed are " + ", ".join(n for n, f in kind.model_fields.items() if f.is_required())


def _nearest(kind: type[Body], name: str) -> str:
    near = difflib.get_close_matches(name, kind.model_fields, n=1)
    return f": did you mean {near[0]!r}?" if near else f": known are {', '.join(kind.model_fields)}"


def _shown(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else text[:77] + "..."
