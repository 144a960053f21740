"""Long numbers: a pod may count its reports up to 2**53; SQLite could hold that before"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go one step forward."""
    _change(sa.BigInteger(), sa.Integer())


def downgrade() -> None:
    """Go back again."""
    _change(sa.Integer(), sa.BigInteger())


def _change(kind: sa.types.TypeEngine[int], before: sa.types.TypeEngine[int]) -> None:
    if op.get_context().dialect.name == "postgresql":
        op.alter_column("attempts", "progress_seq", existing_type=before, existing_nullable=False, type_=kind)
