"""The journal's tables, as SQLAlchemy Core sees them; `migrations/` makes them.

Times are Unix nanoseconds. Texts that callers choose freely are inside JSON, which escapes the null
character that PostgreSQL's texts cannot hold. Token ids are packed little-endian int32,
log-probabilities float32.
"""

import sqlalchemy as sa

metadata = sa.MetaData()

_Id = sa.String(36)  # a UUID in its canonical form, or ""
_Blob = sa.LargeBinary

generations = sa.Table(
    "generations",
    metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("group_id", _Id, nullable=False),
    sa.Column("episode_id", sa.Text, nullable=False),
    sa.Column("task", sa.Text, nullable=False),
    sa.Column("origin", sa.Text, nullable=False),
    sa.Column("adapter", sa.Text, nullable=False),  # "" for the base and for several
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("is_composed", sa.Boolean, nullable=False),  # adapters combined or scaled
    sa.Column("served_by", sa.Text, nullable=False),  # JSON
    sa.Column("input", sa.Text, nullable=False),  # JSON
    sa.Column("input_digest", sa.String(64), nullable=False),  # SHA-256 of `input`
    sa.Column("completion", sa.Text, nullable=False),  # JSON
    sa.Column("prompt_token_ids", _Blob, nullable=False),
    sa.Column("completion_token_ids", _Blob, nullable=False),
    sa.Column("completion_logprobs", _Blob, nullable=False),
    sa.Column("sampling", sa.Text, nullable=False),  # JSON
    sa.Column("finish_reason", sa.Text, nullable=False),
    sa.Column("template_hash", sa.Text, nullable=False),
    sa.Column("create_time_ns", sa.BigInteger, nullable=False),
    sa.Column("finish_time_ns", sa.BigInteger, nullable=False),
    sa.Index("generations_by_group", "group_id"),
    sa.Index("generations_by_episode", "episode_id"),
    sa.Index("generations_by_task", "task", "id"),
    sa.Index("generations_by_adapter", "adapter", "version", "id"),
    sa.Index("generations_by_time", "create_time_ns"),
)

feedback = sa.Table(
    "feedback",
    metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("target_kind", sa.Text, nullable=False),
    # The id of the generation, group or episode; a digest of an inline prompt with its task.
    sa.Column("target_id", sa.Text, nullable=False),
    sa.Column("prompt", sa.Text, nullable=False),  # JSON of the inline prompt, else ""
    sa.Column("group_id", _Id, nullable=False),
    sa.Column("episode_id", sa.Text, nullable=False),
    sa.Column("task", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("value", sa.Text, nullable=False),  # JSON
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("author", sa.Text, nullable=False),
    sa.Column("comment", sa.Text, nullable=False),
    sa.Column("supersedes", _Id, nullable=False),
    sa.Column("superseded_by", _Id, nullable=False),
    # What one author may say but once without superseding it: evidence.py.
    sa.Column("statement", sa.String(64), nullable=False),
    sa.Column("request_id", _Id),  # the caller's, for repeated requests
    sa.Column("fingerprint", sa.String(64), nullable=False),
    sa.Column("create_time_ns", sa.BigInteger, nullable=False),
    sa.Index("feedback_by_request", "request_id", unique=True),
    sa.Index(
        "feedback_by_statement",
        "statement",
        unique=True,
        sqlite_where=sa.text("superseded_by = ''"),
        postgresql_where=sa.text("superseded_by = ''"),
    ),
    sa.Index("feedback_by_target", "target_kind", "target_id"),
    sa.Index("feedback_by_group", "group_id"),
    sa.Index("feedback_by_episode", "episode_id"),
    sa.Index("feedback_by_author", "author"),
    sa.Index("feedback_by_task", "task", "id"),
    sa.Index("feedback_by_time", "create_time_ns"),
)

# The generations that feedback speaks of: its target, and the answers that it compares.
feedback_generations = sa.Table(
    "feedback_generations",
    metadata,
    sa.Column("generation_id", _Id, primary_key=True),
    sa.Column("feedback_id", _Id, primary_key=True),
    sa.Index("feedback_generations_by_feedback", "feedback_id"),
)

# Generations and feedback that were deleted by request, so that data sets made of them follow.
deleted_items = sa.Table(
    "deleted_items",
    metadata,
    sa.Column("item_id", _Id, primary_key=True),
)

# What adapter versions were trained on. Rows outlive what they name, so that a deletion by id after
# the retention still tells the versions.
trained_on = sa.Table(
    "trained_on",
    metadata,
    sa.Column("item_id", _Id, primary_key=True),  # of a generation or of feedback
    sa.Column("version", sa.String(96), primary_key=True),  # "name@version"
)
