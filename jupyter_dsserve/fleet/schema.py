"""Brings a database to the schema that this code knows, whatever older code made it."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from jupyter_dsserve.protocol.errors import Conflict

_MIGRATIONS = Path(__file__).parent / "migrations"
# What the databases have that were made before their schema had a number.
_UNNUMBERED = "0001"


def upgrade(db: sa.Connection) -> None:
    """Run the migrations that ``db`` has not seen, in its transaction: all of them or none.

    Raises `Conflict` for a database that newer code made.
    """
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = db
    known = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]
    found = MigrationContext.configure(db).get_current_revision()
    if found is None and sa.inspect(db).has_table("versions"):
        command.stamp(config, _UNNUMBERED)
    elif found is not None and found not in known:
        raise Conflict(
            f"the registry's schema has number {found}, and this jupyter_dsserve knows none above {known[0]}: a newer "
            "one made it, so install that one, or give another data directory or database"
        )
    command.upgrade(config, "head")
