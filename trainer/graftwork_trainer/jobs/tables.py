"""The tables of jobs, policies and canaries, in the journal's database.

The migration that makes them is `journal/migrations/`'s; a test compares the two.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
)

metadata = MetaData()

jobs = Table(
    "training_jobs",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("adapter", String(63), nullable=False),
    Column("spec", Text, nullable=False),  # JSON of a TrainingJobSpec
    Column("state", String(16), nullable=False),
    Column("progress", Text, nullable=False),  # JSON of a Progress
    Column("message", Text, nullable=False),
    Column("version", String(96), nullable=False),
    Column("snapshot", String(80), nullable=False),
    Column("policy", String(63), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("crashes", Integer, nullable=False),
    Column("run_time_s", Float, nullable=False),
    Column("cancel_requested", Boolean, nullable=False),
    Column("create_time_ns", BigInteger, nullable=False),
    Column("start_time_ns", BigInteger, nullable=False),
    Column("end_time_ns", BigInteger, nullable=False),
    # What a repeated request is known by; NULL where the caller gave no request_id.
    Column("request_id", String(36), unique=True),
    Column("fingerprint", String(64)),
    # The server that runs it, or ran it last; another may take it once the lease has ended.
    Column("server", String(36), nullable=False),
    Column("lease_end_ns", BigInteger, nullable=False),
    Index("training_jobs_by_state", "state", "create_time_ns"),
    Index("training_jobs_by_adapter", "adapter", "create_time_ns"),
)

policies = Table(
    "training_policies",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("spec", Text, nullable=False),  # JSON of a TrainingJobSpec
    Column("min_new_feedback", Integer, nullable=False),
    Column("schedule", Text, nullable=False),
    Column("paused", Boolean, nullable=False),
    Column("create_time_ns", BigInteger, nullable=False),
    Column("last_job", String(36), nullable=False),
    Column("last_start_time_ns", BigInteger, nullable=False),
    Column("request_id", String(36), unique=True),
    Column("fingerprint", String(64)),
)

# Canaries that wait for feedback. A row is written before the traffic is shared, and goes when its
# canary is judged or ended otherwise.
canaries = Table(
    "training_canaries",
    metadata,
    Column("server", String(36), primary_key=True),  # whose adapter it is
    Column("adapter", String(63), primary_key=True),
    Column("version", BigInteger, nullable=False),
    Column("incumbent", BigInteger, nullable=False),
    Column("feedback", Integer, nullable=False),
    Column("tolerance", Float, nullable=False),
    Column("start_time_ns", BigInteger, nullable=False),
    Column("job_id", String(36), nullable=False),
    Column("percent", Integer, nullable=False),
)
