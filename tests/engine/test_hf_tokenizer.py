"""Text to tokens and back, by real tokenizers: byte-level BPE, and SentencePiece's with bytes for unknown signs."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

from jupyter_dsserve.engine.hf_tokenizer import HFTokenizer
from jupyter_dsserve.engine.sequence import Sequence
from jupyter_dsserve.protocol.errors import InvalidRequest
from jupyter_dsserve.protocol.request import Message, SamplingParams, Structure, StructureKind
from tests.engine.test_loop import Driver
from tests.engine.tiny_models import byte_tokenizer, load, save_architecture

BOS, EOS = 256, 257
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'system' %}{{ raise_exception('no system turn here') }}{% endif %}"
    "[{{ message.role }}]{{ message.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
TEXT = "Grüße, 世界! 👩‍🚀 naïve café\n\ttabs and  spaces ∑"


def llama_like() -> PreTrainedTokenizerFast:
    """Begins every text with <s>, as its post-processor says."""
    tokenizer = byte_tokenizer(bos_token="<s>", eos_token="</s>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", BOS)]
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def sentencepiece_like() -> PreTrainedTokenizerFast:
    """Words start with ▁; a character out of the vocabulary becomes its bytes."""
    pieces = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefghijklmnopqrstuvwxyz"]
    backend = Tokenizer(
        models.BPE({piece: n for n, piece in enumerate(pieces)}, [], byte_fallback=True, unk_token="<unk>")
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")


def test_an_answer_that_goes_on_from_a_prompt_keeps_the_space_between_two_words() -> None:
    kind = sentencepiece_like()
    tokenizer = HFTokenizer(kind, frozenset(), len(kind))
    prompt, answer = (tokenizer.encode_batch([text])[0] for text in ("one", "two"))

    def text(before: int | None) -> str:
        detokenizer = tokenizer.detokenizer(before)
        return "".join([*map(detokenizer.push, answer), detokenizer.flush()])

    assert text(prompt[-1]) == " two"
    assert text(None) == "two", "a text that begins has none"
    assert text(kind.eos_token_id) == "two", "nor has one after a special token"
    assert text(kind.convert_tokens_to_ids("<0xE2>")) == "two", "a character cut by the prompt's end breaks nothing"


def test_a_completion_and_an_echo_go_on_from_the_prompt_and_a_turn_of_a_chat_begins_anew(tmp_path: Path) -> None:
    """The model is made to say ▁a, twice."""
    folder = save_architecture("llama", tmp_path)
    sentencepiece_like().save_pretrained(folder)
    runner = load(folder)
    letter = runner.tokenizer.encode_batch(["a"])[0][-1]
    driver = Driver(runner)  # type: ignore[arg-type]
    for id, continues, echo in (("completion", True, False), ("chat", False, False), ("echo", True, True)):
        said = Structure(StructureKind.GRAMMAR, 'start: " a a"')
        sequence = Sequence(id, [letter, letter], SamplingParams(9, echo=echo, structure=said), continues=continues)
        sequence.matcher = runner.tokenizer.matcher(said)
        driver.engine.post(sequence)
    driver.run("completion", "chat", "echo")
    assert [driver.text(id) for id in ("completion", "chat", "echo")] == [" a a", "a a", "aa a a"]


@pytest.fixture(params=[llama_like, sentencepiece_like])
def any_kind(request: pytest.FixtureRequest) -> HFTokenizer:
    tokenizer = request.param()
    return HFTokenizer(tokenizer, frozenset(), len(tokenizer))


@pytest.fixture
def tokenizer() -> HFTokenizer:
    return HFTokenizer(llama_like(), frozenset([EOS]), 300)


def streamed(tokenizer: HFTokenizer, tokens: list[int]) -> list[str]:
    detokenizer = tokenizer.detokenizer()
    return [*(detokenizer.push(token) for token in tokens), detokenizer.flush()]


def test_a_plain_prompt_gets_the_models_special_tokens_and_a_rendered_one_does_not(tokenizer: HFTokenizer) -> None:
    plain, rendered = tokenizer.encode_batch(["hi"]), tokenizer.encode_batch(["hi"], add_special_tokens=False)
    assert plain[0] == [BOS, *rendered[0]]
    assert len(rendered[0]) == 2


def test_a_chat_begins_with_one_bos_and_ends_where_the_answer_begins(tokenizer: HFTokenizer) -> None:
    text = tokenizer.render_chat([Message("user", "hi")])
    assert text == "<s>[user]hi[assistant]"
    assert tokenizer.encode_batch([text], add_special_tokens=False)[0].count(BOS) == 1


def test_a_chat_without_a_template_is_refused() -> None:
    tokenizer = HFTokenizer(byte_tokenizer(), frozenset(), 256)
    with pytest.raises(InvalidRequest, match="no chat template"):
        tokenizer.render_chat([Message("user", "hi")])


def test_the_templates_own_refusal_is_handed_on(tokenizer: HFTokenizer) -> None:
    with pytest.raises(InvalidRequest, match="no system turn here"):
        tokenizer.render_chat([Message("system", "be brief")])


def test_streamed_text_is_the_text(any_kind: HFTokenizer) -> None:
    tokens = any_kind.encode_batch([TEXT], add_special_tokens=False)[0]
    pieces = streamed(any_kind, tokens)
    assert "".join(pieces) == TEXT
    assert not any("\ufffd" in piece for piece in pieces)


def test_any_tokens_stream_as_they_decode_together() -> None:
    """Random bytes, most of them no valid UTF-8: what a model may well say."""
    tokenizer = HFTokenizer(byte_tokenizer(), frozenset(), 256)
    draw = random.Random(0)
    for _ in range(200):
        tokens = [draw.randrange(256) for _ in range(draw.randrange(1, 40))]
        assert "".join(streamed(tokenizer, tokens)) == tokenizer._backend.decode(tokens)


def test_bytes_that_spoil_text_given_already_do_not_break_the_stream() -> None:
    """A run of bytes that stops being UTF-8 decodes otherwise than its start did: there tokenizers' stream raises."""
    tokenizer = HFTokenizer(sentencepiece_like(), frozenset(), 285)
    letters = range(259, 285)
    high_bytes = range(2 + 0x80, 258)
    draw = random.Random(0)
    for _ in range(200):
        tokens = [draw.choice(letters) if draw.random() < 0.3 else draw.choice(high_bytes) for _ in range(40)]
        text = "".join(streamed(tokenizer, tokens))
        assert [sign for sign in text if "a" <= sign <= "z"] == [
            chr(t - 259 + ord("a")) for t in tokens if t in letters
        ]


def test_an_unfinished_character_comes_out_at_the_end(tokenizer: HFTokenizer) -> None:
    euro = tokenizer.encode_batch(["a€"], add_special_tokens=False)[0]
    assert streamed(tokenizer, euro[:-1]) == ["a", "", "", "\ufffd"]


def test_special_tokens_give_no_text(tokenizer: HFTokenizer) -> None:
    letter = tokenizer.encode_batch(["x"], add_special_tokens=False)[0]
    assert streamed(tokenizer, [BOS, *letter, EOS]) == ["", "x", "", ""]


def test_a_copy_decodes_in_one_thread_while_the_original_encodes_in_another(tokenizer: HFTokenizer) -> None:
    copy = tokenizer.copy()
    tokens = tokenizer.encode_batch([TEXT], add_special_tokens=False)[0]
    encoder = threading.Thread(target=lambda: [tokenizer.encode_batch([TEXT * 200]) for _ in range(20)])
    encoder.start()
    while encoder.is_alive():
        assert "".join(streamed(copy, tokens)) == TEXT
    assert copy._backend is not tokenizer._backend


def test_truncation_saved_with_a_checkpoint_does_not_cut_prompts(tmp_path: Path) -> None:
    saved = llama_like()
    saved.backend_tokenizer.enable_truncation(4)
    saved.backend_tokenizer.enable_padding(length=9)
    assert len(HFTokenizer(saved, frozenset(), 300).encode_batch(["x" * 50])[0]) == 51


def test_the_tokenizers_end_token_joins_the_models(tmp_path: Path) -> None:
    llama_like().save_pretrained(tmp_path)
    assert HFTokenizer.load(str(tmp_path), frozenset([7]), 300).eos_ids == {7, EOS}


def test_a_directory_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"(?s)no tokenizer that loads.*add its tokenizer\.json"):
        HFTokenizer.load(str(tmp_path), frozenset(), 300)
