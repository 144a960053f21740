"""Alembic's entry: runs the steps on the connection that ``controlplane.db.migrate`` hands over."""

from __future__ import annotations

from alembic import context

from controlplane.db.tables import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata, compare_type=True)
context.run_migrations()
