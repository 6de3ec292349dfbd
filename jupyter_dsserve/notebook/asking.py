"""What ``%%dsserve`` does with its cell: one answer that streams into the output, or several side by side."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing, closing, suppress
from dataclasses import dataclass
from html import escape
from typing import Any

from IPython.display import display

from jupyter_dsserve.bench.table import Bundle
from jupyter_dsserve.notebook.answers import Prompt
from jupyter_dsserve.notebook.client import AsyncClient, Client
from jupyter_dsserve.notebook.views import Answer, colour_of, footnote, ink
from jupyter_dsserve.notebook.words import marked
from jupyter_dsserve.protocol.errors import DSServeError

# Enough for the eye, and far below what a notebook's connection carries.
_FLUSH_S = 0.05
_SHOW_S = 0.2
_TURN = re.compile(r"^(system|user|assistant):[ \t]?", re.MULTILINE)


def prompt_of(cell: str, is_chat: bool, system: str = "") -> Prompt:
    """The cell as a text to go on with, or in a chat as messages: one of the user's, unless it begins with a turn
    (``user: …``, ``assistant: …``, ``system: …`` at the beginning of a line); ``system`` goes before them."""
    text = cell.removesuffix("\n")  # the notebook's, not the writer's
    if not (is_chat or system):
        return text
    told = [{"role": "system", "content": system}] if system else []
    if not _TURN.match(text):
        return [*told, {"role": "user", "content": text}]
    _, *parts = _TURN.split(text)
    turns = zip(parts[::2], parts[1::2], strict=True)
    return [*told, *({"role": role, "content": said.strip("\n")} for role, said in turns)]


def streamed(client: Client, model: str, prompt: Prompt, options: Mapping[str, Any]) -> Answer:
    """Print the answer as it comes, and a line about it."""
    stream = client.stream(model, prompt, **options)
    flushed = 0.0
    # Closed here, however the loop ends: an interrupt's traceback would keep the request alive.
    with closing(iter(stream)) as pieces:
        for piece in pieces:
            now = time.monotonic()
            is_due = now - flushed > _FLUSH_S
            print(piece, end="", flush=is_due)
            flushed = now if is_due else flushed
    print(flush=True)
    assert stream.answer
    display(Said(stream.answer.summary))
    return stream.answer


class Said:
    """A line below a cell's output."""

    def __init__(self, text: str) -> None:
        self._text = text

    def _repr_mimebundle_(self, **_: object) -> Bundle:
        return {"text/plain": self._text, "text/html": footnote(self._text)}


@dataclass(slots=True)
class Part:
    """One of several answers, as far as it is. ``label`` stands above it."""

    model: str
    label: str
    text: str = ""
    below: str = "asked"
    answer: Answer | None = None
    fault: DSServeError | None = None


class Beside:
    """Answers side by side; of two that have ended, the words in which they differ are marked."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = parts

    def _repr_mimebundle_(self, **_: object) -> Bundle:
        texts = [escape(part.text) for part in self.parts]
        if len(self.parts) == 2 and all(part.answer for part in self.parts):
            texts = list(marked(self.parts[0].text, self.parts[1].text))
        columns = [
            f'<div style="flex:1 1 0;min-width:14em">{answer_column(part.label, text, part.below)}</div>'
            for part, text in zip(self.parts, texts, strict=True)
        ]
        plain = [f"{part.label}: {part.text}\n[{part.below}]" for part in self.parts]
        row = '<div style="display:flex;flex-flow:row wrap;text-align:left">'
        return {"text/plain": "\n\n".join(plain), "text/html": f"{row}{''.join(columns)}</div>"}


def answer_column(version: str, html: str, below: str) -> str:
    """An answer under its version's name, with a line below it; ``html`` is escaped already."""
    name = f'<b style="color:{ink(colour_of(version))}">{escape(version)}</b>'
    style = "white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.4;margin:2px 8px 2px 0"
    return f'{name}<pre style="{style}">{html}</pre>{footnote(below)}'


def side_by_side(
    make_client: Callable[[], AsyncClient], parts: Sequence[Part], prompt: Prompt, options: Sequence[Mapping[str, Any]]
) -> list[Answer]:
    """Ask all at once, each with its ``options``, and show the answers as they come. An interrupt cancels all of them.

    What fails says so in its place; raises its error only if nothing was answered.
    """
    handle = display(shown := Beside(parts), display_id=True)
    # In a thread, for the kernel's own loop runs already.
    asking = _Asking(make_client, parts, prompt, options)
    try:
        while asking.thread.is_alive():
            asking.thread.join(_SHOW_S)
            handle.update(shown)
    except BaseException:
        asking.cancel()
        handle.update(shown)
        raise
    asking.raise_unforeseen()
    answers = [part.answer for part in parts if part.answer]
    if not answers:
        raise next(part.fault for part in parts if part.fault)
    return answers


class _Asking:
    """A thread with a loop and a client of its own, which end with the answers."""

    def __init__(
        self,
        make_client: Callable[[], AsyncClient],
        parts: Sequence[Part],
        prompt: Prompt,
        options: Sequence[Mapping[str, Any]],
    ) -> None:
        self._make_client, self._parts, self._prompt, self._options = make_client, parts, prompt, options
        self._loop = asyncio.new_event_loop()
        self._task: asyncio.Task[None] | None = None
        self._is_cancelled = False
        self._unforeseen: Exception | None = None
        self.thread = threading.Thread(target=self._run, name="dsserve-asking", daemon=True)
        self.thread.start()

    def cancel(self) -> None:
        self._is_cancelled = True
        if self._task:
            with suppress(RuntimeError):  # it has just ended
                self._loop.call_soon_threadsafe(self._task.cancel)
        self.thread.join(5)

    def raise_unforeseen(self) -> None:
        if self._unforeseen:
            raise self._unforeseen

    def _run(self) -> None:
        self._task = self._loop.create_task(self._all())
        try:
            if not self._is_cancelled:
                self._loop.run_until_complete(self._task)
        except asyncio.CancelledError:
            pass
        except Exception as fault:
            self._unforeseen = fault
        finally:
            self._loop.close()

    async def _all(self) -> None:
        client = self._make_client()
        try:
            pairs = zip(self._parts, self._options, strict=True)
            await asyncio.gather(*(self._one(client, part, options) for part, options in pairs))
        finally:
            await client.aclose()

    async def _one(self, client: AsyncClient, part: Part, options: Mapping[str, Any]) -> None:
        stream = client.stream(part.model, self._prompt, **options)
        try:
            async with aclosing(aiter(stream)) as pieces:
                async for piece in pieces:
                    part.text, part.below = part.text + piece, "answers"
        except DSServeError as fault:
            part.fault, part.below = fault, fault.message
        except asyncio.CancelledError:
            part.below = "cancelled"
            raise
        if stream.answer:
            part.answer, part.below = stream.answer, stream.answer.summary
