"""What crosses the wire comes out as it went in."""

from __future__ import annotations

import pytest

from jupyter_dsserve.protocol import codec, errors
from jupyter_dsserve.protocol.request import Chunk, FinishReason, Message, Request, SamplingParams, Usage
from jupyter_dsserve.protocol.spec import WorkerLaunch, WorkerSpec


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
    ["def f():\n    return 'é'", (5, 0, 7), (Message("system", "be short"), Message("user", "hi"))],
)
@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(),
        SamplingParams(
            1, 0.5, 0.9, 40, -3, ("\n", "END"), True, 0.1, 1.2, -0.5, 0.25, ((3, -100.0), (7, 0.5)), (2, 9), 4
        ),
        SamplingParams(seed=0),
    ],
)
def test_a_request_comes_out_as_it_went_in(prompt: str | tuple[int, ...], sampling: SamplingParams) -> None:
    request = Request("r1", prompt, sampling)
    assert codec.request_from(codec.submit(request).submit) == request


def test_a_request_without_a_prompt_is_refused() -> None:
    with pytest.raises(errors.InvalidRequest, match="r1"):
        codec.request_from(codec.pb.Submit(request_id="r1"))


@pytest.mark.parametrize(
    "chunk",
    [
        Chunk("r1", "text", 3),
        Chunk("r1", "", 0, FinishReason.ABORT, Usage(0, 0)),
        Chunk("r1", "x", 1, FinishReason.LENGTH, Usage(7, 1)),
    ],
)
def test_a_chunk_comes_out_as_it_went_in(chunk: Chunk) -> None:
    assert codec.chunk_from_pb(codec.chunk_to_pb(chunk)) == chunk


def test_merged_chunks_lose_no_text_and_keep_the_end() -> None:
    end = Chunk("r1", "b", 1, FinishReason.STOP, Usage(1, 2))
    assert Chunk("r1", "a", 1).merged(end) == Chunk("r1", "ab", 2, FinishReason.STOP, Usage(1, 2))


def test_a_launch_line_comes_out_as_it_went_in_and_equal_specs_have_equal_digests() -> None:
    launch = WorkerLaunch("demo@v1#0", "unix:/s", "t", "/m", WorkerSpec("builtin:demo-v1", dtype="bf16"))
    again = WorkerLaunch.from_json(launch.to_json())
    assert again == launch
    assert "\n" not in launch.to_json()
    assert again.spec.digest == launch.spec.digest != WorkerSpec("builtin:demo-v1").digest
