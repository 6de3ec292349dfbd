"""`EncoderRunner`: texts to vectors or to class scores, by a transformers encoder under DeepSpeed."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import Any, NamedTuple

import torch
from transformers import AutoModel, AutoModelForSequenceClassification

from jupyter_dsserve.engine.batcher import Arrays, Item, Limits, Work
from jupyter_dsserve.engine.device import named_device
from jupyter_dsserve.engine.hf_tokenizer import HFTokenizer
from jupyter_dsserve.engine.host import num_cores
from jupyter_dsserve.engine.linear import can_pack, pack_linears
from jupyter_dsserve.engine.loader import Progress, wrapped
from jupyter_dsserve.engine.memory import held_bytes
from jupyter_dsserve.engine.pooling import Pooling, activation_named
from jupyter_dsserve.engine.pretrained import config_at, dtype_for, model_at, refuse_directory
from jupyter_dsserve.protocol.errors import EngineFailure, InvalidRequest
from jupyter_dsserve.protocol.export import is_onnx
from jupyter_dsserve.protocol.request import Pair, Request, Texts
from jupyter_dsserve.protocol.spec import WorkerSpec
from jupyter_dsserve.protocol.tensors import ModelInfo, TensorInfo

_LEAST_LENGTH = 8

# From what the model gave for a batch, and the texts' lengths: `[texts, numbers]` in fp32.
Head = Callable[[Any, torch.Tensor], torch.Tensor]


class Tokens(NamedTuple):
    """Of a text or of a pair; ``types`` say which of the two each token is from. None: all are from the first."""

    ids: list[int]
    types: list[int] | None = None


class EncoderRunner:
    """Owns one model. ``engine`` is what `deepspeed.init_inference` made of it, ``head`` turns its output into rows,
    and ``output`` names them and their size."""

    def __init__(
        self,
        engine: Any,
        tokenizer: HFTokenizer,
        head: Head,
        output: TensorInfo,
        limits: Limits,
        *,
        labels: tuple[str, ...] = (),
        written: Callable[[str], str] = str,
        note: str = "",
    ) -> None:
        self.info = ModelInfo(
            outputs=(output,), labels=labels, note=f"{note}; at most {tokenizer.max_length} tokens a text"
        )
        self.limits = limits
        self._engine = engine
        self._tokenizer = tokenizer
        self._head = head
        self._output = output
        self._max_length = tokenizer.max_length
        self._written = written
        self._takes_types = tokenizer.has_types and takes_types(engine.module)
        self._device: torch.device = engine.module.device
        self._pad = engine.module.config.pad_token_id or 0

    @property
    def device(self) -> str:
        return str(self._device)

    def prepare(self, request: Request) -> Work:
        """Tokenize. Texts over the model's length are cut; token ids are taken as they are, or refused. Only a
        classifier takes pairs."""
        if not isinstance(request.prompt, Texts):
            raise InvalidRequest(
                f"this version embeds or classifies texts, and takes no {type(request.prompt).__name__}"
            )
        texts = request.prompt.texts
        written = [self._text(text) for text in texts if not isinstance(text, tuple)]
        encoded = iter(self._tokenizer.encode_typed(written) if written else [])
        tokens = [
            Tokens(self._checked(text)) if isinstance(text, tuple) else self._typed(*next(encoded)) for text in texts
        ]
        if not all(each.ids for each in tokens):
            raise InvalidRequest("a text is empty: send at least one token", param="input")
        items = [Item(each, length=len(each.ids)) for each in tokens]
        return Work(request.id, items, sum(item.length for item in items))

    def _text(self, text: str | Pair) -> str | tuple[str, str]:
        if isinstance(text, str):
            return self._written(text)
        if not self.info.labels:
            raise InvalidRequest(
                "this version embeds texts, each by itself: send pairs to one of the task classify", param="input"
            )
        return text.first, text.second

    def _typed(self, ids: list[int], types: list[int]) -> Tokens:
        return Tokens(ids, types if self._takes_types and any(types) else None)

    def _checked(self, ids: Seq[int]) -> list[int]:
        if len(ids) > self._max_length:
            raise InvalidRequest(
                f"a list of {len(ids)} token ids is longer than this model's {self._max_length}: send fewer",
                param="input",
            )
        if ids and not 0 <= min(ids) <= max(ids) < self._tokenizer.vocab_size:
            raise InvalidRequest(
                f"a token id is outside 0 to {self._tokenizer.vocab_size - 1}: send ids of this model's vocabulary",
                param="input",
            )
        return list(ids)

    @torch.inference_mode()
    def forward(self, batch: Seq[Item]) -> Arrays:
        longest = max(item.length for item in batch)
        rows = [item.value.ids + [self._pad] * (longest - item.length) for item in batch]
        ids = torch.tensor(rows).to(self._device)
        types = _type_rows(batch, longest)
        others = {"token_type_ids": torch.tensor(types).to(self._device)} if types else {}
        lengths = torch.tensor([item.length for item in batch]).to(self._device)
        mask = (torch.arange(longest, device=self._device) < lengths[:, None]).long()
        found = self._head(self._engine(input_ids=ids, attention_mask=mask, **others), lengths)
        return {self._output.name: found.float().cpu().numpy()}

    def check(self) -> None:
        """Compute two texts of different length together and one of them alone.

        Raises `InvalidRequest` if its neighbour changes the answer by more than rounding explains.
        """
        draw = torch.Generator().manual_seed(0)
        num_tokens = min(24, self._max_length)
        tokens: list[int] = torch.randint(self._tokenizer.vocab_size, (num_tokens,), generator=draw).tolist()
        long, short = (Item(Tokens(t), length=len(t)) for t in (tokens, tokens[: max(1, num_tokens // 2)]))
        together, alone = self.forward([long, short])[self._output.name][1], self.forward([short])[self._output.name][0]
        difference = float(abs(together - alone).max() / max(abs(alone).max(), 1e-6))
        tolerance = 1e-3 if self._engine.module.dtype == torch.float32 else 0.1
        if not math.isfinite(difference):
            raise EngineFailure("the model gives numbers that are not finite: load it with dtype fp32")
        if difference > tolerance:
            raise InvalidRequest(
                f"the model answers differently in a batch than alone: off by {difference:.2g} of the largest number, "
                f"where rounding explains {tolerance:g}: choose a model of another architecture"
            )

    def device_bytes(self) -> int:
        return held_bytes(self._device)


def _type_rows(batch: Seq[Item], longest: int) -> list[list[int]]:
    """Empty if all tokens are of a first text, which is what models take for granted."""
    if not any(item.value.types for item in batch):
        return []
    return [(item.value.types or []) + [0] * (longest - len(item.value.types or ())) for item in batch]


def takes_types(model: Any) -> bool:
    """Whether the model's own forward pass knows tokens of more than one type."""
    known = inspect.signature(model.forward).parameters
    return "token_type_ids" in known and getattr(model.config, "type_vocab_size", 2) > 1


def load_encoder(spec: WorkerSpec, model_path: str, progress: Progress) -> EncoderRunner:
    """Load what ``spec`` says from ``model_path``. Raises `InvalidRequest` with the reason if it is no such model."""
    if is_onnx(model_path):
        from jupyter_dsserve.engine.onnx_encoder import load_onnx_encoder  # here: it imports this file

        return load_onnx_encoder(spec, model_path, progress)
    torch.set_num_threads(spec.num_threads or max(1, num_cores() - 1))
    progress("config", 0.0)
    refuse_directory(model_path)
    device = named_device(spec.device)
    is_classifier = spec.task == "classify"
    config = encoder_config(model_path, is_classifier)
    pooling = Pooling() if is_classifier else Pooling.read(model_path)
    dtype = dtype_for(spec.dtype, config, device)
    model = encoder_model(model_path, config, dtype, is_classifier, lambda done: progress("weights", 0.05 + 0.8 * done))
    progress("deepspeed", 0.85)
    engine = wrapped(model.to(device), dtype)
    if can_pack(engine.module):
        progress("packing", 0.9)
        pack_linears(engine.module)
    progress("tokenizer", 0.95)
    tokenizer = HFTokenizer.load(model_path, frozenset(), model.get_input_embeddings().num_embeddings)
    max_length = longest_text(spec, model, pooling, tokenizer)
    progress("loaded", 1.0)
    return _runner(spec, model_path, engine, tokenizer.cutting(max_length), pooling.to(device))


def _runner(spec: WorkerSpec, model_path: str, engine: Any, tokenizer: HFTokenizer, pooling: Pooling) -> EncoderRunner:
    limits = Limits(spec.max_step_tokens, spec.max_sequences)
    config = engine.module.config
    if spec.task == "classify":
        labels = tuple(config.id2label[number] for number in range(config.num_labels))
        name, activation = activation_of(config, model_path)
        output = TensorInfo("probs", "FP32", (-1, len(labels)))
        return EncoderRunner(
            engine,
            tokenizer,
            lambda out, _lengths: activation(out.logits.float()),
            output,
            limits,
            labels=labels,
            note=f"{name} over {len(labels)} labels",
        )
    output = TensorInfo("embedding", "FP32", (-1, pooling.size(config.hidden_size)))
    return EncoderRunner(
        engine,
        tokenizer,
        lambda out, lengths: pooling(out.last_hidden_state, lengths),
        output,
        limits,
        written=pooling.written,
        note=pooling.note,
    )


def activation_of(config: Any, model_path: str) -> tuple[str, Callable[[torch.Tensor], torch.Tensor]]:
    """What makes scores of logits: by the config's problem_type, of a reranker by what sentence-transformers' files
    name, or else by the number of labels."""
    named = activation_named(model_path, config) if config.num_labels == 1 else None
    if config.problem_type == "regression" or named == "Identity":
        return "plain scores", lambda logits: logits
    if named not in (None, "Sigmoid"):
        raise InvalidRequest(
            f"model {model_path} makes its score by {named}, and only Identity and Sigmoid are computed here: choose "
            "another model",
            param="model",
        )
    if config.problem_type == "multi_label_classification" or config.num_labels == 1:
        return "sigmoid", torch.sigmoid
    return "softmax", lambda logits: torch.softmax(logits, dim=-1)


def encoder_config(model_path: str, is_classifier: bool) -> Any:
    config = config_at(model_path)
    named = config.architectures or []
    if is_classifier and not any(name.endswith("ForSequenceClassification") for name in named):
        raise InvalidRequest(
            f"model {model_path} is a {', '.join(named) or config.model_type}, which classifies no texts: the task "
            "classify wants a …ForSequenceClassification",
            param="model",
        )
    if config.is_encoder_decoder:
        raise InvalidRequest(
            f"model {model_path} has an encoder and a decoder; the task {'classify' if is_classifier else 'embed'} "
            "wants a model that reads a text in one pass",
            param="model",
        )
    return config


def encoder_model(
    model_path: str, config: Any, dtype: torch.dtype, is_classifier: bool, progress: Callable[[float], None]
) -> Any:
    """The model, every weight that it computes with from the checkpoint."""
    if is_classifier:
        return model_at(AutoModelForSequenceClassification, model_path, config, dtype, progress)
    # Vectors are pooled from the last layer: many checkpoints come without the pooler that its class would add.
    return model_at(AutoModel, model_path, config, dtype, progress, may_lack="pooler.")


def longest_text(spec: WorkerSpec, model: Any, pooling: Pooling, tokenizer: HFTokenizer) -> int:
    """The longest text in tokens: the least of what the version, the files and the position table allow."""
    if 0 < spec.max_context < _LEAST_LENGTH:
        raise InvalidRequest(
            f"max_context is {spec.max_context}: use {_LEAST_LENGTH} tokens or more", param="max_context"
        )
    table = next((m for name, m in model.named_modules() if name.endswith("position_embeddings")), None)
    positions = getattr(model.config, "max_position_embeddings", 0) or 0
    # RoBERTa's kind counts positions from behind the number of its padding token.
    offset = getattr(table, "padding_idx", None)
    own = positions - (0 if offset is None else offset + 1)
    said = pooling.max_length or tokenizer.own_max_length
    return min(n for n in (spec.max_context, said, own) if n > 0)
