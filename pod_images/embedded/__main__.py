"""`python -m pod_images.embedded`: starts one embedded pod, says where it listens, and ends it politely."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import secrets
import signal
import sys
import time
from pathlib import Path

from aiohttp import web

from comfy_nodes import hand_over

from ..registration import PodIdentity, Registrar, kept_instance_id, write_secret
from .pod import Pod, ProbeFailedError, build_pod
from .registrar import registrar_of
from .server import build_app

log = logging.getLogger("pod")
DRAIN_POLL_SECONDS = 0.2
PARENT_POLL_SECONDS = 1.0
SHUTDOWN_SECONDS = 2.0
HAND_OVER_SECONDS = 60.0
"""How long a pod that is asked to end waits for the files of finished prompts to be stored."""


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m pod_images.embedded", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--models", type=Path, action="append", default=[], help="a model folder, read only; repeat")
    parser.add_argument("--data", type=Path, required=True, help="input, output, temp and LoRA cache of this pod")
    parser.add_argument("--control-plane", default="", help="URL to register at; none: a bare server")
    parser.add_argument("--labels", default="", help="comma separated: image,video,train")
    parser.add_argument("--name", default="")
    parser.add_argument("--threads", type=int, default=1, help="threads for the model work")
    parser.add_argument("--engine", choices=("sketch", "tiny"), default="sketch")
    parser.add_argument("--node-pack", type=Path, action="append", default=[], help="a further node pack; repeat")
    parser.add_argument("--parent-pid", type=int, default=0, help="end when this process is no longer the parent")
    return parser.parse_args(arguments)


async def serve(options: argparse.Namespace) -> int:
    """Runs the pod to its end and returns the exit code."""
    token = os.environ.pop("TROUPE_POD_TOKEN", "") or _made_token(options.data)
    join_token = os.environ.pop("TROUPE_JOIN_TOKEN", "")
    models = options.models or [Path(__file__).with_name("models")]
    pod = build_pod(options.data, models, token, options.engine, options.node_pack)
    # What a killed training leaves behind is swept with the temp folder at the next start.
    os.environ.setdefault("TROUPE_WORK_DIR", str(pod.folders.directory("temp")))
    pod.start()
    try:
        await asyncio.to_thread(pod.probe)
    except ProbeFailedError as exc:
        log.error("this pod cannot paint: %s", exc)
        return 1
    runner = web.AppRunner(build_app(pod), shutdown_timeout=SHUTDOWN_SECONDS)
    await runner.setup()
    site = web.TCPSite(runner, options.host, options.port)
    await site.start()
    address = f"http://{options.host}:{runner.addresses[0][1]}"
    sys.stdout.write(json.dumps({"event": "ready", "address": address}) + "\n")
    sys.stdout.flush()
    try:
        await _until_ended(pod, options, address, join_token)
    finally:
        pod.stop()
        await runner.cleanup()
    return 0


def _made_token(data: Path) -> str:
    """A token of our own where none was given, left in a file that only this user may read."""
    data.mkdir(parents=True, exist_ok=True)
    token = secrets.token_urlsafe(32)
    write_secret(data / "pod_token", token)
    return token


async def _until_ended(pod: Pod, options: argparse.Namespace, address: str, join_token: str) -> None:
    """Registers, then waits for the drained end of SIGTERM, a second signal, or the parent's death."""
    loop = asyncio.get_running_loop()
    hurry = asyncio.Event()
    registrar: Registrar | None = None
    tasks: list[asyncio.Task[None]] = []
    if options.control_plane:
        labels = tuple(part.strip() for part in options.labels.split(",") if part.strip())
        identity = PodIdentity(address, options.name, labels, kept_instance_id(pod.folders.data))
        registrar = registrar_of(pod, identity, options.control_plane, join_token)
        tasks.append(asyncio.create_task(registrar.run()))

    def drain() -> None:
        if pod.draining.is_set():
            hurry.set()
        pod.draining.set()
        if registrar is not None:
            registrar.tell_now()

    leaving = asyncio.Event()

    def leave() -> None:
        drain()
        leaving.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, leave)
    ends = [asyncio.create_task(_drained(pod, leaving)), asyncio.create_task(_flagged(hurry))]
    if options.parent_pid:
        ends.append(asyncio.create_task(_orphaned(options.parent_pid)))
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    for task in (*tasks, *ends):
        task.cancel()
    await asyncio.wait([*tasks, *ends], timeout=SHUTDOWN_SECONDS)


async def _flagged(flag: asyncio.Event) -> None:
    await flag.wait()


async def _drained(pod: Pod, leaving: asyncio.Event) -> None:
    """SIGTERM: what runs is finished; what waits is given back by leaving the queue, as a proven loss."""
    await leaving.wait()
    pod.queue.clear()
    while pod.busy():  # noqa: ASYNC110 - the worker is a thread, it has no loop to signal on
        await asyncio.sleep(DRAIN_POLL_SECONDS)
    until = time.monotonic() + HAND_OVER_SECONDS
    while not hand_over.flush(0) and time.monotonic() < until:  # noqa: ASYNC110 - the same
        await asyncio.sleep(DRAIN_POLL_SECONDS)


async def _orphaned(parent: int) -> None:
    while os.getppid() == parent:  # noqa: ASYNC110 - nobody signals a parent's death on every system
        await asyncio.sleep(PARENT_POLL_SECONDS)
    log.warning("the parent process is gone")


def main() -> int:
    options = parse()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
    os.environ.setdefault("OMP_NUM_THREADS", str(options.threads))
    os.environ.setdefault("TROUPE_TRAINER_THREADS", str(options.threads))
    import torch

    torch.set_num_threads(options.threads)
    return asyncio.run(serve(options))


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    sys.stdout.flush()
    # Everything is closed by now. The interpreter's own end is skipped: with torch loaded it was seen to hang in native
    # code, and a pod that does not end keeps its parent waiting.
    os._exit(code)
