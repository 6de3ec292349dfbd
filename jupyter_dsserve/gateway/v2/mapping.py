"""What the Open Inference Protocol means to each task: tensors become requests, and answers tensors. REST and gRPC
share it.

    generate   text_input                 →  text_output, and what else is asked for
    embed      text_input                 →  embedding
    classify   text_input, text_pair      →  probs, label
    tensor     the program's own inputs   →  its own outputs
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jupyter_dsserve.gateway.bodies import validated
from jupyter_dsserve.gateway.text_bodies import MAX_TEXTS, requests_of
from jupyter_dsserve.gateway.v2.parameters import (
    OPTIONAL_INPUTS,
    CallParameters,
    TextParameters,
    text_elements,
    text_parameters,
)
from jupyter_dsserve.protocol.errors import InvalidRequest
from jupyter_dsserve.protocol.request import Chunk, Features, Pair, Request, Text
from jupyter_dsserve.protocol.spec import Task
from jupyter_dsserve.protocol.tensors import BYTES, ModelInfo, Tensor, TensorInfo

TEXT_INPUT, TEXT_PAIR, TEXT_OUTPUT = "text_input", "text_pair", "text_output"
_LOGPROBS = ("cumulative_logprob", "cum_log_probs", "output_log_probs")
# Which parameter asks for which outputs; naming them among the call's outputs does too.
_ASKED_BY = {
    "return_finish_reason": ("finish_reason",),
    "return_cumulative_logprob": ("cumulative_logprob",),
    "return_log_probs": ("cum_log_probs", "output_log_probs"),
    "return_num_input_tokens": ("num_input_tokens",),
    "return_num_output_tokens": ("num_output_tokens",),
}
_TEXT_OUTPUTS = (
    TensorInfo(TEXT_OUTPUT, BYTES, (-1,)),
    TensorInfo("finish_reason", BYTES, (-1,)),
    TensorInfo("cumulative_logprob", "FP32", (-1,)),
    TensorInfo("cum_log_probs", "FP32", (-1,)),
    TensorInfo("output_log_probs", "FP32", (-1, -1)),
    TensorInfo("num_input_tokens", "UINT32", (-1,)),
    TensorInfo("num_output_tokens", "UINT32", (-1,)),
)
_TEXT = TensorInfo(TEXT_INPUT, BYTES, (-1,))
_PAIR = TensorInfo(TEXT_PAIR, BYTES, (-1,))


@dataclass(frozen=True, slots=True)
class Signature:
    """What a model takes and gives; ``optional`` inputs may be left out."""

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    optional: tuple[TensorInfo, ...] = ()


@dataclass(frozen=True, slots=True)
class Inference:
    """A call as the fleet takes it. ``wanted`` are its outputs (none: all that there are); ``shape`` that of its
    texts. ``is_stream``: each piece of an answer is told as it comes; ``has_input``: the prompt goes before it."""

    task: Task
    requests: tuple[Request, ...]
    wanted: tuple[str, ...] = ()
    shape: tuple[int, ...] = ()
    is_stream: bool = False
    has_input: bool = False


def signature(task: Task, info: ModelInfo) -> Signature:
    """``info`` is what the worker said once it was READY; a text model's is always the same."""
    if task == "generate":
        return Signature((_TEXT,), _TEXT_OUTPUTS, OPTIONAL_INPUTS)
    if task == "tensor":
        return Signature(info.inputs, info.outputs)
    if task == "classify":
        return Signature((_TEXT,), (*info.outputs, TensorInfo("label", BYTES, (-1,))), (_PAIR,))
    return Signature((_TEXT,), info.outputs)


def requests(
    task: Task, tensors: Sequence[Tensor], parameters: Mapping[str, Any], wanted: Sequence[str] = ()
) -> Inference:
    """Raises `InvalidRequest` naming the tensor or parameter that is wrong. What a program takes its worker checks."""
    if task == "tensor":
        common = validated(CallParameters, dict(parameters))
        request = Request(
            f"infer-{uuid.uuid4().hex}", Features(tuple(tensors)), priority=common.priority, timeout_s=common.limit_s
        )
        return Inference(task, (request,), tuple(wanted))
    by_name = {tensor.name: tensor for tensor in tensors}
    if len(by_name) < len(tensors) or TEXT_INPUT not in by_name:
        names = [tensor.name for tensor in tensors]
        raise InvalidRequest(f"inputs are {names}: send {TEXT_INPUT!r}, and each once", param="inputs")
    text = by_name.pop(TEXT_INPUT)
    texts = _texts(text)
    if task == "generate":
        return _generate(texts, text.shape, list(by_name.values()), parameters, wanted)
    pair = by_name.pop(TEXT_PAIR, None) if task == "classify" else None
    if by_name:
        raise InvalidRequest(f"input {next(iter(by_name))!r} is not known: there is {TEXT_INPUT!r}", param="inputs")
    common = validated(CallParameters, dict(parameters))
    given: Sequence[Text] = _pairs(texts, pair) if pair else texts
    return Inference(task, tuple(requests_of(given, common.priority, common.limit_s)), tuple(wanted), text.shape)


def _pairs(texts: Sequence[str], pair: Tensor) -> list[Pair]:
    seconds = _texts(pair)
    if len(seconds) != len(texts):
        raise InvalidRequest(
            f"{TEXT_PAIR!r} has {len(seconds)} texts and {TEXT_INPUT!r} {len(texts)}: send as many of both",
            param=TEXT_PAIR,
        )
    return list(map(Pair, texts, seconds))


def _texts(tensor: Tensor) -> list[str]:
    shape = tensor.shape
    if len(shape) not in (1, 2) or shape[1:] not in ((), (1,)) or not 1 <= shape[0] <= MAX_TEXTS:
        raise InvalidRequest(
            f"input {tensor.name!r} has the shape {list(shape)}: send [n] or [n, 1], where n is 1 to {MAX_TEXTS}",
            param=tensor.name,
        )
    return text_elements(tensor)


def _generate(
    prompts: Sequence[str],
    shape: tuple[int, ...],
    others: Sequence[Tensor],
    parameters: Mapping[str, Any],
    wanted: Sequence[str],
) -> Inference:
    said = text_parameters(others, parameters, len(prompts))
    first = said[0]
    has_input = not (first.stream if first.exclude_input_in_output is None else first.exclude_input_in_output)
    if first.stream and has_input:
        raise InvalidRequest(
            "exclude_input_in_output is false, but a stream tells only what is new: leave it out",
            param="exclude_input_in_output",
        )
    outputs = tuple(wanted) or (TEXT_OUTPUT, *_asked(first))
    has_logprobs = not set(outputs).isdisjoint(_LOGPROBS)
    id = f"infer-{uuid.uuid4().hex}"
    ids = [f"{id}-{number}" for number in range(len(prompts))] if len(prompts) > 1 else [id]
    each = (
        Request(own, prompt, one.sampling(has_logprobs), one.priority, one.limit_s)
        for own, prompt, one in zip(ids, prompts, said, strict=True)
    )
    found = Inference("generate", tuple(each), outputs, shape, first.stream, has_input)
    check_outputs(found, ModelInfo())
    return found


def _asked(said: TextParameters) -> list[str]:
    return [name for parameter, names in _ASKED_BY.items() if getattr(said, parameter) for name in names]


def check_outputs(inference: Inference, info: ModelInfo) -> None:
    """Raises `InvalidRequest` naming an output that the version does not give."""
    known = [each.name for each in signature(inference.task, info).outputs]
    if known and (strange := [name for name in inference.wanted if name not in known]):
        raise InvalidRequest(f"output {strange[0]!r} is not known: there are {known}", param="outputs")


def outputs(inference: Inference, answers: Sequence[Chunk], info: ModelInfo) -> list[Tensor]:
    """What the call wanted, in its order: of whole answers, one for each request, or of a piece of the only one.

    Raises `InvalidRequest` if a wanted output did not come.
    """
    if inference.task == "generate":
        found = {name: _text_output(name, inference, answers) for name in inference.wanted}
    elif inference.task == "tensor":
        found = {tensor.name: tensor for answer in answers for tensor in answer.tensors}
    else:
        found = _of_texts(answers, info.labels)
    wanted = inference.wanted or tuple(found)
    if missing := [name for name in wanted if name not in found]:
        raise InvalidRequest(f"output {missing[0]!r} is not known: there are {list(found)}", param="outputs")
    return [found[name] for name in wanted]


def _of_texts(answers: Sequence[Chunk], labels: Sequence[str]) -> dict[str, Tensor]:
    first = answers[0].tensors[0]
    rows = np.concatenate([answer.tensors[0].array() for answer in answers])
    found = {first.name: Tensor.of(first.name, rows)}
    if labels:
        found["label"] = Tensor.of_bytes("label", [labels[int(row.argmax())].encode() for row in rows])
    return found


def _text_output(name: str, inference: Inference, answers: Sequence[Chunk]) -> Tensor:
    shape = inference.shape if math.prod(inference.shape) == len(answers) else (len(answers),)

    def numbers(values: Sequence[float], dtype: str) -> Tensor:
        return Tensor.of(name, np.array(values, dtype).reshape(shape))

    if name == TEXT_OUTPUT:
        texts = [answer.text for answer in answers]
        if inference.has_input:
            texts = [f"{request.prompt}{text}" for request, text in zip(inference.requests, texts, strict=True)]
        return Tensor.of_bytes(name, [text.encode() for text in texts], shape)
    if name == "finish_reason":
        reasons = [answer.finish_reason.value if answer.finish_reason else "" for answer in answers]
        return Tensor.of_bytes(name, [reason.encode() for reason in reasons], shape)
    if name == "num_input_tokens":
        return numbers([answer.usage.prompt_tokens if answer.usage else 0 for answer in answers], "u4")
    if name == "num_output_tokens":
        return numbers([answer.num_tokens for answer in answers], "u4")
    logprobs = [[one.logprob or 0.0 for one in answer.logprobs] for answer in answers]
    if name != "output_log_probs":
        return numbers([sum(row) for row in logprobs], "f4")
    width = max(map(len, logprobs))  # 0 fills up, as in TensorRT-LLM's
    return Tensor.of(name, np.array([row + [0.0] * (width - len(row)) for row in logprobs], "f4"))
