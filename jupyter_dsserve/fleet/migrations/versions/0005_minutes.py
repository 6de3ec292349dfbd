"""What every version did in each minute."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "minutes",
        sa.Column("deployment", sa.String, primary_key=True),
        sa.Column("version", sa.String, primary_key=True),
        sa.Column("at", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("row", sa.JSON, nullable=False),
    )
    op.create_index("minutes_at", "minutes", ["at"])
