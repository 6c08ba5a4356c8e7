"""Alembic migrations of the journal's database, run when it is opened."""
