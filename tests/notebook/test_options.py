"""What a load may be told is the same in the client, the magic and the body."""

from __future__ import annotations

import inspect
import sys

import pytest

from jupyter_dsserve import Client
from jupyter_dsserve.gateway.bodies import LoadBody
from jupyter_dsserve.notebook import options
from jupyter_dsserve.notebook.magics import DSServeMagics
from jupyter_dsserve.notebook.options import LoadOptions, given, user_name

NAMES = set(LoadOptions.__annotations__)


def test_the_options_are_the_bodys_fields() -> None:
    assert set(LoadBody.model_fields) - {"version", "model"} == NAMES


def test_the_magic_takes_every_option() -> None:
    flags = {a.dest for a in DSServeMagics.load.parser._actions}
    assert flags - {"name", "model", "object", "tokenizer", "version", "no_wait"} == NAMES


def test_help_and_completion_see_the_options_one_by_one() -> None:
    parameters = inspect.signature(Client.load).parameters
    assert set(parameters) >= NAMES
    assert str(parameters["tp"]) == "tp: 'int | None' = None"


def test_what_is_none_is_not_given_and_kernel_is_this_kernels_interpreter() -> None:
    assert given({"tp": None, "note": "", "python": "kernel"}) == {"note": "", "python": sys.executable}


def test_the_user_is_the_hubs_or_the_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUPYTERHUB_USER", "ann")
    assert user_name() == "ann"
    monkeypatch.delenv("JUPYTERHUB_USER")
    monkeypatch.setattr(options.getpass, "getuser", lambda: "bob")
    assert user_name() == "bob"
