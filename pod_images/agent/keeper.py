"""Keeping one ComfyUI at work: start, probe, watch, restart with a reason, drain; what the agent says of it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from . import comfy_command, facts, probe
from .comfy_link import ComfyLink, NoAnswerError
from .facts import Facts
from .gate import Gate
from .incidents import TAIL_LINES, Incident, Incidents, Ledger
from .log_tail import LogTail
from .options import Options
from .supervisor import ComfyProcess, StartError, said_exit
from .watch import Limits, Past, Snapshot, Verdict, judge

log = logging.getLogger(__name__)

START_POLL_SECONDS = 0.25
STEADY_SECONDS = 60.0
LONGEST_BACKOFF_SECONDS = 60.0
SETTLE_SECONDS = 30.0
RESULT_SECONDS = 900.0
"""How long a result that nobody has collected puts off a restart that is only a precaution."""
# The two ways in which a start without a graphics card ends, and what to do about it.
NO_DEVICE = ("not compiled with CUDA", "Found no NVIDIA driver", "No CUDA GPUs are available")
MISUNDERSTOOD = (AttributeError, LookupError, TypeError, ValueError)
"""What reading an answer of an unknown shape raises."""
NO_DEVICE_HINT = 'ComfyUI finds no accelerator; to run it on the processor: --comfyui-args "--cpu"'


class BootError(RuntimeError):
    """ComfyUI did not become ready; in words for people."""


@dataclass(frozen=True)
class Boot:
    """How far the start is."""

    phase: str
    detail: str = ""
    percent: float | None = None

    def body(self) -> dict[str, Any]:
        return {"phase": self.phase, "detail": self.detail[:500], "percent": self.percent}


class Keeper:
    """One ComfyUI after the other. `told` is called whenever something changed that the control plane should hear."""

    def __init__(
        self,
        options: Options,
        gate: Gate,
        ledger: Ledger,
        incidents: Incidents,
        tail: LogTail,
        told: Callable[[], None],
    ) -> None:
        self._options = options
        self._gate = gate
        self._ledger = ledger
        self._incidents = incidents
        self._tail = tail
        self._told = told
        self._limits = Limits(hung_seconds=options.hung_seconds, memory_bytes=options.memory_limit)
        self._process: ComfyProcess | None = None
        self._link: ComfyLink | None = None
        self._failures = 0
        self.leaving = False
        """Set for good once ComfyUI is not to be started again."""
        self.boot: Boot | None = Boot("starting")
        self.facts: Facts | None = None
        self.seen = Snapshot(0.0, None)
        self.state: Mapping[str, Any] = {}

    @property
    def ready(self) -> bool:
        return self._gate.url is not None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None and self._process.exit_code is None else None

    async def run(self) -> None:
        """Until `leaving`, or cancelled; ComfyUI is gone at the end, whatever ends this."""
        async with aiohttp.ClientSession(trust_env=False) as session:
            try:
                while not self.leaving:
                    await self._one_life(session)
            finally:
                self._gate.shut("this pod is ending")
                await self._end_process()

    async def _one_life(self, session: aiohttp.ClientSession) -> None:
        """From a start of ComfyUI to its end, and the pause after it."""
        ready_at: float | None = None
        try:
            process, link = await self._started(session)
            ready_at = time.monotonic()
            verdict = await self._watched(process, link)
        except BootError as error:
            self._note_failed_boot(str(error))
        else:
            self._note_restart(verdict)
        await self._end_process()
        if self.leaving:
            return
        if ready_at is not None and time.monotonic() - ready_at > STEADY_SECONDS:
            self._failures = 0
        pause = min(2.0 ** (self._failures - 1), LONGEST_BACKOFF_SECONDS) if self._failures else 0.0
        self._failures += 1
        await asyncio.sleep(pause)

    async def _started(self, session: aiohttp.ClientSession) -> tuple[ComfyProcess, ComfyLink]:
        """A ComfyUI that answered, has our node pack and made a picture; the gate is open then. BootError."""
        self._say(Boot("starting", "ComfyUI is being started"))
        try:
            await asyncio.to_thread(comfy_command.sweep, self._options)
            command = comfy_command.command(self._options)
            self._tail.note(f"[agent] starting ComfyUI: {' '.join(command.argv)}")
            process = self._process = await ComfyProcess.start(command, self._tail)
        except (StartError, OSError) as error:
            raise BootError(str(error)) from error
        link = self._link = ComfyLink(session, command.url)
        readiness = asyncio.create_task(self._readiness(link))
        death = asyncio.create_task(process.wait())
        try:
            await asyncio.wait([readiness, death], timeout=self._options.boot_seconds, return_when="FIRST_COMPLETED")
            if readiness.done():
                self.facts = readiness.result()
            elif death.done():
                raise BootError(f"ComfyUI ended while it was started: {said_exit(death.result())}{self._hint()}")
            else:
                raise BootError(f"ComfyUI was not ready after {self._options.boot_seconds:.0f} s")
        finally:
            for task in (readiness, death):
                task.cancel()
            await asyncio.gather(readiness, death, return_exceptions=True)
        self._gate.open(command.url)
        self._say(None)
        return process, link

    async def _readiness(self, link: ComfyLink) -> Facts:
        await _answering(link)
        try:
            state = await link.state()
        except NoAnswerError as error:
            words = "the node pack of Troupe is not in it: see IMPORT FAILED in ComfyUI's log"
            raise BootError(f"ComfyUI runs, but {words} ({error})") from error
        self._say(Boot("probing", "ComfyUI answers and makes its first picture"))
        try:
            gathered = await facts.gather(link, state)
            folders = [root / "checkpoints" for root in comfy_command.model_roots(self._options)]
            made = await probe.probe(link, probe.smallest_first(gathered.models.get("checkpoints", ()), folders))
            self.seen, self.state = await link.snapshot()
        except (NoAnswerError, probe.ProbeFailedError, *MISUNDERSTOOD) as error:
            raise BootError(f"ComfyUI runs, but its first picture did not come out: {error}{self._hint()}") from error
        log.info("ComfyUI %s is ready: %s", gathered.comfyui_version, made)
        return gathered

    async def _watched(self, process: ComfyProcess, link: ComfyLink) -> Verdict:
        """Looks at ComfyUI until something is wrong with it."""
        death = asyncio.create_task(process.wait())
        past = Past(time.monotonic())
        try:
            while True:
                await asyncio.wait([death], timeout=self._options.poll_seconds)
                if death.done():
                    return Verdict("died", f"ComfyUI ended by itself: {said_exit(death.result())}")
                self.seen, state = await link.snapshot()
                self.state = state or self.state
                past, verdict = judge(past, self.seen, self._limits)
                if verdict is not None and not death.done() and await self._stands(verdict, link):
                    return verdict
        finally:
            death.cancel()
            await asyncio.gather(death, return_exceptions=True)

    async def _stands(self, verdict: Verdict, link: ComfyLink) -> bool:
        """Shuts the gate. A verdict on an idle ComfyUI is dropped where a prompt came in, or a result is not read."""
        url = self._gate.url
        if verdict.code == "memory_limit" and self._ledger.awaits(self.seen.at, RESULT_SECONDS):
            return False
        self._gate.shut(f"ComfyUI is being restarted: {verdict.detail}")
        if verdict.code != "memory_limit":
            return True
        await self._gate.settled(SETTLE_SECONDS)
        seen, _ = await link.snapshot()
        if seen.idle and seen.worker is not None and not self._ledger.awaits(seen.at, RESULT_SECONDS):
            return True
        if url is not None:
            self._gate.open(url)
        return False

    def _note_restart(self, verdict: Verdict) -> None:
        self._gate.shut(f"ComfyUI is being restarted: {verdict.detail}")
        self._tail.note(f"[agent] {verdict.code}: {verdict.detail}")
        log.error("%s: %s", verdict.code, verdict.detail)
        incident = self._incidents.restarted(verdict.code, verdict.detail, self._tail.last(TAIL_LINES))
        named = [verdict.prompt_id] if verdict.prompt_id else []
        self._incidents.lost([*self._ledger.open(), *self.seen.running, *self.seen.pending, *named], incident)
        self.seen = Snapshot(time.monotonic(), None)
        self._say(Boot("starting", f"restarting after {verdict.code}: {verdict.detail}"))

    def _note_failed_boot(self, words: str) -> None:
        self._gate.shut(words)
        self._tail.note(f"[agent] {words}")
        log.error("%s\n%s", words, "\n".join(f"  | {line}" for line in self._tail.last(25)))
        self._say(Boot(self.boot.phase if self.boot else "starting", words))

    def _hint(self) -> str:
        tail = "\n".join(self._tail.last(TAIL_LINES))
        return f". {NO_DEVICE_HINT}" if any(words in tail for words in NO_DEVICE) else ""

    def _say(self, boot: Boot | None) -> None:
        self.boot = boot
        self._told()

    async def _end_process(self) -> None:
        process, self._process, self._link = self._process, None, None
        if process is not None:
            await asyncio.shield(process.end())

    async def busy(self) -> bool:
        """Whether a prompt runs now; a ComfyUI that does not answer counts as busy until it is judged."""
        link = self._link
        if link is None or not self.ready:
            return False
        try:
            running, _ = await link.queue()
        except NoAnswerError:
            return self.ready
        return bool(running)

    async def handing_over(self) -> bool:
        """Whether files of finished prompts are still on their way to the store."""
        link = self._link
        if link is None or not self.ready:
            return False
        seen, _ = await link.snapshot()
        return self.ready and seen.uploads_pending > 0

    async def give_back(self, why: str) -> None:
        """Takes every waiting prompt out of the queue; its owner finds an incident that says so."""
        link = self._link
        if link is None or not self.ready:
            return
        await self._gate.settled(SETTLE_SECONDS)
        try:
            _, pending = await link.queue()
            if not pending:
                return
            await link.delete_pending(pending)
            running, still = await link.queue()
        except NoAnswerError as error:
            log.warning("waiting prompts could not be given back: %s", error)
            return
        # One that began in that very moment is finished like any other.
        gone = [prompt for prompt in pending if prompt not in running and prompt not in still]
        self._incidents.lost(gone, Incident("drained", why, time.time()))
        log.info("gave %d waiting prompts back: %s", len(gone), why)


async def _answering(link: ComfyLink) -> None:
    while True:
        try:
            await link.system_stats()
        except NoAnswerError:
            await asyncio.sleep(START_POLL_SECONDS)
        else:
            return
