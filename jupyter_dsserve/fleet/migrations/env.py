"""Alembic's own entry: it runs this file with the connection that `fleet/schema.py` hands over."""

from alembic import context

# One transaction for all steps, on SQLite too: a crash in the middle leaves the database as it was.
context.configure(connection=context.config.attributes["connection"], transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
