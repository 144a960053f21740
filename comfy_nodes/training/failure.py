"""Why a training failed: the one error of this package, and how an exit code and a log become a sentence for people."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence

LOG_TAIL_LINES = 40
_MAX_TAIL_LINE = 300


class TrainerError(RuntimeError):
    """A training that brought no LoRA: a stable `code`, a sentence `detail`, and the end of the trainer's log."""

    def __init__(self, code: str, detail: str, log_tail: Sequence[str] = ()) -> None:
        tail = tuple(line[:_MAX_TAIL_LINE] for line in log_tail[-LOG_TAIL_LINES:])
        super().__init__("\n".join([f"{code}: {detail}", *tail]))
        self.code = code
        self.detail = detail
        self.log_tail = tail


# (what the log says, code, detail); the first that is found decides. `{0}` is the first group of the pattern.
_TELLS: tuple[tuple[str, str, str], ...] = (
    (r"error: (unrecognized arguments: .+|argument .+)", "bad_arguments", "the trainer refused its arguments: {0}"),
    (r"^DivergedError\b", "loss_diverged", "the loss became not-a-number: the learning rate is too high"),
    (r"^ValueError: (.*recipe parameter.*)", "bad_recipe", "the trainer refused the recipe: {0}"),
    (r"No data found|^NoPicturesError\b", "no_data", "the trainer found no images in the dataset folder"),
    (r"OutOfMemoryError|CUDA out of memory", "out_of_memory", "the GPU's memory is too small"),
    (r"DefaultCPUAllocator: can't allocate|^MemoryError", "out_of_host_memory", "the machine's memory is too small"),
    (
        r"NaN detected in latents:? ?(.*)",
        "nan_in_latents",
        "an image became not-a-number in the VAE: {0} (train in bf16 and with no_half_vae, or replace the image)",
    ),
    (r"NaN detected in text encoder outputs", "nan_in_captions", "a caption became not-a-number in the text encoder"),
    (r"Error loading file: (.+?)(?:\s{2,}|$)", "bad_image", "an image of the dataset cannot be read: {0}"),
    (r"image file is truncated", "bad_image", "an image of the dataset is truncated"),
    (r"caption file is empty:? ?(.*)", "empty_caption", "an image of the dataset has an empty caption {0}"),
    (r"MultipleInvalid: (.+)", "bad_dataset_config", "the dataset's settings were refused: {0}"),
    (r"AssertionError: (bucket_reso_steps .+)", "bad_dataset_config", "the dataset's settings were refused: {0}"),
    (r"\.toml not found", "bad_job_file", "the job's file is missing"),
    (
        r"Error\(s\) in loading state_dict for LoRANetwork|does not match optimizer|max_train_steps should be greater",
        "bad_state",
        "the saved state does not fit this training",
    ),
    (r"SafetensorError: (.+)", "bad_checkpoint", "the base's file cannot be read: {0}"),
    (r"No (bitsandbytes|xformers)", "missing_package", "the trainer's environment lacks the package {0}"),
    (
        r"os\.PathLike object, not NoneType",
        "missing_tokenizer",
        "the trainer's tokenizer files are missing on this pod",
    ),
    (r"No module named '?([\w.]+)", "missing_package", "the trainer's environment lacks the package {0}"),
    (r"No space left on device", "disk_full", "the pod's disk is full"),
)
_FINITE = re.compile(r"avr_loss=[+-]?(?:nan|inf)", re.IGNORECASE)


def diverged(log: Sequence[str]) -> TrainerError:
    """The error of a run whose loss is no longer a number."""
    return TrainerError("loss_diverged", "the loss became not-a-number: the learning rate is too high", log)


def classify(returncode: int, log: Sequence[str], wrote_file: bool) -> TrainerError | None:
    """The error of a finished trainer, or None where it ended well and wrote its file (which is yet to be verified)."""
    if any(_FINITE.search(line) for line in log):
        return diverged(log)
    if returncode == 0 and wrote_file:
        return None
    if returncode < 0:
        return _by_signal(-returncode, log)
    for pattern, code, detail in _TELLS:
        for line in reversed(log):
            found = re.search(pattern, line)
            if found is not None:
                return TrainerError(code, detail.format(*_groups(found)).strip(), log)
    if returncode == 0:
        return TrainerError("no_output", "the trainer ended without an error and without a LoRA", log)
    return TrainerError("trainer_failed", f"the trainer ended with exit code {returncode}: {_last_words(log)}", log)


def _groups(found: re.Match[str]) -> tuple[str, ...]:
    return tuple((group or "").strip() for group in found.groups())


def _by_signal(number: int, log: Sequence[str]) -> TrainerError:
    if number == signal.SIGKILL:
        return TrainerError("killed", "the trainer was killed, most likely because the machine ran out of memory", log)
    if number == signal.SIGTERM:
        return TrainerError("terminated", "the trainer was asked to stop by something else than its job", log)
    name = signal.Signals(number).name if number in signal.Signals._value2member_map_ else str(number)
    return TrainerError("crashed", f"the trainer crashed with {name}", log)


def _last_words(log: Sequence[str]) -> str:
    """The exception of a traceback where there is one, else the last line."""
    for line in reversed(log):
        if re.match(r"^[\w.]*(?:Error|Exception|Interrupt|Exit)\b", line):
            return line[:_MAX_TAIL_LINE]
    return log[-1][:_MAX_TAIL_LINE] if log else "it printed nothing"
