"""Migrations: they make exactly the tables that the code declares."""

from __future__ import annotations

from pathlib import Path

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, text

from controlplane.db.database import Database
from controlplane.db.migrate import migrate
from controlplane.db.tables import metadata


def test_a_migrated_database_differs_in_nothing_from_the_declared_tables(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'new' / 'troupe.sqlite3'}"
    migrate(url)

    def differences(c: Connection) -> list[object]:
        return list(compare_metadata(MigrationContext.configure(c, opts={"compare_type": True}), metadata))

    assert Database(url).read_sync(differences) == []


def test_migrating_twice_keeps_what_is_there(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'troupe.sqlite3'}"
    migrate(url)
    Database(url).write_sync(lambda c: c.execute(text("INSERT INTO projects VALUES ('p', 'P', 1.0)")))
    migrate(url)
    assert Database(url).read_sync(lambda c: c.execute(text("SELECT count(*) FROM projects")).scalar()) == 2


def test_event_ids_are_never_used_again_after_a_deletion(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'troupe.sqlite3'}"
    migrate(url)
    insert = text("INSERT INTO events (project_id, type, data, created_at) VALUES ('p', 't', '{}', 0) RETURNING id")

    def twice(c: Connection) -> tuple[int, int]:
        first = c.execute(insert).scalar_one()
        c.execute(text("DELETE FROM events"))
        return first, c.execute(insert).scalar_one()

    assert Database(url).write_sync(twice) == (1, 2)
