"""Handing over what a training makes on its way: samples, checkpoints and states, one after the other, beside it."""

from __future__ import annotations

import concurrent.futures
import functools
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

from ..control_plane import ControlPlane, Upload
from ..transport import TransportError
from . import states
from .products import Product
from .report import ProgressReporter

# Writes the tar of a state and answers the name that it is to be stored under.
Pack = Callable[[Product, Path], str]
_LOOK_EVERY_SECONDS = 0.25
CHECKPOINT_MEDIA_TYPE = "application/octet-stream"


class Uploads:
    """A thread that uploads; what is lost on the way is a warning, never a failure. Use it as a context manager."""

    def __init__(self, link: ControlPlane, prompt_id: str, reporter: ProgressReporter) -> None:
        self.warnings: list[str] = []
        self._link = link
        self._prompt_id = prompt_id
        self._reporter = reporter
        self._samples = 0
        self._newest_state = 0
        self._over = False
        self._waiting: set[concurrent.futures.Future[None]] = set()
        self._pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="training-uploads")

    def add(self, product: Product, pack: Pack) -> None:
        """Upload it in its turn; returns at once. `pack` is for a state."""
        if product.kind == "sample":
            self._submit(product, self._upload_sample, self._samples)
            self._samples += 1
        elif product.kind == "checkpoint":
            self._submit(product, self._upload_checkpoint, product.epoch)
        else:
            self._newest_state = product.epoch
            self._submit(product, functools.partial(self._upload_state, pack), product.epoch)

    def finish(self, check: Callable[[], None]) -> None:
        """Wait for what was added, states excepted; `check` is called meanwhile and may raise."""
        self._over = True
        waiting = self._waiting
        while waiting:
            check()
            _, waiting = concurrent.futures.wait(waiting, _LOOK_EVERY_SECONDS)

    def __enter__(self) -> Uploads:
        return self

    def __exit__(self, *_error: object) -> None:
        # After a failure nobody waits for the pictures of a training that is over.
        self._over = True
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _submit(self, product: Product, upload: Callable[[Product, int], None], index: int) -> None:
        self._waiting.add(self._pool.submit(self._guarded, product, upload, index))

    def _guarded(self, product: Product, upload: Callable[[Product, int], None], index: int) -> None:
        try:
            upload(product, index)
        except (TransportError, OSError, tarfile.TarError) as error:
            self.warnings.append(f"{product.kind} {product.path.name} was not kept: {error}")

    def _upload_sample(self, product: Product, index: int) -> None:
        from PIL import Image

        path = product.path
        with Image.open(path) as image:
            width, height, media_type = image.width, image.height, Image.MIME.get(image.format or "", "image/png")
        upload = Upload(path.name, media_type, path.read_bytes(), "sample", index, width, height)
        self._reporter.add_asset("sample", self._link.upload(self._prompt_id, upload, time.sleep).asset_id)

    def _upload_checkpoint(self, product: Product, index: int) -> None:
        upload = Upload(product.path.name, CHECKPOINT_MEDIA_TYPE, product.path, "checkpoint", index)
        self._reporter.add_asset("checkpoint", self._link.upload(self._prompt_id, upload, time.sleep).asset_id)

    def _upload_state(self, pack: Pack, product: Product, index: int) -> None:
        if self._over or index < self._newest_state:
            return  # a state is only for going on: from the newest, and not once the training has ended
        archive = product.path.with_suffix(".tar")
        try:
            name = pack(product, archive)
            self._link.upload(self._prompt_id, Upload(name, states.MEDIA_TYPE, archive, "state", index), time.sleep)
        finally:
            archive.unlink(missing_ok=True)
