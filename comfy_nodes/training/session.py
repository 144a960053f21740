"""One training on its way through its phases: downloading, preparing, training, verifying, uploading."""

from __future__ import annotations

import math
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import state
from ..control_plane import ControlPlane, Dataset, StoredAsset, Upload
from ..host import Host, pause
from ..transport import TransportError
from . import runner, states
from .dataset import write_dataset
from .failure import TrainerError, classify
from .job import Job, Trainer
from .products import Product, Products
from .progress import Epoch, Event, Phase, Step, TotalSteps
from .report import ProgressReporter, Standing
from .trainers import TRAINERS
from .uploads import Uploads
from .verify import Verified, verify_lora

PREVIEW_PIXELS = 512
LOOK_SECONDS = 1.0
BEAT_SECONDS = 5.0


class Session:
    """Trains one dataset on this pod. `run` is called once, in the thread that executes the prompt."""

    def __init__(self, host: Host, link: ControlPlane, reporter: ProgressReporter, dataset: Dataset) -> None:
        self._host = host
        self._link = link
        self._reporter = reporter
        self._dataset = dataset
        self._warnings: list[str] = []
        self._total_steps = 0
        self._epochs = 1
        self._pace: float | None = None

    def run(self) -> dict[str, Any]:
        """The LoRA's entry for the node's `ui`. Raises TrainerError, TransportError or the host's interrupt."""
        with _beating(lambda: self._pace):
            return self._run()

    def _run(self) -> dict[str, Any]:
        trainer = self._trainer()
        checkpoint = self._checkpoint()
        folder = Path(tempfile.mkdtemp(prefix="troupe-training-", dir=os.environ.get("TROUPE_WORK_DIR") or None))
        try:
            images, output = folder / "images", folder / "try-1" / "out"
            job = Job(self._dataset, checkpoint, images, output, _threads(), self._host.vram_bytes())
            self._fetch(job)
            job = self._resumed(trainer, job, folder / "resume")
            # The trainer is another process: what this one holds on the accelerator is in its way.
            self._host.free_memory()
            job, finished = self._train(trainer, job, folder)
            self._reporter.phase("verifying")
            verified = verify_lora(job.result, trainer.known_modules(checkpoint), job.trigger_phrase)
            return self._described(self._upload(job), verified, finished.last_step, job)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _trainer(self) -> Trainer:
        trainer = TRAINERS.get(self._dataset.trainer)
        if trainer is None:
            known = ", ".join(sorted(TRAINERS))
            raise TrainerError("unknown_trainer", f"this pod has no trainer {self._dataset.trainer} (it has {known})")
        obstacle = trainer.obstacle()
        if obstacle is not None:
            raise TrainerError("trainer_unavailable", obstacle)
        return trainer

    def _checkpoint(self) -> Path:
        try:
            return self._host.checkpoint_path(self._dataset.checkpoint)
        except FileNotFoundError as error:
            raise TrainerError("missing_checkpoint", str(error)) from error

    def _fetch(self, job: Job) -> None:
        total = len(self._dataset.images)

        def progress(count: int) -> None:
            self._reporter.tell(Standing("downloading", count, total))

        write_dataset(self._dataset, job.images, self._link.download, self._check, progress)

    def _resumed(self, trainer: Trainer, job: Job, folder: Path) -> Job:
        """The job, going on from the state of an earlier attempt where there is one that can be used."""
        saved = self._dataset.resume
        if saved is None:
            return job
        try:
            resume = states.fetch(saved, folder, self._link.download, self._check)
        except (TransportError, states.StateError) as error:
            why = f"the state saved at step {saved.step} could not be used ({error})"
            self._reporter.note(f"{why}; training starts over")
            return job
        self._check()
        job, sentence = trainer.resumed(job, resume)
        self._reporter.note(sentence)
        return job

    def _train(self, trainer: Trainer, job: Job, folder: Path) -> tuple[Job, runner.Finished]:
        """Try, and try again with easier settings while the trainer knows any; the job that succeeded."""
        number = 1
        with Uploads(self._link, self._host.prompt_id(), self._reporter) as uploads:
            while True:
                try:
                    finished = self._try(trainer, job, uploads)
                    break
                except TrainerError as error:
                    next_try = trainer.easier(job, error)
                    if next_try is None:
                        raise
                    job, sentence = next_try
                number += 1
                job = replace(job, output=folder / f"try-{number}" / "out")
                self._reporter.note(sentence)
            uploads.finish(self._check)
        self._warnings += uploads.warnings
        return job, finished

    def _try(self, trainer: Trainer, job: Job, uploads: Uploads) -> runner.Finished:
        job.output.mkdir(parents=True)
        self._reporter.tell(Standing("preparing", job.start_step, self._total_steps))
        products = Products(job.output)

        def pack(product: Product, target: Path) -> str:
            step = round(self._total_steps * product.epoch / self._epochs)
            states.pack(product.path, target, product.epoch, step, trainer.described(job))
            return states.state_name(product.epoch, step)

        def take(product: Product) -> None:
            uploads.add(product, pack)
            if product.kind == "sample":
                self._preview(product.path)

        def look() -> None:
            for product in products.look():
                if product.kind != "state" or trainer.worth_saving(job, self._total_steps * (self._pace or 0.0)):
                    take(product)

        looking = _Regularly(LOOK_SECONDS, look)

        def stop_reason() -> str | None:
            looking()
            return self._stop_reason()

        finished = runner.run(trainer.command(job), lambda event: self._on_event(event, job), stop_reason)
        # The process is gone: what did not change between two looks is whole. A state is of no use any more.
        for product in [*products.look(), *products.look()]:
            if product.kind != "state":
                take(product)
        error = classify(finished.returncode, finished.log, job.result.exists())
        if error is not None:
            raise error
        return finished

    def _check(self) -> None:
        self._host.raise_if_interrupted()
        if self._reporter.cancelled is not None:
            raise TrainerError("cancelled", self._reporter.cancelled)

    def _stop_reason(self) -> str | None:
        return "the prompt was interrupted" if self._host.interrupted() else self._reporter.cancelled

    def _on_event(self, event: Event, job: Job) -> None:
        """Steps are counted from the training's true beginning, also where it goes on from a saved state."""
        standing = self._reporter.standing
        if isinstance(event, TotalSteps):
            self._total_steps = event.total
            self._reporter.tell(replace(standing, step=job.start_step, total_steps=event.total))
        elif isinstance(event, Epoch):
            self._epochs = event.total
        elif isinstance(event, Step):
            step = min(job.start_step + event.step, event.total)
            self._pace = event.seconds_per_step
            left = event.eta_seconds if self._pace is None else (event.total - step) * self._pace
            self._reporter.tell(Standing("training", step, event.total, _finite(event.loss), left))
            self._host.progress(step, event.total)
        elif isinstance(event, Phase):
            self._reporter.tell(replace(standing, phase=event.phase))

    def _preview(self, path: Path) -> None:
        from PIL import Image

        try:
            with Image.open(path) as image:
                picture = image.convert("RGB")
        except OSError:
            return  # a preview is a courtesy; the sample itself is uploaded and reported on its own
        picture.thumbnail((PREVIEW_PIXELS, PREVIEW_PIXELS))
        standing = self._reporter.standing
        self._host.progress(standing.step, max(1, standing.total_steps), picture)

    def _upload(self, job: Job) -> StoredAsset:
        self._reporter.phase("uploading")
        name = f"{self._dataset.character_id}-v{self._dataset.version}.safetensors"
        upload = Upload(name, "application/octet-stream", job.result, "lora", 0)
        self._check()
        return self._link.upload(self._host.prompt_id(), upload, pause)

    def _described(self, stored: StoredAsset, verified: Verified, last: Step | None, job: Job) -> dict[str, Any]:
        if verified.matched < verified.total:
            self._warnings.append(f"{verified.total - verified.matched} modules of the LoRA do not exist in the base")
        return {
            "asset_id": stored.asset_id,
            "url": stored.url,
            "sha256": stored.sha256,
            "bytes": stored.bytes,
            "steps": job.start_step + last.step if last else 0,
            "final_loss": _finite(last.loss) if last else None,
            "rank": verified.rank,
            "matched": verified.matched,
            "total": verified.total,
            "trigger": job.trigger_phrase,
            "warnings": self._warnings,
        }


class _Regularly:
    """Does something when called, but not more often than every so many seconds."""

    def __init__(self, seconds: float, work: Callable[[], object]) -> None:
        self._seconds = seconds
        self._work = work
        self._next = 0.0

    def __call__(self) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + self._seconds
            self._work()


@contextmanager
def _beating(pace: Callable[[], float | None]) -> Iterator[None]:
    """Signs of life of this node, so that silent phases are not taken for death.

    A trainer that hangs is noticed by its runner, and no exchange with the control plane waits for ever.
    """
    over = threading.Event()

    def beat() -> None:
        while not over.is_set():
            state.beat(pace())
            over.wait(BEAT_SECONDS)

    thread = threading.Thread(target=beat, name="training-beats", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _finite(loss: float | None) -> float | None:
    return loss if loss is not None and math.isfinite(loss) else None


def _threads() -> int:
    """The CPU share of a trainer: TROUPE_TRAINER_THREADS, else as many threads as this process was given."""
    given = os.environ.get("TROUPE_TRAINER_THREADS", "").strip()
    if given:
        return max(1, int(given))
    torch = sys.modules.get("torch")
    return int(torch.get_num_threads()) if torch is not None else os.cpu_count() or 1
