"""What a call may say besides its tensors, under the names that Triton's backends for vLLM and TensorRT-LLM take.

The same names come as request parameters, as tensors, or in the JSON of a tensor ``sampling_parameters``. Clients send
numbers as strings too, so this is not strict.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Annotated, Any

from pydantic import ConfigDict, Field

from jupyter_dsserve.gateway.bodies import Body, Priority, TimeoutS, TokenId, validated
from jupyter_dsserve.gateway.openai_bodies import Stop
from jupyter_dsserve.protocol.errors import InvalidRequest
from jupyter_dsserve.protocol.request import SamplingParams
from jupyter_dsserve.protocol.tensors import BYTES, Tensor, TensorInfo

OneOnly = Annotated[int, Field(ge=1, le=1)]


class CallParameters(Body):
    """Of any task. ``timeout`` is in microseconds, as Triton's."""

    model_config = ConfigDict(strict=False)

    priority: Priority = 0
    timeout: Annotated[int, Field(gt=0, le=86_400_000_000)] | None = None
    timeout_s: TimeoutS | None = None

    @property
    def limit_s(self) -> float | None:
        return self.timeout / 1e6 if self.timeout else self.timeout_s


class TextParameters(CallParameters):
    """Of the task ``generate``. Defaults are vLLM's."""

    max_tokens: Annotated[int, Field(ge=1, lt=2**31)] = 16
    min_tokens: Annotated[int, Field(ge=0, lt=2**31)] = 0
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] = 0  # -1 is vLLM's word for off
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] = []
    stop_token_ids: Annotated[list[TokenId], Field(max_length=64)] = []
    ignore_eos: bool = False
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] = 1.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    # known, and only as far as they ask for nothing
    n: OneOnly = 1
    best_of: OneOnly = 1
    beam_width: OneOnly = 1
    # what the answer is made of
    stream: bool = False
    exclude_input_in_output: bool | None = None
    return_finish_reason: bool = False
    return_log_probs: bool = False
    return_cumulative_logprob: bool = False
    return_num_input_tokens: bool = False
    return_num_output_tokens: bool = False

    def sampling(self, has_logprobs: bool) -> SamplingParams:
        return SamplingParams(
            max_tokens=self.max_tokens,
            min_tokens=self.min_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=max(0, self.top_k),
            min_p=self.min_p,
            seed=self.seed,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop),
            stop_token_ids=tuple(self.stop_token_ids),
            ignore_eos=self.ignore_eos,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logprobs=0 if has_logprobs else None,
        )

    @property
    def layout(self) -> dict[str, Any]:
        """What must be the same for all prompts of a call."""
        return {name: getattr(self, name) for name in _LAYOUT}


_LAYOUT = ("stream", "exclude_input_in_output", *(n for n in TextParameters.model_fields if n.startswith("return_")))
_ALIASES = {
    "stop_words": "stop",
    "random_seed": "seed",
    "min_length": "min_tokens",
    "num_return_sequences": "n",
}
_LISTS = {"stop", "stop_token_ids"}
_SAMPLING = "sampling_parameters"

# What may come as a tensor. [1], or one element for each prompt; lists [k], [1, k], or [prompts, k].
OPTIONAL_INPUTS = (
    *(TensorInfo(name, "BOOL", (-1,)) for name in _LAYOUT),
    TensorInfo(_SAMPLING, BYTES, (-1,)),
    TensorInfo("max_tokens", "INT32", (-1,)),
    TensorInfo("min_tokens", "INT32", (-1,)),
    TensorInfo("temperature", "FP32", (-1,)),
    TensorInfo("top_p", "FP32", (-1,)),
    TensorInfo("top_k", "INT32", (-1,)),
    TensorInfo("min_p", "FP32", (-1,)),
    TensorInfo("seed", "INT64", (-1,)),
    TensorInfo("stop", BYTES, (-1,)),
    TensorInfo("repetition_penalty", "FP32", (-1,)),
    TensorInfo("presence_penalty", "FP32", (-1,)),
    TensorInfo("frequency_penalty", "FP32", (-1,)),
)


def text_parameters(tensors: Sequence[Tensor], parameters: Mapping[str, Any], num_prompts: int) -> list[TextParameters]:
    """Those of each prompt. Raises `InvalidRequest` naming what is unknown, wrong, or given twice."""
    given: list[dict[str, Any]] = [{} for _ in range(num_prompts)]
    # One at a time: what is wrong is refused before the next one is laid out for each prompt.
    columns = chain(
        ((name, [value] * num_prompts) for name, value in parameters.items()),
        ((tensor.name, _values(tensor, num_prompts)) for tensor in tensors),
    )
    for name, values in columns:
        said = _read_each(values) if name == _SAMPLING else [{name: value} for value in values]
        for own, one in zip(given, said, strict=True):
            for inner, value in one.items():
                _put(own, inner, value)
    found = [validated(TextParameters, each) for each in given]
    if any(each.layout != found[0].layout for each in found):
        raise InvalidRequest(f"the prompts of a call have the same of {', '.join(_LAYOUT)}: send one value of each")
    return found


def _put(own: dict[str, Any], name: str, value: Any) -> None:
    known = _ALIASES.get(name, name)
    if known in own:
        raise InvalidRequest(f"{known!r} is given twice, once as {name!r}: send it once", param=name)
    if known not in TextParameters.model_fields:
        validated(TextParameters, {name: value})  # refuses it, at once: there may be many
    own[known] = value


def _values(tensor: Tensor, num_prompts: int) -> list[Any]:
    """The tensor's value for each prompt."""
    flat: list[Any] = text_elements(tensor) if tensor.datatype == BYTES else tensor.array().ravel().tolist()
    is_list = _ALIASES.get(tensor.name, tensor.name) in _LISTS
    # The shape may say any number of rows, if they are empty.
    num_values = len(flat) if not is_list else tensor.shape[0] if len(tensor.shape) > 1 else 1
    if num_values not in (1, num_prompts):
        raise InvalidRequest(
            f"input {tensor.name!r} has {num_values} values for {num_prompts} prompts: send one, or one for each",
            param=tensor.name,
        )
    if is_list:
        width = len(flat) // num_values
        # An empty text fills up a row.
        flat = [[each for each in flat[row * width : (row + 1) * width] if each != ""] for row in range(num_values)]
    return flat * num_prompts if num_values == 1 else flat


def text_elements(tensor: Tensor) -> list[str]:
    """Raises `InvalidRequest` for what is no UTF-8, too."""
    try:
        return [element.decode() for element in tensor.elements()]
    except UnicodeDecodeError as fault:
        raise InvalidRequest(
            f"input {tensor.name!r} is no UTF-8 ({fault.reason}): send text", param=tensor.name
        ) from None


def _read_each(values: Sequence[Any]) -> list[dict[str, Any]]:
    """What each is as JSON; equal ones are read once. Raises `InvalidRequest` for what is no text of an object."""
    read: dict[str, dict[str, Any]] = {}
    for value in values:
        if not isinstance(value, str):
            raise _no_object()
        if value not in read:
            read[value] = _read_json(value)
    return [read[value] for value in values]


def _read_json(value: str) -> dict[str, Any]:
    """Raises `InvalidRequest` for what is no JSON object."""
    try:
        found = json.loads(value)
        json.dumps(found, ensure_ascii=False).encode()  # half a surrogate pair: nothing can carry it further
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise _no_object()
    return found


def _no_object() -> InvalidRequest:
    return InvalidRequest(f"{_SAMPLING!r} is no JSON object: send one, as text", param=_SAMPLING)
