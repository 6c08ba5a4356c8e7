"""Generations, feedback, and what versions were trained on."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    _create_generations()
    _create_feedback()
    op.create_table(
        "feedback_generations",
        sa.Column("generation_id", sa.String(36), primary_key=True),
        sa.Column("feedback_id", sa.String(36), primary_key=True),
    )
    op.create_index("feedback_generations_by_feedback", "feedback_generations", ["feedback_id"])
    op.create_table(
        "trained_on",
        sa.Column("item_id", sa.String(36), primary_key=True),
        sa.Column("version", sa.String(96), primary_key=True),
    )


def _create_generations() -> None:
    op.create_table(
        "generations",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("group_id", sa.String(36), nullable=False),
        sa.Column("episode_id", sa.Text, nullable=False),
        sa.Column("task", sa.Text, nullable=False),
        sa.Column("origin", sa.Text, nullable=False),
        sa.Column("adapter", sa.Text, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("is_composed", sa.Boolean, nullable=False),
        sa.Column("served_by", sa.Text, nullable=False),
        sa.Column("input", sa.Text, nullable=False),
        sa.Column("input_digest", sa.String(64), nullable=False),
        sa.Column("completion", sa.Text, nullable=False),
        sa.Column("prompt_token_ids", sa.LargeBinary, nullable=False),
        sa.Column("completion_token_ids", sa.LargeBinary, nullable=False),
        sa.Column("completion_logprobs", sa.LargeBinary, nullable=False),
        sa.Column("sampling", sa.Text, nullable=False),
        sa.Column("finish_reason", sa.Text, nullable=False),
        sa.Column("template_hash", sa.Text, nullable=False),
        sa.Column("create_time_ns", sa.BigInteger, nullable=False),
        sa.Column("finish_time_ns", sa.BigInteger, nullable=False),
    )
    op.create_index("generations_by_group", "generations", ["group_id"])
    op.create_index("generations_by_episode", "generations", ["episode_id"])
    op.create_index("generations_by_task", "generations", ["task", "id"])
    op.create_index("generations_by_adapter", "generations", ["adapter", "version", "id"])
    op.create_index("generations_by_time", "generations", ["create_time_ns"])


def _create_feedback() -> None:
    op.create_table(
        "feedback",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("target_kind", sa.Text, nullable=False),
        sa.Column("target_id", sa.Text, nullable=False),
        sa.Column("prompt", sa.Text, nullable=False),
        sa.Column("group_id", sa.String(36), nullable=False),
        sa.Column("episode_id", sa.Text, nullable=False),
        sa.Column("task", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("value", sa.Text, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("author", sa.Text, nullable=False),
        sa.Column("comment", sa.Text, nullable=False),
        sa.Column("supersedes", sa.String(36), nullable=False),
        sa.Column("superseded_by", sa.String(36), nullable=False),
        sa.Column("statement", sa.String(64), nullable=False),
        sa.Column("request_id", sa.String(36)),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("create_time_ns", sa.BigInteger, nullable=False),
    )
    counts = sa.text("superseded_by = ''")
    op.create_index("feedback_by_request", "feedback", ["request_id"], unique=True)
    op.create_index(
        "feedback_by_statement",
        "feedback",
        ["statement"],
        unique=True,
        sqlite_where=counts,
        postgresql_where=counts,
    )
    op.create_index("feedback_by_target", "feedback", ["target_kind", "target_id"])
    op.create_index("feedback_by_group", "feedback", ["group_id"])
    op.create_index("feedback_by_episode", "feedback", ["episode_id"])
    op.create_index("feedback_by_author", "feedback", ["author"])
    op.create_index("feedback_by_task", "feedback", ["task", "id"])
    op.create_index("feedback_by_time", "feedback", ["create_time_ns"])
