"""The audit of a chaos run: everything counted anew from outside, once the last job has ended and the sweep has run."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from PIL import Image
from sqlalchemy import create_engine, text

from tests.chaos.clients import FINAL_EVENTS, Ledger
from tests.chaos.nodes import colour_of
from tests.chaos.receivers import TYPES, Receivers
from tests.chaos.world import World

TABLES = ("jobs", "attempts", "assets", "events", "idempotency_keys", "webhook_deliveries")
FINAL = frozenset(FINAL_EVENTS.values())
LIVE = frozenset({"created", "submitted", "running"})
MOST_ATTEMPTS = 3
PROGRESS = "job.progress"
READERS = 8

Row = Mapping[str, Any]


@dataclass
class Findings:
    """What was counted, and everything that is not as it was promised."""

    counts: dict[str, int] = field(default_factory=dict)
    violations: dict[str, list[str]] = field(default_factory=dict)
    notes: Counter[str] = field(default_factory=Counter)
    """Why jobs failed or were tried again, and how often."""

    def wrong(self, what: str, detail: str) -> None:
        self.violations.setdefault(what, []).append(detail)


@dataclass
class Books:
    """The database's rows, by table."""

    jobs: list[Row]
    attempts: list[Row]
    assets: list[Row]
    events: list[Row]
    keys: list[Row]
    deliveries: list[Row]

    @classmethod
    def read(cls, url: str) -> Books:
        engine = create_engine(url)
        try:
            with engine.connect() as c:
                return cls(
                    *([dict(row) for row in c.execute(text(f"SELECT * FROM {table}")).mappings()] for table in TABLES)
                )
        finally:
            engine.dispose()


async def audited(world: World, ledger: Ledger, receivers: Receivers) -> Findings:
    """Hold the servers to what the clients were promised."""
    found, books = Findings(), await asyncio.to_thread(Books.read, world.database_url)
    _check_answers(found, books, ledger)
    _check_ends(found, books)
    _check_attempts(found, books)
    _check_streams(found, books, ledger)
    _check_assets(found, books, ledger)
    _check_store(found, books, world)
    _check_runs(found, books, world)
    _check_webhooks(found, books, receivers)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as session:
        await _check_api(found, books, ledger, world, session)
    return found


def _check_answers(found: Findings, books: Books, ledger: Ledger) -> None:
    """Every key one job, every job one key, every repeated answer the first one."""
    known = {job["id"] for job in books.jobs}
    for key, answers in ledger.answers.items():
        jobs = {answer.job_id for answer in answers}
        if len(jobs) > 1:
            found.wrong("one key, several jobs", f"{key}: {sorted(jobs)}")
        if missing := jobs - known:
            found.wrong("accepted and gone", f"{key}: {sorted(missing)}")
        bodies = {(answer.status, answer.body) for answer in answers}
        if len(bodies) > 1:
            found.wrong("one key, several answers", f"{key}: {[(one[0], one[1][:200]) for one in bodies]}")
    promised = {answer.job_id for answers in ledger.answers.values() for answer in answers}
    if strangers := known - promised:
        found.wrong("jobs that nobody was promised", ", ".join(sorted(strangers)))
    if len(books.keys) != len(ledger.answers):
        found.wrong("keys kept", f"{len(books.keys)} rows for {len(ledger.answers)} keys")
    for one in ledger.refused:
        found.wrong("refused without a reason", one)
    for one in ledger.unanswered:
        found.wrong("never answered", one)
    found.counts["requests sent"] = ledger.tries
    found.counts["accepted keys"] = len(ledger.answers)
    found.counts["answers replayed"] = sum(one.replayed for answers in ledger.answers.values() for one in answers)
    found.counts["jobs"] = len(books.jobs)


def _check_ends(found: Findings, books: Books) -> None:
    """One final state, and one event that says so, the last of its job."""
    told = defaultdict(list)
    for event in sorted(books.events, key=lambda one: one["id"]):
        if event["job_id"] is not None:
            told[event["job_id"]].append(event["type"])
    for job in books.jobs:
        ends = [kind for kind in told[job["id"]] if kind in FINAL_EVENTS]
        if job["status"] not in FINAL:
            found.wrong("not final", f"{job['id']} is {job['status']}: {job['placement']}")
        elif len(ends) != 1:
            found.wrong("final events", f"{job['id']} ({job['status']}): {told[job['id']]}")
        elif FINAL_EVENTS[ends[0]] != job["status"]:
            found.wrong("final event and state differ", f"{job['id']} ({job['status']}): {ends}")
        elif told[job["id"]][-1] != ends[0] and job["kind"] != "train":
            found.wrong("events after the end", f"{job['id']}: {told[job['id']]}")
        if job["status"] == "failed":
            found.notes[f"failed: {_loaded(job['error'] or '{}').get('code')}"] += 1
    for status in sorted(FINAL):
        found.counts[status] = sum(job["status"] == status for job in books.jobs)


def _check_attempts(found: Findings, books: Books) -> None:
    """At most three, each ended, each failed one with its story, one winner where the job has won."""
    by_job = defaultdict(list)
    for attempt in books.attempts:
        by_job[attempt["job_id"]].append(attempt)
    for job in books.jobs:
        attempts = by_job[job["id"]]
        if len(attempts) > MOST_ATTEMPTS:
            found.wrong("too many attempts", f"{job['id']}: {len(attempts)}")
        if job["status"] in FINAL and any(one["status"] in LIVE for one in attempts):
            found.wrong("attempts without an end", f"{job['id']} ({job['status']}): {_stories(attempts)}")
        winners = sum(one["status"] == "succeeded" for one in attempts)
        if winners != (job["status"] == "succeeded"):
            found.wrong("winners", f"{job['id']} ({job['status']}): {_stories(attempts)}")
        for one in attempts:
            if one["status"] in ("failed", "lost"):
                error = _loaded(one["error"] or "{}")
                found.notes[f"attempt {one['status']}: {error.get('code')}"] += 1
                if not error.get("detail"):
                    found.wrong("attempts without a story", f"{job['id']}: {_stories(attempts)}")
    found.counts["attempts"] = len(books.attempts)
    found.counts["claims"] = sum(job["claim_no"] for job in books.jobs)


def _check_streams(found: Findings, books: Books, ledger: Ledger) -> None:
    """Every reader got every event once, in order, over all breaks; progress may be out of the books by now."""
    events = [(one["id"], one["type"], one["job_id"]) for one in sorted(books.events, key=lambda one: one["id"])]
    for job_id, heard in ledger.streams.items():
        stored = [(number, kind) for number, kind, of in events if of == job_id]
        if not _is_whole(heard, stored) or not heard or heard[-1][1] not in FINAL_EVENTS:
            found.wrong("streams of one job", f"{job_id}: heard {heard}, stored {stored}")
    heard_all = [(number, kind) for number, kind, _ in ledger.heard]
    stored_all = [(number, kind) for number, kind, _ in events if heard_all and number <= heard_all[-1][0]]
    if not _is_whole(heard_all, stored_all):
        missed = sorted(set(stored_all) - set(heard_all))[:10]
        found.wrong("the project's stream", f"{len(heard_all)} heard, {len(stored_all)} stored; missed {missed}")
    found.counts["events"] = len(events)
    found.counts["streams read"] = len(ledger.streams) + 1


def _is_whole(heard: Sequence[tuple[int, str]], stored: Sequence[tuple[int, str]]) -> bool:
    numbers = [number for number, _ in heard]
    told = [one for one in heard if one[1] != PROGRESS]
    kept = [one for one in stored if one[1] != PROGRESS]
    return numbers == sorted(set(numbers)) and told == kept


def _check_assets(found: Findings, books: Books, ledger: Ledger) -> None:
    """Exactly what was asked for, made by the winner; nothing for a job that did not succeed."""
    jobs = {job["id"]: job for job in books.jobs}
    winners = {one["id"] for one in books.attempts if one["status"] == "succeeded"}
    stored, pending = defaultdict(list), []
    for asset in books.assets:
        if asset["status"] == "stored":
            stored[asset["job_id"]].append(asset)
        elif asset["status"] == "pending":
            pending.append(asset)
    for job_id, assets in stored.items():
        made = [one for one in assets if one["kind"] not in ("dataset", "sample")]
        job = jobs.get(job_id)
        if job is None and any(one["job_id"] is not None for one in assets):
            found.wrong("assets without a job", f"{job_id}: {[one['id'] for one in assets]}")
        elif job is not None and made and job["status"] != "succeeded":
            found.wrong("assets of a job that did not succeed", f"{job_id} ({job['status']}): {len(made)}")
        if losers := [one["id"] for one in made if one["attempt_id"] not in winners]:
            found.wrong("assets of a losing attempt", f"{job_id}: {losers}")
    for asset in pending:
        job = jobs.get(asset["job_id"])
        if job is None or job["status"] in FINAL:
            found.wrong("announced and left behind", f"{asset['id']} of {asset['job_id']}")
    for key, wish in ledger.wishes.items():
        job = jobs.get(ledger.job_of(key) or "")
        if job is None or job["status"] != "succeeded":
            continue
        made = [one for one in stored[job["id"]] if one["kind"] not in ("dataset", "sample")]
        if len(made) != (1 if wish.training else wish.count):
            found.wrong("assets of a job", f"{job['id']}: {len(made)} instead of {wish.count}")
    found.counts["assets stored"] = sum(map(len, stored.values()))


def _check_store(found: Findings, books: Books, world: World) -> None:
    """Every file has its row, every row its file."""
    on_disk = {
        str(path.relative_to(world.files))
        for path in world.files.rglob("*")
        if path.is_file() and not str(path.relative_to(world.files)).startswith(".")
    }
    rows = [one for one in books.assets if one["status"] == "stored"]
    named = {one["key"] for one in rows} | {one["thumbnail_key"] for one in rows if one["thumbnail_key"]}
    for key in sorted(on_disk - named):
        found.wrong("files without an asset", key)
    for key in sorted(named - on_disk):
        found.wrong("assets without a file", key)
    found.counts["files in the store"] = len(on_disk)


def _check_runs(found: Findings, books: Books, world: World) -> None:
    """How often pods ran anything, by their own journals; a second run of a job's work only after a proven loss."""
    ran = Counter(str(one["prompt_id"]) for one in _journals(world))
    attempts = {str(one["id"]): one for one in books.attempts}
    by_job: dict[str, list[Row]] = defaultdict(list)
    for prompt_id in ran:
        attempt = attempts.get(prompt_id)
        if attempt is None:
            found.wrong("runs that no attempt asked for", prompt_id)
        else:
            by_job[str(attempt["job_id"])].append(attempt)
    again = 0
    for job_id, tried in by_job.items():
        tried.sort(key=lambda one: one["number"])
        again += len(tried) - 1
        for one in tried[:-1]:
            if one["status"] not in ("failed", "lost"):
                found.wrong("run again without a loss", f"{job_id}: {_stories(tried)}")
    for job in books.jobs:
        if job["status"] == "succeeded" and job["kind"] == "image" and job["id"] not in by_job:
            found.wrong("succeeded without a run", str(job["id"]))
    found.counts["runs on pods"] = sum(ran.values())
    found.counts["runs after a proven loss"] = again
    found.counts["runs that a repeating network caused"] = sum(times - 1 for times in ran.values())


def _check_webhooks(found: Findings, books: Books, receivers: Receivers) -> None:
    """Every event once for each endpoint that wants it, under one id of its own, signed, and arrived."""
    wanted = [one for one in books.events if one["type"] in TYPES]
    for receiver in receivers.receivers:
        ours = [one for one in books.deliveries if one["webhook_id"] == receiver.webhook_id]
        ids = {one["id"]: one["event_id"] for one in ours}
        for event_id, times in Counter(ids.values()).items():
            if times > 1:
                found.wrong("webhook ids of one event", f"{receiver.name}: event {event_id} has {times}")
        for event in wanted:
            if event["id"] not in ids.values():
                found.wrong("events without a webhook", f"{receiver.name}: {event['id']} {event['type']}")
        arrived = {number for number, _ in receiver.arrived}
        for number in sorted(set(ids) - arrived):
            found.wrong("webhooks lost", f"{receiver.name}: {number} of event {ids[number]}")
        for number in sorted(arrived - set(ids)):
            found.wrong("webhooks of nobody", f"{receiver.name}: {number}")
        bodies = {(number, json.dumps(body, sort_keys=True)) for number, body in receiver.arrived}
        if len(bodies) != len(arrived):
            found.wrong("webhooks that changed", f"{receiver.name}: {len(bodies)} messages under {len(arrived)} ids")
        for one in receiver.forged:
            found.wrong("webhooks with a bad signature", f"{receiver.name}: {one}")
    found.counts["webhooks delivered"] = sum(len({one[0] for one in r.arrived}) for r in receivers.receivers)
    found.counts["webhooks delivered again"] = sum(
        len(r.arrived) - len({one[0] for one in r.arrived}) for r in receivers.receivers
    )


async def _check_api(
    found: Findings, books: Books, ledger: Ledger, world: World, session: aiohttp.ClientSession
) -> None:
    """What the API shows, and every byte of it."""
    assert world.hall is not None
    limit = asyncio.Semaphore(READERS)
    keys = {ledger.job_of(key): wish for key, wish in ledger.wishes.items()}
    checked = 0

    async def check(row: Row) -> None:
        nonlocal checked
        async with limit:
            async with session.get(f"{world.doors[0].url}/jobs/{row['id']}") as response:
                job = await response.json()
            if job.get("status") != row["status"]:
                found.wrong("API and database differ", f"{row['id']}: {job.get('status')} / {row['status']}")
                return
            wish = keys.get(row["id"])
            for index, asset in enumerate(job["assets"] if job["status"] == "succeeded" else ()):
                async with session.get(asset["url"]) as response:
                    content = await response.read()
                good = response.status == 200 and len(content) == asset["bytes"]
                if not good or hashlib.sha256(content).hexdigest() != asset["sha256"]:
                    found.wrong("bytes", f"{asset['url']}: {response.status}, {len(content)} bytes")
                elif wish is not None and not wish.training and _colour(content) != colour_of(wish.seed, index):
                    found.wrong("another job's picture", f"{row['id']} {asset['url']}: {_colour(content)}")
                checked += 1

    await asyncio.gather(*map(check, books.jobs))
    found.counts["assets read back, byte for byte"] = checked


def _colour(content: bytes) -> object:
    with Image.open(io.BytesIO(content)) as image:
        return image.convert("RGB").getpixel((0, 0))


def _journals(world: World) -> Iterable[Row]:
    for path in world.journals:
        if path.exists():
            yield from (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line)


def _stories(attempts: Iterable[Row]) -> list[tuple[int, str, str]]:
    return sorted((one["number"], one["status"], str(_loaded(one["error"] or "{}").get("code"))) for one in attempts)


def _loaded(value: Any) -> dict[str, Any]:
    """A JSON column as SQLite (text) or PostgreSQL (parsed) hands it out."""
    loaded = json.loads(value) if isinstance(value, str) else value
    return loaded if isinstance(loaded, dict) else {}
