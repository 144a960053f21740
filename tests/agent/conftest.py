"""Agents and control planes for one test each; whatever was started is ended."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from .running import AgentProcess, ControlPlane, end, launch

Launch = Callable[..., Awaitable[AgentProcess]]


@pytest.fixture
async def control_plane() -> AsyncIterator[ControlPlane]:
    plane = ControlPlane()
    runner = await plane.started()
    yield plane
    await runner.cleanup()


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Launch]:
    """Starts agents: `await start(*arguments, environment=..., ready=True)`."""
    agents: list[AgentProcess] = []

    async def started(
        *arguments: str, environment: dict[str, str] | None = None, ready: bool = True, **more: Path
    ) -> AgentProcess:
        agent = await launch(tmp_path / f"pod{len(agents)}", *arguments, environment=environment, **more)
        agents.append(agent)
        return await agent.ready() if ready else agent

    yield started
    for agent in agents:
        await end(agent)
