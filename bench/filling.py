"""Filling a database with a past: copies of a real finished job with all that belongs to it, and characters.

Copies are made by the database itself, column by column of the tables as they are, so that a new column needs nothing
here. Ids are spread over their range as random ones are.
"""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Connection, Engine, Table, create_engine, text

from controlplane.db import tables

AT_ONCE = 50_000
SECONDS_APART = 0.25
# An odd factor makes each number below 2^32 another one below 2^32.
SPREAD = "(1000000000000 + (n.n * 2654435761) % 4294967296)"
CHARACTER = "'filled-' || CAST(1000000 + n.n % :characters AS TEXT)"
EMPTY = "{}"
"""An empty JSON object, which the two databases spell differently."""
NUMBERS = "WITH RECURSIVE n(n) AS (SELECT CAST(:first AS BIGINT) UNION ALL SELECT n + 1 FROM n WHERE n < :last)"


def fill_jobs(url: str, before: int, after: int, characters: int) -> None:
    """Copy the newest succeeded job until there are ``after`` copies where there were ``before``."""
    engine = create_engine(url)
    _tune(engine)
    with engine.connect() as connection:
        sample = connection.execute(
            text("SELECT id FROM jobs WHERE status = 'succeeded' ORDER BY created_at DESC LIMIT 1")
        ).scalar_one()
        for first in range(before, after, AT_ONCE):
            numbers = {"first": first, "last": min(first + AT_ONCE, after) - 1, "characters": max(characters, 1)}
            for table, changed in _JOB_TABLES:
                _copy(connection, table, changed, {**numbers, "sample": sample})
            connection.commit()
    _settle(engine)


def fill_characters(url: str, count: int) -> None:
    """Characters with one ready version each."""
    engine = create_engine(url)
    _tune(engine)
    in_postgresql = engine.dialect.name == "postgresql"
    with engine.connect() as connection:
        for first in range(0, count, AT_ONCE):
            numbers = {"first": first, "last": min(first + AT_ONCE, count) - 1, "characters": count}
            for table, values in _CHARACTER_TABLES:
                columns = ", ".join(values)
                chosen = ", ".join(values.values()).replace(EMPTY, "CAST('{}' AS JSON)" if in_postgresql else "'{}'")
                connection.execute(
                    text(f"INSERT INTO {table.name} ({columns}) {NUMBERS} SELECT {chosen} FROM n"), numbers
                )
            connection.commit()
    _settle(engine)


def _copy(connection: Connection, table: Table, changed: Mapping[str, str], values: Mapping[str, object]) -> None:
    names = [column.name for column in table.columns if changed.get(column.name) != ""]
    columns = ", ".join(f'"{name}"' for name in names)
    chosen = ", ".join(changed.get(name) or f't."{name}"' for name in names)
    owner = "id" if table is tables.jobs else "job_id"
    connection.execute(
        text(
            f"INSERT INTO {table.name} ({columns}) {NUMBERS} "
            f"SELECT {chosen} FROM n CROSS JOIN {table.name} t WHERE t.{owner} = :sample"
        ),
        dict(values),
    )


def _tune(engine: Engine) -> None:
    if engine.dialect.name == "sqlite":
        with engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA synchronous = OFF")


def _settle(engine: Engine) -> None:
    """What a database does by itself in the time that such a past takes."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("ANALYZE" if engine.dialect.name == "postgresql" else "PRAGMA optimize")
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    engine.dispose()


def _ago(column: str) -> str:
    return f"t.{column} - {SECONDS_APART} * (n.n + 1)"


_ID = f"CAST({SPREAD} AS TEXT)"
_TIMES = {name: _ago(name) for name in ("created_at", "started_at", "finished_at")}
_JOB_TABLES: tuple[tuple[Table, Mapping[str, str]], ...] = (
    (
        tables.attempts,
        {"id": f"'attempt-' || {_ID}", "job_id": f"'job_' || {_ID}", **_TIMES, "submitted_at": _ago("submitted_at")},
    ),
    (
        tables.assets,
        {
            "id": f"'asset_' || {_ID} || t.position", "job_id": f"'job_' || {_ID}",
            "attempt_id": f"'attempt-' || {_ID}",
            "key": f"'filled/' || {_ID} || '-' || t.position", "character_id": CHARACTER, "version": "1",
            "created_at": _ago("created_at"), "upload": "NULL",
        },
    ),
    # Their own ids grow by themselves.
    (
        tables.events,
        {"id": "", "job_id": f"'job_' || {_ID}", "character_id": CHARACTER, "created_at": _ago("created_at")},
    ),
    (tables.jobs, {"id": f"'job_' || {_ID}", "character_id": CHARACTER, "version": "1", **_TIMES}),
)  # fmt: skip
_WHEN = "1700000000.0 + n.n"
_CHARACTER_TABLES: tuple[tuple[Table, Mapping[str, str]], ...] = (
    (
        tables.characters,
        {
            "project_id": "'default'", "id": CHARACTER, "name": f"'Filled ' || {_ID}", "class_word": "'person'",
            "trigger_word": "'t' || CAST(1000000 + n.n AS TEXT)", "description": "''", "subject": "'fictional'",
            "base_model": "'bench'", "metadata": EMPTY, "active_version": "1", "created_at": _WHEN,
            "updated_at": _WHEN,
        },
    ),
    (
        tables.versions,
        {
            "project_id": "'default'", "character_id": CHARACTER, "number": "1", "status": "'ready'",
            "base_model": "'bench'", "recipe": "'none'", "recipe_digest": "'0'", "dataset_id": f"'dataset_' || {_ID}",
            "job_id": f"'job_train' || {_ID}", "lora_sha256": f"'{'0' * 40}' || {_ID}", "default_strength": "1.0",
            "created_at": _WHEN, "finished_at": _WHEN,
        },
    ),
)  # fmt: skip
