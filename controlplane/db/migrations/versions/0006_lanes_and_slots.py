"""Lanes and slots: what claiming looks for is in partial indexes, and a place on a pod can be taken once only"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

QUEUED = sa.text("status = 'queued'")
HELD = sa.text("status IN ('claimed', 'submitted', 'submit_unknown', 'running', 'collecting', 'cancelling')")
LIVE = sa.text("status IN ('created', 'submitted', 'running')")
LANE = "digest of what it asks of a pod"
LORA = "of needs, as claiming reads nothing but an index"
SLOT = "0 runs, further ones wait behind it"
QUEUE = ("lane", sa.text("priority DESC"), "created_at", "id", "not_before", "estimate_seconds", "lora_sha256")


def upgrade() -> None:
    """Go one step forward."""
    op.add_column("jobs", sa.Column("lane", sa.String(24), nullable=False, server_default="", comment=LANE))
    op.add_column("jobs", sa.Column("lora_sha256", sa.String(64), nullable=True, comment=LORA))
    op.add_column(
        "attempts", sa.Column("slot", sa.Integer(), nullable=False, server_default=sa.text("0"), comment=SLOT)
    )
    _give_lanes(op.get_bind())
    _give_slots(op.get_bind())
    op.drop_index("ix_jobs_claim", table_name="jobs")
    _partial("ix_jobs_queue", "jobs", [*QUEUE, "claim_no", "status"], QUEUED)
    _partial("ix_jobs_overdue", "jobs", ["deadline_at"], QUEUED)
    _partial("ix_jobs_lease", "jobs", ["lease_until"], HELD)
    _partial("uq_attempts_slot", "attempts", ["pod_id", "slot"], LIVE, unique=True)


def downgrade() -> None:
    """Go back again."""
    op.drop_index("uq_attempts_slot", table_name="attempts")
    for name in ("ix_jobs_lease", "ix_jobs_overdue", "ix_jobs_queue"):
        op.drop_index(name, table_name="jobs")
    op.create_index("ix_jobs_claim", "jobs", ["status", "priority", "created_at"], unique=False)
    for table, column in (("attempts", "slot"), ("jobs", "lora_sha256"), ("jobs", "lane")):
        op.drop_column(table, column)


def _partial(name: str, table: str, columns: list[Any], where: sa.TextClause, unique: bool = False) -> None:
    op.create_index(name, table, columns, unique=unique, sqlite_where=where, postgresql_where=where)


def _give_lanes(c: sa.Connection) -> None:
    """To every job that may be claimed still."""
    jobs = sa.table("jobs", *(sa.column(name) for name in ("id", "project_id", "kind", "base_model", "status", "lane")))
    jobs.append_column(sa.column("lora_sha256"))
    jobs.append_column(sa.column("needs", sa.JSON()))
    over = ("succeeded", "failed", "cancelled")
    for job in c.execute(sa.select(jobs).where(jobs.c.status.not_in(over))).all():
        needs = {name: value for name, value in job.needs.items() if name != "lora_sha256"}
        asked = json.dumps([job.project_id, job.kind, needs, job.base_model], sort_keys=True, separators=(",", ":"))
        lane = hashlib.blake2b(asked.encode(), digest_size=12).hexdigest()
        values = {"lane": lane, "lora_sha256": job.needs.get("lora_sha256")}
        c.execute(sa.update(jobs).where(jobs.c.id == job.id).values(**values))


def _give_slots(c: sa.Connection) -> None:
    """To the attempts on each pod, one after another; those of jobs that nobody holds occupy nothing."""
    jobs = sa.table("jobs", sa.column("id"), sa.column("status"))
    names = ("id", "job_id", "pod_id", "status", "slot", "created_at")
    attempts = sa.table("attempts", *(sa.column(name) for name in names))
    held = sa.select(jobs.c.id).where(HELD)
    c.execute(sa.update(attempts).where(LIVE, attempts.c.job_id.not_in(held)).values(status="lost"))
    taken: defaultdict[str, int] = defaultdict(int)
    for attempt in c.execute(sa.select(attempts).where(LIVE).order_by(attempts.c.created_at, attempts.c.id)).all():
        c.execute(sa.update(attempts).where(attempts.c.id == attempt.id).values(slot=taken[attempt.pod_id]))
        taken[attempt.pod_id] += 1
