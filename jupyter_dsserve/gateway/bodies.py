"""What may stand in a request's body, and how it becomes the protocol's dataclasses.

Unknown fields are refused, with the nearest known name. Bodies of OpenAI's routes are in
`openai_bodies.py`, `responses_bodies.py` and `text_bodies.py`.
"""

from __future__ import annotations

import difflib
import json
import uuid
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import PydanticCustomError, from_json

from jupyter_dsserve.fleet.autoscale import AutoscaleSettings
from jupyter_dsserve.fleet.rollout import RolloutSpec
from jupyter_dsserve.protocol.config import Priority as LoadPriority
from jupyter_dsserve.protocol.errors import InvalidRequest
from jupyter_dsserve.protocol.records import ApiKey, Origin, Scope
from jupyter_dsserve.protocol.request import Request, SamplingParams
from jupyter_dsserve.protocol.spec import RUNNERS, DType, Quantize, RunnerName, Strategy, Task, WorkerSpec, Zero


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def _boolean(value: object) -> object:
    """To a Literal 0 is False, and 1 is True."""
    if isinstance(value, int) and not isinstance(value, bool):
        raise ValueError("input should be false")
    return value


No = Annotated[Literal[False], BeforeValidator(_boolean)]


def no(why: str, remedy: str = "leave it out") -> WrapValidator:
    """Refuses what the type does not take, saying why instead of naming the type."""

    def refusing(value: object, inner: ValidatorFunctionWrapHandler) -> object:
        try:
            return inner(value)
        except ValidationError:
            raise PydanticCustomError("refused", "{reason}", {"reason": f"{why}: {remedy}"}) from None

    return WrapValidator(refusing)


# ---- control

NumReplicas = Annotated[int, Field(ge=1, le=64)]


FactName = Annotated[str, Field(min_length=1, max_length=100)]


def _writable(fact: object) -> object:
    """Whole numbers of more than 64 bits cannot be told again in JSON, and as a float they would be others."""
    if isinstance(fact, int) and not -(2**63) <= fact < 2**64:
        raise ValueError("give a whole number of at most 64 bits, or a string")
    return fact


Fact = Annotated[Annotated[str, Field(max_length=1000)] | int | float | bool | None, BeforeValidator(_writable)]


def _numbered(device: str) -> str:
    """The books, the worker and a comparison with what is registered know GPUs by their numbers."""
    return "cuda:0" if device == "cuda" else device


DeviceName = Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$"), AfterValidator(_numbered)]


class LoadBody(Body):
    """A version to load: the fields of `WorkerSpec`, how many workers (none is 1, or as many as it has), the class that
    its loads wait in (none is high, or as it was), and where it comes from."""

    version: str
    model: str
    task: Task = "generate"
    runner: RunnerName | None = None
    dtype: DType = "auto"
    device: DeviceName = "auto"
    replicas: NumReplicas | None = None
    priority: LoadPriority | None = None
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


_OF_ANY_KEY = {"name", "scope", "ttl_s", "expires_at"}


class KeyBody(Body):
    """A key to make: the fields of `ApiKey`; ``ttl_s`` says in how many seconds it expires, ``expires_at`` when."""

    name: Annotated[str, Field(min_length=1, max_length=100)]
    scope: Scope = "infer"
    deployments: Annotated[list[DeploymentName], Field(min_length=1, max_length=1000)] | None = None
    rate: Annotated[float, Field(ge=0, le=1e9)] = 0.0
    burst: Count = 0
    tokens_per_min: Count = 0
    concurrency: Count = 0
    priority: Annotated[int, Field(ge=0, le=100)] = 0
    label: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{0,63}$")] = ""
    ttl_s: Annotated[float, Field(gt=0, le=1e10)] | None = None
    expires_at: Annotated[float, Field(gt=0, le=1e12)] | None = None

    def key(self, at: float) -> ApiKey:
        """``at`` is seconds since the epoch. Raises `InvalidRequest` for what does not go together."""
        if self.scope == "admin" and self.deployments:
            raise InvalidRequest("a key of scope admin may do everything: leave deployments out", param="deployments")
        fields = {name: field.default for name, field in KeyBody.model_fields.items() if name not in _OF_ANY_KEY}
        limits = [name for name, default in fields.items() if getattr(self, name) != default]
        if self.scope == "metrics" and limits:
            raise InvalidRequest(
                f"a key of scope metrics asks no models, and no limits hold for it: leave {', '.join(limits)} out",
                param=limits[0],
            )
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

TokenId = Annotated[int, Field(ge=0, lt=2**31)]
TokenIds = list[TokenId]
Priority = Annotated[int, Field(ge=-100, le=100)]
TimeoutS = Annotated[float, Field(gt=0, le=86_400)]
MaxTokens = Annotated[int, Field(ge=1, lt=2**31)]


class PredictBody(Body):
    """``max_length`` is the most new tokens."""

    model: str
    input_text: str
    max_length: MaxTokens = 64

    def request(self) -> Request:
        return Request(new_id("pred"), self.input_text, SamplingParams(max_tokens=self.max_length))


def new_id(kind: str) -> str:
    return f"{kind}-{uuid.uuid4().hex}"


# ---- reading

B = TypeVar("B", bound=Body)


def read_body(kind: type[B], raw: bytes) -> B:
    """The body as ``kind``. Raises `InvalidRequest` naming the first field that is wrong, its value, and the remedy."""
    try:
        # In one pass: unlike json's it refuses half a surrogate pair, a string to Python that nothing can carry
        # further, and unlike orjson's it keeps a long whole number as it is.
        found = from_json(raw)
    except ValueError as fault:
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
    # For a field with alternatives pydantic reports each of them: the first says enough, unless one is in our words.
    errors = fault.errors(include_url=False)
    first = next((error for error in errors if error["type"] == "refused"), errors[0])
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
