"""Migrations: they make exactly the tables that the code declares."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, inspect, text

from controlplane.db import pods
from controlplane.db.database import Database
from controlplane.db.migrate import config_of, migrate, upgrade
from controlplane.db.tables import metadata


def test_a_migrated_database_differs_in_nothing_from_the_declared_tables(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'new' / 'troupe.sqlite3'}"
    migrate(url)

    def differences(c: Connection) -> list[object]:
        options = {"compare_type": True, "include_object": comparable}
        return list(compare_metadata(MigrationContext.configure(c, opts=options), metadata))

    assert Database(url).read_sync(differences) == []


def comparable(_object: object, name: str | None, *_rest: object) -> bool:
    """Alembic cannot read a descending column back from SQLite; that index has a test of its own."""
    return name != "ix_jobs_queue"


def test_the_queues_index_is_migrated_as_it_is_declared(tmp_path: Path) -> None:
    migrated, declared = (Database(f"sqlite:///{tmp_path / name}") for name in ("migrated.sqlite3", "declared.sqlite3"))
    migrate(migrated.url)
    declared.write_sync(metadata.create_all)

    def index(c: Connection) -> list[object]:
        where = c.execute(text("SELECT sql FROM sqlite_master WHERE name = 'ix_jobs_queue'")).scalar_one()
        columns = c.execute(text("SELECT name, desc FROM pragma_index_xinfo('ix_jobs_queue') WHERE key")).all()
        return [where.split("WHERE")[1], *(tuple(column) for column in columns)]

    assert migrated.read_sync(index) == declared.read_sync(index)


def test_migrating_twice_keeps_what_is_there(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'troupe.sqlite3'}"
    migrate(url)
    insert = text("INSERT INTO projects (id, name, created_at) VALUES ('p', 'P', 1.0)")
    Database(url).write_sync(lambda c: c.execute(insert))
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


def test_a_database_of_the_first_step_keeps_its_pods_and_its_rows_say_nothing_of_rent(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'troupe.sqlite3'}")
    insert = text(
        "INSERT INTO pods (id, project_id, instance_id, name, kind, address, token, key_hash, state, gpu, vram_bytes, "
        "comfyui_version, protocol, node_pack_digest, node_classes, models, trainers, labels, loras, queue_length, "
        "draining, created_at, last_heartbeat_at) VALUES ('pod_1', 'default', 'instance-1', 'One', 'comfyui', "
        "'http://127.0.0.1:1', 'token', 'hash', 'ready', '', 0, '', 1, '', '[]', '{}', '[]', '[]', '[]', 0, 0, 1, 1)"
    )
    database.write_sync(lambda c: upgrade(c, "0001"))
    database.write_sync(lambda c: c.execute(insert))
    database.write_sync(upgrade)
    pod = database.read_sync(lambda c: pods.get(c, "default", "pod_1"))
    assert pod is not None
    assert (pod.name, pod.provider, pod.price_per_hour, pod.boot, pod.restarts, pod.trainer_obstacles) == (
        "One",
        "",
        None,
        None,
        0,
        {},
    )


def test_stepping_back_leaves_what_the_first_step_made(tmp_path: Path) -> None:
    first, back = (Database(f"sqlite:///{tmp_path / name}") for name in ("first.sqlite3", "back.sqlite3"))
    first.write_sync(lambda c: upgrade(c, "0001"))
    back.write_sync(upgrade)
    back.write_sync(lambda c: command.downgrade(config_of(c), "0001"))

    def columns(c: Connection) -> dict[str, set[str]]:
        seen = inspect(c)
        return {table: {column["name"] for column in seen.get_columns(table)} for table in seen.get_table_names()}

    assert back.read_sync(columns) == first.read_sync(columns)
