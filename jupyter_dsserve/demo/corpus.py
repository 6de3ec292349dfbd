"""The text that the built-in models learn from: what every Python installation carries.

Two kinds of documents come from the standard library: pieces of its source files, and conversations made from
its functions and docstrings. Nothing is downloaded. The text is under the licence of the Python Software
Foundation (PSF), https://docs.python.org/3/license.html; so is what the models quote from it.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import random
import sysconfig
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# The order is the order of their token ids.
END_OF_TEXT, PAD, SYSTEM, USER, ASSISTANT, END_OF_TURN = SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|pad|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
)

# Tables, tests and front ends: much text, little Python worth imitating. _sysconfigdata* and config-* hold
# paths of the machine they were built on, and must never reach a model.
SKIPPED_FOLDERS = frozenset(
    {
        "site-packages",
        "test",
        "tests",
        "idlelib",
        "turtledemo",
        "encodings",
        "ensurepip",
        "distutils",
        "pydoc_data",
        "lib-dynload",
        "__pycache__",
        "msilib",
        "__phello__",
    }
)
SKIPPED_PREFIXES = (
    "_sysconfigdata",
    "config-",
    "_bootstrap_python",
    "this.py",
    "sysconfig.py",
    "stringprep.py",
    "turtle.py",
)

# Modules written in C (or that re-export C): their docstrings are only reachable by importing them.
# fmt: off
DOCUMENTED_MODULES = (
    "builtins", "math", "itertools", "functools", "collections", "os", "os.path", "time", "operator",
    "json", "random", "re", "sys", "string", "bisect", "heapq", "shutil", "subprocess", "pathlib",
    "datetime", "threading", "asyncio", "logging", "textwrap", "statistics", "contextlib", "copy",
    "tempfile", "glob", "fnmatch", "hashlib", "base64", "urllib.parse", "csv", "io", "struct", "socket",
    "pickle", "zlib", "gzip",
)
# fmt: on
SYSTEM_PROMPTS = ("You are a helpful assistant.", "You are a helpful assistant that knows Python.")
EXPLAINING = ("What does {} do?", "Explain {}.", "What is {} for?", "How do I use {}?", "Describe {}.")
WRITING = ("Write the function {}.", "Write {} in Python.", "Show me the code of {}.", "Implement {}.")
WRITING_FOR = ("Write the function {0} that does this: {1}", "Write a Python function {0}. {1}")

PIECE_BEGINS = ("def ", "class ", "async def ", "import ", "from ", "@", "# ")
MAX_ANSWER_CHARS = 1200
MIN_PIECE_CHARS = 700
HELD_OUT_EVERY = 40


@dataclass(frozen=True)
class Corpus:
    """The documents to learn from, and those that only measure. `chat_share` is in characters."""

    train: list[str]
    held_out: list[str]
    chat_share: float


def source_files() -> list[Path]:
    """The standard library's own Python files, sorted, without tests, tables and generated files."""
    root = Path(sysconfig.get_path("stdlib"))
    return [
        path
        for path in sorted(root.rglob("*.py"))
        if not SKIPPED_FOLDERS.intersection(path.relative_to(root).parts)
        and not any(part.startswith(SKIPPED_PREFIXES) for part in path.relative_to(root).parts)
    ]


def pieces(source: str) -> Iterator[str]:
    """Cut a file before top-level statements into pieces of at least `MIN_PIECE_CHARS` characters.

    Short pieces teach the model to begin at a `def` or `import`, as prompts do, and to end after it.
    """
    piece: list[str] = []
    size = 0
    for line in source.splitlines(keepends=True):
        if size >= MIN_PIECE_CHARS and line.startswith(PIECE_BEGINS):
            yield "".join(piece).strip() + "\n"
            piece, size = [], 0
        piece.append(line)
        size += len(line)
    if size:
        yield "".join(piece).strip() + "\n"


def first_paragraph(doc: str) -> str:
    """The first paragraph of a docstring, on one line; the second instead where the first is a signature."""
    paragraphs = [" ".join(part.split()) for part in inspect.cleandoc(doc).split("\n\n")]
    paragraphs = [part for part in paragraphs if part]
    if not paragraphs:
        return ""
    is_signature = len(paragraphs[0]) < 12 or "->" in paragraphs[0] or paragraphs[0].endswith(")")
    return paragraphs[1] if is_signature and len(paragraphs) > 1 else paragraphs[0]


def conversation(question: str, answer: str, rng: random.Random) -> str:
    """One question and answer in the form that the chat template writes; some with a system message."""
    head = f"{SYSTEM}{rng.choice(SYSTEM_PROMPTS)}{END_OF_TURN}" if rng.random() < 0.15 else ""
    return f"{head}{USER}{question}{END_OF_TURN}{ASSISTANT}{answer}{END_OF_TURN}"


def explain(name: str, doc: str, rng: random.Random) -> str | None:
    """A conversation that asks what `name` does, answered by its docstring; None where that says nothing."""
    answer = first_paragraph(doc)
    if not 20 <= len(answer) <= MAX_ANSWER_CHARS:
        return None
    return conversation(rng.choice(EXPLAINING).format(name), answer, rng)


def write(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str], rng: random.Random) -> str | None:
    """A conversation that asks for a function, answered by its source; None where it is too long or short."""
    code = textwrap.dedent("\n".join(lines[node.lineno - 1 : node.end_lineno])).strip()
    if not 60 <= len(code) <= MAX_ANSWER_CHARS:
        return None
    purpose = first_paragraph(ast.get_docstring(node) or "")
    if 20 <= len(purpose) <= 300 and rng.random() < 0.5:
        question = rng.choice(WRITING_FOR).format(node.name, purpose)
    else:
        question = rng.choice(WRITING).format(node.name)
    return conversation(question, code, rng)


def chats_of_source(module: str, source: str, rng: random.Random) -> Iterator[str]:
    """Conversations about every class and function that stands in a file."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            continue
        found = [explain(f"{module}.{node.name}", ast.get_docstring(node) or "", rng)]
        if not isinstance(node, ast.ClassDef):
            found.append(write(node, lines, rng))
        yield from (chat for chat in found if chat)


def chats_of_modules(rng: random.Random) -> Iterator[str]:
    """Conversations about the public names of common modules, and about the methods of their classes."""
    for module_name in DOCUMENTED_MODULES:
        prefix = "" if module_name == "builtins" else module_name + "."
        for name, value in sorted(vars(importlib.import_module(module_name)).items()):
            if name.startswith("_") or not callable(value) or inspect.ismodule(value):
                continue
            named = [(name, value)]
            if inspect.isclass(value):
                named += [(f"{name}.{k}", v) for k, v in sorted(vars(value).items()) if not k.startswith("_")]
            for label, described in named:
                doc = getattr(described, "__doc__", None)
                chat = explain(prefix + label, doc, rng) if isinstance(doc, str) else None
                if chat:
                    yield chat


def chats_of_topics(rng: random.Random) -> Iterator[str]:
    """Conversations about the language itself, from the topics that `help()` shows."""
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    for name, text in sorted(topics.items()):
        paragraphs = [" ".join(p.split()) for p in text.split("\n\n")[1:] if p[:1].isalpha()]
        if paragraphs:
            yield conversation(f"Explain {name} in Python.", " ".join(paragraphs[:2])[:MAX_ANSWER_CHARS], rng)


def filled(chats: list[str], more: list[str], size: int) -> list[str]:
    """`chats`, and of `more` as many as bring it to `size` characters."""
    result = list(chats)
    have = sum(map(len, result))
    for chat in more:
        if have >= size:
            break
        result.append(chat)
        have += len(chat)
    return result


def build_corpus(chat_share: float, seed: int) -> Corpus:
    """Read the standard library: every 40th file is held out, chats fill `chat_share` of the characters."""
    rng = random.Random(seed)
    root = Path(sysconfig.get_path("stdlib"))
    code: list[str] = []
    held_out: list[str] = []
    chats = [*chats_of_modules(rng), *chats_of_topics(rng)]
    from_files: list[str] = []
    for number, path in enumerate(source_files()):
        source = path.read_text(encoding="utf-8", errors="replace")
        if number % HELD_OUT_EVERY == HELD_OUT_EVERY // 2:
            held_out.extend(pieces(source))
            continue
        code.extend(pieces(source))
        module = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        from_files.extend(chats_of_source(module, source, rng))
    rng.shuffle(from_files)
    code_size = sum(map(len, code))
    chats = filled(chats, from_files, int(code_size * chat_share / (1 - chat_share)))
    train = code + chats
    rng.shuffle(train)
    return Corpus(train, held_out, 1 - code_size / sum(map(len, train)))
