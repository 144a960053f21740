"""Lists at scale: every filter shows the right rows in the right order, and reads no row that it does not show."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, event, select, text

from controlplane.db import assets as asset_rows
from controlplane.db import characters as character_rows
from controlplane.db import counts
from controlplane.db import jobs as job_rows
from controlplane.db import pods as pod_rows
from controlplane.db.database import Database
from controlplane.db.migrate import migrate
from controlplane.db.tables import assets, jobs
from controlplane.domain.pages import Position
from controlplane.services.summaries import summaries_of
from tests.db.big import BEGAN, PROJECT, fill

JOBS, CHARACTERS = 600, 40
WHO = "character-000000"
SMALL = "ix_pods|ix_jobs_queue|ix_jobs_overdue|ix_jobs_lease|ix_assets_favourite|ix_assets_unsettled"
"""Indexes that hold pods, or only what is not over; they may be read whole."""
READ_WHOLE = re.compile(rf"^SCAN (jobs|assets|characters|attempts|events|pods|versions)\b(?!.* INDEX ({SMALL}))")
SORTED = "USE TEMP B-TREE FOR ORDER BY"


@pytest.fixture(scope="module")
def sqlite_db(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    url = f"sqlite:///{tmp_path_factory.mktemp('big') / 'db.sqlite3'}"
    migrate(url)
    db = Database(url)
    fill(db, JOBS, CHARACTERS)
    yield db
    db.engine.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def db(request: pytest.FixtureRequest) -> Iterator[Database]:
    if request.param == "sqlite":
        yield request.getfixturevalue("sqlite_db")
        return
    opened = Database(request.getfixturevalue("postgresql_url"))
    fill(opened, JOBS, CHARACTERS)
    yield opened
    opened.engine.dispose()


def all_jobs(db: Database, where: Callable[[Any], bool]) -> list[str]:
    rows = db.read_sync(lambda c: c.execute(select(jobs)).all())
    found = sorted((row for row in rows if where(row)), key=lambda row: (row.created_at, row.id), reverse=True)
    return [row.id for row in found]


def paged_jobs(db: Database, **filters: Any) -> list[str]:
    shown: list[str] = []
    before: Position | None = None
    while found := db.read_sync(lambda c, b=before: job_rows.page(c, PROJECT, 37, b, **filters)):
        shown += [one.id for one in found]
        before = Position(found[-1].created_at, found[-1].id)
    return shown


def test_every_filter_of_jobs_shows_the_right_ones_newest_first(db: Database) -> None:
    statuses: tuple[tuple[str, ...], ...] = ((), ("failed",), ("failed", "cancelled", "queued"))
    for character, kind, some in itertools.product((None, WHO), (None, "video"), statuses):
        wanted = all_jobs(
            db,
            lambda row, who=character, what=kind, states=some: (
                who in (None, row.character_id) and what in (None, row.kind) and (not states or row.status in states)
            ),
        )
        assert paged_jobs(db, character_id=character, kind=kind, statuses=some) == wanted


@pytest.mark.parametrize("filters", [{}, {"kind": "image"}, {"character_id": WHO}])
def test_a_span_of_time_begins_with_its_first_moment_and_ends_before_its_last(
    db: Database, filters: dict[str, Any]
) -> None:
    began, ended = BEGAN + 50.0, BEGAN + 150.0
    wanted = all_jobs(
        db,
        lambda row: began <= row.created_at < ended and all(getattr(row, name) == one for name, one in filters.items()),
    )
    assert paged_jobs(db, created_from=began, created_before=ended, **filters) == wanted


def test_every_filter_of_assets_shows_the_right_ones_newest_first(db: Database) -> None:
    rows = db.read_sync(lambda c: c.execute(select(assets)).all())
    rows = sorted(rows, key=lambda row: (row.created_at, row.id), reverse=True)
    some_job = next(row.job_id for row in rows if row.kind == "image")
    choices = {
        "character_id": (None, WHO),
        "kind": (None, "video", "lora"),
        "favourite": (None, True, False),
        "job_id": (None, some_job),
    }
    for values in itertools.product(*choices.values()):
        filters = {name: value for name, value in zip(choices, values, strict=True) if value is not None}
        listed = ("image", "video") if "kind" not in filters else (filters["kind"],)
        wanted = [
            row.id
            for row in rows
            if row.kind in listed and all(getattr(row, name) == value for name, value in filters.items())
        ]
        shown: list[str] = []
        after: Position | None = None
        while found := db.read_sync(asset_rows.page, PROJECT, filters, after, 37):
            shown += [one.id for one in found]
            after = Position(found[-1].created_at, found[-1].id)
        assert shown == wanted, filters


def test_a_characters_cover_is_its_newest_picture_and_of_one_moment_the_first(db: Database) -> None:
    def same_moment(c: Connection) -> None:
        row = c.execute(select(assets).where(assets.c.character_id == WHO, assets.c.kind == "image")).first()
        assert row is not None
        values = row._asdict() | {"created_at": BEGAN * 2}
        made = [values | {"id": f"new-{n}", "key": f"new-{n}", "position": n, "attempt_id": f"a{n}"} for n in (1, 0, 2)]
        c.execute(assets.insert(), made)

    db.write_sync(same_moment)
    covers = db.read_sync(asset_rows.newest_of, PROJECT, [WHO, "character-000001", "nobody"], "image")
    db.write_sync(lambda c: c.execute(assets.delete().where(assets.c.id.like("new-%"))))
    assert covers[WHO].id == "new-0"
    assert set(covers) <= {WHO, "character-000001"}


def test_the_last_job_of_each_character_is_its_newest(db: Database) -> None:
    ids = [f"character-{n:06d}" for n in range(CHARACTERS)]
    newest = db.read_sync(job_rows.latest_of_characters, PROJECT, ids)
    wanted = {who: found[0] for who in ids if (found := all_jobs(db, lambda row, who=who: row.character_id == who))}
    assert {who: one.id for who, one in newest.items()} == wanted


def test_trigger_words_are_looked_up(db: Database) -> None:
    def read(c: Connection) -> tuple[bool, bool]:
        taken = character_rows.triggers(c, PROJECT)
        return "w000001" in taken, "another" in taken

    assert db.read_sync(read) == (True, False)


def read_summaries(c: Connection) -> None:
    summaries_of(c, PROJECT, character_rows.page(c, PROJECT, None, 20))


PLACE = Position(BEGAN + 100.0, "job_1")
QUERIES: dict[str, Callable[[Connection], object]] = {
    "jobs": lambda c: job_rows.page(c, PROJECT, 21, PLACE),
    "jobs of a kind": lambda c: job_rows.page(c, PROJECT, 21, PLACE, kind="train"),
    "jobs of a status": lambda c: job_rows.page(c, PROJECT, 21, PLACE, statuses=("failed", "running")),
    "jobs of a kind and a status": lambda c: job_rows.page(c, PROJECT, 21, PLACE, kind="video", statuses=("failed",)),
    "jobs of a character": lambda c: job_rows.page(c, PROJECT, 21, PLACE, character_id=WHO),
    "failed jobs of a character": lambda c: job_rows.page(c, PROJECT, 21, None, WHO, "image", ("failed",)),
    "jobs of a time": lambda c: job_rows.page(c, PROJECT, 21, created_from=BEGAN, created_before=BEGAN + 9),
    "assets": lambda c: asset_rows.page(c, PROJECT, {}, PLACE, 21),
    "assets of a kind": lambda c: asset_rows.page(c, PROJECT, {"kind": "lora"}, PLACE, 21),
    "assets of a character": lambda c: asset_rows.page(c, PROJECT, {"character_id": WHO}, PLACE, 21),
    "favourites": lambda c: asset_rows.page(c, PROJECT, {"favourite": True}, PLACE, 21),
    "favourites of a character": lambda c: asset_rows.page(
        c, PROJECT, {"favourite": True, "character_id": WHO}, None, 9
    ),
    "characters": lambda c: character_rows.page(c, PROJECT, PLACE, 21),
    "summaries of characters": read_summaries,
    "covers": lambda c: asset_rows.newest_of(c, PROJECT, [WHO], "image"),
    "last jobs": lambda c: job_rows.latest_of_characters(c, PROJECT, [WHO]),
    "chosen covers, of which there are none": lambda c: asset_rows.of_ids(c, PROJECT, []),
    "a trigger word": lambda c: "w1" in character_rows.triggers(c, PROJECT),
    "what is to be deleted": lambda c: asset_rows.deleted(c, 100),
    "tickets of ended jobs": lambda c: asset_rows.abandon_pending(c, BEGAN),
    "assets of an attempt": lambda c: asset_rows.of_attempt(c, "prompt-1"),
    "a pod by its key": lambda c: pod_rows.by_key_hash(c, "0" * 64),
    "jobs at work": counts.open_jobs_by_status,
    "pods by state": counts.pods_by_state,
    "whether there is a pod": lambda c: counts.is_any_pod_known(c, PROJECT),
    "unfinished jobs of a character": lambda c: character_rows.unfinished_jobs(c, PROJECT, WHO),
}
QUERIES_THAT_SORT_A_FEW = {"assets of an attempt", "summaries of characters", "covers", "last jobs"}
"""What is sorted here are the rows of one attempt, or of the characters of one page."""


def plans(db: Database, run: Callable[[Connection], object]) -> list[str]:
    """How SQLite goes about every statement of a function."""
    said: list[str] = []
    asked: list[tuple[str, Any]] = []

    def note(_c: object, _cursor: object, statement: str, parameters: Any, *_rest: object) -> None:
        asked.append((statement, parameters))

    event.listen(db.engine, "before_cursor_execute", note)
    try:
        db.read_sync(run)
    finally:
        event.remove(db.engine, "before_cursor_execute", note)
    with db.engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        for statement, parameters in asked:
            if statement != "BEGIN":
                said += [row[3] for row in driver.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)]
    return said


@pytest.mark.parametrize("name", QUERIES)
def test_no_list_reads_a_table_from_end_to_end(sqlite_db: Database, name: str) -> None:
    steps = plans(sqlite_db, QUERIES[name])
    assert [step for step in steps if READ_WHOLE.match(step)] == []
    if name not in QUERIES_THAT_SORT_A_FEW:
        assert [step for step in steps if SORTED in step] == []


@pytest.mark.parametrize("name", ["covers", "last jobs"])
def test_what_is_newest_of_a_character_is_looked_up_for_each_character(sqlite_db: Database, name: str) -> None:
    assert plans(sqlite_db, QUERIES[name])[0].startswith("SEARCH characters")


def test_the_check_finds_a_table_that_is_read_from_end_to_end(sqlite_db: Database) -> None:
    steps = plans(sqlite_db, lambda c: c.execute(text("SELECT id FROM jobs WHERE template = 'x' ORDER BY seed")).all())
    assert READ_WHOLE.match(steps[0])
    assert any(SORTED in step for step in steps)


def test_a_page_of_characters_takes_the_same_number_of_statements_whatever_its_length(sqlite_db: Database) -> None:
    def statements(limit: int) -> int:
        asked: list[str] = []
        event.listen(sqlite_db.engine, "before_cursor_execute", lambda *told: asked.append(told[2]))
        sqlite_db.read_sync(lambda c: summaries_of(c, PROJECT, character_rows.page(c, PROJECT, None, limit)))
        return len(asked)

    assert statements(2) == statements(30)


def test_a_database_file_is_where_the_generator_was_told(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'small.sqlite3'}"
    migrate(url)
    db = Database(url)
    fill(db, 7, 2)
    assert db.read_sync(lambda c: c.execute(text("SELECT count(*) FROM jobs")).scalar()) == 7
