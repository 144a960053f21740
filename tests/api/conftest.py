"""The server that the tests of this folder share, and clients of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from controlplane.settings import Settings

from .api_server import Api, Server, pod_body, serving


@pytest.fixture(scope="session", params=["sqlite", "postgresql"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server that most tests share, on either database; one pod is known to it that can do nothing."""
    data: Path = tmp_path_factory.mktemp("data")
    url = request.getfixturevalue("postgresql").fresh() if request.param == "postgresql" else ""
    settings = Settings(
        data=data,
        database_url=url,
        port=0,
        poll_seconds=0.2,
        cors_origins=("https://studio.example",),
        min_images=5,
    )
    with serving(settings) as started:
        yield started


@pytest.fixture
async def api(server: Server) -> AsyncIterator[Api]:
    async with aiohttp.ClientSession() as session:
        yield Api(server, session)


@pytest.fixture
async def pod(api: Api) -> dict[str, Any]:
    """The body of the answer that registered the pod which can do nothing."""
    headers = {"Authorization": f"Bearer {api.server.join_token}"}
    answer = await api.post("/pods", json=pod_body(), headers=headers)
    assert answer.status == 201, answer.data
    return dict(answer.body)
