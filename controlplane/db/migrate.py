"""Migrations: brings a database's tables to the state that this code expects."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, func, make_url, select
from sqlalchemy.exc import OperationalError

from controlplane.db.database import Database
from controlplane.errors import DatabaseAway, TroupeError

MIGRATIONS = Path(__file__).resolve().parent / "migrations"
_LOCK = 0x74726F76  # any fixed number


def migrate(url: str) -> None:
    """Create or upgrade the tables at ``url`` (SQLAlchemy form), all steps in one transaction.

    Processes that start at the same time wait for each other; the later ones find nothing left to do. TroupeError
    where the database does not answer.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite" and parsed.database:
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    database = Database(url)
    try:
        database.write_sync(upgrade)
    except (OperationalError, DatabaseAway) as error:
        told = error.orig if isinstance(error, OperationalError) else error
        raise TroupeError(f"The database cannot be used: {told}") from error
    finally:
        database.engine.dispose()


def upgrade(c: Connection, revision: str = "head") -> None:
    """Run the missing steps, up to ``revision``, on an open transaction."""
    if c.dialect.name == "postgresql":
        # The one who waits for the lock, or rewrites a large table, may take longer than any other statement.
        for limit in ("statement_timeout", "lock_timeout"):
            c.execute(select(func.set_config(limit, "0", True)))
        c.execute(select(func.pg_advisory_xact_lock(_LOCK)))
    command.upgrade(config_of(c), revision)


def config_of(c: Connection) -> Config:
    """Alembic's settings for an open transaction."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = c
    return config
