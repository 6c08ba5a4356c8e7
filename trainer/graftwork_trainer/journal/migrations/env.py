"""Alembic's entry: runs the migrations on the connection that database.py hands over."""

from alembic import context

from graftwork_trainer.journal.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transaction_per_migration=False,
)
context.run_migrations()
