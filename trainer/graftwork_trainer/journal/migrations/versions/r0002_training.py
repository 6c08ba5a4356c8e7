"""Training jobs, training policies, and canaries."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "training_jobs",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("adapter", sa.String(63), nullable=False),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("progress", sa.Text, nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("version", sa.String(96), nullable=False),
        sa.Column("snapshot", sa.String(80), nullable=False),
        sa.Column("policy", sa.String(63), nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("crashes", sa.Integer, nullable=False),
        sa.Column("run_time_s", sa.Float, nullable=False),
        sa.Column("cancel_requested", sa.Boolean, nullable=False),
        sa.Column("create_time_ns", sa.BigInteger, nullable=False),
        sa.Column("start_time_ns", sa.BigInteger, nullable=False),
        sa.Column("end_time_ns", sa.BigInteger, nullable=False),
        sa.Column("request_id", sa.String(36), unique=True),
        sa.Column("fingerprint", sa.String(64)),
    )
    op.create_index("training_jobs_by_state", "training_jobs", ["state", "create_time_ns"])
    op.create_index("training_jobs_by_adapter", "training_jobs", ["adapter", "create_time_ns"])
    op.create_table(
        "training_policies",
        sa.Column("name", sa.String(63), primary_key=True),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("min_new_feedback", sa.Integer, nullable=False),
        sa.Column("schedule", sa.Text, nullable=False),
        sa.Column("paused", sa.Boolean, nullable=False),
        sa.Column("create_time_ns", sa.BigInteger, nullable=False),
        sa.Column("last_job", sa.String(36), nullable=False),
        sa.Column("last_start_time_ns", sa.BigInteger, nullable=False),
        sa.Column("request_id", sa.String(36), unique=True),
        sa.Column("fingerprint", sa.String(64)),
    )
    op.create_table(
        "training_canaries",
        sa.Column("adapter", sa.String(63), primary_key=True),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("incumbent", sa.BigInteger, nullable=False),
        sa.Column("feedback", sa.Integer, nullable=False),
        sa.Column("tolerance", sa.Float, nullable=False),
        sa.Column("start_time_ns", sa.BigInteger, nullable=False),
        sa.Column("job_id", sa.String(36), nullable=False),
    )
