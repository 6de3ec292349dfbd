"""What crosses the wire comes out as it went in."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from jupyter_dsserve.protocol import codec, errors
from jupyter_dsserve.protocol.request import (
    Chunk,
    Features,
    FinishReason,
    Likely,
    Message,
    Pair,
    Request,
    SamplingParams,
    Structure,
    StructureKind,
    Texts,
    TokenLogprob,
    Usage,
)
from jupyter_dsserve.protocol.spec import WorkerLaunch, WorkerSpec
from jupyter_dsserve.protocol.tensors import DATATYPES, ModelInfo, Tensor, TensorInfo


def tree(root: type[errors.DSServeError]) -> list[type[errors.DSServeError]]:
    return [root, *(found for sub in root.__subclasses__() for found in tree(sub))]


@pytest.mark.parametrize("kind", tree(errors.DSServeError))
def test_every_error_keeps_its_class_and_message_on_the_wire(kind: type[errors.DSServeError]) -> None:
    again = codec.error_from_pb(codec.error_to_pb(kind("the thing, the value, the remedy", param="prompt")))
    assert type(again) is kind
    assert (again.message, again.param) == ("the thing, the value, the remedy", "prompt")


@pytest.mark.parametrize("kind", tree(errors.DSServeError))
def test_every_error_stands_in_the_module_docstring_with_its_status(kind: type[errors.DSServeError]) -> None:
    lines = (errors.__doc__ or "").splitlines()
    assert any(f" {kind.__name__} " in f" {line.strip('│├└─ ')} " and str(kind.status) in line for line in lines)


def test_an_error_the_other_side_does_not_know_is_still_an_error() -> None:
    assert type(errors.error_named("FromTheFuture", "x")) is errors.DSServeError


@pytest.mark.parametrize(
    "prompt",
    [
        "def f():\n    return 'é'",
        (5, 0, 7),
        (Message("system", "be short"), Message("user", "hi")),
        Texts(("é", "", (5, 0), (), Pair("é", ""), Pair("", "b"))),
        Texts((Pair("é", ""), Pair("é", "b"))),
        Texts((Pair("", "a"), Pair("", ""))),
        Texts((Pair("a", "b"), Pair("b", "b"), "a")),
        Features((Tensor.of("x", np.arange(6.0).reshape(2, 3)), Tensor.of("y", np.zeros((0, 2), bool)))),
    ],
)
@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(),
        SamplingParams(
            1,
            0.5,
            0.9,
            40,
            -3,
            ("\n", "END"),
            True,
            0.1,
            1.2,
            -0.5,
            0.25,
            ((3, -100.0), (7, 0.5)),
            (2, 9),
            4,
            5,
            Structure(StructureKind.REGEX, "é+", "response_format"),
            True,
        ),
        SamplingParams(seed=0, logprobs=0),
    ],
)
def test_a_request_comes_out_as_it_went_in(
    prompt: str | tuple[int, ...] | Texts | Features, sampling: SamplingParams
) -> None:
    for request in (Request("r1", prompt, sampling), Request("r1", prompt, sampling, -3, 1.5)):
        assert codec.request_from(codec.submit(request).submit) == request


def test_a_text_that_goes_with_many_others_is_sent_and_held_once() -> None:
    query = "where did the cat sit " * 1000
    message = codec.submit(Request("r1", Texts(tuple(Pair(query, f"document {i}") for i in range(32))))).submit
    assert message.ByteSize() < 1.1 * len(query)
    prompt = codec.request_from(message).prompt
    assert isinstance(prompt, Texts)
    assert len({id(pair.first) for pair in prompt.texts if isinstance(pair, Pair)}) == 1


def test_a_request_without_a_prompt_is_refused() -> None:
    with pytest.raises(errors.InvalidRequest, match="r1"):
        codec.request_from(codec.pb.Submit(request_id="r1"))


@pytest.mark.parametrize(
    "chunk",
    [
        Chunk("r1", "text", 3),
        Chunk("r1", "", 0, FinishReason.ABORT, Usage(0, 0)),
        Chunk("r1", "x", 1, FinishReason.LENGTH, Usage(7, 1, 4)),
        Chunk("r1", "", 5, FinishReason.STOP, Usage(5, 0), tensors=(Tensor.of("a", np.ones(3, np.float32)),)),
        Chunk(
            "r1",
            "é",
            2,
            logprobs=(
                TokenLogprob(b"\xc3", None, 0),
                TokenLogprob(b"\xa9", -1 / 3, 0, (Likely(b"\xa9", -1 / 3), Likely(b"", -9999.0))),
            ),
        ),
    ],
)
def test_a_chunk_comes_out_as_it_went_in(chunk: Chunk) -> None:
    assert codec.chunk_from_pb(codec.chunk_to_pb(chunk)) == chunk


def test_merged_chunks_lose_no_text_and_keep_the_end() -> None:
    end = Chunk("r1", "b", 1, FinishReason.STOP, Usage(1, 2), batch=3.5)
    assert Chunk("r1", "a", 1).merged(end) == Chunk("r1", "ab", 2, FinishReason.STOP, Usage(1, 2), batch=3.5)


def test_what_a_model_says_of_itself_comes_out_as_it_went_in() -> None:
    info = ModelInfo((TensorInfo("x", "FP32", (-1, 4)),), (TensorInfo("y", "INT64", ()),), ("good", "bad"), "a note")
    info = replace(info, step_times=((1, 0.01), (16, 1 / 3)))
    assert codec.info_from_pb(codec.info_to_pb(info)) == info


@pytest.mark.parametrize("datatype", DATATYPES)
def test_an_array_of_every_datatype_is_the_same_again(datatype: str) -> None:
    array = np.array([[0, 1, 1], [1, 0, 1]], DATATYPES[datatype])
    tensor = Tensor.of("x", array)
    assert (tensor.datatype, tensor.shape) == (datatype, (2, 3))
    again = tensor.array()
    assert again.dtype == array.dtype
    assert (again == array).all()


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (Tensor("x", "FP32", (2, 2), b"123"), "'x' has 3 bytes, but FP32 of shape .2, 2. takes 16"),
        (Tensor("x", "STRING", (1,), b"1"), "'x' is of datatype 'STRING': use one of BOOL"),
    ],
)
def test_bytes_that_are_no_such_array_are_refused(tensor: Tensor, words: str) -> None:
    with pytest.raises(errors.InvalidRequest, match=words):
        tensor.array()


def test_an_array_that_the_wire_has_no_name_for_is_refused() -> None:
    with pytest.raises(errors.InvalidRequest, match="'x' holds complex128"):
        Tensor.of("x", np.zeros(2, complex))


def test_a_launch_line_comes_out_as_it_went_in_and_equal_specs_have_equal_digests() -> None:
    launch = WorkerLaunch("demo@v1#0", "unix:/s", "t", "/m", WorkerSpec("builtin:demo-v1", dtype="bf16"))
    again = WorkerLaunch.from_json(launch.to_json())
    assert again == launch
    assert "\n" not in launch.to_json()
    assert again.spec.digest == launch.spec.digest != WorkerSpec("builtin:demo-v1").digest
