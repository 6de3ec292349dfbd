"""A deployment's policy, a version's settings, rollouts.

What is there already is left: databases were made with these tables before their schema had a number.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    there = sa.inspect(op.get_bind())
    for table, column in (("deployments", "policy"), ("versions", "settings")):
        if column not in [c["name"] for c in there.get_columns(table)]:
            op.add_column(table, sa.Column(column, sa.JSON, nullable=False, server_default="{}"))
    if not there.has_table("rollouts"):
        op.create_table(
            "rollouts",
            sa.Column("deployment", sa.String, primary_key=True),
            sa.Column("state", sa.JSON, nullable=False),
        )
