"""Pauses and answers: projects can be paused, and an Idempotency-Key keeps the first answer as it was sent"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

SINCE = "null while its work goes on"
HEADERS = "of the first answer, those with a meaning of their own"
ANSWER = "the first answer's JSON as it was sent; null until there is one"


def upgrade() -> None:
    """Go one step forward."""
    op.add_column("projects", sa.Column("paused_at", sa.Float(), nullable=True, comment=SINCE))
    op.add_column("projects", sa.Column("pause_reason", sa.Text(), nullable=False, server_default=""))
    op.add_column("idempotency_keys", sa.Column("headers", sa.JSON(), nullable=True, comment=HEADERS))
    op.add_column("idempotency_keys", sa.Column("answer", sa.Text(), nullable=True, comment=ANSWER))
    op.create_index("ix_idempotency_keys_age", "idempotency_keys", ["created_at"], unique=False)


def downgrade() -> None:
    """Go back again."""
    op.drop_index("ix_idempotency_keys_age", table_name="idempotency_keys")
    for table, column in (
        ("idempotency_keys", "answer"),
        ("idempotency_keys", "headers"),
        ("projects", "pause_reason"),
        ("projects", "paused_at"),
    ):
        op.drop_column(table, column)
