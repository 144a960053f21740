"""Claiming: many at a time, in turns, from an index alone, and never two on one place of a pod."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import Connection, event, insert, text

from controlplane.db import attempts as attempt_rows
from controlplane.db import jobs as job_rows
from controlplane.db import projects as project_rows
from controlplane.db.database import Database
from controlplane.db.tables import jobs, projects
from controlplane.domain.pods import SLOTS, Pod
from controlplane.services.claiming import Claimed, Claimer, occupied
from controlplane.services.fleet import Fleet
from tests.services.engine import JOIN_TOKEN, PROJECT, Engine, engine

pytestmark = pytest.mark.usefixtures("each_database")
ONLY_ON_SQLITE = pytest.mark.parametrize("each_database", ["sqlite"], indirect=True)
MANY = 100_000


async def pod(room: Engine, number: int = 1, **values: object) -> Pod:
    body = {
        "protocol": 1,
        "instance_id": f"instance-{number}",
        "address": f"http://127.0.0.1:{9000 + number}",
        "token": "pod token",
        "kind": "comfyui",
        "node_classes": ["Replay"],
        **values,
    }
    made, _ = await room.pods.register(body, JOIN_TOKEN)
    return made


def places(claimed: Sequence[Claimed]) -> list[tuple[str, int]]:
    return sorted((one.attempt.pod_id, one.attempt.slot) for one in claimed if one.attempt)


async def add_project(room: Engine, name: str) -> None:
    await room.db.write(lambda c: c.execute(insert(projects).values(id=name, name=name, created_at=0.0)))


async def test_a_pass_claims_as_many_jobs_as_there_are_places(room: Engine) -> None:
    pods = [await pod(room, number) for number in range(3)]
    for _ in range(9):
        await room.submit(estimate_seconds=10.0)
    claimed = await room.claim()
    assert places(claimed) == sorted((one.id, slot) for one in pods for slot in (0, 1))


async def test_every_claim_is_written_with_its_attempt(room: Engine) -> None:
    await pod(room)
    await room.submit()
    (claimed,) = await room.claim()
    view = await room.view(claimed.job)
    stored = replace(view.job, progress=claimed.job.progress)  # how long it will take is worked out when it is read
    assert (stored, view.attempts) == (claimed.job, (claimed.attempt,))


async def test_a_pass_over_many_jobs_is_a_few_statements_in_two_transactions(room: Engine) -> None:
    for number in range(20):
        await pod(room, number)
        await room.submit(estimate_seconds=60.0)
    statements: list[str] = []
    await room.fleet.refresh(at_once=True)
    claimer = Claimer(room.fleet, "owner", lambda pod: "client", "switch_cost", 60.0)
    event.listen(room.db.engine, "before_cursor_execute", lambda *told: statements.append(told[2]))
    now = room.clock.now()
    chosen = claimer.choose(await room.db.read(claimer.candidates, now), now)
    claimed = await room.db.write(claimer.take, chosen, now + 60.0, now)
    told = [one for one in statements if not one.startswith(("BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE"))]
    assert (len(claimed), len(told) <= 8) == (20, True)


async def test_two_processes_that_race_for_all_places_never_take_one_twice(room: Engine) -> None:
    for number in range(4):
        await pod(room, number)
    for _ in range(60):
        await room.submit(estimate_seconds=0.05)
    both = await asyncio.gather(*(room.claim(f"process {number}") for number in range(2)))
    taken = places([*both[0], *both[1]])
    assert len(taken) == len(set(taken)) == 4 * SLOTS


async def test_a_place_that_another_process_took_costs_only_that_job_its_turn(room: Engine) -> None:
    one, other = await pod(room, 1), await pod(room, 2)
    stale = Fleet(room.db, room.clock, room.hints, room.settings)
    await stale.refresh(at_once=True)
    first = await room.submit(needs={"nodes": ["Replay"], "labels": []}, estimate_seconds=60.0)
    await room.claim("quicker")
    for _ in range(2):
        await room.submit(estimate_seconds=60.0)
    claimer = Claimer(stale, "slower", lambda pod: "client", "switch_cost", 60.0)
    now = room.clock.now()
    chosen = claimer.choose(await room.db.read(claimer.candidates, now), now)
    claimed = await room.db.write(claimer.take, chosen, now + 60.0, now)
    (taken,) = (await room.view(first)).attempts
    free = other if taken.pod_id == one.id else one
    assert (len(chosen), places(claimed)) == (2, [(free.id, 0)])


async def test_a_pod_that_registered_again_since_we_looked_gets_nothing_yet(room: Engine) -> None:
    await pod(room)
    seen = Fleet(room.db, room.clock, room.hints, room.settings)
    await seen.refresh(at_once=True)
    await pod(room, address="http://127.0.0.1:9999")
    await room.submit()
    claimer = Claimer(seen, "owner", lambda pod: "client", "switch_cost", 60.0)
    now = room.clock.now()
    chosen = claimer.choose(await room.db.read(claimer.candidates, now), now)
    assert (len(chosen), await room.db.write(claimer.take, chosen, now + 60.0, now)) == (1, [])


async def test_a_process_that_knows_of_more_work_than_another_learns_of_its_places(room: Engine) -> None:
    await pod(room)
    for _ in range(2):
        await room.submit(estimate_seconds=60.0)
    await room.claim("one")
    assert await room.claim("other") == []


async def test_a_paused_project_gets_nothing_and_another_one_does(room: Engine) -> None:
    await pod(room)
    await add_project(room, "other")
    await room.submit()
    await room.submit(project_id="other")
    await room.db.write(project_rows.set_pause, PROJECT, room.clock.now(), "lunch")
    assert [one.job.project_id for one in await room.claim()] == ["other"]


async def test_a_flood_of_one_project_leaves_another_its_turn(room: Engine) -> None:
    for number in range(4):
        await pod(room, number)
    await add_project(room, "small")
    for _ in range(300):
        await room.submit(estimate_seconds=60.0)
    await room.submit(project_id="small", estimate_seconds=60.0)
    assert Counter(one.job.project_id for one in await room.claim()) == {PROJECT: 3, "small": 1}


async def test_thousands_of_jobs_that_nothing_can_do_do_not_hide_one_that_a_pod_waits_for(room: Engine) -> None:
    await pod(room)
    for _ in range(200):
        await room.submit(needs={"nodes": ["TrainLoRA"]}, priority=9)
    wanted = await room.submit()
    assert [one.job.id for one in await room.claim()] == [wanted.id]


async def test_lanes_beyond_those_of_one_pass_have_their_turn_in_the_next_ones(
    room: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controlplane.services.claiming.LANES_PER_PASS", 3)
    await pod(room)
    for number in range(8):
        await room.submit(needs={"nodes": [f"Nothing{number}"]})
    wanted = await room.submit()
    await room.fleet.refresh(at_once=True)
    claimer = Claimer(room.fleet, "owner", lambda pod: "client", "switch_cost", 60.0)
    found = [job.id for _ in range(4) for job in await room.db.read(claimer.candidates, room.clock.now())]
    assert wanted.id in found


async def test_a_retry_waits_for_its_time(room: Engine) -> None:
    await pod(room)
    job = await room.submit()
    later = text("UPDATE jobs SET not_before = :later WHERE id = :id")
    await room.db.write(lambda c: c.execute(later, {"later": room.clock.now() + 60, "id": job.id}))
    assert await room.claim() == []


async def test_jobs_whose_owner_fell_silent_are_taken_over_together_with_their_attempts(room: Engine) -> None:
    for number in range(3):
        await pod(room, number)
        await room.submit(estimate_seconds=60.0)
    first = await room.claim("dead", lease_seconds=-1.0)
    claimer = Claimer(room.fleet, "heir", lambda pod: "client", "switch_cost", 60.0)
    now = room.clock.now()
    taken = await room.db.write(claimer.take_over, now + 60.0, now, frozenset())
    kept = {one.job.id: one.attempt.id for one in first if one.attempt}
    assert {one.job.id: one.attempt.id for one in taken if one.attempt} == kept
    assert {(one.job.claim_no, one.resumed, one.pod is not None) for one in taken} == {(2, True, True)}


async def test_what_a_process_still_works_on_it_does_not_take_from_itself(room: Engine) -> None:
    await pod(room)
    await room.submit()
    (mine,) = await room.claim("me", lease_seconds=-1.0)
    now = room.clock.now()
    assert await room.db.write(job_rows.take_over, "me", now + 60.0, now, {mine.job.id}) == []


async def test_a_pod_with_work_in_hand_is_shown_as_busy(room: Engine) -> None:
    await pod(room)
    before = [one.state for one in await room.pods.list(PROJECT)]
    await room.submit()
    await room.claim()
    assert (before, [one.state for one in await room.pods.list(PROJECT)]) == (["ready"], ["busy"])


async def test_plain_round_robin_can_be_chosen(tmp_path: Path) -> None:
    async with engine(tmp_path, placement="round_robin") as room:
        both = {(await pod(room, number)).id for number in (1, 2)}
        await room.submit(base_model="base", estimate_seconds=60.0)
        (first,) = await room.claim(fleet=room.fleet)
        assert first.attempt is not None
        over = {"status": "succeeded"}
        await room.db.write(lambda c: attempt_rows.change(c, PROJECT, first.attempt.id, **over))  # type: ignore[union-attr]
        room.fleet.ended(first.attempt.id)
        await room.submit(base_model="base", estimate_seconds=60.0)
        (second,) = await room.claim(fleet=room.fleet)
        assert second.attempt is not None
        assert {first.attempt.pod_id, second.attempt.pod_id} == both


# -- what a pass costs -------------------------------------------------------------------------------------------------


async def filled(room: Engine, queued: int, finished: int) -> None:
    """A queue and a past, copied row by row from one real job."""
    job = await room.submit()

    def fill(c: Connection) -> None:
        columns = ", ".join(f'"{column.name}"' for column in jobs.columns)
        kept = columns.replace('"id"', "'job_' || n").replace('"created_at"', "created_at - n / 1000.0")
        for status, count, first in (("queued", queued, 0), ("succeeded", finished, queued)):
            values = kept.replace('"status"', f"'{status}'")
            series = "WITH RECURSIVE s(n) AS (SELECT :a UNION ALL SELECT n + 1 FROM s WHERE n + 1 < :b)"
            copy = f"INSERT INTO jobs ({columns}) {series} SELECT {values} FROM jobs, s WHERE jobs.id = :id"
            if c.dialect.name == "sqlite":
                copy = f"{series} INSERT INTO jobs ({columns}) SELECT {values} FROM jobs, s WHERE jobs.id = :id"
            c.execute(text(copy), {"a": first, "b": first + count, "id": job.id})

    await room.db.write(fill)


def plans(db: Database, statements: Sequence[tuple[str, object]]) -> list[str]:
    """SQLite's plan of each statement, one line for each."""

    def explain(c: Connection) -> list[str]:
        told = []
        for statement, parameters in statements:
            steps = c.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)  # type: ignore[arg-type]
            told.append("; ".join(str(step[3]) for step in steps))
        return told

    return db.read_sync(explain)


@ONLY_ON_SQLITE
async def test_no_statement_of_claiming_scans_a_table(room: Engine) -> None:
    await filled(room, MANY // 2, MANY // 2)
    await pod(room)
    asked: list[tuple[str, object]] = []
    event.listen(room.db.engine, "before_cursor_execute", lambda *told: asked.append((told[2], told[3])))
    await room.fleet.refresh(at_once=True)
    claimer = Claimer(room.fleet, "owner", lambda pod: "client", "switch_cost", 60.0)
    now = room.clock.now()
    chosen = claimer.choose(await room.db.read(claimer.candidates, now), now)
    claimed = await room.db.write(claimer.take, chosen, now + 60.0, now)
    room.fleet.gave(occupied(claimed, chosen))
    await room.db.write(claimer.take_over, now + 3600.0, now + 3000.0, frozenset())
    await room.db.read(job_rows.overdue, now, 50)
    await room.db.read(attempt_rows.live)
    mine = [(one, with_) for one, with_ in asked if one.lstrip().startswith(("SELECT", "WITH", "UPDATE"))]
    told = [plan for plan in plans(room.db, mine) if "SCAN jobs" in plan or "SCAN attempts" in plan]
    assert (len(claimed) > 0, told) == (True, [])


@ONLY_ON_SQLITE
async def test_candidates_are_read_from_an_index_alone(room: Engine) -> None:
    await filled(room, 1000, 1000)
    await pod(room)
    asked: list[tuple[str, object]] = []
    await room.fleet.refresh(at_once=True)
    claimer = Claimer(room.fleet, "owner", lambda pod: "client", "switch_cost", 60.0)
    event.listen(room.db.engine, "before_cursor_execute", lambda *told: asked.append((told[2], told[3])))
    await room.db.read(claimer.candidates, room.clock.now())
    (plan,) = plans(room.db, [one for one in asked if "jobs.claim_no" in one[0]])
    assert "USING COVERING INDEX ix_jobs_queue" in plan
