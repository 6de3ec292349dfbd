"""One verb list: the table in docs/architecture.md is what every floor has."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from jupyter_dsserve import AsyncClient, Client
from jupyter_dsserve.fleet.fleet import Fleet
from jupyter_dsserve.gateway.server import ROUTES
from jupyter_dsserve.notebook import panel
from jupyter_dsserve.notebook.magics import VERBS, DSServeMagics
from jupyter_dsserve.notebook.parts import rollout as rollout_part
from jupyter_dsserve.notebook.parts import versions
from jupyter_dsserve.notebook.verbs import Verbs

PAGE = (Path(__file__).parent.parent / "docs/architecture.md").read_text()
LINES = PAGE.partition("## Verbs")[2].partition("\n## ")[0].splitlines()
ROWS = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in LINES if line.startswith("| ")][1:]


PANEL = "".join(inspect.getsource(part) for part in (panel, rollout_part, versions))


def column(index: int) -> list[str]:
    return [row[index] for row in ROWS if row[index]]


def test_the_table_is_there() -> None:
    assert len(ROWS) > 10
    assert {"load", "unload", "status", "route", "activate", "logs", "panel", "connect"} <= set(column(0))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_verb_has_one_word_on_every_floor(row: list[str]) -> None:
    verb, fleet, _, client, magic, button = row
    assert fleet in ("", verb)
    assert client in ("", verb)
    assert magic in ("", verb)
    assert button.lower() in ("", verb)
    assert not fleet or callable(getattr(Fleet, verb))
    assert not client or (
        callable(getattr(AsyncClient, verb)) and (verb == "events" or callable(getattr(Client, verb)))
    )
    assert not magic or callable(getattr(DSServeMagics, verb))
    assert not button or f'"{button}"' in PANEL


def test_the_magics_are_the_tables() -> None:
    assert sorted(VERBS) == sorted(column(4))


def test_the_clients_changing_verbs_are_the_tables() -> None:
    ours = {name for name, _ in inspect.getmembers(Verbs, inspect.isgeneratorfunction) if name[0] != "_"}
    looking = {"gateway", "address", "deployment", "version", "send"}
    assert ours - looking == set(column(3)) - {"events", "bench", "validate"}  # which are more than a conversation


def test_every_route_of_the_table_exists() -> None:
    for route in column(2):
        method, path = route.split()
        pattern = re.sub(r"\{\w+\}", "x", path)
        found = [handler for regex, handler in ROUTES if re.fullmatch(regex, pattern)]
        assert found, route
        assert method.lower() in vars(found[0]), route
