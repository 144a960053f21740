"""Any number of simulated pods in one process: `python -m bench.simulated_pods --control-plane URL --pods 100`.

They register with the join token in TROUPE_JOIN_TOKEN, beat, and take prompts over the real wire, each on a port of its
own. One JSON line says when all of them are known; GET /counts at the address in it tells what they did.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import resource
import secrets
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from bench.http_wire import Caller, Message, ServedConnection, answer
from bench.simulated_pod import NODE_CLASSES, Counts, Pace, SimulatedPod
from bench.simulated_saving import Saver

REGISTERING_AT_ONCE = 4
PARENT_POLL_SECONDS = 1.0
AGAIN_SECONDS = 1.0
JITTER = 0.2


class Fleet:
    """The pods of this process and their ties to one control plane."""

    def __init__(self, options: argparse.Namespace, join_token: str) -> None:
        self._options = options
        self._join_token = join_token
        self.counts = Counts()
        pace = Pace(options.run_seconds, options.lora_seconds, options.base_seconds, options.steps)
        self._caller = Caller(options.control_plane)
        self.pods = [self._pod(number, pace) for number in range(options.pods)]
        self._beats: list[asyncio.Task[None]] = []
        self._gate = asyncio.Semaphore(REGISTERING_AT_ONCE)

    def _pod(self, number: int, pace: Pace) -> SimulatedPod:
        # Every pod has connections of its own, as processes of their own would.
        saver = Saver(Caller(self._options.control_plane, self._options.connections == "kept"), self._options.hand_over)
        return SimulatedPod(f"simulated-{number}", secrets.token_urlsafe(16), pace, self.counts, saver)

    async def start(self) -> None:
        """Open every port and register every pod."""
        for pod in self.pods:
            await pod.serve()
        known = await asyncio.gather(*(self._registered(pod) for pod in self.pods))
        told = zip(self.pods, known, strict=True)
        self._beats = [asyncio.create_task(self._beating(pod, *one)) for pod, one in told]

    def stop(self) -> None:
        for task in self._beats:
            task.cancel()
        for pod in self.pods:
            pod.close()

    def told(self, message: Message, transport: asyncio.WriteTransport) -> bytes:
        """The counts as JSON; with ``?short`` without the journal, which grows."""
        told = {**vars(self.counts), "uploads_failed": sum(pod.saver.failed for pod in self.pods)}
        if message.start[1].endswith("?short"):
            del told["executed"]
        return answer(200, orjson.dumps(told))

    async def _registered(self, pod: SimulatedPod) -> tuple[str, float]:
        """(pod id, seconds between heartbeats); asks again until the control plane takes it."""
        headers = {"Authorization": f"Bearer {self._join_token}", "Content-Type": "application/json"}
        while True:
            async with self._gate:
                with contextlib.suppress(OSError):
                    status, body = await self._caller.call("POST", "/pods", headers, orjson.dumps(self._about(pod)))
                    if status < 300:
                        answered = orjson.loads(body)
                        pod.saver.pod_key = answered["pod_key"]
                        return answered["pod"]["id"], float(answered["heartbeat_seconds"])
                    print(f"{pod.name} is not registered: {status} {body[:300]!r}", file=sys.stderr, flush=True)
            await asyncio.sleep(AGAIN_SECONDS)

    def _about(self, pod: SimulatedPod) -> Mapping[str, Any]:
        return {
            "protocol": 1, "instance_id": pod.instance_id, "address": pod.address, "token": pod.token,
            "kind": "comfyui", "name": pod.name, "gpu": "simulated", "vram_bytes": 24 * 2**30,
            "comfyui_version": "0.8.0", "node_pack_digest": "", "node_classes": list(NODE_CLASSES),
            "models": {"checkpoints": self._options.checkpoints}, "trainers": [], "labels": ["image"],
        }  # fmt: skip

    async def _beating(self, pod: SimulatedPod, pod_id: str, seconds: float) -> None:
        while True:
            await asyncio.sleep(seconds * random.uniform(1 - JITTER, 1))
            running, waiting = pod.queue_lengths
            body = {
                "state": "draining" if pod.draining else "ready", "queue_running": running, "queue_pending": waiting,
                "loras": list(pod.loras), "vram_free_bytes": 20 * 2**30, "disk_free_bytes": 100 * 2**30,
            }  # fmt: skip
            headers = {"Authorization": f"Bearer {pod.saver.pod_key}", "Content-Type": "application/json"}
            with contextlib.suppress(OSError):
                status, text = await self._caller.call("POST", f"/pods/{pod_id}/heartbeat", headers, orjson.dumps(body))
                if status in (401, 404):
                    pod_id, seconds = await self._registered(pod)
                elif status < 300:
                    pod.draining = pod.draining or bool(orjson.loads(text).get("drain"))


async def serve(options: argparse.Namespace, join_token: str) -> None:
    """Run until SIGTERM or until the parent is gone."""
    fleet = Fleet(options, join_token)
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    counting = await loop.create_server(lambda: ServedConnection(fleet.told), "127.0.0.1", 0)
    await fleet.start()
    counts = f"http://127.0.0.1:{counting.sockets[0].getsockname()[1]}/counts"
    ready = {"event": "ready", "counts": counts, "addresses": [pod.address for pod in fleet.pods]}
    print(orjson.dumps(ready).decode(), flush=True)
    watch = asyncio.create_task(_orphaned(options.parent_pid, ended))
    await ended.wait()
    watch.cancel()
    fleet.stop()
    counting.close()


async def _orphaned(parent: int, ended: asyncio.Event) -> None:
    while not parent or os.getppid() == parent:  # noqa: ASYNC110 - no system tells a child that its parent ended
        await asyncio.sleep(PARENT_POLL_SECONDS)
    ended.set()


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.simulated_pods", description=__doc__)
    parser.add_argument("--control-plane", required=True, help="URL to register at")
    parser.add_argument("--pods", type=int, default=1)
    parser.add_argument("--run-seconds", type=float, default=0.0, help="every prompt takes so long (0)")
    parser.add_argument("--lora-seconds", type=float, default=0.0, help="loading another LoRA takes so long (0)")
    parser.add_argument("--base-seconds", type=float, default=0.0, help="loading another checkpoint takes so long (0)")
    parser.add_argument("--steps", type=int, default=0, help="progress messages of each prompt (0)")
    parser.add_argument("--checkpoints", nargs="*", default=[], help="file names that every pod has")
    parser.add_argument("--hand-over", choices=("inline", "background"), default="background", help="S3Save's way")
    parser.add_argument("--connections", choices=("fresh", "kept"), default="kept", help="of S3Save's calls")
    parser.add_argument("--parent-pid", type=int, default=0, help="end when this process is no longer the parent")
    return parser.parse_args(arguments)


def main() -> None:
    options = parse()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard) if soft < hard else (soft, hard))
    join_token = os.environ.pop("TROUPE_JOIN_TOKEN", "")
    with contextlib.suppress(ImportError):
        import uvloop

        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    asyncio.run(serve(options, join_token))


if __name__ == "__main__":
    main()
