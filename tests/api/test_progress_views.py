"""Progress as clients see it: links instead of keys, and previews only while there is something to see."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from controlplane.api.views import Views
from controlplane.domain.events import Event
from controlplane.storage.local import LocalStore

PREVIEW = "default/mira/previews/job_1-0.jpg"
SAMPLE = "default/mira/samples/job_1-1.png"
PROGRESS: dict[str, Any] = {
    "phase": "running",
    "percent": 40.0,
    "preview": PREVIEW,
    "samples": [{"asset_id": "asset_1", "key": SAMPLE}],
    "reported_at": 1.0,
}


class WallClock:
    def now(self) -> float:
        return time.time()


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path, "http://127.0.0.1:1/files", "key", WallClock())


@pytest.fixture
def views(store: LocalStore) -> Views:
    return Views(store, 3600.0)


def event(status: str) -> Event:
    data = {"job_id": "job_1", "status": status, "progress": PROGRESS}
    return Event(1, "default", "job.progress", data, time.time(), "job_1", "mira")


def test_a_preview_of_a_running_job_can_be_read(views: Views, store: LocalStore) -> None:
    url = urlsplit(views.progress(PROGRESS, running=True)["preview_url"])
    store.check_get(PREVIEW, dict(parse_qsl(url.query)))
    assert url.path == f"/files/{PREVIEW}"


def test_a_job_that_does_not_run_has_no_preview(views: Views) -> None:
    assert views.progress(PROGRESS, running=False)["preview_url"] is None


@pytest.mark.parametrize(("status", "shown"), [("running", True), ("succeeded", False), ("failed", False)])
def test_an_event_tells_of_a_preview_while_the_job_runs(views: Views, status: str, shown: bool) -> None:
    assert bool(views.event(event(status))["data"]["progress"]["preview_url"]) == shown


def test_a_sample_is_shown_by_a_signed_link(views: Views, store: LocalStore) -> None:
    (sample,) = views.progress(PROGRESS, running=True)["samples"]
    store.check_get(SAMPLE, dict(parse_qsl(urlsplit(sample["url"]).query)))
    assert sample["asset_id"] == "asset_1"


def test_keys_and_what_only_we_need_are_not_shown(views: Views) -> None:
    shown = views.event(event("running"))["data"]["progress"]
    assert set(shown) == {
        "phase", "percent", "eta_seconds", "step", "total_steps", "loss", "samples", "preview_url",
    }  # fmt: skip
