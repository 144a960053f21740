"""A control plane and one embedded pod as processes of their own, which the tests of this folder kill and stop."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import pytest
import pytest_asyncio

from tests.chaos.shape import Shape
from tests.chaos.world import pods_joined, world

from .studio import Studio


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def studio(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Studio]:
    """One pod: what waits, waits behind what runs."""
    shape = Shape(database="sqlite", jobs=0, seed=1, picture_pods=1, trainings=0)
    async with world(shape, tmp_path_factory.mktemp("world")) as made:
        await pods_joined(made, 1)
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=90)) as session:
            yield Studio(made, session)


@pytest_asyncio.fixture(autouse=True, loop_scope="package")
async def as_before(studio: Studio) -> AsyncIterator[None]:
    """What one test leaves behind must not be another's failure."""
    yield
    await studio.server.ready()
    await studio.pod.ready()
    await studio.resume()
    for job in (await studio.call("GET", "/jobs?status=queued,claimed,submitted,running,collecting&limit=100"))[1][
        "items"
    ]:
        await studio.cancel(job)
