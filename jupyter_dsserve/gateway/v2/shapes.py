"""What Triton's extensions of the Open Inference Protocol take and give, as `gateway.openapi` shows it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from typing_extensions import NotRequired, TypedDict

from jupyter_dsserve.gateway.bodies import Body


class ConfigTensor(TypedDict):
    name: str
    data_type: str
    dims: list[int]
    optional: NotRequired[bool]


class TransactionPolicy(TypedDict):
    decoupled: bool


class ModelConfig(TypedDict):
    name: str
    platform: str
    backend: str
    max_batch_size: int
    input: list[ConfigTensor]
    output: list[ConfigTensor]
    model_transaction_policy: TransactionPolicy


class Duration(TypedDict):
    """``count`` requests took ``ns`` nanoseconds together."""

    count: int
    ns: int


class InferenceStats(TypedDict):
    success: Duration
    fail: Duration
    queue: Duration
    compute_infer: Duration


class ModelStats(TypedDict):
    """Since the gateway started. ``last_inference`` is milliseconds since the epoch, 0 if there was none;
    ``execution_count`` are the steps that the version's present workers computed."""

    name: str
    version: str
    last_inference: int
    inference_count: int
    execution_count: int
    inference_stats: InferenceStats
    batch_stats: list[Any]


class Statistics(TypedDict):
    model_stats: list[ModelStats]


class IndexEntry(TypedDict):
    name: str
    version: str
    state: Literal["READY", "UNAVAILABLE"]
    reason: str


class IndexBody(Body):
    ready: bool = False


class LoadBody(Body):
    """Without a body, or with no parameters: what a version loads was said when it was registered."""

    parameters: Annotated[dict[str, Any], Field(max_length=0)] | None = None


class UnloadParameters(Body):
    unload_dependents: bool = False  # Triton's client always sends it; there are none


class UnloadBody(Body):
    parameters: UnloadParameters | None = None


class RegisterBody(Body):
    key: str
    offset: Annotated[int, Field(ge=0, lt=2**62)] = 0
    byte_size: Annotated[int, Field(ge=1, lt=2**62)]


class RegionNamed(Body):
    """As REST has it in the path."""

    name: Annotated[str, Field(min_length=1, max_length=200)]


class GenerateBody(Body):
    """Parameters stand in ``parameters``, or beside ``text_input``."""

    model_config = ConfigDict(extra="allow")

    text_input: str
    parameters: dict[str, Any] | None = None


class Generated(TypedDict):
    """And whatever else was asked for (``finish_reason``, ``num_output_tokens``, …), each a value."""

    model_name: str
    model_version: str
    text_output: str
