"""The installation: an id made with the database, so that every replica has the same; also the lock of the books"""

from __future__ import annotations

import secrets
import string

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

ALPHABET = string.ascii_lowercase + string.digits


def upgrade() -> None:
    """Go one step forward."""
    table = op.create_table(
        "installation",
        sa.Column("id", sa.String(length=20), nullable=False, comment="in the names of the pods it rents"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_installation")),
    )
    op.bulk_insert(table, [{"id": "".join(secrets.choice(ALPHABET) for _ in range(12))}])


def downgrade() -> None:
    """Go back again."""
    op.drop_table("installation")
