"""S3Save on a desktop with a bucket of its own, against a store that checks signatures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from comfy_nodes import own_bucket
from comfy_nodes.hand_over import hand_over
from comfy_nodes.own_bucket import BucketError, bucket_from_environment
from comfy_nodes.s3_save import S3Save
from tests.comfy_nodes.s3_double import CREDENTIALS, SECRET_KEY, S3Double, s3_double


@pytest.fixture
def store() -> Iterator[S3Double]:
    with s3_double() as double:
        yield double


@pytest.fixture
def bucket(store: S3Double, unlinked: None, folder_host: Any, monkeypatch: pytest.MonkeyPatch) -> S3Double:
    """A desktop whose user names a bucket; folder_host is where its own copies go."""
    ours = {"BUCKET": "art", "PREFIX": "/my pictures/", "ENDPOINT": store.url, "PUBLIC_BASE": "https://cdn.example/"}
    for name, value in ours.items():
        monkeypatch.setenv(f"TROUPE_S3_{name}", value)
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    # Nobody's profile and no machine's role may be found while this runs.
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    own_bucket._client.cache_clear()
    return store


def save(count: int = 1, form: str = "png") -> dict[str, Any]:
    ui: dict[str, Any] = S3Save().save(torch.rand(count, 16, 16, 3), "nell", form)["ui"]
    return ui


def test_every_picture_of_a_batch_lies_in_the_bucket(bucket: S3Double) -> None:
    assets = save(3)["assets"]
    assert sorted(bucket.objects) == sorted(f"art/{asset['key']}".replace(" ", "%20") for asset in assets)


def test_what_lies_in_the_bucket_is_the_file_that_lies_in_output(bucket: S3Double, folder_host: Any) -> None:
    shown = save()["images"][0]
    assert list(bucket.objects.values()) == [(folder_host.output_dir() / shown["filename"]).read_bytes()]


def test_an_asset_has_its_public_address(bucket: S3Double) -> None:
    asset = save()["assets"][0]
    assert asset["url"] == f"https://cdn.example/{asset['key']}".replace(" ", "%20")


def test_without_a_public_base_an_asset_is_named_by_its_bucket(
    bucket: S3Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TROUPE_S3_PUBLIC_BASE")
    asset = save()["assets"][0]
    assert asset["url"] == f"s3://art/{asset['key']}"


def test_a_second_run_takes_the_place_of_nothing(bucket: S3Double, folder_host: Any) -> None:
    save(2)
    folder_host.prompt = "another-prompt"
    save(2)
    assert len(bucket.objects) == 4


def test_the_media_type_goes_with_the_file(bucket: S3Double) -> None:
    save(form="webp")
    assert next(iter(bucket.headers.values()))["content-type"] == "image/webp"


def test_nothing_is_sent_that_only_aws_understands(bucket: S3Double) -> None:
    save()
    headers = next(iter(bucket.headers.values()))
    assert not [name for name in headers if "checksum" in name or name in ("content-encoding", "x-amz-acl")]


def test_a_store_that_is_busy_is_asked_again(bucket: S3Double) -> None:
    bucket.faults = [503]
    save()
    assert (bucket.puts, len(bucket.objects)) == (2, 1)


def test_wrong_credentials_are_told_without_the_secret(bucket: S3Double, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret-of-somebody-else")
    with pytest.raises(BucketError, match=r"bucket art did not take .*SignatureDoesNotMatch") as refused:
        save()
    assert "s3cret" not in str(refused.value)


def test_without_credentials_the_picture_is_still_in_output(
    bucket: S3Double, folder_host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(BucketError, match="credentials"):
        save()
    assert len(list(folder_host.output_dir().iterdir())) == 1


def test_an_endpoint_that_is_no_address_is_told(bucket: S3Double, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TROUPE_S3_ENDPOINT", "not an address")
    with pytest.raises(BucketError, match="TROUPE_S3_ENDPOINT"):
        save()


def test_without_a_bucket_nothing_is_sent(bucket: S3Double, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TROUPE_S3_BUCKET", " ")
    assert bucket_from_environment() is None
    assert "assets" not in save()
    assert bucket.puts == 0


def test_a_pod_never_writes_to_a_bucket_by_itself(
    bucket: S3Double, linked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    save()
    assert hand_over().flush(30)
    assert (bucket.puts, len(linked.uploads)) == (0, 1)


def test_a_shown_asset_holds_no_secret(bucket: S3Double) -> None:
    assert SECRET_KEY not in str(save())
