"""What comes in and the pieces of the answer: `Request`, `SamplingParams`, `Chunk`, `Usage`."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from jupyter_dsserve.protocol.errors import DSServeError
from jupyter_dsserve.protocol.tensors import Tensor


class StructureKind(str, Enum):
    """JSON: a JSON schema. CHOICE: a JSON list of texts. GRAMMAR: in Lark's notation."""

    JSON = "json"
    REGEX = "regex"
    CHOICE = "choice"
    GRAMMAR = "grammar"


@dataclass(frozen=True, slots=True)
class Structure:
    """The form that an answer must have; ``param`` is the field of the body that asks for it."""

    kind: StructureKind
    source: str
    param: str = "structured_outputs"


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen. ``temperature`` 0 is greedy; ``top_k`` 0 and ``top_p`` 1 switch the filters off.

    ``max_tokens`` None means: up to the end of the context. ``stop`` strings and ``stop_token_ids`` end the answer
    and are no part of it; neither these ids nor the end token come before ``min_tokens``. ``min_p`` leaves out
    tokens less likely than that share of the likeliest (0 is off). ``repetition_penalty`` divides the logits of
    what stood in the prompt or the answer (1 is off); ``presence_penalty`` and ``frequency_penalty`` are taken off
    those of what stood in the answer, once and for each time (0 is off); ``logit_bias`` is added to those of its
    token ids.
    ``logprobs`` asks for the logprob of each token, and for those of that many of the likeliest (None: for none).
    With ``echo`` the answer begins with the prompt's text, which has its logprobs too then; ``max_tokens`` 0 gives
    nothing but that.
    ``structure`` leaves only tokens that keep the answer in its form, and ends it once nothing may follow.
    The same ``seed`` with the same prompt gives the same answer, whatever else is in the batch.
    """

    max_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    min_tokens: int = 0
    logprobs: int | None = None
    structure: Structure | None = None
    echo: bool = False


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function that the model calls; ``arguments`` is the text of a JSON object."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat. An assistant's may have ``tool_calls``; one of the role ``tool`` answers ``tool_call_id``."""

    role: str
    content: str
    name: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""


@dataclass(frozen=True, slots=True)
class Tools:
    """Functions that the answer to a chat may call: ``functions`` is JSON, a list of OpenAI's function tools.

    One of ``required`` must be called if there are any, and more than one may be if ``is_parallel``.
    """

    functions: str
    required: tuple[str, ...] = ()
    is_parallel: bool = True


Prompt = str | tuple[int, ...] | tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two texts that a classifier reads together: a premise and a hypothesis, or a query and a document."""

    first: str
    second: str


Text = str | tuple[int, ...] | Pair


def text_size(text: Text) -> int:
    """In characters, or token ids."""
    return len(text.first) + len(text.second) if isinstance(text, Pair) else len(text)


@dataclass(frozen=True, slots=True)
class Texts:
    """Texts (or the token ids of texts) to embed or to classify, each by itself; pairs are for ``classify`` only."""

    texts: tuple[Text, ...]


@dataclass(frozen=True, slots=True)
class Features:
    """Named inputs of one call to an exported program."""

    tensors: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class Request:
    """One question to a deployment. The prompt of the task ``generate`` is a text, token ids, or a chat; `Texts` are
    for ``embed`` and ``classify``, `Features` for ``tensor``; ``sampling`` says nothing to those.

    Of requests that wait, lower ``priority`` goes first. ``timeout_s`` after it came it is worth nothing any more and
    ends with `DeadlineExceeded`; None is never. ``tools`` go with a chat.
    """

    id: str
    prompt: Prompt | Texts | Features
    sampling: SamplingParams = field(default_factory=SamplingParams)
    priority: int = 0
    timeout_s: float | None = None
    tools: Tools | None = None


class FinishReason(str, Enum):
    """Why an answer ended. STOP: end token or stop string. LENGTH: max_tokens or the context was reached.
    ABORT: the caller left. ERROR: `Chunk.error` says what happened."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one answer; ``cached_tokens`` of its prompt stood in the KV cache already."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Times:
    """When a worker did what for a request, in seconds of its monotonic clock; 0 is never.

    ``arrived_s``: it heard of it; ``admitted_s``: its first step (or batch) began; ``first_token_s`` is of the task
    ``generate`` only. ``num_steps`` is how many steps it was in.
    """

    arrived_s: float = 0.0
    tokenized_s: float = 0.0
    admitted_s: float = 0.0
    first_token_s: float = 0.0
    ended_s: float = 0.0
    num_steps: int = 0


@dataclass(frozen=True, slots=True)
class Likely:
    """A token that could have come, as bytes of text, and its logprob."""

    text: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token of an answer, as bytes of text (it may hold a part of a character), with its logprob.

    A logprob is the natural logarithm of the probability that the model itself gives: of the softmax of its logits,
    before temperature, penalties and filters; the first token of a prompt has none. ``offset`` is where the text begins
    in the answer's, in characters; ``top`` are the likeliest tokens at this place, the likeliest first.
    """

    text: bytes
    logprob: float | None
    offset: int
    top: tuple[Likely, ...] = ()


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of an answer. The last one has a ``finish_reason`` and, unless it is an error, a ``usage``.

    ``tensors`` is the answer of the tasks other than ``generate``, whole in one chunk: ``embedding`` ``[texts, size]``,
    ``probs`` ``[texts, classes]``, or a program's outputs.
    ``logprobs``, if asked for, are of the tokens whose text is in ``text``. ``batch``, on the last chunk, is how many
    sequences ran in the steps that made the answer, on average; 0 is unknown. ``times`` is on the last chunk too.
    """

    request_id: str
    text: str = ""
    num_tokens: int = 0
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    error: DSServeError | None = None
    tensors: tuple[Tensor, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    batch: float = 0.0
    times: Times | None = None

    def merged(self, later: Chunk) -> Chunk:
        """This chunk and a later one of the same request as one."""
        return Chunk(
            self.request_id,
            self.text + later.text,
            self.num_tokens + later.num_tokens,
            later.finish_reason,
            later.usage,
            later.error,
            self.tensors + later.tensors,
            self.logprobs + later.logprobs,
            later.batch,
            later.times,
        )
