"""The first tables"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go one step forward."""
    op.create_table(
        "assets",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("character_id", sa.String(length=80), nullable=True),
        sa.Column("version", sa.Integer(), nullable=True),
        sa.Column("job_id", sa.String(length=40), nullable=True),
        sa.Column("attempt_id", sa.String(length=40), nullable=True),
        sa.Column("kind", sa.String(length=12), nullable=False, comment="image|video|lora|dataset|sample|checkpoint"),
        sa.Column("status", sa.String(length=8), nullable=False, comment="pending (a ticket was given) | stored"),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("media_type", sa.String(length=80), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("width", sa.Integer(), nullable=True),
        sa.Column("height", sa.Integer(), nullable=True),
        sa.Column("duration", sa.Float(), nullable=True),
        sa.Column("fps", sa.Float(), nullable=True),
        sa.Column("frames", sa.Integer(), nullable=True),
        sa.Column("thumbnail_key", sa.Text(), nullable=True),
        sa.Column("seed", sa.BigInteger(), nullable=True),
        sa.Column(
            "recipe",
            sa.JSON(),
            nullable=True,
            comment="what made it: template, graph digest, prompt, seed, LoRA, base, pod, times",
        ),
        sa.Column("rating", sa.String(length=16), nullable=True),
        sa.Column("favourite", sa.Boolean(), nullable=False),
        sa.Column("metadata", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_assets")),
        sa.UniqueConstraint("key", name=op.f("uq_assets_key")),
    )
    op.create_index("ix_assets_attempt", "assets", ["attempt_id", "kind", "position"], unique=False)
    op.create_index("ix_assets_character", "assets", ["project_id", "character_id", "created_at"], unique=False)
    op.create_index("ix_assets_job", "assets", ["job_id", "position"], unique=False)
    op.create_index("ix_assets_list", "assets", ["project_id", "created_at", "id"], unique=False)
    op.create_table(
        "attempts",
        sa.Column("id", sa.String(length=40), nullable=False, comment="is ComfyUI's prompt_id"),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("job_id", sa.String(length=40), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("pod_id", sa.String(length=40), nullable=False),
        sa.Column("client_id", sa.String(length=64), nullable=False),
        sa.Column(
            "status",
            sa.String(length=16),
            nullable=False,
            comment="created|submitted|running|succeeded|failed|lost|cancelled",
        ),
        sa.Column("placement", sa.JSON(), nullable=True),
        sa.Column("base_model", sa.String(length=64), nullable=True),
        sa.Column("lora_sha256", sa.String(length=64), nullable=True),
        sa.Column("progress_seq", sa.Integer(), nullable=False),
        sa.Column("error", sa.JSON(), nullable=True),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("submitted_at", sa.Float(), nullable=True),
        sa.Column("started_at", sa.Float(), nullable=True),
        sa.Column("finished_at", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_attempts")),
        sa.UniqueConstraint("job_id", "number", name=op.f("uq_attempts_job_id_number")),
    )
    op.create_index("ix_attempts_pod", "attempts", ["pod_id", "created_at"], unique=False)
    op.create_table(
        "characters",
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("id", sa.String(length=80), nullable=False, comment="slug, unique in the project"),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("class_word", sa.String(length=40), nullable=False),
        sa.Column("trigger_word", sa.String(length=10), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("subject", sa.String(length=16), nullable=False, comment="fictional | real"),
        sa.Column(
            "consent",
            sa.JSON(),
            nullable=True,
            comment="{attested_by, text_version, attested_at} where subject is real",
        ),
        sa.Column("base_model", sa.String(length=64), nullable=False),
        sa.Column("metadata", sa.JSON(), nullable=False),
        sa.Column("active_version", sa.Integer(), nullable=True),
        sa.Column("cover_asset_id", sa.String(length=40), nullable=True),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("updated_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("project_id", "id", name=op.f("pk_characters")),
    )
    op.create_index("ix_characters_list", "characters", ["project_id", "created_at", "id"], unique=False)
    op.create_table(
        "dataset_images",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("dataset_id", sa.String(length=40), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False, comment="the file name as it came"),
        sa.Column(
            "asset_id", sa.String(length=40), nullable=True, comment="the turned, flattened PNG; null where rejected"
        ),
        sa.Column("verdict", sa.String(length=8), nullable=False, comment="ok | warn | reject"),
        sa.Column("reasons", sa.JSON(), nullable=False),
        sa.Column("caption", sa.Text(), nullable=False, comment="without the trigger phrase"),
        sa.Column("width", sa.Integer(), nullable=True),
        sa.Column("height", sa.Integer(), nullable=True),
        sa.Column("sha256", sa.String(length=64), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_dataset_images")),
    )
    op.create_index("ix_dataset_images_dataset", "dataset_images", ["dataset_id", "position"], unique=False)
    op.create_table(
        "datasets",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("character_id", sa.String(length=80), nullable=False),
        sa.Column(
            "digest", sa.String(length=64), nullable=False, comment="sha256 over the sorted image digests and captions"
        ),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_datasets")),
    )
    op.create_index("ix_datasets_character", "datasets", ["project_id", "character_id"], unique=False)
    op.create_table(
        "events",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("job_id", sa.String(length=40), nullable=True),
        sa.Column("character_id", sa.String(length=80), nullable=True),
        sa.Column("type", sa.String(length=40), nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_events")),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_events_job", "events", ["job_id", "id"], unique=False)
    op.create_index("ix_events_project", "events", ["project_id", "id"], unique=False)
    op.create_table(
        "idempotency_keys",
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("method", sa.String(length=8), nullable=False),
        sa.Column("path", sa.String(length=255), nullable=False),
        sa.Column("payload_digest", sa.String(length=64), nullable=False),
        sa.Column("status", sa.Integer(), nullable=True, comment="null while the first request runs"),
        sa.Column("body", sa.JSON(), nullable=True),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("project_id", "key", "method", "path", name=op.f("pk_idempotency_keys")),
    )
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=8), nullable=False, comment="image | video | train"),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("character_id", sa.String(length=80), nullable=True),
        sa.Column("version", sa.Integer(), nullable=True),
        sa.Column("base_model", sa.String(length=64), nullable=True),
        sa.Column("template", sa.String(length=80), nullable=False),
        sa.Column("template_digest", sa.String(length=64), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=True),
        sa.Column("request", sa.JSON(), nullable=False, comment="the accepted request, for people and replay"),
        sa.Column("graph", sa.JSON(), nullable=False, comment="the bound graph, ComfyUI's API format"),
        sa.Column("files", sa.JSON(), nullable=False, comment="[[name on the pod, blob key]]"),
        sa.Column(
            "needs",
            sa.JSON(),
            nullable=False,
            comment="{nodes, models: {folder: [file]}, labels, trainer, lora_sha256}",
        ),
        sa.Column("outputs", sa.JSON(), nullable=False, comment="[{node, kind}] of the template"),
        sa.Column("estimate_seconds", sa.Float(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("metadata", sa.JSON(), nullable=False),
        sa.Column("end_user", sa.Text(), nullable=True),
        sa.Column("rating", sa.String(length=16), nullable=True),
        sa.Column("progress", sa.JSON(), nullable=False),
        sa.Column("placement", sa.JSON(), nullable=True, comment="why this pod, or why none yet"),
        sa.Column("warnings", sa.JSON(), nullable=False),
        sa.Column("result", sa.JSON(), nullable=True),
        sa.Column("error", sa.JSON(), nullable=True, comment="{code, detail}"),
        sa.Column("claim_no", sa.Integer(), nullable=False),
        sa.Column("claimed_by", sa.String(length=80), nullable=True),
        sa.Column("lease_until", sa.Float(), nullable=True),
        sa.Column("not_before", sa.Float(), nullable=False),
        sa.Column("deadline_at", sa.Float(), nullable=False),
        sa.Column("cancel_requested_at", sa.Float(), nullable=True),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("started_at", sa.Float(), nullable=True),
        sa.Column("finished_at", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
    )
    op.create_index("ix_jobs_character", "jobs", ["project_id", "character_id", "created_at"], unique=False)
    op.create_index("ix_jobs_claim", "jobs", ["status", "priority", "created_at"], unique=False)
    op.create_index("ix_jobs_list", "jobs", ["project_id", "created_at", "id"], unique=False)
    op.create_table(
        "pods",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("instance_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("token", sa.Text(), nullable=False, comment="what we send to the pod"),
        sa.Column(
            "key_hash", sa.String(length=64), nullable=False, comment="sha256 of the pod key, what the pod sends to us"
        ),
        sa.Column(
            "state",
            sa.String(length=16),
            nullable=False,
            comment="joining|ready|draining|suspect|lost (busy is derived)",
        ),
        sa.Column("gpu", sa.Text(), nullable=False),
        sa.Column("vram_bytes", sa.BigInteger(), nullable=False),
        sa.Column("comfyui_version", sa.String(length=40), nullable=False),
        sa.Column("protocol", sa.Integer(), nullable=False),
        sa.Column("node_pack_digest", sa.String(length=64), nullable=False),
        sa.Column("node_classes", sa.JSON(), nullable=False),
        sa.Column("models", sa.JSON(), nullable=False),
        sa.Column("trainers", sa.JSON(), nullable=False),
        sa.Column("labels", sa.JSON(), nullable=False),
        sa.Column("loras", sa.JSON(), nullable=False, comment="sha256 on the pod's disk"),
        sa.Column("queue_length", sa.Integer(), nullable=False),
        sa.Column("vram_free_bytes", sa.BigInteger(), nullable=True),
        sa.Column("disk_free_bytes", sa.BigInteger(), nullable=True),
        sa.Column("draining", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("last_heartbeat_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_pods")),
        sa.UniqueConstraint("instance_id", name=op.f("uq_pods_instance_id")),
    )
    op.create_table(
        "projects",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_projects")),
    )
    op.create_table(
        "versions",
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("character_id", sa.String(length=80), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False, comment="training | ready | failed | cancelled"),
        sa.Column("base_model", sa.String(length=64), nullable=False),
        sa.Column("recipe", sa.String(length=40), nullable=False),
        sa.Column("recipe_digest", sa.String(length=64), nullable=False),
        sa.Column("dataset_id", sa.String(length=40), nullable=False),
        sa.Column("job_id", sa.String(length=40), nullable=False),
        sa.Column("lora_asset_id", sa.String(length=40), nullable=True),
        sa.Column("lora_sha256", sa.String(length=64), nullable=True),
        sa.Column("default_strength", sa.Float(), nullable=False),
        sa.Column("score", sa.Float(), nullable=True),
        sa.Column("proof", sa.JSON(), nullable=True, comment="{matched, total, steps, final_loss, warnings}"),
        sa.Column("error", sa.JSON(), nullable=True),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("finished_at", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(
            ["project_id", "character_id"],
            ["characters.project_id", "characters.id"],
            name=op.f("fk_versions_project_id_character_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("project_id", "character_id", "number", name=op.f("pk_versions")),
    )
    projects = sa.table("projects", sa.column("id"), sa.column("name"), sa.column("created_at"))
    op.bulk_insert(projects, [{"id": "default", "name": "Default", "created_at": 0.0}])


def downgrade() -> None:
    """Go back again."""
    op.drop_table("versions")
    op.drop_table("projects")
    op.drop_table("pods")
    op.drop_index("ix_jobs_list", table_name="jobs")
    op.drop_index("ix_jobs_claim", table_name="jobs")
    op.drop_index("ix_jobs_character", table_name="jobs")
    op.drop_table("jobs")
    op.drop_table("idempotency_keys")
    op.drop_index("ix_events_project", table_name="events")
    op.drop_index("ix_events_job", table_name="events")
    op.drop_table("events")
    op.drop_index("ix_datasets_character", table_name="datasets")
    op.drop_table("datasets")
    op.drop_index("ix_dataset_images_dataset", table_name="dataset_images")
    op.drop_table("dataset_images")
    op.drop_index("ix_characters_list", table_name="characters")
    op.drop_table("characters")
    op.drop_index("ix_attempts_pod", table_name="attempts")
    op.drop_table("attempts")
    op.drop_index("ix_assets_list", table_name="assets")
    op.drop_index("ix_assets_job", table_name="assets")
    op.drop_index("ix_assets_character", table_name="assets")
    op.drop_index("ix_assets_attempt", table_name="assets")
    op.drop_table("assets")
