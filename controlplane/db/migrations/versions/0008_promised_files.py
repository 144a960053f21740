"""Promised files: a pod names a file before it is stored, and an attempt has each such name once"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

WORDS = "the reference under which a pod promised it before it was stored"
PROMISED = sa.text("upload IS NOT NULL")


def upgrade() -> None:
    """Go one step forward."""
    op.add_column("assets", sa.Column("upload", sa.String(64), nullable=True, comment=WORDS))
    op.create_index(
        "uq_assets_upload",
        "assets",
        ["attempt_id", "upload"],
        unique=True,
        sqlite_where=PROMISED,
        postgresql_where=PROMISED,
    )


def downgrade() -> None:
    """Go back again."""
    op.drop_index("uq_assets_upload", table_name="assets")
    op.drop_column("assets", "upload")
