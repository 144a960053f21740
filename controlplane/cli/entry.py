"""Where a command line becomes a running command and an exit code."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from rich.console import Console

from controlplane.cli import commands, demo, pod, pods, projects, server, webhooks, workflows
from controlplane.cli.arguments import build_parser
from controlplane.cli.stopping import Stopped, until_stopped
from controlplane.client import RequestFailed, Unreachable
from controlplane.errors import TroupeError

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"
UNCUT_WIDTH = 1000
RUNNERS = {
    "demo": demo.run,
    "serve": server.run,
    "migrate": server.migrate,
    "create": commands.create,
    "image": commands.image,
    "video": commands.video,
    "characters": commands.characters,
    "jobs": commands.jobs,
    "pod": pod.run,
    "pods": pods.run,
    "pause": projects.pause,
    "resume": projects.resume,
    "webhooks": webhooks.run,
    "workflows": workflows.run,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Exit codes: 0 done, 1 failed or refused, 2 bad usage, 128 + signal when stopped early."""
    options = build_parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format=LOG_FORMAT)
    # A file or a pipe has no width: nothing may be cut there.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else UNCUT_WIDTH)
    errors = Console(stderr=True, highlight=False)
    work: Coroutine[Any, Any, int] = RUNNERS[options.command](options, console)
    try:
        with asyncio.Runner(loop_factory=_loop_of(options.command)) as runner:
            return runner.run(until_stopped(work))
    except Stopped as stopped:
        return stopped.exit_code
    except RequestFailed as error:
        errors.print(f"[red]refused[/] ({error.http_status} {error.problem_code}): ", end="")
        errors.print(error.detail, markup=False, soft_wrap=True)
        for part in error.errors:
            errors.print(f"  {part.get('pointer', '')}: {part.get('detail', '')}", markup=False, soft_wrap=True)
    except Unreachable as error:
        words = f"{error.detail} Is a server running? Start one with: troupe serve --embedded-pod"
        errors.print(words, markup=False, soft_wrap=True)
    except TroupeError as error:
        errors.print(error.detail, markup=False, soft_wrap=True)
    return 1


def _loop_of(command: str) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """A server's event loop: uvloop's, where there is one, takes a tenth less CPU for each job; None for asyncio's."""
    if command != "serve":
        return None
    try:
        import uvloop
    except ImportError:  # not made for this platform
        return None
    return uvloop.new_event_loop
