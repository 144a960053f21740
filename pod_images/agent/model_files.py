"""Having every model file of the manifest before ComfyUI starts, with progress, for as long as that takes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from .keeper import Boot
from .options import Options

log = logging.getLogger(__name__)

RETRY_SECONDS = 15.0
TELL_SECONDS = 5.0


async def all_there(options: Options, say: Callable[[Boot], None]) -> None:
    """Waits until every file of the manifest is there; what goes wrong is said, and tried again.

    They are kept in the first of the given model folders, else in ComfyUI's own.
    """
    if options.models_manifest is None:
        return
    from ..model_files import Progress, fetch, load_manifest

    root = options.models[0] if options.models else options.base_directory / "models"
    loop = asyncio.get_running_loop()
    last = 0.0

    def progressed(progress: Progress) -> None:
        nonlocal last
        if time.monotonic() - last >= TELL_SECONDS:
            last = time.monotonic()
            boot = Boot("models", f"{progress.doing} {progress.name}", round(progress.percent, 1))
            loop.call_soon_threadsafe(say, boot)

    while True:
        say(Boot("models", "looking at the model files"))
        try:
            files = await asyncio.to_thread(load_manifest, options.models_manifest)
            await _in_thread(lambda files=files: fetch(files, root, progressed))  # type: ignore[misc]
            return
        except Exception as error:  # whatever it is: a pod without its models is not ready, and says why
            log.exception("the model files are not complete")
            say(Boot("models", f"not complete, trying again: {error}"))
        await asyncio.sleep(RETRY_SECONDS)


async def _in_thread(work: Callable[[], None]) -> None:
    """Runs blocking work in a thread that does not keep the process from ending: a download may take an hour."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def settle(error: BaseException | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def run() -> None:
        try:
            work()
        except BaseException as error:  # handed to whoever awaits it
            _call(loop, settle, error)
        else:
            _call(loop, settle, None)

    threading.Thread(target=run, name="model-files", daemon=True).start()
    await done


def _call(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *arguments: Any) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
        loop.call_soon_threadsafe(function, *arguments)
