"""Both kinds of database."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa

from jupyter_dsserve.fleet.database import database_url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> sa.URL:
    """Of a new database."""
    given = request.getfixturevalue("postgres").database() if request.param == "postgresql" else ""
    return database_url(given, tmp_path)
