"""Exported programs: what they say of themselves, what is refused, and which requests share a call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from jupyter_dsserve.engine.batcher import Batcher, next_batch
from jupyter_dsserve.engine.onnx import OnnxProgram
from jupyter_dsserve.engine.program import ProgramRunner
from jupyter_dsserve.protocol.errors import EngineFailure, InvalidRequest
from jupyter_dsserve.protocol.request import Chunk, Request
from jupyter_dsserve.protocol.tensors import TensorInfo
from tests.engine import tiny_programs
from tests.engine.tiny_programs import load, request, save_exported, save_onnx, save_scorer


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> ProgramRunner:
    return load(save_scorer(tmp_path_factory.mktemp("scorer") / "scorer.pt2"))


def features(num_rows: int, seed: int = 0) -> dict[str, Any]:
    draw = np.random.default_rng(seed)
    return {"x": draw.standard_normal((num_rows, 4), np.float32), "ids": draw.integers(0, 10, num_rows)}


def answers(runner: ProgramRunner, *requests: Request) -> tuple[list[Chunk], int]:
    """The chunks of the requests, all posted before the first call, and the number of calls."""
    batcher = Batcher(runner, lambda _chunks: None)
    for each in requests:
        batcher.post(runner.prepare(each))
    batcher.take_in(0)
    chunks: list[Chunk] = []
    while batch := next_batch(batcher._waiting, runner.limits, now=float("inf"))[0]:
        chunks += batcher.step(batch)
    return chunks, batcher.load().num_steps


class TestExported:
    def test_bfloat16_goes_in_and_out_as_its_own_bits(self, tmp_path: Path) -> None:
        class Doubler(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x * 2

        rows = {"x": {0: torch.export.Dim("rows")}}
        path = save_exported(Doubler(), tmp_path / "m.pt2", (torch.ones(2, 3, dtype=torch.bfloat16),), rows)
        runner = load(path)
        assert runner.info.inputs == (TensorInfo("x", "BF16", (-1, 3)),)
        x = np.array([[1.5, -0.25, 1e38]]).astype(ml_dtypes.bfloat16)
        (chunk,), _ = answers(runner, request(x=x))
        (output,) = chunk.tensors
        assert (output.datatype, output.shape) == ("BF16", (1, 3))
        assert (output.array() == x * 2).all()

    def test_it_says_what_it_takes_and_gives(self, scorer: ProgramRunner) -> None:
        assert scorer.info.inputs == (TensorInfo("x", "FP32", (-1, 4)), TensorInfo("ids", "INT64", (-1,)))
        assert scorer.info.outputs == (TensorInfo("score", "FP32", (-1, 3)), TensorInfo("label", "INT64", (-1,)))
        assert scorer.info.note == "requests share calls, on cpu"

    def test_requests_share_calls_and_each_gets_what_the_module_gives(self, scorer: ProgramRunner) -> None:
        given = [features(rows, seed) for seed, rows in enumerate((1, 3, 2, 4))]
        chunks, num_calls = answers(scorer, *(request(str(i), **each) for i, each in enumerate(given)))
        assert num_calls == 2  # of at most 8 rows
        for chunk in chunks:
            each = given[int(chunk.request_id)]
            expected = tiny_programs.scorer()(torch.from_numpy(each["x"]), torch.from_numpy(each["ids"]))
            score, label = (tensor.array() for tensor in chunk.tensors)
            assert np.allclose(score, expected["score"].detach(), atol=1e-6)
            assert label.tolist() == expected["label"].tolist()

    def test_a_tuple_of_outputs_is_numbered_and_a_single_one_is_output(self, tmp_path: Path) -> None:
        class Pair(nn.Module):
            def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                return x + 1, x * 2

        x = torch.randn(2, 4)
        pair = load(save_exported(Pair(), tmp_path / "pair.pt2", (x,), {"x": {0: torch.export.Dim("n")}}))
        single = load(save_exported(nn.ReLU(), tmp_path / "one.pt2", (x,)))
        assert [info.name for info in pair.info.outputs] == ["output_0", "output_1"]
        assert [info.name for info in single.info.outputs] == ["output"]

    def test_more_rows_than_it_was_exported_for_are_refused(self, tmp_path: Path) -> None:
        runner = load(save_scorer(tmp_path / "few.pt2", most=5), max_rows=64)
        assert runner.limits.max_rows == 5
        with pytest.raises(InvalidRequest, match="6 rows, and this program takes 1 to 5"):
            runner.prepare(request(**features(6)))

    def test_a_file_that_is_none_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "x.pt2").write_bytes(b"nothing")
        with pytest.raises(InvalidRequest, match=r"no program that torch\.export loads"):
            load(tmp_path / "x.pt2")

    def test_a_dtype_of_ones_own_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidRequest, match="dtype is bf16, but a program computes in its own"):
            load(save_scorer(tmp_path / "x.pt2"), dtype="bf16")


class TestInputs:
    @pytest.mark.parametrize(
        ("changes", "words", "param"),
        [
            ({"x": None}, r"inputs are \['ids'\]: send each of \['x', 'ids'\] once", "inputs"),
            ({"z": np.zeros(2)}, r"send each of \['x', 'ids'\] once", "inputs"),
            ({"x": np.zeros((2, 4))}, "input 'x' is FP64: send FP32", "x"),
            ({"x": np.zeros((2, 5), np.float32)}, r"input 'x' has the shape \[2, 5\]: send \[-1, 4\]", "x"),
            ({"ids": np.zeros((2, 1), int)}, r"input 'ids' has the shape \[2, 1\]: send \[-1\]", "ids"),
            ({"ids": np.zeros(3, int)}, r"different numbers of rows \({'x': 2, 'ids': 3}\)", None),
            ({"x": np.zeros((0, 4), np.float32), "ids": np.zeros(0, int)}, "0 rows, and this program takes 1 or", None),
        ],
    )
    def test_what_is_wrong_is_named(
        self, changes: dict[str, Any], words: str, param: str | None, scorer: ProgramRunner
    ) -> None:
        given = {name: value for name, value in (features(2) | changes).items() if value is not None}
        with pytest.raises(InvalidRequest, match=words) as caught:
            scorer.prepare(request(**given))
        assert caught.value.param == param

    def test_a_text_is_refused(self, scorer: ProgramRunner) -> None:
        with pytest.raises(InvalidRequest, match="takes named tensors"):
            scorer.prepare(Request("a", "go on"))


class TestOnnx:
    def test_requests_share_calls_and_get_their_own_rows(self, tmp_path: Path) -> None:
        runner = load(save_onnx(tmp_path / "m.onnx"))
        given = [features(rows, seed)["x"] for seed, rows in enumerate((1, 3, 2))]
        chunks, num_calls = answers(runner, *(request(str(i), x=x) for i, x in enumerate(given)))
        assert num_calls == 1
        weights = np.arange(12, dtype=np.float32).reshape(4, 3) - 6
        for chunk, x in zip(chunks, given, strict=True):
            assert np.allclose(chunk.tensors[0].array(), np.maximum(x @ weights, 0), atol=1e-5)

    def test_a_program_whose_rows_see_one_another_is_called_for_each_request(self, tmp_path: Path) -> None:
        runner = load(save_onnx(tmp_path / "m.onnx", op="Softmax"))  # over the rows
        assert runner.info.note == "every request is a call of its own, on cpu"
        given = [features(2, seed)["x"] for seed in range(2)]
        chunks, num_calls = answers(runner, *(request(str(i), x=x) for i, x in enumerate(given)))
        assert num_calls == 2
        assert all(np.allclose(chunk.tensors[0].array().sum(axis=0), 1) for chunk in chunks)

    def test_one_that_was_to_run_on_a_gpu_and_came_to_run_elsewhere_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """onnxruntime lists CUDA where it was built with it, and goes on without where its libraries are missing."""
        path, both = str(save_onnx(tmp_path / "m.onnx")), ["CUDAExecutionProvider", "CPUExecutionProvider"]
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: both)
        with pytest.raises(InvalidRequest, match="could not start CUDA here"):
            OnnxProgram(path, "cuda:1", 1)
        assert OnnxProgram(path, "auto", 1).device == "cpu"

    def test_one_of_a_fixed_size_takes_just_that(self, tmp_path: Path) -> None:
        runner = load(save_onnx(tmp_path / "m.onnx", rows=2, out=2))
        _, num_calls = answers(runner, request("a", x=features(2)["x"]), request("b", x=features(2)["x"]))
        assert num_calls == 2
        with pytest.raises(InvalidRequest, match=r"shape \[3, 4\]: send \[2, 4\]"):
            runner.prepare(request(x=features(3)["x"]))

    def test_a_file_that_is_none_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "x.onnx").write_bytes(b"nothing")
        with pytest.raises(InvalidRequest, match="does not load in onnxruntime"):
            load(tmp_path / "x.onnx")

    def test_a_program_that_fails_when_it_is_called_is_never_ready(self, tmp_path: Path) -> None:
        class Broken:
            inputs = outputs = (TensorInfo("x", "FP32", (-1, 4)),)
            has_rows, rows, device = True, (0, 100), "cpu"

            def __call__(self, inputs: object) -> Any:
                raise RuntimeError("no kernel")

            def device_bytes(self) -> int:
                return 0

        with pytest.raises(EngineFailure, match="fails when it is called: RuntimeError: no kernel"):
            ProgramRunner(Broken(), 8).check()
