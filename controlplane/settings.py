"""Settings: read once from ``TROUPE_*`` environment variables, frozen, handed down by the composition root."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

REPOSITORY = Path(__file__).resolve().parent.parent


class Settings(BaseSettings):
    """Everything an operator may set. Durations are seconds, sizes bytes."""

    model_config = SettingsConfigDict(env_prefix="TROUPE_", frozen=True, extra="ignore")

    data: Path = Path("data")
    """Folder of the database, the local blob store and the secrets made on first start."""
    database_url: str = ""
    """Empty means SQLite at ``<data>/troupe.sqlite3``; ``postgresql://...`` lets several servers share one database.
    They share ``data`` (or at least its secrets and files) as well."""
    host: str = "127.0.0.1"
    port: int = Field(default=8700, ge=0, le=65535)
    public_url: str = ""
    """What pods and clients are told; empty means ``http://<host>:<port>``."""
    public_files_url: str = ""
    """Base of clean asset URLs; empty means ``<public_url>/files``."""
    cors_origins: tuple[str, ...] = ()
    """Origins that browsers may call from; ``*`` allows any."""
    templates: Path = REPOSITORY / "workflow_templates"
    default_base_model: str = ""
    """The base model of requests that name none; empty means the first of models.yaml."""
    join_token: SecretStr | None = None
    """Shared secret with which pods register; made and kept in ``<data>/secrets.json`` when unset."""
    signing_key: SecretStr | None = None
    """Key of signed file URLs; made and kept in ``<data>/secrets.json`` when unset."""
    log_level: str = "INFO"

    min_images: int = 5
    max_images: int = 100
    max_image_bytes: int = 32 * 2**20
    max_image_pixels: int = 50_000_000
    max_upload_bytes: int = 512 * 2**20
    max_prompt_chars: int = 2000
    max_count: int = 16

    lease_seconds: float = 30.0
    poll_seconds: float = 1.0
    max_running_jobs: int = 4096
    """At most so many jobs are in the hands of one server process."""
    placement: Literal["switch_cost", "round_robin"] = "switch_cost"
    """How pods are chosen: with what models they have loaded in mind, or plainly one after another."""
    age_bound_seconds: float = Field(default=60.0, ge=0)
    """A job is not overtaken, for the sake of loaded models, by one that came so much later."""
    previews: bool = True
    """Whether pictures and videos that take a while are shown while they are made."""
    max_attempts: int = 3
    image_deadline_seconds: float = 15 * 60.0
    video_deadline_seconds: float = 60 * 60.0
    train_deadline_seconds: float = 6 * 3600.0
    max_deadline_seconds: float = Field(default=7 * 24 * 3600.0, ge=1)
    """The longest ``deadline_seconds`` that a request may ask for instead."""
    submit_timeout_seconds: float = 30.0
    stall_seconds: float = 180.0
    heartbeat_seconds: float = 30.0
    suspect_after_seconds: float = 75.0
    lost_after_seconds: float = 180.0
    prefer_wait_max_seconds: float = 90.0
    upload_url_seconds: float = 3600.0
    file_url_seconds: float = 24 * 3600.0
    asset_grace_seconds: float = 2 * 3600.0
    """How long a file that was announced may take to be claimed by a job's end; then it is deleted. Longer than
    ``upload_url_seconds``: what arrives after its row is gone stays for ever."""
    asset_sweep_seconds: float = 300.0
    """How often such files are looked for."""

    installation: str = Field("", pattern="^([a-z0-9]{4,20})?$")
    """This installation's id in the names of rented pods; empty means the one made with the database. A copy of a
    database needs another, else it would end the first one's pods."""
    runpod_api_key: SecretStr | None = None
    """With it, pods can be rented at RunPod."""
    runpod_url: str = "https://api.runpod.io/v2"
    pod_image: str = ""
    """What rented pods run; pin it by digest."""
    pod_port: int = Field(default=8188, ge=1, le=65535)
    """The agent's port in that image."""
    pod_disk_gb: int = Field(default=40, ge=1)
    pod_volume_gb: int = Field(default=0, ge=0)
    """A disk that survives restarts of the container; 0 for none."""
    pod_volume_id: str = ""
    """A network volume instead; it ties pods to its data centre, which belongs in ``pod_data_centres``."""
    pod_volume_path: str = "/workspace"
    pod_data_centres: tuple[str, ...] = ()
    """Where pods may run; none means anywhere."""
    pod_cloud: Literal["SECURE", "COMMUNITY"] = "SECURE"
    pod_registry: str = ""
    """RunPod's id of the credentials for a private image."""
    pod_memory_gb: int = Field(default=24, ge=1)
    """The least memory of the GPU where a request names none."""
    pod_min_cuda: str = Field("", pattern=r"^(\d+\.\d+)?$")
    pod_join_token_secret: str = Field("", pattern="^[A-Za-z0-9_-]*$")
    """Name of a RunPod secret that holds the join token; without it the token itself stands in the pod's environment,
    where everybody with access to the RunPod account can read it."""
    max_pods: int = Field(default=4, ge=0)
    """At most so many rented pods at a time."""
    max_price_per_hour: float = Field(default=4.0, ge=0, allow_inf_nan=False)
    """At most so many US dollars per hour for all of them together."""
    max_pod_hours: float | None = Field(None, gt=0)
    """Rented pods are ended after so many hours, where a request names no shorter time."""
    pod_join_seconds: float = 30 * 60.0
    pod_silence_seconds: float = 45 * 60.0
    """A rented pod is ended when nothing was heard of it for so long; longer than the agent's own dead-man switch."""
    rental_grace_seconds: float = 180.0
    """How young a pod without an owner is left alone, for the process that may just be writing it down."""
    rental_asking_seconds: float = 600.0
    """After this a request for a pod without an answer is given up."""
    reconcile_seconds: float = 60.0

    job_days: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Jobs that ended longer ago, and of which no asset and no version is left, are forgotten; 0 keeps all of them."""
    event_days: float = Field(default=7.0, ge=1.0)
    """Events are kept so long; what finished jobs told of their progress goes sooner."""
    webhook_private: bool = False
    """Whether webhooks may go to this machine and its networks, and unencrypted: for development."""
    webhook_give_up_days: float = Field(default=5.0, gt=0)
    """A webhook is disabled when every attempt has failed for so long."""
    webhook_delivery_days: float = Field(default=14.0, ge=1.0)
    """Ended deliveries are kept so long, to be looked at and sent again."""

    @property
    def effective_database_url(self) -> str:
        """The SQLAlchemy URL in force."""
        return self.database_url or f"sqlite:///{self.data.resolve() / 'troupe.sqlite3'}"

    @property
    def effective_public_url(self) -> str:
        """The address that pods and clients are told, without a trailing slash."""
        return (self.public_url or f"http://{self.host}:{self.port}").rstrip("/")

    @property
    def effective_files_url(self) -> str:
        """The base of clean asset URLs, without a trailing slash."""
        return (self.public_files_url or f"{self.effective_public_url}/files").rstrip("/")
