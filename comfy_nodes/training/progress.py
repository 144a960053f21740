"""Reading a trainer's output: bytes to lines, lines to events, in sd-scripts' format, which all our trainers print."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass

# A progress bar without any line break must not grow a buffer for ever.
MAX_LINE_CHARS = 16_384


@dataclass(frozen=True)
class Step:
    """The progress bar: steps done, steps in all, seconds left and per step (None while unknown), mean loss."""

    step: int
    total: int
    eta_seconds: float | None
    seconds_per_step: float | None
    loss: float | None


@dataclass(frozen=True)
class TotalSteps:
    """The number of optimisation steps, told before the first one."""

    total: int


@dataclass(frozen=True)
class TrainImages:
    """How many images, repeats included, the trainer found."""

    count: int


@dataclass(frozen=True)
class Epoch:
    """An epoch begins."""

    epoch: int
    total: int


@dataclass(frozen=True)
class SavingCheckpoint:
    """A LoRA file is about to be written; it is whole only when the next line comes."""

    path: str


@dataclass(frozen=True)
class SavedSample:
    """A sample image was written."""

    path: str


@dataclass(frozen=True)
class Phase:
    """The trainer reached a marked point: `preparing`, `training` or `sampling`, in its own words."""

    phase: str
    words: str


Event = Step | TotalSteps | TrainImages | Epoch | SavingCheckpoint | SavedSample | Phase

_STEP = re.compile(
    r"^steps:\s+\d+%\|.*?\|\s*(?P<step>\d+)/(?P<total>\d+) \[[\d:]+<(?P<left>[\d:?]+),\s*"
    r"(?P<rate>[\d.]+|\?)(?P<unit>s/it|it/s)(?:,.*?avr_loss=(?P<loss>[-+\w.]+))?"
)
_TOTAL = re.compile(r"total optimization steps .*: (\d+)$")
_IMAGES = re.compile(r"num train images \* repeats .*: (\d+)$")
_EPOCH = re.compile(r"^epoch (\d+)/(\d+)$")
_SAVING = re.compile(r"^saving checkpoint: (.+\.safetensors)$")
_SAMPLE = re.compile(r"^saved sample: (.+\.(?:png|webp|jpe?g))$")
# In the order in which sd-scripts reaches them; searched, because a log line may follow a bar on the same line.
_PHASES = tuple(
    (re.compile(pattern), phase, words)
    for pattern, phase, words in (
        (r"load tokenizer|Using v\d tokenizer", "preparing", "loading the tokenizer"),
        (r"Loading dataset config|loading image sizes", "preparing", "reading the dataset"),
        (r"load StableDiffusion checkpoint|loading model for|oading u-net", "preparing", "loading the base model"),
        (r"caching latents", "preparing", "encoding the images"),
        (r"caching Text Encoder outputs", "preparing", "encoding the captions"),
        (r"create LoRA for", "preparing", "creating the LoRA"),
        (r"prepare optimizer", "preparing", "preparing the optimiser"),
        (r"resume training from|Loading states from", "preparing", "loading the saved state"),
        (r"running training", "training", "training"),
        (r"generating sample images", "sampling", "painting samples"),
    )
)
_BAR = re.compile(r"^steps:")


class LineSplitter:
    """Cuts one stream of bytes at \\r and \\n, decoding UTF-8 across chunk borders; empty lines are dropped."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""

    def feed(self, chunk: bytes, last: bool = False) -> Iterator[str]:
        """The lines that `chunk` completes; with `last` also the one that was never ended."""
        self._rest += self._decoder.decode(chunk, final=last)
        *lines, self._rest = re.split(r"[\r\n]+", self._rest)
        if last or len(self._rest) > MAX_LINE_CHARS:
            lines.append(self._rest)
            self._rest = ""
        return (line.rstrip() for line in lines if line.strip())


def events_in(line: str) -> Iterator[Event]:
    """What one line says; most lines say nothing, a bar with a log line behind it says two things."""
    step = _STEP.match(line)
    if step is not None:
        yield _step(step)
    elif (found := _TOTAL.search(line)) is not None:
        yield TotalSteps(int(found[1]))
    elif (found := _IMAGES.search(line)) is not None:
        yield TrainImages(int(found[1]))
    elif (found := _EPOCH.match(line)) is not None:
        yield Epoch(int(found[1]), int(found[2]))
    elif (found := _SAVING.match(line)) is not None:
        yield SavingCheckpoint(found[1])
    elif (found := _SAMPLE.match(line)) is not None:
        yield SavedSample(found[1])
    for pattern, phase, words in _PHASES:
        if pattern.search(line):
            yield Phase(phase, words)
            return


def is_bar(line: str) -> bool:
    """True for the bar of steps, which tqdm also repeats while nothing happens; any other line is a sign of life."""
    return _BAR.match(line) is not None


def _step(found: re.Match[str]) -> Step:
    rate = None if found["rate"] == "?" else float(found["rate"])
    if rate is not None and found["unit"] == "it/s":
        rate = 1 / rate if rate > 0 else None
    return Step(int(found["step"]), int(found["total"]), _clock(found["left"]), rate, _number(found["loss"]))


def _clock(text: str) -> float | None:
    """Seconds of tqdm's `02:58` or `1:02:03`; None for `?`."""
    if "?" in text:
        return None
    seconds = 0
    for part in text.split(":"):
        seconds = seconds * 60 + int(part)
    return float(seconds)


def _number(text: str | None) -> float | None:
    """A loss; `nan` and `inf` are numbers here, for the watch on a diverged run."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
