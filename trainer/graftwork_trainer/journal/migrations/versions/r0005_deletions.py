"""What was ever deleted by request: data sets that were made of it follow, after a crash, too."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table("deleted_items", sa.Column("item_id", sa.String(36), primary_key=True))
