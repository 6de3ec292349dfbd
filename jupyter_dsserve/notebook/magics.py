"""``%dsserve VERB …`` and ``%%dsserve NAME``: which verb it is, help, and errors in one line."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Callable
from typing import Any

from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import line_cell_magic, magics_class
from IPython.utils.process import arg_split  # type: ignore[attr-defined]

from jupyter_dsserve.notebook import session
from jupyter_dsserve.notebook.completion import Glance, install
from jupyter_dsserve.notebook.lines import Lines
from jupyter_dsserve.protocol.errors import DSServeError


@magics_class
class DSServeMagics(Lines):
    """Each verb is a method named after it."""

    @line_cell_magic("dsserve")  # type: ignore[arg-type]
    def dsserve(self, line: str, cell: str | None = None) -> object:
        """Serve models beside the notebook.

        %dsserve VERB …   load, unload, delete, status, route, policy, join, activate, rollout, pause, resume, promote,
                          rollback, logs, ledger, scale, autoscale, key, history, trace, apply, export, panel,
                          bench, validate, connect; %dsserve VERB --help says more
        %%dsserve NAME …  the cell is the prompt, and the answer streams into the output; %dsserve help cell says more
        """
        if cell is not None:
            if not cell.strip():
                raise _nothing_asked(line)
            return _in_one_line(self.ask, line, cell)
        verb, _, rest = line.strip().partition(" ")
        if verb == "help" and rest.strip():
            verb, rest = rest.split()[0], "--help"
        if verb in ("", "help", "--help", "-h"):
            print(_help())
            return None
        if (verb, rest) == ("cell", "--help"):
            print(_said(self.ask).replace("%dsserve", "%%dsserve", 1))
            return None
        if verb not in VERBS:
            near = difflib.get_close_matches(verb, VERBS, n=1)
            raise UsageError(
                f"%dsserve {verb}: " + (f"did you mean {near[0]}?" if near else f"the verbs are {', '.join(VERBS)}")
            )
        method: Callable[[str], object] = getattr(self, verb)
        if {"--help", "-h"} & set(arg_split(rest, strict=False)):  # not within quotes
            print(_said(method))
            return None
        return _in_one_line(method, rest)


VERBS = (
    "load",
    "unload",
    "delete",
    "status",
    "route",
    "policy",
    "join",
    "activate",
    "rollout",
    "pause",
    "resume",
    "promote",
    "rollback",
    "logs",
    "ledger",
    "scale",
    "autoscale",
    "history",
    "trace",
    "key",
    "apply",
    "export",
    "panel",
    "bench",
    "validate",
    "connect",
)


def load_ipython_extension(shell: InteractiveShell) -> None:
    """``%load_ext jupyter_dsserve``."""
    shell.register_magics(DSServeMagics)
    parsers = {verb: getattr(DSServeMagics, verb).parser for verb in VERBS} | {"": DSServeMagics.ask.parser}
    install(shell, parsers, Glance(_served))
    # A list of IPython's own; once, however often we are loaded.
    transformers = shell.input_transformers_cleanup
    if not any(getattr(each, "__name__", "") == _with_a_body.__name__ for each in transformers):
        transformers.append(_with_a_body)


def _with_a_body(lines: list[str]) -> list[str]:
    """Of a cell that has only its first line IPython itself says something, which knows nothing of prompts: with an
    empty line more, the cell comes to us."""
    is_bare = len(lines) == 1 and lines[0].split()[:1] == ["%%dsserve"] and not lines[0].rstrip().endswith("?")
    return [*lines, "\n"] if is_bare else lines


# Or else a terminal would take the first line for a whole cell.
_with_a_body.has_side_effects = True  # type: ignore[attr-defined]


def _served() -> dict[str, list[str]]:
    """Starts nothing, and gives up after seconds."""
    return {d.name: [v.version for v in d.versions] for d in session.session().quick.status().deployments}


def _nothing_asked(line: str) -> UsageError:
    name = (line.split() or ["demo"])[0]
    if name in VERBS:
        return UsageError(f"%%dsserve {name}: a verb has one percent sign: %dsserve {line.strip()}")
    return UsageError(
        f"%%dsserve {name}: the cell is the prompt: write one below the first line, such as def fibonacci(n):"
    )


def _in_one_line(verb: Callable[..., Any], *arguments: str) -> Any:
    """Errors without a traceback, and an interrupt that says what became of the request."""
    try:
        return verb(*arguments)
    except DSServeError as fault:
        raise UsageError(fault.message) from None
    except KeyboardInterrupt:
        raise UsageError("interrupted: what was being answered is cancelled; what was loading goes on") from None


def _help() -> str:
    said = {verb: getattr(DSServeMagics, verb).parser.description.strip().splitlines()[0] for verb in VERBS}
    lines = [f"%dsserve {verb:<9} {text}" for verb, text in said.items()]
    cell = "%%dsserve NAME     The cell is the prompt; the answer streams into the output."
    return "\n".join([*lines, cell, "", "%dsserve help VERB and %dsserve help cell say more."])


def _said(method: Callable[..., Any]) -> str:
    """What IPython made of its arguments."""
    return textwrap.dedent((method.__doc__ or "").removeprefix("::\n")).strip()
