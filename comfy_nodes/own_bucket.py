"""A desktop user's own bucket: files go straight to it with boto3, whose own chain alone finds the credentials."""

from __future__ import annotations

import functools
import os
import urllib.parse
from dataclasses import dataclass
from typing import Any

CONNECT_SECONDS, READ_SECONDS = 10, 120
ATTEMPTS = 5


class BucketError(RuntimeError):
    """The bucket did not take a file; the message says which bucket and why, and holds no secret."""


@dataclass(frozen=True)
class OwnBucket:
    """Where the files go: `endpoint` is empty for AWS; `public_base` is empty for a bucket that nobody reads by URL."""

    name: str
    prefix: str = ""
    endpoint: str = ""
    public_base: str = ""

    def key(self, file: str) -> str:
        """The object's key: the prefix and the file's name."""
        return f"{self.prefix}/{file}" if self.prefix else file

    def url(self, key: str) -> str:
        """The object's public address, `s3://` where there is none."""
        if not self.public_base:
            return f"s3://{self.name}/{key}"
        return f"{self.public_base}/{urllib.parse.quote(key)}"

    def put(self, key: str, content: bytes, media_type: str) -> None:
        """Store one object whole. Raises BucketError once boto3's own retries are used up."""
        client, failures = _client(self.endpoint)
        try:
            client.put_object(Bucket=self.name, Key=key, Body=content, ContentType=media_type)
        except failures as error:
            raise BucketError(f"bucket {self.name} did not take {key}: {error}") from error


def bucket_from_environment() -> OwnBucket | None:
    """The bucket of TROUPE_S3_BUCKET with _PREFIX, _ENDPOINT and _PUBLIC_BASE beside it; None where none is named."""
    name = _given("BUCKET")
    if not name:
        return None
    return OwnBucket(name, _given("PREFIX").strip("/"), _given("ENDPOINT"), _given("PUBLIC_BASE").rstrip("/"))


def _given(name: str) -> str:
    return os.environ.get(f"TROUPE_S3_{name}", "").strip()


@functools.lru_cache(maxsize=4)
def _client(endpoint: str) -> tuple[Any, tuple[type[Exception], ...]]:
    """A client and what its calls raise; path style, SigV4, no needless checksum: what every store understands."""
    try:
        import boto3.session
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError as error:
        raise BucketError("TROUPE_S3_BUCKET is set, but boto3 is not installed in ComfyUI's Python") from error
    config = Config(
        signature_version="s3v4",
        s3={"addressing_style": "path"},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        retries={"total_max_attempts": ATTEMPTS, "mode": "standard"},
    )
    # A session of its own: its credentials and its region are the user's, by environment, profile or role.
    session = boto3.session.Session()
    region = session.region_name or "us-east-1"
    try:
        client = session.client("s3", endpoint_url=endpoint or None, region_name=region, config=config)
    except (BotoCoreError, ValueError) as error:
        raise BucketError(f"TROUPE_S3_ENDPOINT cannot be used: {error}") from error
    return client, (BotoCoreError, ClientError)
