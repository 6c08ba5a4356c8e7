"""Several servers on one database: which of them runs a job, and whose adapter a canary is."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Jobs that an earlier release was running have no lease, so that any server goes on with them.
    op.add_column(
        "training_jobs", sa.Column("server", sa.String(36), nullable=False, server_default="")
    )
    op.add_column(
        "training_jobs",
        sa.Column("lease_end_ns", sa.BigInteger, nullable=False, server_default="0"),
    )
    # SQLite cannot change a primary key.
    columns: list[sa.Column[Any]] = [
        sa.Column("adapter", sa.String(63), primary_key=True),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("incumbent", sa.BigInteger, nullable=False),
        sa.Column("feedback", sa.Integer, nullable=False),
        sa.Column("tolerance", sa.Float, nullable=False),
        sa.Column("start_time_ns", sa.BigInteger, nullable=False),
        sa.Column("job_id", sa.String(36), nullable=False),
        sa.Column("percent", sa.Integer, nullable=False),
    ]
    names = [column.name for column in columns]
    made = op.create_table(
        "canaries_of_servers", sa.Column("server", sa.String(36), primary_key=True), *columns
    )
    kept: Any = sa.select(sa.literal(""), *map(sa.column, names)).select_from(
        sa.table("training_canaries")
    )
    op.execute(made.insert().from_select(["server", *names], kept))
    op.drop_table("training_canaries")
    op.rename_table("canaries_of_servers", "training_canaries")
