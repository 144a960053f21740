"""A hub double per test, and what a fetch needs around it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from pod_images.model_hub import Surroundings
from pod_images.shared_lock import Patience

from .hub_double import HubDouble, hub_double


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubDouble]:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with hub_double() as double:
        monkeypatch.setenv("HF_ENDPOINT", double.endpoint)
        yield double


@pytest.fixture
def around(hub: HubDouble) -> Callable[..., Surroundings]:
    """Surroundings of this test's hub that lose no time; what a test names replaces the rest."""

    def make(**changes: object) -> Surroundings:
        given = {"endpoint": hub.endpoint, "patience": Patience(0.05, 2.0, 0.02), "pauses": (0.01, 0.01)} | changes
        return Surroundings(**given)  # type: ignore[arg-type]

    return make
