"""What the tokens of a model stand for as bytes, as llguidance reads it from the tokenizer."""

from __future__ import annotations

from collections.abc import Collection

from llguidance import LLTokenizer
from tokenizers import AddedToken, decoders
from tokenizers import Tokenizer as Backend
from tokenizers.decoders import Decoder

from jupyter_dsserve.engine.structure import Matcher
from jupyter_dsserve.protocol.errors import InvalidRequest
from jupyter_dsserve.protocol.request import Structure

_NO_END = "<|no end|>"
_PROBE = "it is a  text, isn't it? 42 é 世"
_SENTENCEPIECE = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])


class Vocabulary:
    """Made once for a tokenizer, read by any thread."""

    def __init__(self, backend: Backend, eos_ids: Collection[int], vocab_size: int) -> None:
        self._backend = backend
        self._tokens: LLTokenizer | None = None
        self._refusal = ""
        # llguidance knows byte-level decoders and those with byte fallback. SentencePiece's own decoder says the same
        # as the latter; what each makes of a text shows whether it does.
        for decoder in (None, _SENTENCEPIECE):
            try:
                tokens = _tokens(_with(backend, decoder), eos_ids, vocab_size)
                _compare(backend, tokens)
            except ValueError as fault:
                self._refusal = self._refusal or str(fault)
            else:
                self._tokens = tokens
                break

    def bytes_of(self, token: int) -> bytes:
        """A token's UTF-8: maybe only a part of a character. A special token is its name."""
        if self._tokens is None:
            return self._backend.decode([token], skip_special_tokens=False).encode()
        return self._tokens.decode_bytes([token])

    def matcher(self, structure: Structure) -> Matcher:
        """For one answer. Raises `InvalidRequest` for what is no grammar, or if the tokens' bytes are not known."""
        if self._tokens is None:
            raise InvalidRequest(
                f"this model cannot keep to a form, because its tokens are not known byte for byte ({self._refusal}): "
                f"leave {structure.param} out",
                param=structure.param,
            )
        return Matcher(self._tokens, structure)


def _with(backend: Backend, decoder: Decoder | None) -> Backend:
    if decoder is None:
        return backend
    other = Backend.from_str(backend.to_str())
    other.decoder = decoder
    return other


def _compare(backend: Backend, tokens: LLTokenizer) -> None:
    """Raises ValueError if the bytes of a text's tokens do not make the text that the tokenizer makes of them."""
    ids = backend.encode(_PROBE, add_special_tokens=False).ids
    text, joined = backend.decode(ids, skip_special_tokens=False), tokens.decode_bytes(ids).decode(errors="replace")
    if text.lstrip(" ") != joined.lstrip(" "):
        raise ValueError(f"of {text!r} they would make {joined!r}")


def _tokens(backend: Backend, eos_ids: Collection[int], vocab_size: int) -> LLTokenizer:
    """Raises ValueError for a decoder that is neither byte-level nor with byte fallback."""
    ends = sorted(token for token in eos_ids if token < backend.get_vocab_size())
    if not ends:
        # llguidance would take token 0 for the end: it gets one that no model gives.
        backend = Backend.from_str(backend.to_str())
        backend.add_special_tokens([AddedToken(_NO_END, special=True)])
        ends = [token for token in (backend.token_to_id(_NO_END),) if token is not None]
    return LLTokenizer(backend.to_str(), n_vocab=max(vocab_size, backend.get_vocab_size()), eos_token=ends)
