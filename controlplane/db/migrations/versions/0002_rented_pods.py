"""Rented pods: what a pod says of its boot, its price and its restarts, and the books of what is rented"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

ASSET_KINDS = "image|video|lora|dataset|sample|checkpoint"
POD_COLUMNS = (
    ("provider", sa.String(length=32), "", "who rents it out, as runpod"),
    ("provider_id", sa.String(length=80), "", "its id there"),
    ("price_per_hour", sa.Float(), None, "US dollars"),
    ("boot", sa.JSON(), None, "{phase, detail, percent} while it is joining"),
    ("restarts", sa.Integer(), sa.text("0"), "of ComfyUI, by the agent"),
    ("restart_reason", sa.Text(), "", None),
    ("trainer_obstacles", sa.JSON(), "{}", "{trainer: why it cannot train}"),
)
"""Name, type, default of the rows that are there (None: may be null) and comment."""


def upgrade() -> None:
    """Go one step forward."""
    for name, kind, default, comment in POD_COLUMNS:
        column = sa.Column(name, kind, nullable=default is None, server_default=default, comment=comment)
        op.add_column("pods", column)
    op.create_table(
        "rentals",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("provider", sa.String(length=32), nullable=False),
        sa.Column("provider_id", sa.String(length=80), nullable=True, comment="null until the provider has answered"),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("gpu", sa.Text(), nullable=False),
        sa.Column("price_per_hour", sa.Float(), nullable=True, comment="US dollars"),
        sa.Column(
            "state", sa.String(length=16), nullable=False, comment="requested|booting|joined|ending|ended|failed"
        ),
        sa.Column("reason", sa.Text(), nullable=False, server_default=""),
        sa.Column("request", sa.JSON(), nullable=False, comment="what was asked of the provider"),
        sa.Column("pod_id", sa.String(length=40), nullable=True, comment="the pod that joined from it"),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("updated_at", sa.Float(), nullable=False),
        sa.Column("ended_at", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rentals")),
        sa.UniqueConstraint("provider", "provider_id", name=op.f("uq_rentals_provider_provider_id")),
    )
    op.create_index("ix_rentals_list", "rentals", ["project_id", "created_at"], unique=False)
    _comment_asset_kinds(f"{ASSET_KINDS}|state", ASSET_KINDS)


def downgrade() -> None:
    """Go back again."""
    _comment_asset_kinds(ASSET_KINDS, f"{ASSET_KINDS}|state")
    op.drop_index("ix_rentals_list", table_name="rentals")
    op.drop_table("rentals")
    for name, *_ in reversed(POD_COLUMNS):
        op.drop_column("pods", name)


def _comment_asset_kinds(comment: str, before: str) -> None:
    if op.get_context().dialect.supports_comments:  # SQLite has none
        op.alter_column(
            "assets",
            "kind",
            existing_type=sa.String(length=12),
            existing_nullable=False,
            existing_comment=before,
            comment=comment,
        )
