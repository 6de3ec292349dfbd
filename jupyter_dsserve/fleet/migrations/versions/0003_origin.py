"""Where a version comes from: who registered it, of which training run, with which content on the disk."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("versions", sa.Column("created_by", sa.Text, nullable=False, server_default=""))
    op.add_column("versions", sa.Column("metadata", sa.JSON, nullable=False, server_default="{}"))
    op.add_column("versions", sa.Column("content", sa.Text, nullable=False, server_default=""))
