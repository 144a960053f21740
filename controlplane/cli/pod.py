"""``troupe pod comfyui``: a ComfyUI of one's own as a pod of a control plane anywhere, with its agent in front."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys

from rich.console import Console

from controlplane.cli.children import importable
from controlplane.errors import BadRequest

PASSED_ON = (
    "comfyui_dir", "comfyui_python", "comfyui_args", "base_directory", "data", "control_plane", "host", "port",
    "public_address", "labels", "name", "models", "models_manifest", "dead_man_minutes", "hung_seconds",
    "memory_limit",
)  # fmt: skip
"""Options of this command that are the agent's own, under the same names."""


async def run(options: argparse.Namespace, console: Console) -> int:
    """Run the agent as a child until it ends, and answer with its exit code.

    A first Ctrl-C lets it finish the running prompt and give the waiting ones back; a second one ends it now.
    """
    token = options.token or os.environ.get("TROUPE_JOIN_TOKEN", "")
    if options.control_plane and not token:
        raise BadRequest(
            "A pod registers with the control plane's join token: --token T, or TROUPE_JOIN_TOKEN. The server's is its "
            "own TROUPE_JOIN_TOKEN, or stands in secrets.json in its data folder."
        )
    agent = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "pod_images.agent",
        *arguments(options),
        env={**os.environ, **importable(), "TROUPE_JOIN_TOKEN": token},
        # In a session of its own, so that a Ctrl-C of the terminal reaches it once, through us.
        start_new_session=True,
    )
    loop = asyncio.get_running_loop()

    def ask_to_end() -> None:
        if agent.returncode is None:
            agent.send_signal(signal.SIGTERM)

    # In place of the command line's own: a pod that is told to stop still has a prompt to finish.
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ask_to_end)
    return await agent.wait()


def arguments(options: argparse.Namespace) -> list[str]:
    """The agent's arguments; the join token is not among them."""
    given: list[str] = ["--parent-pid", str(os.getpid())]
    for name in PASSED_ON:
        value = getattr(options, name)
        for one in value if isinstance(value, list) else [] if value is None else [value]:
            # In one word, because a value may begin with a dash.
            given.append(f"--{name.replace('_', '-')}={one}")
    return given
