"""`troupe pod comfyui`, as a person starts and stops it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

from .running import FAKE, JOIN_TOKEN, ROOT, ControlPlane, until


async def troupe(*arguments: str, **environment: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "controlplane", "pod", "comfyui", *arguments,
        cwd=ROOT, env={**os.environ, **environment},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


async def test_a_pod_of_ones_own_registers_works_and_ends_with_ctrl_c(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    given = ("--comfyui-dir", str(FAKE), "--data", str(tmp_path / "pod"), "--name", "mine", "--comfyui-args=--cpu")
    process = await troupe(*given, "--control-plane", control_plane.url, "--token", JOIN_TOKEN)
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            assert json.loads(await process.stdout.readline())["event"] == "ready"
            await until(lambda: "ready" in control_plane.states)
            process.send_signal(signal.SIGINT)
            _, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert (process.returncode, control_plane.registrations[-1]["name"]) == (0, "mine")
    assert b"draining" in err, "the agent's own log is what the terminal shows"


async def test_a_pod_without_a_join_token_is_told_so() -> None:
    process = await troupe("--control-plane", "http://127.0.0.1:1", TROUPE_JOIN_TOKEN="")
    _, err = await process.communicate()
    assert (process.returncode, b"--token T" in err) == (1, True)


async def test_what_the_agent_does_not_like_is_passed_on_with_its_exit_code() -> None:
    process = await troupe("--comfyui-dir", "/nowhere")
    _, err = await process.communicate()
    assert (process.returncode, b"there is no ComfyUI at /nowhere" in err) == (2, True)
