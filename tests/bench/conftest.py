"""What the bench's tests share with the contract suite, some cases of which run here."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "lab: needs the contract suite's own nodes inside the pod")
