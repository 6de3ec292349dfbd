"""An answer has the form that is asked for, whatever the model would rather say; its neighbours notice nothing."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from jupyter_dsserve.demo import builtin_path
from jupyter_dsserve.engine.ragged import RaggedRunner
from jupyter_dsserve.engine.sampling import TorchLogits, constrained
from jupyter_dsserve.engine.sequence import Sequence
from jupyter_dsserve.engine.vocabulary import Vocabulary
from jupyter_dsserve.protocol.errors import InvalidRequest
from jupyter_dsserve.protocol.request import FinishReason, SamplingParams, Structure, StructureKind
from tests.engine.test_hf_tokenizer import sentencepiece_like
from tests.engine.test_loop import Driver
from tests.engine.tiny_models import load, random_prompts, save_architecture

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b", None, 3]}, "maxItems": 3},
        "home": {"$ref": "#/$defs/place"},
    },
    "required": ["name", "age", "tags", "home"],
    "additionalProperties": False,
    "$defs": {
        "place": {
            "type": "object",
            "properties": {"at": {"type": "boolean"}},
            "required": ["at"],
            "additionalProperties": False,
        }
    },
}
LIST = {
    "type": "array",
    "items": {"type": "number", "minimum": -1, "maximum": 1, "multipleOf": 0.25},
    "maxItems": 5,
    "minItems": 2,
}
ONE_OF = {"anyOf": [{"const": {"ok": True}}, {"type": "string", "pattern": "^é{2,4}[A-Z]$"}]}
STRUCTURES = {
    "person": Structure(StructureKind.JSON, json.dumps(PERSON)),
    "list": Structure(StructureKind.JSON, json.dumps(LIST)),
    "one-of": Structure(StructureKind.JSON, json.dumps(ONE_OF)),
    "regex": Structure(StructureKind.REGEX, r"[a-f]{3,9}-\d\d(é|😀)"),
    "choice": Structure(StructureKind.CHOICE, json.dumps(["yes", 'yes, "but"', "nö\n"])),
    "grammar": Structure(StructureKind.GRAMMAR, 'start: sum\nsum: NUM ("+" NUM){1,3} "="\nNUM: /[1-9][0-9]?/'),
}


@pytest.fixture(scope="module", params=["random", "demo"])
def runner(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RaggedRunner:
    """A model of random weights and no end token, one token a byte; and the shipped one."""
    if request.param == "demo":
        return load(builtin_path("demo-v1"))
    return load(save_architecture("llama", tmp_path_factory.mktemp("llama")))


def check(name: str, text: str) -> None:
    """Raises or asserts unless ``text`` has the form."""
    structure = STRUCTURES[name]
    if structure.kind is StructureKind.JSON:
        jsonschema.validate(json.loads(text), json.loads(structure.source))
        assert not re.search(r"\s", re.sub(r'"(\\.|[^"\\])*"', "", text)), "no free white space"
    elif structure.kind is StructureKind.REGEX:
        assert re.fullmatch(structure.source, text), text
    elif structure.kind is StructureKind.CHOICE:
        assert text in json.loads(structure.source)
    else:
        assert re.fullmatch(r"[1-9]\d?(\+[1-9]\d?){1,3}=", text), text


class Answers:
    """Sequences that run together."""

    def __init__(self, runner: RaggedRunner) -> None:
        self.runner = runner
        self.driver = Driver(runner)  # type: ignore[arg-type]
        self.sequences: dict[str, Sequence] = {}

    def post(self, id: str, prompt: list[int], structure: Structure | None = None, **sampling: Any) -> None:
        params = SamplingParams(**{"max_tokens": 200, **sampling}, structure=structure)
        matcher = self.runner.tokenizer.matcher(structure) if structure else None
        self.sequences[id] = Sequence(id, list(prompt), params, matcher=matcher)
        self.driver.engine.post(self.sequences[id])

    def run(self) -> None:
        self.driver.run(*self.sequences)

    def end(self, id: str) -> FinishReason | None:
        end = self.driver.end(id)
        assert end is not None
        assert end.error is None
        return end.finish_reason


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_answer_has_its_form_alone_and_beside_others_who_do_not_notice(
    runner: RaggedRunner, temperature: float
) -> None:
    free = random_prompts((30, 4), seed=1)
    alone = Answers(runner)
    for number, prompt in enumerate(free):
        alone.post(f"free{number}", prompt, max_tokens=25, temperature=temperature, seed=number)
    alone.run()
    among = Answers(runner)
    for number, prompt in enumerate(free):
        among.post(f"free{number}", prompt, max_tokens=25, temperature=temperature, seed=number)
    for number, (name, structure) in enumerate(STRUCTURES.items()):
        one = Answers(runner)
        for answers in (one, among):
            answers.post(name, random_prompts((9,), number)[0], structure, temperature=temperature, seed=number)
        one.run()
        check(name, one.driver.text(name))
        assert one.end(name) is FinishReason.STOP
        alone.sequences[name] = one.sequences[name]
    among.run()
    for id, sequence in among.sequences.items():
        assert sequence.tokens == alone.sequences[id].tokens, id
        if id in STRUCTURES:
            check(id, among.driver.text(id))


def test_a_form_goes_with_all_else_that_a_request_can_ask(runner: RaggedRunner) -> None:
    answers = Answers(runner)
    more: dict[str, Any] = {
        "temperature": 1.3,
        "top_k": 40,
        "top_p": 0.9,
        "min_p": 0.01,
        "repetition_penalty": 1.4,
        "presence_penalty": 1.0,
        "logit_bias": ((5, -100.0), (17, 100.0)),
        "min_tokens": 3,
        "logprobs": 2,
        "ignore_eos": True,
        "stop": ("never in it",),
    }
    for seed in range(3):
        for name, structure in STRUCTURES.items():
            answers.post(f"{name} {seed}", [1, 2, 3], structure, seed=seed, **more)
    answers.run()
    for id in answers.sequences:
        text = answers.driver.text(id)
        check(id.split()[0], text)
        told = [one for chunk in answers.driver.chunks if chunk.request_id == id for one in chunk.logprobs]
        assert b"".join(one.text for one in told if not one.text.startswith(b"<")).decode().startswith(text)


def test_a_stop_string_ends_a_form_early_and_max_tokens_cuts_it(runner: RaggedRunner) -> None:
    answers = Answers(runner)
    answers.post("stopped", [1, 2, 3], STRUCTURES["person"], stop=('"age"',))
    answers.post("cut", [1, 2, 3], STRUCTURES["person"], max_tokens=3)
    answers.run()
    assert re.fullmatch(r'\{"name":".*",', answers.driver.text("stopped"), re.DOTALL)
    assert answers.end("stopped") is FinishReason.STOP
    assert answers.end("cut") is FinishReason.LENGTH


def test_a_grammar_goes_by_the_tokens_of_the_answer_and_not_by_steps(runner: RaggedRunner) -> None:
    """As for a sequence that was put aside in the middle: a new matcher that reads all its tokens allows the same."""
    answers = Answers(runner)
    answers.post("a", [1, 2, 3], STRUCTURES["person"])
    answers.driver.engine.turn()
    sequence = answers.sequences["a"]
    while not answers.driver.end("a"):
        assert sequence.matcher is not None
        fresh = runner.tokenizer.matcher(STRUCTURES["person"])
        assert not fresh.has_ended(sequence)
        vocab_size = runner.tokenizer.vocab_size
        assert (fresh.allowed(vocab_size) == sequence.matcher.allowed(vocab_size)).all()
        answers.driver.engine.turn()
    check("person", answers.driver.text("a"))


def test_only_rows_with_a_form_are_changed_and_logprobs_stay_the_models(runner: RaggedRunner) -> None:
    logits = torch.randn(3, runner.tokenizer.vocab_size)
    before = logits.clone()
    free, bound = Sequence("f", [1], SamplingParams()), Sequence("b", [1], SamplingParams(logprobs=0))
    assert constrained(logits, [free] * 3) is logits
    bound.matcher = runner.tokenizer.matcher(Structure(StructureKind.REGEX, "[xy]"))
    found = constrained(logits, [free, bound, free])
    assert torch.equal(logits, before)
    assert torch.equal(found[[0, 2]], logits[[0, 2]])
    assert {runner.tokenizer.token_bytes(int(t)) for t in found[1].isfinite().nonzero()} == {b"x", b"y"}
    told = TorchLogits(logits).likelihoods([free, bound, free], [0, 0, 0])[1]
    assert told is not None
    assert told.logprob == pytest.approx(float(logits[1].log_softmax(-1)[0]), abs=1e-4)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_the_form_allows_comes_even_if_all_of_it_is_forbidden_otherwise(
    runner: RaggedRunner, temperature: float
) -> None:
    allowed = {t for t in range(256) if runner.tokenizer.token_bytes(t) in (b"x", b"y")}
    logits = torch.zeros(1, runner.tokenizer.vocab_size)
    logits[0, list(allowed)] = -torch.inf
    drawn = set()
    for seed in range(20):
        sequence = Sequence("a", [1], SamplingParams(temperature=temperature, seed=seed))
        sequence.matcher = runner.tokenizer.matcher(Structure(StructureKind.REGEX, "[xy]"))
        drawn |= set(TorchLogits(logits).sample([sequence]))
    assert drawn <= allowed
    assert temperature == 0 or drawn == allowed


@pytest.mark.parametrize(
    ("structure", "named"),
    [
        (Structure(StructureKind.JSON, '{"type": "objekt"}', "response_format"), "objekt"),
        (Structure(StructureKind.JSON, "not json"), "expected"),
        (Structure(StructureKind.JSON, '{"type": "string", "minLength": 3, "maxLength": 2}'), "minLength"),
        (Structure(StructureKind.JSON, '{"$ref": "#/nowhere"}'), "nowhere"),
        (Structure(StructureKind.REGEX, "[a-z"), "unclosed character class"),
        (Structure(StructureKind.GRAMMAR, "start: nobody"), "nobody"),
    ],
)
def test_what_is_no_grammar_is_refused_with_the_librarys_reason(
    runner: RaggedRunner, structure: Structure, named: str
) -> None:
    with pytest.raises(InvalidRequest, match=named) as refused:
        runner.tokenizer.matcher(structure)
    assert refused.value.param == structure.param


def test_a_grammar_that_grows_too_large_ends_its_answer_with_the_reason_and_no_other(runner: RaggedRunner) -> None:
    answers = Answers(runner)
    answers.post("grows", [1, 2], Structure(StructureKind.REGEX, "(a?){400}a{400}", "response_format"))
    answers.post("free", [1, 2], max_tokens=20)
    answers.post("small", [1, 2], STRUCTURES["choice"])
    answers.run()
    end = answers.driver.end("grows")
    assert end is not None
    assert isinstance(end.error, InvalidRequest)
    assert (end.finish_reason, end.error.param) == (FinishReason.ERROR, "response_format")
    assert "too many" in end.error.message
    assert "<state>" not in end.error.message
    assert answers.end("free") in (FinishReason.LENGTH, FinishReason.STOP)
    check("choice", answers.driver.text("small"))


@pytest.mark.parametrize("decoder", ["llama", "gemma", "metaspace"])
def test_the_bytes_of_tokens_make_the_text_whatever_decoder_a_tokenizer_of_words_has(decoder: str) -> None:
    """SentencePiece's own is one that llguidance refuses by itself, and misreads within a sequence of decoders."""
    backend = Tokenizer.from_str(sentencepiece_like().backend_tokenizer.to_str())
    if decoder == "gemma":
        backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    elif decoder == "metaspace":
        backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    vocabulary = Vocabulary(backend, [1], backend.get_vocab_size())
    tokens = backend.encode("ab c é").ids
    assert b"".join(map(vocabulary.bytes_of, tokens)).decode() == " ab c é"
    sequence = Sequence("s", [1], SamplingParams())
    matcher = vocabulary.matcher(Structure(StructureKind.CHOICE, json.dumps([" ab c é"])))
    sequence.tokens += tokens
    assert matcher.has_ended(sequence)
    assert matcher.failure is None


def test_a_tokenizer_whose_bytes_nobody_knows_still_tells_tokens_and_refuses_forms() -> None:
    backend = Tokenizer(models.WordPiece({"[UNK]": 0, "ab": 1, "##c": 2}, unk_token="[UNK]"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
    vocabulary = Vocabulary(backend, [], 3)
    assert vocabulary.bytes_of(1) == b"ab"
    with pytest.raises(InvalidRequest, match=r"byte for byte.*WordPiece"):
        vocabulary.matcher(STRUCTURES["regex"])
