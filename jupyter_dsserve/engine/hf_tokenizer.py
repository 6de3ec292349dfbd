"""`HFTokenizer`: the `Tokenizer` of a transformers checkpoint, on the fast (Rust) tokenizer behind it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from typing import Any

from jinja2 import TemplateError
from tokenizers import Tokenizer as Backend
from tokenizers.decoders import DecodeStream
from transformers import AutoTokenizer

from jupyter_dsserve.engine.checkpoint import checkpoint_at
from jupyter_dsserve.engine.structure import Matcher
from jupyter_dsserve.engine.vocabulary import Vocabulary
from jupyter_dsserve.protocol.errors import InvalidRequest
from jupyter_dsserve.protocol.request import Message, Structure, Tools
from jupyter_dsserve.protocol.tools import MARKERS, ToolFormat, tool_format_of


class HFTokenizer:
    """One thread's tokenizer; `copy` makes another thread's. ``eos_ids`` are the model's end tokens. Longer texts
    than ``max_length`` tokens are cut (0: none is)."""

    def __init__(
        self,
        tokenizer: Any,
        eos_ids: frozenset[int],
        vocab_size: int,
        max_length: int = 0,
        vocabulary: Vocabulary | None = None,
    ) -> None:
        self.eos_ids = eos_ids
        self.vocab_size = vocab_size
        self.max_length = max_length
        self._tokenizer = tokenizer
        self._backend: Backend = Backend.from_str(tokenizer.backend_tokenizer.to_str())
        # A checkpoint's tokenizer may have been saved while it cut or filled up texts for training.
        self._backend.no_truncation()
        if max_length:
            self._backend.enable_truncation(max_length)
        self._backend.no_padding()
        self.vocabulary = vocabulary or Vocabulary(self._backend, eos_ids, vocab_size)
        added = self._backend.get_added_tokens_decoder()
        self._special = {id: token.content for id, token in added.items() if token.special}
        self.markers: Mapping[str, int] = {name: id for id, name in self._special.items() if name in MARKERS}
        self.tool_format = self._tool_format()

    @classmethod
    def load(cls, model_path: str, eos_ids: frozenset[int], vocab_size: int) -> HFTokenizer:
        """The tokenizer of a directory or hub name; its own end token joins ``eos_ids``.

        Raises `InvalidRequest` if there is none, or only a slow one.
        """
        try:
            tokenizer = AutoTokenizer.from_pretrained(**checkpoint_at(model_path), trust_remote_code=False)
        except (OSError, ValueError, KeyError, ImportError) as fault:
            raise InvalidRequest(
                f"model {model_path} has no tokenizer that loads ({fault}): add its tokenizer.json"
            ) from fault
        if not tokenizer.is_fast:
            raise InvalidRequest(f"model {model_path} has only a slow tokenizer: convert it to a tokenizer.json")
        own = frozenset() if tokenizer.eos_token_id is None else frozenset([int(tokenizer.eos_token_id)])
        return cls(tokenizer, eos_ids | own, vocab_size)

    def copy(self) -> HFTokenizer:
        return self.cutting(self.max_length)

    def token_bytes(self, token: int) -> bytes:
        return self.vocabulary.bytes_of(token)

    def matcher(self, structure: Structure) -> Matcher:
        return self.vocabulary.matcher(structure)

    def cutting(self, max_length: int) -> HFTokenizer:
        """One that cuts texts to ``max_length`` tokens, special ones included."""
        return HFTokenizer(self._tokenizer, self.eos_ids, self.vocab_size, max_length, self.vocabulary)

    @property
    def own_max_length(self) -> int:
        """The longest text its files speak of, in tokens; a very large number if they do not."""
        return int(self._tokenizer.model_max_length)

    def encode_batch(self, texts: Seq[str], add_special_tokens: bool = True) -> list[list[int]]:
        # The batch call lets other threads run; `encode` of a long text holds them all for half a second.
        return [
            found.ids for found in self._backend.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
        ]

    def encode_typed(self, texts: Seq[str | tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
        """Of texts and pairs of texts, each with its token ids and its token type ids. Of a pair that is too long the
        longer text is cut first."""
        return [(found.ids, found.type_ids) for found in self._backend.encode_batch_fast(list(texts))]

    @property
    def has_types(self) -> bool:
        """Whether a model of this tokenizer is to be told which text of a pair a token is from."""
        return "token_type_ids" in self._tokenizer.model_input_names

    def _tool_format(self) -> ToolFormat:
        try:
            return tool_format_of(self._tokenizer.get_chat_template(tools=[{}]))
        except ValueError:  # it has none
            return ""

    def render_chat(self, messages: Seq[Message], tools: Tools | None = None) -> str:
        if not self._tokenizer.chat_template:
            raise InvalidRequest("the model has no chat template: send a plain prompt to completions", param="messages")
        try:
            text: str = self._tokenizer.apply_chat_template(
                [_turn(message) for message in messages],
                tools=json.loads(tools.functions) if tools else None,
                tokenize=False,
                add_generation_prompt=True,
            )
        except (TemplateError, TypeError, ValueError) as fault:
            raise InvalidRequest(
                f"the model's chat template refuses the messages: {fault}", param="messages"
            ) from fault
        return text

    def detokenizer(self, before: int | None = None, *, keeps_markers: bool = False) -> HFDetokenizer:
        shown = {id: marker for marker, id in self.markers.items()} if keeps_markers else {}
        return HFDetokenizer(self._backend, before, shown, self._special)


def _turn(message: Message) -> dict[str, Any]:
    """As templates read it: arguments are objects there, and absent is what is not said."""
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.name:
        turn["name"] = message.name
    if message.tool_call_id:
        turn["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        turn["tool_calls"] = [
            {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": json.loads(c.arguments)}}
            for c in message.tool_calls
        ]
    return turn


class HFDetokenizer:
    """Text of one sequence as its tokens come; special tokens give none, but for those ``shown``."""

    def __init__(
        self, backend: Backend, before: int | None, shown: Mapping[int, str], special: Mapping[int, str]
    ) -> None:
        self._backend = backend
        self._shown = shown
        self._special = special
        # SentencePiece's decoders take away the space that a text begins with: here it would be one between two words.
        text = "" if before is None else backend.decode([before], skip_special_tokens=True)
        known = [before] if before is not None and text and not text.endswith("�") else []
        self._stream = DecodeStream(known, skip_special_tokens=True)
        self._unfinished: list[int] = []  # tokens since the last text

    def push(self, token: int, *, shows_special: bool = False) -> str:
        if name := (self._special if shows_special else self._shown).get(token):
            return self.flush() + name
        self._unfinished.append(token)
        try:
            text: str | None = self._stream.step(self._backend, token)
        except Exception:  # the binding raises nothing narrower when new bytes change text that was given already
            text = self.flush()
        if text:
            self._unfinished.clear()
        return text or ""

    def flush(self) -> str:
        text: str = self._backend.decode(self._unfinished, skip_special_tokens=True)
        self._unfinished.clear()
        self._stream = DecodeStream(skip_special_tokens=True)
        return text
