"""Train the two built-in models: `python -m jupyter_dsserve.demo.train [--out DIR] [--threads 1]`.

Two small Llama models learn Python from the standard library of the Python that runs this (see `corpus.py`;
the text is under the PSF licence). `demo-v1` is an annealed snapshot; `demo-v2` goes on from the same
run and is better: a pair that makes a rollout worth watching. The seed and the number of steps are fixed,
never the time, so the same Python, torch and processor give the same models. About 100 minutes on one core.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import random
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from tqdm import tqdm
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from jupyter_dsserve.demo import builtin_names
from jupyter_dsserve.demo.corpus import END_OF_TEXT, END_OF_TURN, PAD, SPECIAL_TOKENS, build_corpus
from jupyter_dsserve.demo.muon import Muon

Finish = Callable[[LlamaForCausalLM, str], None]

SEED = 20240607
VOCABULARY = 4096
CHAT_SHARE = 0.2
TOKENS_PER_STEP = 4096
TRUNK_LENGTH = 256  # attention over short windows is cheap; the decay then shows the whole context
WARMUP_STEPS = 20
MUON_LR = 0.03
ADAM_LR = 4e-3
CHECKPOINT_EVERY = 100
CONTEXT = 1024
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
PROMPTS = ("def fibonacci(n):", "import os\n\ndef ", "class Node:\n    def __init__(self")
QUESTIONS = ("What does os.path.join do?", "Write the function is_prime.")


@dataclass(frozen=True)
class Plan:
    """How long to train, in steps of `TOKENS_PER_STEP` tokens; in the last share the learning rate falls."""

    v1_steps: int
    v2_steps: int
    v1_decay_share: float = 0.25
    v2_decay_share: float = 0.25

    @property
    def v1_trunk(self) -> int:
        """Steps at the full learning rate before the v1 branch leaves."""
        return self.v1_steps - self.v1_decay

    @property
    def v1_decay(self) -> int:
        """Steps of the v1 branch, which v2 does not take."""
        return round(self.v1_steps * self.v1_decay_share)

    @property
    def v2_trunk(self) -> int:
        """Steps at the full learning rate before v2's own decay."""
        return self.v2_steps - self.v2_decay

    @property
    def v2_decay(self) -> int:
        """Steps of v2 in which the learning rate falls."""
        return round(self.v2_steps * self.v2_decay_share)


def train_tokenizer(documents: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer (Sennrich and others 2016, in GPT-2's form) that no input can break."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=PAD,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def build_model() -> LlamaForCausalLM:
    """A fresh Llama of 3.8 million parameters: four layers, four heads over two of keys and values."""
    end, pad = SPECIAL_TOKENS.index(END_OF_TEXT), SPECIAL_TOKENS.index(PAD)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=pad,
    )
    return LlamaForCausalLM(config)


def chopped(document: str, rng: random.Random) -> list[str]:
    """The document cut after one in forty of its spaces, newlines and underscores.

    A prompt may end in `def `, but in text that was encoded whole the space belongs to the next word's token.
    Encoding the parts one by one shows the model such ends too (compare BPE-dropout, Provilkov 2020).
    """
    cuts = [match.end() for match in re.finditer(r"[ \n_]", document) if rng.random() < 1 / 40]
    edges = [0, *(cut for cut in cuts if cut < len(document)), len(document)]
    return [document[begin:end] for begin, end in itertools.pairwise(edges)]


class Windows:
    """The documents as one row of tokens, and windows on it that begin where a document begins.

    Prompts are beginnings, so the model should see many. Long documents get a start every half trunk window
    too, or their later text would never be learnt.
    """

    def __init__(self, documents: list[list[str]], tokenizer: PreTrainedTokenizerFast) -> None:
        """Encode every document part by part, each document closed by the end token."""
        end, stride = SPECIAL_TOKENS.index(END_OF_TEXT), TRUNK_LENGTH // 2
        encode = tokenizer.backend_tokenizer.encode_batch
        tokens: list[int] = []
        starts: list[int] = []
        for parts in documents:
            encodings = encode(parts, add_special_tokens=False)
            ids = [*(token for encoding in encodings for token in encoding.ids), end]
            starts.extend(range(len(tokens), len(tokens) + max(len(ids) - stride, 1), stride))
            tokens.extend(ids)
        self.tokens = torch.tensor(tokens)
        # A window may run over the end of the row; it goes on at its beginning.
        self.padded = torch.cat([self.tokens, self.tokens[:CONTEXT]])
        self.starts = torch.tensor(starts)

    def batch(self, step: int, length: int) -> Tensor:
        """The windows of a step, (TOKENS_PER_STEP / length, length), drawn by the step's own seed."""
        rows = TOKENS_PER_STEP // length
        draw = torch.Generator().manual_seed(SEED + step)
        chosen = self.starts[torch.randint(len(self.starts), (rows,), generator=draw)]
        return self.padded[chosen[:, None] + torch.arange(length)]


class Progress:
    """Loss, tokens a second and time left: a tqdm bar on a terminal, a plain line now and then elsewhere."""

    def __init__(self, total: int, done: int) -> None:
        """`total` and `done` are steps of the whole run, both models together."""
        self.bar = tqdm(total=total, initial=done, unit="step", disable=not sys.stderr.isatty())
        self.total = total
        self.done = self.first = done
        self.began = time.monotonic()
        self.loss: float | None = None

    def advance(self, phase: str, loss: float) -> None:
        """Count one step. The loss shown is a running mean, in nats a token."""
        self.done += 1
        self.loss = loss if self.loss is None else 0.95 * self.loss + 0.05 * loss
        steps_per_s = (self.done - self.first) / (time.monotonic() - self.began)
        tokens_per_s = steps_per_s * TOKENS_PER_STEP
        self.bar.set_description(phase, refresh=False)
        self.bar.set_postfix_str(f"loss {self.loss:.3f}, {tokens_per_s:.0f} tokens/s", refresh=False)
        self.bar.update()
        if self.bar.disable and (self.done % 20 == 0 or self.done == self.total):
            left_min = (self.total - self.done) / steps_per_s / 60
            line = f"step {self.done}/{self.total} {phase}: loss {self.loss:.3f}, {tokens_per_s:.0f} tokens/s"
            print(f"{line}, {left_min:.0f} min left", flush=True)


class Trainer:
    """A model, its optimizers and the trunk step they stand at."""

    def __init__(self) -> None:
        """A fresh model from the fixed seed."""
        torch.manual_seed(SEED)
        self.model = build_model()
        self.step = 0
        hidden = [p for name, p in self.model.named_parameters() if p.ndim == 2 and "embed" not in name]
        others = [p for name, p in self.model.named_parameters() if p.ndim != 2 or "embed" in name]
        self.muon = Muon([*hidden], lr=MUON_LR)
        self.adam = torch.optim.AdamW(others, lr=ADAM_LR, betas=(0.9, 0.95), weight_decay=0.0)

    def state(self) -> dict[str, Any]:
        """Everything the next step depends on, copied."""
        parts = {"model": self.model.state_dict(), "adam": self.adam.state_dict(), "muon": self.muon.buffers}
        return copy.deepcopy(parts | {"step": self.step})

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to what `state` gave."""
        self.model.load_state_dict(state["model"])
        self.adam.load_state_dict(copy.deepcopy(state["adam"]))
        self.muon.buffers = [buffer.clone() for buffer in state["muon"]]
        self.step = state["step"]

    def train_step(self, batch: Tensor, factor: float) -> float:
        """One step on `batch` at `factor` of the learning rates; returns the loss, nats a token."""
        loss: Tensor = self.model(input_ids=batch, labels=batch, use_cache=False).loss
        loss.backward()
        for group in self.adam.param_groups:
            group["lr"] = ADAM_LR * factor
        self.adam.step()
        self.muon.step(factor)
        self.model.zero_grad()
        self.step += 1
        return loss.item()

    def trunk(self, windows: Windows, until: int, progress: Progress, checkpoint: Path | None) -> None:
        """Train at the full learning rate up to step `until`, saving the state now and then."""
        while self.step < until:
            factor = min(1.0, (self.step + 1) / WARMUP_STEPS)
            progress.advance("trunk", self.train_step(windows.batch(self.step, TRUNK_LENGTH), factor))
            if checkpoint and (self.step % CHECKPOINT_EVERY == 0 or self.step == until):
                torch.save(self.state(), checkpoint)

    def decay(self, windows: Windows, steps: int, name: str, progress: Progress) -> None:
        """Lower the learning rate to zero in a straight line, on windows of the whole context.

        The schedule of MiniCPM (Hu and others 2024): warm up, hold, decay; any point of the trunk can be
        finished.
        """
        for done in range(steps):
            progress.advance(name, self.train_step(windows.batch(self.step, CONTEXT), 1 - done / steps))


@torch.inference_mode()
def held_out_loss(model: LlamaForCausalLM, windows: Windows, length: int = 512) -> float:
    """The mean loss over text the model never saw, nats a token, in whole windows of `length` tokens."""
    rows = windows.tokens[: len(windows.tokens) // length * length].view(-1, 1, length)
    losses = [float(model(input_ids=row, labels=row, use_cache=False).loss) for row in rows]
    return sum(losses) / len(losses)


def chat_prompt(tokenizer: PreTrainedTokenizerFast, question: str) -> str:
    """A question as the chat template writes it, up to where the answer begins."""
    messages = [{"role": "user", "content": question}]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


@torch.inference_mode()
def sample(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompt: str, **options: Any) -> str:
    """The prompt and what the model adds to it, up to 96 tokens."""
    torch.manual_seed(SEED)
    inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    output: Any = model.generate(**inputs, max_new_tokens=96, **options)
    return str(tokenizer.decode(output[0], skip_special_tokens=False))


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the model in bfloat16 with its tokenizer, as `from_pretrained` reads them."""
    stored = copy.deepcopy(model).to(torch.bfloat16)
    ends = [SPECIAL_TOKENS.index(END_OF_TEXT), SPECIAL_TOKENS.index(END_OF_TURN)]
    stored.generation_config = GenerationConfig(
        bos_token_id=ends[0],
        eos_token_id=ends,
        pad_token_id=SPECIAL_TOKENS.index(PAD),
        do_sample=True,
        temperature=0.7,
        top_p=0.95,
    )
    stored.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors writes 0600, and a package's files are for every user


def describe(folder: Path, held_out: Windows) -> None:
    """Load a written model again and print its size, its loss on `held_out` and samples of it."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    loss = held_out_loss(model, held_out)
    size_mb = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"\n=== {folder}: {parameters:.2f} M parameters, {size_mb:.2f} MB, ", end="")
    print(f"held-out loss {loss:.4f} nats a token")
    for prompt in (*PROMPTS, *(chat_prompt(tokenizer, question) for question in QUESTIONS)):
        print("--- greedy\n" + sample(model, tokenizer, prompt, do_sample=False))
        print("--- T=0.7\n" + sample(model, tokenizer, prompt, do_sample=True, temperature=0.7), flush=True)


def train_both(plan: Plan, whole: Windows, cut: Windows, finish: Finish, checkpoint: Path | None) -> None:
    """Train the trunk, leaving it once for v1, then end it for v2; `finish(model, name)` takes each.

    The trunk learns from documents encoded `whole`, the two decays from documents `cut` before encoding.
    """
    trainer = Trainer()
    if checkpoint and checkpoint.exists():
        trainer.restore(torch.load(checkpoint))
        print(f"going on from {checkpoint}, step {trainer.step}", flush=True)
    has_v1 = trainer.step > plan.v1_trunk
    progress = Progress(plan.v2_steps + plan.v1_decay, trainer.step + has_v1 * plan.v1_decay)
    if not has_v1:
        trainer.trunk(whole, plan.v1_trunk, progress, checkpoint)
        before = trainer.state()
        trainer.decay(cut, plan.v1_decay, "demo-v1", progress)
        finish(trainer.model, "demo-v1")
        trainer.restore(before)
    trainer.trunk(whole, plan.v2_trunk, progress, checkpoint)
    trainer.decay(cut, plan.v2_decay, "demo-v2", progress)
    finish(trainer.model, "demo-v2")


def parse_arguments() -> argparse.Namespace:
    """The command line. The defaults make the models that are shipped."""
    parser = argparse.ArgumentParser("python -m jupyter_dsserve.demo.train", description="Train the models.")
    models_folder = Path(__file__).parent / "models"
    parser.add_argument("--out", type=Path, default=models_folder, help="folder to write to")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch; several round differently")
    parser.add_argument("--v1-steps", type=int, default=1200, help="steps of demo-v1, decay included")
    parser.add_argument("--v2-steps", type=int, default=1800, help="steps of demo-v2, decay included")
    parser.add_argument("--checkpoint", type=Path, help="file that keeps the run, to go on after a stop")
    return parser.parse_args()


def main() -> None:
    """Build the corpus and tokenizer, train both models, write them and say what came out."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    torch.use_deterministic_algorithms(True)
    began = time.monotonic()
    corpus = build_corpus(CHAT_SHARE, SEED)
    tokenizer = train_tokenizer(corpus.train)
    rng = random.Random(SEED)
    whole = Windows([[document] for document in corpus.train], tokenizer)
    cut = Windows([chopped(document, rng) for document in corpus.train], tokenizer)
    held_out = Windows([[document] for document in corpus.held_out], tokenizer)
    print(f"corpus: {len(corpus.train)} documents, {len(whole.tokens):,} tokens, ", end="")
    print(f"{corpus.chat_share:.0%} of it chat; held out: {len(held_out.tokens):,} tokens", flush=True)

    def finish(model: LlamaForCausalLM, name: str) -> None:
        save(model, tokenizer, arguments.out / name)
        print(f"{name} is done after {(time.monotonic() - began) / 60:.1f} min", flush=True)

    plan = Plan(arguments.v1_steps, arguments.v2_steps)
    train_both(plan, whole, cut, finish, arguments.checkpoint)
    for name in builtin_names():
        describe(arguments.out / name, held_out)


if __name__ == "__main__":
    main()
