"""Tensors to requests and answers to tensors, without a server."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from jupyter_dsserve.gateway.v2 import parameters
from jupyter_dsserve.gateway.v2.mapping import Inference, outputs, requests, signature
from jupyter_dsserve.protocol.errors import InvalidRequest
from jupyter_dsserve.protocol.request import Chunk, FinishReason, Pair, Texts, TokenLogprob, Usage
from jupyter_dsserve.protocol.tensors import DATATYPES, ModelInfo, Tensor, TensorInfo


def text(*texts: str, name: str = "text_input", shape: tuple[int, ...] | None = None) -> Tensor:
    return Tensor.of_bytes(name, [each.encode() for each in texts], shape)


def numbers(name: str, values: Any, dtype: str) -> Tensor:
    return Tensor.of(name, np.array(values, dtype))


def asked(*tensors: Tensor, wanted: tuple[str, ...] = (), **parameters: Any) -> Inference:
    return requests("generate", tensors, parameters, wanted)


@pytest.mark.parametrize("datatype", DATATYPES)
def test_every_datatype_goes_there_and_back(datatype: str) -> None:
    array = np.array([[0, 1], [1, 0]]).astype(DATATYPES[datatype])
    tensor = Tensor.of("x", array)
    assert (tensor.datatype, tensor.shape) == (datatype, (2, 2))
    assert (tensor.array() == array).all()
    with pytest.raises(InvalidRequest, match=f"tensor 'x' has {len(tensor.data) - 1} bytes"):
        Tensor("x", datatype, (2, 2), tensor.data[1:]).array()


def test_bf16_is_the_upper_half_of_fp32() -> None:
    tensor = Tensor.of("x", np.array([1.5, -2.0]).astype(ml_dtypes.bfloat16))
    assert tensor.data == b"\xc0\x3f\x00\xc0"


@pytest.mark.parametrize(
    ("shape", "data"),
    [((2,), b"\1\0\0\0a"), ((1,), b"\2\0\0\0a"), ((1,), b"\1\0\0\0ab"), ((1,), b"\1\0"), ((0,), b"\0\0\0\0")],
)
def test_bytes_that_do_not_fit_are_refused(shape: tuple[int, ...], data: bytes) -> None:
    with pytest.raises(InvalidRequest, match=r"tensor 't' has \d bytes"):
        Tensor("t", "BYTES", shape, data).elements()
    assert Tensor("t", "BYTES", (2, 1), b"\0\0\0\0\1\0\0\0a").elements() == [b"", b"a"]


def test_a_prompt_is_sampled_as_vllm_does_unless_told() -> None:
    (request,) = asked(text("hi")).requests
    assert (request.prompt, request.sampling.max_tokens, request.sampling.temperature) == ("hi", 16, 1.0)
    (request,) = asked(
        text("hi"),
        numbers("temperature", [0.0], "f4"),
        numbers("max_tokens", [[7]], "i4"),
        text("a", "b", name="stop_words", shape=(1, 2)),
        random_seed=3,
        top_k=-1,
        priority=2,
        timeout=1_500_000,
    ).requests
    assert (request.sampling.temperature, request.sampling.max_tokens, request.sampling.stop) == (0.0, 7, ("a", "b"))
    assert (request.sampling.seed, request.sampling.top_k, request.priority, request.timeout_s) == (3, 0, 2, 1.5)


def test_sampling_parameters_are_json_with_numbers_as_strings_as_vllms_client_sends_them() -> None:
    given = json.dumps({"temperature": "0.1", "top_p": "0.95", "max_tokens": "100", "stop": ["x"]})
    for found in (
        asked(text("hi"), text(given, name="sampling_parameters")),
        asked(text("hi"), sampling_parameters=given),
    ):
        sampling = found.requests[0].sampling
        assert (sampling.temperature, sampling.top_p, sampling.max_tokens, sampling.stop) == (0.1, 0.95, 100, ("x",))


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_several_prompts_share_values_or_have_their_own(shape: tuple[int, ...]) -> None:
    found = asked(
        text("a", "b", "c", shape=shape),
        numbers("max_tokens", [[1], [2], [3]], "i4"),
        numbers("top_k", [5], "i4"),
        text("x", "", "y", "z", "", "", name="stop", shape=(3, 2)),
    )
    assert [r.prompt for r in found.requests] == ["a", "b", "c"]
    assert [r.sampling.max_tokens for r in found.requests] == [1, 2, 3]
    assert [r.sampling.top_k for r in found.requests] == [5, 5, 5]
    assert [r.sampling.stop for r in found.requests] == [("x",), ("y", "z"), ()]
    assert len({r.id for r in found.requests}) == 3
    (tensor,) = outputs(found, [Chunk("", each) for each in "123"], ModelInfo())
    assert (tensor.name, tensor.shape, tensor.elements()) == ("text_output", shape, [b"a1", b"b2", b"c3"])


@pytest.mark.parametrize(
    ("tensors", "parameters", "words"),
    [
        ([], {}, "send 'text_input'"),
        ([text("a"), text("b")], {}, "each once"),
        ([numbers("text_input", [1], "i4")], {}, "tensor 'text_input' is INT32: send BYTES"),
        ([text("a", "b", shape=(1, 2))], {}, r"'text_input' has the shape \[1, 2\]"),
        ([text("a", shape=())], {}, r"'text_input' has the shape \[\]"),
        ([Tensor.of_bytes("text_input", [b"\xff"])], {}, "'text_input' is no UTF-8"),
        ([text("a"), numbers("bad_words", [1], "i4")], {}, "unknown field 'bad_words'"),
        ([text("a")], {"max_token": 1}, "did you mean 'max_tokens'"),
        ([text("a")], {"n": 2}, "'n' is 2"),
        ([text("a")], {"temperature": "hot"}, "'temperature' is \"hot\""),
        ([text("a")], {"seed": 1, "random_seed": 1}, "'seed' is given twice, once as 'random_seed'"),
        ([text("a"), numbers("top_k", [1], "i4")], {"top_k": 1}, "'top_k' is given twice"),
        ([text("a"), text("[1]", name="sampling_parameters")], {}, "'sampling_parameters' is no JSON object"),
        ([text("a", "b", "c"), numbers("top_k", [1, 2], "i4")], {}, "'top_k' has 2 values for 3 prompts"),
        ([text("a", "b"), numbers("stream", [True, False], "?")], {}, "the prompts of a call have the same"),
        ([text("a")], {"stream": True, "exclude_input_in_output": False}, "a stream tells only what is new"),
        ([text("a"), Tensor("top_p", "FP32", (1,), b"\0\0")], {}, "tensor 'top_p' has 2 bytes"),
        ([text("a"), Tensor("top_p", "FP32", (0, 2**40, 2**40), b"")], {}, "'top_p' cannot have the shape"),
        ([text("a")], {"sampling_parameters": '{"stop": "\\ud800"}'}, "is no JSON object"),
        ([text("a"), numbers("top_p", np.empty((0, 1)), "f4")], {}, "'top_p' has 0 values"),
    ],
)
def test_what_is_wrong_is_named(tensors: list[Tensor], parameters: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        requests("generate", tensors, parameters)


@pytest.mark.parametrize(
    ("name", "datatype"), [("stop", "BYTES"), ("stop_words", "BYTES"), ("stop_token_ids", "INT32")]
)
def test_rows_that_the_shape_only_says_are_refused_before_they_are_made(name: str, datatype: str) -> None:
    empty = Tensor(name, datatype, (2**18, 0), b"")
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequest, match=f"'{name}' has 262144 values for 2 prompts"):
            asked(text("a", "b"), empty)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    with pytest.raises(InvalidRequest, match=f"'{name}' has 0 values for 2 prompts"):
        asked(text("a", "b"), Tensor(name, datatype, (0, 2), b""))
    for rows in (1, 2):
        found = asked(text("a", "b"), Tensor(name, datatype, (rows, 0), b""))
        assert [(r.sampling.stop, r.sampling.stop_token_ids) for r in found.requests] == [((), ())] * 2


class Told(dict[str, Any]):
    """JSON's objects and lists may be large: making a text of one takes long."""

    def __str__(self) -> str:
        raise AssertionError("it was made a text")


def test_sampling_parameters_are_read_once_and_only_if_they_are_text(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidRequest, match="'sampling_parameters' is no JSON object"):
        asked(text("a", "b"), sampling_parameters=Told(top_k=1))
    with pytest.raises(InvalidRequest, match="'sampling_parameters' is no JSON object"):
        asked(text("a", "b"), sampling_parameters=[1])
    read: list[str] = []

    def counted(value: str) -> Any:
        read.append(value)
        return {"top_k": int(value)}

    monkeypatch.setattr(parameters, "_read_json", counted)
    found = asked(text(*"abc"), sampling_parameters="7")
    assert ([r.sampling.top_k for r in found.requests], read) == ([7, 7, 7], ["7"])


def test_of_many_unknown_parameters_the_first_is_refused_before_all_are_laid_out() -> None:
    many = {f"no{number}": number for number in range(1000)}
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequest, match="unknown field 'no0'"):
            asked(text(*["a"] * 1000), **many)
        assert tracemalloc.get_traced_memory()[1] < 2**21
    finally:
        tracemalloc.stop()


def test_what_else_is_asked_for_comes_along() -> None:
    def token(logprob: float) -> TokenLogprob:
        return TokenLogprob(b"x", logprob, 0)

    answers = [
        Chunk("", "one", 2, FinishReason.STOP, Usage(4, 2), logprobs=(token(-1.0), token(-0.5))),
        Chunk("", "two", 1, FinishReason.LENGTH, Usage(5, 1), logprobs=(token(-2.0),)),
    ]
    names = ["return_finish_reason", "return_log_probs", "return_num_input_tokens", "return_num_output_tokens"]
    found = asked(text("a", "b"), exclude_input_in_output=True, **dict.fromkeys(names, True))
    assert found.requests[0].sampling.logprobs == 0
    made = {tensor.name: tensor for tensor in outputs(found, answers, ModelInfo())}
    assert made["text_output"].elements() == [b"one", b"two"]
    assert made["finish_reason"].elements() == [b"stop", b"length"]
    assert made["cum_log_probs"].array().tolist() == [-1.5, -2.0]
    assert made["output_log_probs"].array().tolist() == [[-1.0, -0.5], [-2.0, 0.0]]
    assert made["num_input_tokens"].array().tolist() == [4, 5]
    assert made["num_output_tokens"].array().tolist() == [2, 1]
    only = asked(text("a", "b"), wanted=("cumulative_logprob",))
    assert only.requests[0].sampling.logprobs == 0
    assert [t.array().tolist() for t in outputs(only, answers, ModelInfo())] == [[-1.5, -2.0]]
    with pytest.raises(InvalidRequest, match="output 'logits' is not known"):
        asked(text("a"), wanted=("logits",))


def test_pieces_of_a_stream_leave_the_prompt_out() -> None:
    found = asked(text("a"), stream=True, return_finish_reason=True)
    assert found.is_stream
    tensor, reason = outputs(found, [Chunk("", "x", 1)], ModelInfo())
    assert (tensor.elements(), reason.elements()) == ([b"x"], [b""])


def test_encoders_take_texts_and_give_rows() -> None:
    found = requests("classify", [text(*(["t"] * 40), shape=(40, 1))], {"timeout": "2000000"})
    assert [len(r.prompt.texts) for r in found.requests if isinstance(r.prompt, Texts)] == [32, 8]
    assert {r.timeout_s for r in found.requests} == {2.0}
    info = ModelInfo(outputs=(TensorInfo("probs", "FP32", (-1, 2)),), labels=("no", "yes"))
    chunks = [Chunk("", tensors=(numbers("probs", [[0.1, 0.9]] * n, "f4"),)) for n in (32, 8)]
    probs, label = outputs(found, chunks, info)
    assert (probs.shape, label.elements()) == ((40, 2), [b"yes"] * 40)
    assert [each.name for each in signature("classify", info).outputs] == ["probs", "label"]
    second = [text("b", "c", name="text_pair")]
    paired = requests("classify", [text("a", "a"), *second], {})
    assert paired.requests[0].prompt == Texts((Pair("a", "b"), Pair("a", "c")))
    with pytest.raises(InvalidRequest, match="'text_pair' has 2 texts and 'text_input' 1"):
        requests("classify", [text("a"), *second], {})
    with pytest.raises(InvalidRequest, match="input 'text_pair' is not known"):
        requests("embed", [text("a", "a"), *second], {})
    with pytest.raises(InvalidRequest, match="input 'stream' is not known"):
        requests("embed", [text("a"), numbers("stream", [True], "?")], {})


def test_a_program_is_asked_with_what_came() -> None:
    x = numbers("x", [1.0], "f4")
    found = requests("tensor", [x], {"priority": 1}, ["y"])
    assert found.requests[0].priority == 1
    y, z = numbers("y", [1], "i8"), numbers("z", [2], "i8")
    assert outputs(found, [Chunk("", tensors=(z, y))], ModelInfo()) == [y]
    assert outputs(requests("tensor", [x], {}), [Chunk("", tensors=(z, y))], ModelInfo()) == [z, y]
    with pytest.raises(InvalidRequest, match="unknown field 'max_tokens'"):
        requests("tensor", [x], {"max_tokens": 1})
