"""The share of the traffic that a canary gets: its row is written before the traffic is shared."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Canaries of earlier releases have their share already.
    op.add_column(
        "training_canaries", sa.Column("percent", sa.Integer, nullable=False, server_default="0")
    )
