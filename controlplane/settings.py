"""Settings: read once from ``TROUPE_*`` environment variables, frozen, handed down by the composition root."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

REPOSITORY = Path(__file__).resolve().parent.parent


class Settings(BaseSettings):
    """Everything an operator may set. Durations are seconds, sizes bytes."""

    model_config = SettingsConfigDict(env_prefix="TROUPE_", frozen=True, extra="ignore")

    data: Path = Path("data")
    """Folder of the database, the local blob store and the secrets made on first start."""
    database_url: str = ""
    """SQLAlchemy URL; empty means SQLite at ``<data>/troupe.sqlite3``."""
    host: str = "127.0.0.1"
    port: int = Field(default=8700, ge=0, le=65535)
    public_url: str = ""
    """What pods and clients are told; empty means ``http://<host>:<port>``."""
    public_files_url: str = ""
    """Base of clean asset URLs; empty means ``<public_url>/files``."""
    cors_origins: tuple[str, ...] = ()
    """Origins that browsers may call from; ``*`` allows any."""
    templates: Path = REPOSITORY / "workflow_templates"
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
    min_image_side: int = 64
    max_prompt_chars: int = 2000
    max_count: int = 16

    lease_seconds: float = 30.0
    poll_seconds: float = 1.0
    max_running_jobs: int = 64
    max_attempts: int = 3
    image_deadline_seconds: float = 15 * 60.0
    video_deadline_seconds: float = 60 * 60.0
    train_deadline_seconds: float = 6 * 3600.0
    submit_timeout_seconds: float = 30.0
    stall_seconds: float = 180.0
    heartbeat_seconds: float = 30.0
    suspect_after_seconds: float = 75.0
    lost_after_seconds: float = 180.0
    prefer_wait_max_seconds: float = 90.0
    upload_url_seconds: float = 3600.0
    file_url_seconds: float = 24 * 3600.0

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
