"""Lists at scale: an index for each way in which jobs, assets and pods are listed, counted and found"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

STORED = sa.text("status = 'stored'")
UNSETTLED = sa.text("status <> 'stored'")

BEFORE = {
    "ix_jobs_character": ("jobs", ["project_id", "character_id", "created_at"]),
    "ix_assets_list": ("assets", ["project_id", "created_at", "id"]),
    "ix_assets_character": ("assets", ["project_id", "character_id", "created_at"]),
}
AFTER = {
    "ix_characters_trigger": ("characters", ["project_id", "trigger_word"]),
    "ix_jobs_kind": ("jobs", ["project_id", "kind", "status", "created_at", "id"]),
    "ix_jobs_character": ("jobs", ["project_id", "character_id", "created_at", "id", "kind", "status"]),
    "ix_assets_list": ("assets", ["project_id", "kind", "created_at", "id"]),
    "ix_assets_character": ("assets", ["project_id", "character_id", "kind", "status", "created_at", "id"]),
    "ix_assets_favourite": ("assets", ["project_id", "created_at", "id"]),
    "ix_assets_unsettled": ("assets", ["status", "created_at"]),
    "ix_pods_state": ("pods", ["project_id", "state"]),
    "ix_pods_key": ("pods", ["key_hash"]),
}
SQLITE_WHERE = {
    "ix_assets_list": STORED,
    "ix_assets_favourite": sa.text("favourite = 1"),
    "ix_assets_unsettled": UNSETTLED,
}
POSTGRESQL_WHERE = {**SQLITE_WHERE, "ix_assets_favourite": sa.text("favourite")}


def upgrade() -> None:
    """Go one step forward."""
    for name, (table, _) in BEFORE.items():
        op.drop_index(name, table_name=table)
    for name, (table, columns) in AFTER.items():
        where, elsewhere = SQLITE_WHERE.get(name), POSTGRESQL_WHERE.get(name)
        op.create_index(name, table, columns, sqlite_where=where, postgresql_where=elsewhere)


def downgrade() -> None:
    """Go back again."""
    for name, (table, _) in AFTER.items():
        op.drop_index(name, table_name=table)
    for name, (table, columns) in BEFORE.items():
        op.create_index(name, table, columns)
