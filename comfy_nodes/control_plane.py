"""The node pack's link to the control plane: the four node calls, their answers as values, and the upload of a file."""

from __future__ import annotations

import hashlib
import json
import os
import re
import urllib.parse
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .transport import Exchange, Stream, TransportError, exchange, open_stream, retrying

Pause = Callable[[float], None]
# How often an upload is tried: a sample is a courtesy, a finished LoRA is minutes of work (40 tries: 3 minutes).
UPLOAD_ATTEMPTS = {"sample": 3, "state": 3, "lora": 40}
OTHER_UPLOAD_ATTEMPTS = 12
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class LoraTicket:
    """Where the LoRA of one version lies, and how it is used."""

    character_id: str
    version: int
    sha256: str
    bytes: int
    url: str
    trigger: str
    default_strength: float
    base: str


@dataclass(frozen=True)
class DatasetImage:
    """One reference image: where it lies and its caption."""

    name: str
    url: str
    sha256: str
    bytes: int
    caption: str


@dataclass(frozen=True)
class SavedState:
    """What an earlier attempt of the same training stored, to go on from: the steps and epochs done, and its tar."""

    step: int
    epoch: int
    url: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Dataset:
    """Everything that a training of one version needs, as the control plane states it."""

    character_id: str
    version: int
    name: str
    trigger: str
    class_word: str
    base: str
    checkpoint: str
    trainer: str
    recipe: str
    recipe_digest: str
    params: Mapping[str, Any]
    digest: str
    seed: int
    sample_prompts: tuple[str, ...]
    images: tuple[DatasetImage, ...]
    resume: SavedState | None = None


@dataclass(frozen=True)
class Upload:
    """A file to hand over: `kind` is output, sample, checkpoint, state or lora; `index` tells files of a kind apart.

    `upload` is the reference under which an output was promised before it was stored.
    """

    name: str
    media_type: str
    content: bytes | Path
    kind: str
    index: int
    width: int | None = None
    height: int | None = None
    duration: float | None = None
    fps: float | None = None
    frames: int | None = None
    upload: str | None = None


@dataclass(frozen=True)
class StoredAsset:
    """A file that the store has: its asset id, its public address, its digest and its size."""

    asset_id: str
    url: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class ProgressReport:
    """One line of a training's progress; `seq` grows with every report of an attempt."""

    seq: int
    phase: str
    step: int = 0
    total_steps: int = 0
    loss: float | None = None
    eta_seconds: float | None = None
    sample_asset_id: str | None = None
    checkpoint_asset_id: str | None = None
    note: str | None = None


@dataclass(frozen=True)
class ControlPlane:
    """The calls of a node; every one raises TransportError with the control plane's own words."""

    url: str
    exchange: Exchange = exchange

    def lora(self, character_id: str, version: int, pause: Pause) -> LoraTicket:
        """The LoRA of a version (0 = the active one). 404: no such version; 409: it is not ready."""
        path = f"/pods/self/characters/{_segment(character_id)}/lora?version={int(version)}"
        return retrying(lambda: self._lora_ticket(self._call("GET", path)), pause)

    def dataset(self, character_id: str, version: int, pause: Pause) -> Dataset:
        """The dataset, the recipe and the base of a version that is to be trained."""
        path = f"/pods/self/characters/{_segment(character_id)}/versions/{int(version)}/dataset"
        return retrying(lambda: self._dataset(self._call("GET", path)), pause)

    def upload(self, prompt_id: str, upload: Upload, pause: Pause) -> StoredAsset:
        """Ask for a ticket and PUT the file, again until it is there; asking twice gives the same asset."""
        sha256, size = digest_of(upload.content)
        wanted = {key: value for key, value in asdict(upload).items() if key != "content"}
        wanted |= {"prompt_id": prompt_id, "bytes": size, "sha256": sha256}
        if upload.upload is None:
            del wanted["upload"]

        def attempt() -> StoredAsset:
            answer = self._call("POST", "/pods/self/uploads", wanted)
            with _understood():
                ticket = answer["upload"]
                headers = {str(key): str(value) for key, value in ticket.get("headers", {}).items()}
                stored = StoredAsset(str(answer["asset_id"]), str(answer["url"]), sha256, size)
                method, target = str(ticket.get("method", "PUT")), self.absolute(str(ticket["url"]))
            self.exchange(method, target, headers, upload.content)
            return stored

        return retrying(attempt, pause, UPLOAD_ATTEMPTS.get(upload.kind, OTHER_UPLOAD_ATTEMPTS))

    def progress(self, prompt_id: str, report: ProgressReport) -> bool:
        """Tell how far the attempt is; True where the job was cancelled. Tried once: the next report follows soon."""
        path = f"/pods/self/attempts/{_segment(prompt_id)}/progress"
        return bool(self._call("POST", path, asdict(report), timeout=10.0).get("cancel", False))

    def download(self, url: str, offset: int = 0) -> AbstractContextManager[Stream]:
        """A signed GET; the address may be relative to the control plane. The pod key is not sent along."""
        return open_stream(self.absolute(url), offset)

    def absolute(self, url: str) -> str:
        """`url` resolved against the control plane's address."""
        return urllib.parse.urljoin(self.url.rstrip("/") + "/", url)

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None, timeout: float = 30.0) -> Any:
        headers = {"Authorization": f"Bearer {pod_key()}", "Accept": "application/json"}
        data = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            data = json.dumps(body, allow_nan=False).encode()
        answer = self.exchange(method, self.url.rstrip("/") + path, headers, data, timeout)
        with _understood():
            document = json.loads(answer)
            if not isinstance(document, dict):
                raise TypeError("not a JSON object")
        return document

    def _lora_ticket(self, answer: Any) -> LoraTicket:
        with _understood():
            return LoraTicket(
                character_id=str(answer["character_id"]),
                version=int(answer["version"]),
                sha256=_checked_sha256(answer["sha256"]),
                bytes=int(answer["bytes"]),
                url=str(answer["url"]),
                trigger=str(answer.get("trigger") or ""),
                default_strength=float(answer.get("default_strength", 1.0)),
                base=str(answer.get("base") or ""),
            )

    def _dataset(self, answer: Any) -> Dataset:
        with _understood():
            recipe = answer["recipe"]
            return Dataset(
                character_id=str(answer["character_id"]),
                version=int(answer["version"]),
                name=str(answer["name"]),
                trigger=str(answer["trigger"]),
                class_word=str(answer.get("class_word") or ""),
                base=str(answer["base"]),
                checkpoint=str(answer["checkpoint"]),
                trainer=str(answer["trainer"]),
                recipe=str(recipe["name"]),
                recipe_digest=str(recipe.get("digest") or ""),
                params=dict(recipe["params"]),
                digest=str(answer.get("dataset_digest") or ""),
                seed=int(answer["seed"]),
                sample_prompts=tuple(str(prompt) for prompt in answer.get("sample_prompts") or ()),
                images=tuple(_dataset_image(image) for image in answer["images"]),
                resume=_saved_state(answer.get("resume")),
            )


def link_from_environment() -> ControlPlane | None:
    """The link of this pod, or None on an artist's desktop. Read at each use: registration follows the import."""
    url = os.environ.get("TROUPE_CONTROL_PLANE_URL", "").strip()
    return ControlPlane(url) if url else None


def pod_key() -> str:
    """The pod's key, from the environment or its file; read at each call, because registering again replaces it."""
    key = os.environ.get("TROUPE_POD_KEY", "").strip()
    key_file = os.environ.get("TROUPE_POD_KEY_FILE", "").strip()
    if not key and key_file:
        try:
            key = Path(key_file).read_text(encoding="utf-8").strip()
        except OSError:
            key = ""
    if not key:
        # As good as a refused key: the registration that is under way will bring one.
        raise TransportError(401, "not_registered", "this pod knows its control plane but has no pod key yet")
    return key


def digest_of(content: bytes | Path) -> tuple[str, int]:
    """(sha256 in hex, size in bytes) of a body or of a file."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest(), len(content)
    with content.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), content.stat().st_size


class _understood:
    """Turns a missing or ill-typed member of an answer into a TransportError that says so."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, KeyError | TypeError | ValueError | AttributeError):
            detail = f"the control plane's answer was not understood: {type(error).__name__} {error}"
            raise TransportError(422, "bad_answer", detail) from error


def _dataset_image(image: Any) -> DatasetImage:
    return DatasetImage(
        name=str(image["name"]),
        url=str(image["url"]),
        sha256=_checked_sha256(image["sha256"]),
        bytes=int(image["bytes"]),
        caption=str(image.get("caption") or ""),
    )


def _saved_state(saved: Any) -> SavedState | None:
    if saved is None:
        return None
    sha256 = _checked_sha256(saved["sha256"])
    return SavedState(int(saved["step"]), int(saved["epoch"]), str(saved["url"]), sha256, int(saved["bytes"]))


def _checked_sha256(value: Any) -> str:
    # It becomes a file name.
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise ValueError("not a sha256")
    return value


def _segment(text: str) -> str:
    if not text or text in (".", ".."):
        raise TransportError(400, "bad_id", f"not an id: {text!r}")
    return urllib.parse.quote(text, safe="")
