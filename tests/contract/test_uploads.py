"""What a pod tells of the files that a prompt promised; every pod that runs our node pack tells it alike."""

from __future__ import annotations

import pytest

from .client import Client


@pytest.fixture
async def packed(client: Client) -> Client:
    status, _ = await client.call("GET", "/troupe/state")
    if status == 404:
        pytest.skip("this ComfyUI runs without our node pack")
    return client


@pytest.mark.parametrize("prefix", ["", "/api"])
async def test_nothing_is_on_its_way_for_a_prompt_that_promised_nothing(packed: Client, prefix: str) -> None:
    status, told = await packed.call("GET", f"{prefix}/troupe/uploads/never-heard-of")
    idle = told.pop("idle_seconds")
    nothing = {"prompt_id": "never-heard-of", "pending": [], "failed": [], "stored": []}
    assert (status, told, idle >= 0) == (200, nothing, True)


async def test_the_state_counts_files_that_are_on_their_way(packed: Client) -> None:
    _, state = await packed.call("GET", "/troupe/state")
    assert state["uploads_pending"] == 0
