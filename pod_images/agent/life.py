"""The life of an agent: data folder, proxy, models, ComfyUI, registration, and everything that may end it."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import secrets
import signal
import sys
import time
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from typing import Any

from aiohttp import web

from ..registration import PodIdentity, Registrar, drop_revoked, kept_instance_id, write_secret
from . import comfy_command, model_files, runpod
from .dead_man import DeadMan
from .facts import Facts
from .gate import Gate
from .incidents import Incidents, Ledger
from .keeper import Boot, Keeper
from .log_tail import LogTail, Redactor
from .options import Options
from .proxy import Front, build_app
from .report import Draining, Report

log = logging.getLogger(__name__)

ENDED = 0
CANNOT_START = 1
CUT_OFF = 3
"""Exit codes: ended in order, which includes that RunPod ended this pod; could not begin; cut off elsewhere."""
SHUTDOWN_SECONDS = 2.0
POLL_SECONDS = 0.25
HAND_OVER_SECONDS = 120.0
"""How long an agent that ends waits for files of finished prompts to be stored."""
PARENT_POLL_SECONDS = 1.0
ANY_HOST = ("0.0.0.0", "::", "")


class CannotStartError(RuntimeError):
    """This agent cannot begin at all; in words for people."""


class Agent:
    """One agent from its start to its exit code."""

    def __init__(self, options: Options, redactor: Redactor) -> None:
        self._options = options
        self._redactor = redactor
        self._gate = Gate()
        self._ledger = Ledger()
        self._incidents = Incidents()
        self._tail = LogTail(redactor)
        self._keeper = Keeper(options, self._gate, self._ledger, self._incidents, self._tail, self._changed)
        self._dead_man = DeadMan(options.dead_man_seconds)
        self._draining = Draining()
        self._leave = asyncio.Event()
        self._hurry = asyncio.Event()
        self._address = ""
        self._registrar: Registrar | None = None
        self._told_facts: Facts | None = None
        self._told_ready = False

    async def run(self) -> int:
        """The exit code. CannotStartError where the data folder or the address cannot be used."""
        options = self._options
        with _sole_user(options), self._signals():
            token = options.secrets.pod_token or self._made_token()
            try:
                comfy_command.prepare(options)
            except OSError as error:
                raise CannotStartError(f"the folders of this pod cannot be made: {error}") from error
            async with self._listening(token) as address:
                self._address = options.public_address or address
                identity = PodIdentity(self._address, options.name, options.labels, kept_instance_id(options.data))
                self._report = Report(options, token, identity, self._keeper, self._incidents, self._draining)
                return await self._live()

    async def _live(self) -> int:
        """Until something ends this agent; ComfyUI is gone when it returns."""
        tasks = [asyncio.create_task(self._keep(), name="keeper")]
        endings: list[Coroutine[Any, Any, int]] = [self._left(), self._hurried()]
        if self._options.control_plane:
            self._registrar = self._made_registrar()
            tasks.append(asyncio.create_task(self._register(self._registrar), name="registrar"))
            endings.append(self._cut_off())
        if self._options.parent_pid:
            endings.append(_orphaned(self._options.parent_pid))
        tasks += [asyncio.create_task(ending) for ending in endings]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            return max(task.result() for task in done)
        finally:
            self._keeper.leaving = True
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep(self) -> int:
        await model_files.all_there(self._options, self._say)
        await self._keeper.run()
        # It only comes back by itself when this agent is ending and its ComfyUI has: how to end is for others to say.
        return await asyncio.Future()

    async def _register(self, registrar: Registrar) -> int:
        await registrar.run()
        return ENDED

    # What ends an agent.

    async def _left(self) -> int:
        """SIGTERM: what runs is finished, what waits is given back, results may be collected; then the end."""
        await self._leave.wait()
        log.info("draining: the running prompt is finished, waiting ones are given back")
        self._keeper.leaving = True
        self._drain(leaving=True)
        await self._keeper.give_back("the pod is being shut down")
        while await self._keeper.busy():  # noqa: ASYNC110 - ComfyUI is another process
            await asyncio.sleep(POLL_SECONDS)
        await self._handed_over()
        if self._registrar is not None:
            await self._collected()
        return ENDED

    async def _handed_over(self) -> None:
        """Files that are still on their way end with ComfyUI; give them the time they need, within reason."""
        until = time.monotonic() + HAND_OVER_SECONDS
        while await self._keeper.handing_over() and time.monotonic() < until:  # noqa: ASYNC110 - the same
            await asyncio.sleep(POLL_SECONDS)

    async def _collected(self) -> None:
        """The owners of finished prompts read their results from ComfyUI; give them a moment."""
        until = time.monotonic() + self._options.collect_seconds
        while self._ledger.open() and time.monotonic() < until:  # noqa: ASYNC110 - the same
            await asyncio.sleep(POLL_SECONDS)

    async def _hurried(self) -> int:
        """A second signal: now."""
        await self._hurry.wait()
        log.warning("ending at once")
        return ENDED

    async def _cut_off(self) -> int:
        """The dead-man switch: no control plane for too long, so nobody needs this pod, and it costs money."""
        while True:
            if not self._dead_man.expired():
                await asyncio.sleep(POLL_SECONDS)
                continue
            log.error("the control plane has been silent for %.0f s", self._dead_man.silent_seconds())
            self._drain(cut_off=True)
            await self._keeper.give_back("the pod was cut off from its control plane")
            if await self._finished_without_contact():
                return await self._end_pod()
            log.info("the control plane is back: this pod goes on")
            self._drain(cut_off=False)

    async def _finished_without_contact(self) -> bool:
        """Lets the running job finish and hand over, up to its deadline. False where the control plane came back."""
        deadline = time.monotonic() + self._options.job_deadline_seconds
        while self._dead_man.expired() and await self._at_work() and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(POLL_SECONDS)
        return self._dead_man.expired()

    async def _at_work(self) -> bool:
        """Whether a prompt runs, or a file that one made is on its way to the store."""
        return await self._keeper.busy() or await self._keeper.handing_over()

    async def _end_pod(self) -> int:
        place = self._options.on_runpod
        if place is not None and await runpod.terminate(place, self._options.secrets.runpod_key):
            return ENDED
        log.error("this pod ends, cut off from its control plane; end its machine yourself, or billing may go on")
        return CUT_OFF

    def _drain(self, **reasons: bool) -> None:
        for name, value in reasons.items():
            setattr(self._draining, name, value)
        self._gate.draining = bool(self._draining)
        self._changed()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()

        def asked() -> None:
            (self._hurry if self._leave.is_set() else self._leave).set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, asked)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    # What others are told.

    def _say(self, boot: Boot) -> None:
        self._keeper.boot = boot
        self._changed()

    def _changed(self) -> None:
        """Something changed: new facts are registered, anything else is in a heartbeat that goes out at once."""
        if self._keeper.ready and not self._told_ready:
            self._told_ready = True
            sys.stdout.write(json.dumps({"event": "ready", "address": self._address}) + "\n")
            sys.stdout.flush()
        if self._registrar is None:
            return
        if self._keeper.ready and self._keeper.facts != self._told_facts:
            self._told_facts = self._keeper.facts
            self._registrar.register_again()
        else:
            self._registrar.tell_now()

    def _made_registrar(self) -> Registrar:
        def contact(pod_key: str | None) -> None:
            self._dead_man.heard()
            if pod_key:
                self._redactor.learn(pod_key)

        return Registrar(
            self._options.control_plane,
            self._options.secrets.join_token,
            comfy_command.pod_key_file(self._options),
            body=self._report.registration,
            heartbeat=self._report.heartbeat,
            obey=self._obey,
            on_contact=contact,
        )

    def _obey(self, answer: Mapping[str, Any]) -> None:
        if answer.get("drain") and not self._draining:
            log.info("the control plane asks this pod to drain")
            self._drain(ordered=True)
        drop_revoked(comfy_command.lora_cache(self._options), answer.get("revoked", []))

    def _describe(self) -> dict[str, Any]:
        registered = self._registrar.registration if self._registrar else None
        silent = round(self._dead_man.silent_seconds(), 1) if self._registrar else None
        return self._report.to_callers(registered.pod_id if registered else None, silent)

    # What it stands on.

    @contextlib.asynccontextmanager
    async def _listening(self, token: str) -> AsyncIterator[str]:
        """The proxy, from before ComfyUI starts until after it ended; yields its address."""
        front = Front(token, self._gate, self._ledger, self._incidents, self._tail, self._describe)
        runner = web.AppRunner(build_app(front), shutdown_timeout=SHUTDOWN_SECONDS, access_log=None)
        await runner.setup()
        try:
            try:
                await web.TCPSite(runner, self._options.host, self._options.port).start()
            except OSError as error:
                where = f"{self._options.host}:{self._options.port}"
                raise CannotStartError(f"cannot listen on {where}: {error.strerror}") from error
            host = "127.0.0.1" if self._options.host in ANY_HOST else self._options.host
            address = f"http://{host}:{runner.addresses[0][1]}"
            log.info("listening at %s", address)
            yield address
        finally:
            await runner.cleanup()

    def _made_token(self) -> str:
        """A token of our own where none was given, left in a file that only this user may read."""
        token = secrets.token_urlsafe(32)
        write_secret(self._options.data / "pod_token", token)
        self._redactor.learn(token)
        return token


@contextlib.contextmanager
def _sole_user(options: Options) -> Iterator[None]:
    """Holds the data folder for this process: two agents on one would be one pod to the control plane."""
    try:
        options.data.mkdir(parents=True, exist_ok=True)
        lock = (options.data / "agent.lock").open("ab")
    except OSError as error:
        raise CannotStartError(f"the data folder {options.data} cannot be used: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CannotStartError(f"another agent uses {options.data}; give this one another --data") from None
        yield


async def _orphaned(parent: int) -> int:
    while os.getppid() == parent:  # noqa: ASYNC110 - nobody signals a parent's death on every system
        await asyncio.sleep(PARENT_POLL_SECONDS)
    log.warning("the parent process is gone")
    return ENDED
