"""Webhooks and their deliveries; up to where the event log was cut off"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

LONG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
WAITING = sa.text("state = 'waiting'")
INSTALLATION = (
    ("webhooks", sa.String(length=16), "", "version of the set; empty: never any"),
    ("events_dropped_to", LONG, sa.text("0"), "the log is cut off up to it"),
    ("progress_dropped_to", LONG, sa.text("0"), None),
)


def upgrade() -> None:
    """Go one step forward."""
    for name, kind, default, comment in INSTALLATION:
        column = sa.Column(name, kind, nullable=False, server_default=default, comment=comment)
        op.add_column("installation", column)
    op.create_table(
        "webhooks",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("types", sa.JSON(), nullable=False, comment="[type of event]"),
        sa.Column("description", sa.Text(), nullable=False, server_default=""),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("disabled_reason", sa.Text(), nullable=False, server_default=""),
        sa.Column("secret", sa.Text(), nullable=False, comment="what signs; shown once"),
        sa.Column("previous_secret", sa.Text(), nullable=True, comment="signs as well until previous_until"),
        sa.Column("previous_until", sa.Float(), nullable=True),
        sa.Column("failing_since", sa.Float(), nullable=True, comment="null while the last attempt went well"),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("updated_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhooks")),
    )
    op.create_index("ix_webhooks_project", "webhooks", ["project_id", "created_at"], unique=False)
    _create_deliveries()


def _create_deliveries() -> None:
    table = "webhook_deliveries"
    op.create_table(
        table,
        sa.Column("id", sa.String(length=40), nullable=False, comment="the webhook-id of every try"),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("webhook_id", sa.String(length=40), nullable=False),
        sa.Column("event_id", LONG, nullable=True, comment="null for a test"),
        sa.Column("type", sa.String(length=40), nullable=False),
        sa.Column("state", sa.String(length=12), nullable=False, comment="waiting | delivered | failed"),
        sa.Column(
            "body", sa.Text(), nullable=True, comment="what is sent, the same at every try; null before the first"
        ),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.Column("claim_no", sa.Integer(), nullable=False),
        sa.Column(
            "next_at", sa.Float(), nullable=False, comment="while somebody tries: when that attempt counts as lost"
        ),
        sa.Column("attempts", sa.JSON(), nullable=False, comment="[{at, status, seconds, error, answer}]"),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("finished_at", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhook_deliveries")),
        sa.UniqueConstraint("webhook_id", "event_id", name=op.f("uq_webhook_deliveries_webhook_id_event_id")),
    )
    op.create_index(
        "ix_webhook_deliveries_due", table, ["next_at", "webhook_id"], unique=False,
        sqlite_where=WAITING, postgresql_where=WAITING,
    )  # fmt: skip
    op.create_index("ix_webhook_deliveries_list", table, ["webhook_id", "created_at", "id"], unique=False)
    op.create_index("ix_webhook_deliveries_age", table, ["created_at"], unique=False)


def downgrade() -> None:
    """Go back again."""
    op.drop_table("webhook_deliveries")
    op.drop_table("webhooks")
    for name, *_ in reversed(INSTALLATION):
        op.drop_column("installation", name)
