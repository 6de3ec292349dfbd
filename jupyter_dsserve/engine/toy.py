"""The toy engine: a deterministic model of a model, for tests, demonstrations and people trying limits.

It goes through the same worker, wire and fleet as a real one, and does what its `ToySettings` say. Tokens are UTF-8
bytes; every running sequence gets one token a step; the answer is a formula of the prompt (`toy_token`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from typing import NoReturn

import numpy as np

from jupyter_dsserve.engine.batcher import Arrays, Item, Limits, Work
from jupyter_dsserve.engine.runner import KVRoom, Span, Step
from jupyter_dsserve.engine.sequence import Likelihood, Sequence
from jupyter_dsserve.engine.tokenizer import Tokenizer
from jupyter_dsserve.protocol.errors import EngineFailure, InvalidRequest
from jupyter_dsserve.protocol.request import Message, Pair, Request, Structure, Text, Texts, Tools
from jupyter_dsserve.protocol.spec import WorkerSpec
from jupyter_dsserve.protocol.tensors import ModelInfo, TensorInfo
from jupyter_dsserve.protocol.tools import ToolFormat
from jupyter_dsserve.protocol.toy import ToySettings

# A toy has no memory to run out of: its batch, step and context end far beyond any trial.
_MAX_SEQUENCES = 1 << 12
_MAX_STEP_TOKENS = 1 << 30
_MAX_CONTEXT = 1 << 20
VECTOR_SIZE = 8  # of a toy's embedding
_LETTERS = b"etaoinshrdlucmfw"


def toy_token(prompt: Seq[int], index: int) -> int:
    """Token ``index`` of the answer to ``prompt``: words of four letters, chosen by the prompt's sum."""
    if index % 5 == 4:
        return ord(" ")
    return _LETTERS[(sum(prompt) + 7 * index + index // 5) % len(_LETTERS)]


class ToyDetokenizer:
    """UTF-8 decoding of single bytes that waits for the end of a character."""

    def __init__(self) -> None:
        self._pending = b""

    def push(self, token: int, *, shows_special: bool = False) -> str:
        self._pending += bytes([token])
        try:
            text = self._pending.decode()
        except UnicodeDecodeError as fault:
            if fault.reason == "unexpected end of data":
                return ""
            text = self._pending.decode(errors="replace")
        self._pending = b""
        return text

    def flush(self) -> str:
        text, self._pending = self._pending.decode(errors="replace"), b""
        return text


class ToyTokenizer:
    """One token a byte; no end token."""

    eos_ids: frozenset[int] = frozenset()
    vocab_size = 256
    tool_format: ToolFormat = ""
    markers: Mapping[str, int] = {}

    def copy(self) -> Tokenizer:
        return self

    def encode_batch(self, texts: Seq[str], add_special_tokens: bool = True) -> list[list[int]]:
        return [list(text.encode()) for text in texts]

    def render_chat(self, messages: Seq[Message], tools: Tools | None = None) -> str:
        return "".join(f"{m.role}: {m.content}\n" for m in messages)

    def token_bytes(self, token: int) -> bytes:
        return bytes([token])

    def matcher(self, structure: Structure) -> NoReturn:
        raise InvalidRequest(
            f"a toy answers by a formula, in no other form: leave {structure.param} out", param=structure.param
        )

    def detokenizer(self, before: int | None = None, *, keeps_markers: bool = False) -> ToyDetokenizer:
        return ToyDetokenizer()


class ToyLogits:
    """Nothing but the promise of the formula."""

    def sample(self, sequences: Seq[Sequence]) -> list[int]:
        return [toy_token(s.tokens[: s.num_prompt], s.num_output) for s in sequences]

    def likelihoods(self, sequences: Seq[Sequence], tokens: Seq[int]) -> list[Likelihood | None]:
        """A formula is certain: it leaves one token at each place, with logprob 0."""
        asked = [s.sampling.logprobs for s in sequences]
        return [
            None if num is None else Likelihood(0.0, ((token, 0.0),)[:num])
            for num, token in zip(asked, tokens, strict=True)
        ]

    def prompt_likelihoods(self, spans: Seq[Span]) -> list[Likelihood]:
        """A formula expects nothing of a prompt: each byte is as likely as any other."""
        each = -math.log(ToyTokenizer.vocab_size)
        asked = [span.sequence.sampling.logprobs or 0 for span in spans for _ in span.scored]
        return [Likelihood(each, tuple((token, each) for token in range(num))) for num in asked]


class FailRate:
    """Of every n requests exactly ``n × rate`` (rounded down) fail, evenly spread."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._num_begun = 0

    def begin(self) -> None:
        """Count a request. Raises `EngineFailure` if it is one that fails."""
        self._num_begun += 1
        if math.floor(self._num_begun * self._rate) > math.floor((self._num_begun - 1) * self._rate):
            raise EngineFailure(f"the toy was told to fail: fail_rate={self._rate}")


class ToyRunner:
    """A `Runner` without a model."""

    kind = "toy"
    device = "cpu"
    max_step_tokens = _MAX_STEP_TOKENS
    info = ModelInfo()

    def __init__(self, settings: ToySettings, max_context: int) -> None:
        self.tokenizer: Tokenizer = ToyTokenizer()
        context = max_context or _MAX_CONTEXT
        # With nothing to keep there is nothing to use again: no block is ever full.
        self.room = KVRoom(_MAX_SEQUENCES, context, num_blocks=_MAX_SEQUENCES, block_tokens=context)
        self._settings = settings
        self._weights = bytearray(settings.bytes)
        self._failing = FailRate(settings.fail_rate)

    def begin(self, sequence: Sequence) -> None:
        """Raises `EngineFailure` for the share of the requests that fails."""
        self._failing.begin()

    def forward(self, step: Step) -> ToyLogits:
        time.sleep(self._settings.step_s + self._settings.per_seq_s * len(step.spans))
        return ToyLogits()

    def device_bytes(self) -> int:
        return len(self._weights)


class ToyEncoder:
    """A `BatchRunner` without a model: the vector of a text is the first `VECTOR_SIZE` tokens of its toy answer, as
    shares of 256."""

    device = "cpu"
    info = ModelInfo(outputs=(TensorInfo("embedding", "FP32", (-1, VECTOR_SIZE)),), note="a formula of the text")

    def __init__(self, settings: ToySettings, spec: WorkerSpec) -> None:
        self.limits = Limits(spec.max_step_tokens, spec.max_sequences)
        self._settings = settings
        self._weights = bytearray(settings.bytes)
        self._failing = FailRate(settings.fail_rate)

    def prepare(self, request: Request) -> Work:
        """Raises `EngineFailure` for the share of the requests that fails."""
        self._failing.begin()
        if not isinstance(request.prompt, Texts):
            raise InvalidRequest("this version embeds texts, and generates none")
        tokens = [_bytes_of(text) for text in request.prompt.texts]
        return Work(request.id, [Item(t, length=max(1, len(t))) for t in tokens], sum(map(len, tokens)))

    def forward(self, batch: Seq[Item]) -> Arrays:
        time.sleep(self._settings.step_s + self._settings.per_seq_s * len(batch))
        rows = [[toy_token(item.value, index) / 256 for index in range(VECTOR_SIZE)] for item in batch]
        return {"embedding": np.array(rows, np.float32)}

    def check(self) -> None:
        """A formula always agrees with itself."""

    def device_bytes(self) -> int:
        return len(self._weights)


def _bytes_of(text: Text) -> list[int]:
    """Raises `InvalidRequest` for a pair."""
    if isinstance(text, Pair):
        raise InvalidRequest(
            "this version embeds texts, each by itself: send pairs to one of the task classify", param="input"
        )
    return list(text.encode() if isinstance(text, str) else text)


def load_toy(model: str, max_context: int, progress: Callable[[str, float], None]) -> ToyRunner:
    """Take ``load_s`` seconds in twenty steps of progress, then be ready."""
    return ToyRunner(_loaded(model, progress), max_context)


def load_toy_encoder(spec: WorkerSpec, progress: Callable[[str, float], None]) -> ToyEncoder:
    """As `load_toy`, for the task ``embed``."""
    return ToyEncoder(_loaded(spec.model, progress), spec)


def _loaded(model: str, progress: Callable[[str, float], None]) -> ToySettings:
    settings = ToySettings.parse(model)
    for i in range(1, 21):
        progress("weights", i / 20)
        time.sleep(settings.load_s / 20)
    return settings
