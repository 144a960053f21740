"""TrainLoRA: trains the LoRA of a character's version with the base's own trainer, and hands the verified file over."""

from __future__ import annotations

import concurrent.futures
import math
import os
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .boundary import contained, ui
from .control_plane import ControlPlane, Dataset, StoredAsset, Upload, link_from_environment
from .host import Host, current_host, pause
from .training import runner
from .training.dataset import write_dataset
from .training.failure import TrainerError, classify
from .training.job import Job, Trainer
from .training.progress import Event, Phase, SavedSample, Step, TotalSteps
from .training.report import ProgressReporter, Standing
from .training.trainers import TRAINERS
from .training.verify import Verified, verify_lora
from .transport import TransportError

PREVIEW_PIXELS = 512


class TrainLoRA:
    """A V1 output node: dataset, base and recipe of a version -> the sha256 of its LoRA."""

    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("sha256",)
    FUNCTION = "train"
    OUTPUT_NODE = True
    CATEGORY = "Troupe"
    DESCRIPTION = "Trains a character's LoRA in a process of its own; images, captions and recipe come from the server."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "character_id": ("STRING", {"default": ""}),
                "version": ("INT", {"default": 1, "min": 1, "max": 1_000_000}),
                "base": ("STRING", {"default": "sketch"}),
                "recipe": ("STRING", {"default": "fast"}),
            },
            "optional": {"dataset_digest": ("STRING", {"default": ""})},
        }

    @classmethod
    def IS_CHANGED(cls, **_inputs: Any) -> float:
        """NaN, so that it always runs: a retry must train again."""
        return math.nan

    @contained
    def train(
        self, character_id: str, version: int, base: str, recipe: str, dataset_digest: str = ""
    ) -> dict[str, Any]:
        """Raises TrainerError (its first line is `code: detail`), TransportError, or the host's interrupt exception."""
        host = current_host()
        link = _link()
        with ProgressReporter(link, host.prompt_id()) as reporter:
            try:
                dataset = link.dataset(character_id, version, pause)
                _check_agreement(dataset, base, recipe, dataset_digest)
                trained = _Training(host, link, reporter, dataset).run()
            except TrainerError as error:
                if error.code == "cancelled":
                    host.raise_if_interrupted()
                raise
        return {"ui": ui(lora=[trained]), "result": (trained["sha256"],)}


def _link() -> ControlPlane:
    link = link_from_environment()
    if link is None:
        raise RuntimeError("TrainLoRA needs a control plane (TROUPE_CONTROL_PLANE_URL): the dataset comes from it")
    return link


def _check_agreement(dataset: Dataset, base: str, recipe: str, digest: str) -> None:
    """The graph was bound to a base, a recipe and a dataset: training anything else would be silently wrong."""
    for what, bound, found in (
        ("base", base, dataset.base),
        ("recipe", recipe, dataset.recipe),
        ("dataset", digest, dataset.digest),
    ):
        if bound and bound != found:
            raise TrainerError("changed", f"the job was made for {what} {bound}, the version now has {found}")


@dataclass
class _Training:
    """One training on its way through its phases: downloading, preparing, training, verifying, uploading."""

    host: Host
    link: ControlPlane
    reporter: ProgressReporter
    dataset: Dataset
    warnings: list[str] = field(default_factory=list)

    def run(self) -> dict[str, Any]:
        trainer = self._trainer()
        checkpoint = self._checkpoint()
        folder = Path(tempfile.mkdtemp(prefix="troupe-training-", dir=os.environ.get("TROUPE_WORK_DIR") or None))
        try:
            job = Job(self.dataset, checkpoint, folder / "images", folder / "out", _threads())
            job.output.mkdir()
            self._fetch(job)
            # The trainer is another process: what this one holds on the accelerator is in its way.
            self.host.free_memory()
            with _SampleUploads(self.link, self.host.prompt_id(), self.reporter) as samples:
                finished = self._train(trainer.command(job), samples)
            self.warnings += samples.warnings
            error = classify(finished.returncode, finished.log, job.result.exists())
            if error is not None:
                raise error
            self.reporter.phase("verifying")
            verified = verify_lora(job.result, trainer.known_modules(checkpoint))
            return self._described(self._upload(job), verified, finished.last_step, job)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _trainer(self) -> Trainer:
        trainer = TRAINERS.get(self.dataset.trainer)
        if trainer is None:
            known = ", ".join(sorted(TRAINERS))
            raise TrainerError("unknown_trainer", f"this pod has no trainer {self.dataset.trainer} (it has {known})")
        obstacle = trainer.obstacle()
        if obstacle is not None:
            raise TrainerError("trainer_unavailable", obstacle)
        return trainer

    def _checkpoint(self) -> Path:
        try:
            return self.host.checkpoint_path(self.dataset.checkpoint)
        except FileNotFoundError as error:
            raise TrainerError("missing_checkpoint", str(error)) from error

    def _fetch(self, job: Job) -> None:
        total = len(self.dataset.images)

        def progress(count: int) -> None:
            self.reporter.tell(Standing("downloading", count, total))

        write_dataset(self.dataset, job.images, self.link.download, self._check, progress)

    def _check(self) -> None:
        self.host.raise_if_interrupted()
        if self.reporter.cancelled is not None:
            raise TrainerError("cancelled", self.reporter.cancelled)

    def _stop_reason(self) -> str | None:
        return "the prompt was interrupted" if self.host.interrupted() else self.reporter.cancelled

    def _train(self, command: runner.Command, samples: _SampleUploads) -> runner.Finished:
        self.reporter.tell(Standing("preparing"))
        return runner.run(command, lambda event: self._on_event(event, samples), self._stop_reason)

    def _on_event(self, event: Event, samples: _SampleUploads) -> None:
        standing = self.reporter.standing
        if isinstance(event, TotalSteps):
            self.reporter.tell(replace(standing, step=0, total_steps=event.total))
        elif isinstance(event, Step):
            self.reporter.tell(Standing("training", event.step, event.total, _finite(event.loss), event.eta_seconds))
            self.host.progress(event.step, event.total)
        elif isinstance(event, Phase):
            self.reporter.tell(replace(standing, phase=event.phase))
        elif isinstance(event, SavedSample):
            samples.add(Path(event.path))
            self._preview(Path(event.path), standing)

    def _preview(self, path: Path, standing: Standing) -> None:
        from PIL import Image

        try:
            with Image.open(path) as image:
                picture = image.convert("RGB")
        except OSError:
            return  # a preview is a courtesy; the sample itself is uploaded and reported on its own
        picture.thumbnail((PREVIEW_PIXELS, PREVIEW_PIXELS))
        self.host.progress(standing.step, max(1, standing.total_steps), picture)

    def _upload(self, job: Job) -> StoredAsset:
        self.reporter.phase("uploading")
        name = f"{self.dataset.character_id}-v{self.dataset.version}.safetensors"
        upload = Upload(name, "application/octet-stream", job.result, "lora", 0)
        self._check()
        return self.link.upload(self.host.prompt_id(), upload, pause)

    def _described(self, stored: StoredAsset, verified: Verified, last: Step | None, job: Job) -> dict[str, Any]:
        if verified.matched < verified.total:
            self.warnings.append(f"{verified.total - verified.matched} modules of the LoRA do not exist in the base")
        return {
            "asset_id": stored.asset_id,
            "url": stored.url,
            "sha256": stored.sha256,
            "bytes": stored.bytes,
            "steps": last.step if last else 0,
            "final_loss": _finite(last.loss) if last else None,
            "rank": verified.rank,
            "matched": verified.matched,
            "total": verified.total,
            "trigger": job.trigger_phrase,
            "warnings": self.warnings,
        }


class _SampleUploads:
    """Uploads sample images one after the other while the training goes on; a lost one is a warning, not a failure."""

    def __init__(self, link: ControlPlane, prompt_id: str, reporter: ProgressReporter) -> None:
        self.warnings: list[str] = []
        self._link = link
        self._prompt_id = prompt_id
        self._reporter = reporter
        self._count = 0
        self._pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="samples")

    def add(self, path: Path) -> None:
        self._pool.submit(self._upload, path, self._count)
        self._count += 1

    def __enter__(self) -> _SampleUploads:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_error: object) -> None:
        # After a failure nobody waits for the pictures of a training that is over.
        self._pool.shutdown(wait=kind is None, cancel_futures=kind is not None)

    def _upload(self, path: Path, index: int) -> None:
        from PIL import Image

        try:
            with Image.open(path) as image:
                width, height, media_type = image.width, image.height, Image.MIME.get(image.format or "", "image/png")
            upload = Upload(path.name, media_type, path.read_bytes(), "sample", index, width, height)
            self._reporter.add_asset("sample", self._link.upload(self._prompt_id, upload, time.sleep).asset_id)
        except (TransportError, OSError) as error:
            self.warnings.append(f"sample {path.name} was not kept: {error}")


def _finite(loss: float | None) -> float | None:
    return loss if loss is not None and math.isfinite(loss) else None


def _threads() -> int:
    """The CPU share of a trainer: TROUPE_TRAINER_THREADS, else as many threads as this process was given."""
    given = os.environ.get("TROUPE_TRAINER_THREADS", "").strip()
    if given:
        return max(1, int(given))
    torch = sys.modules.get("torch")
    return int(torch.get_num_threads()) if torch is not None else os.cpu_count() or 1
