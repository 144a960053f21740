"""CharacterLoRALoader: puts the LoRA of a character's version on a model, and says how much of it matched."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .boundary import contained, never_the_same, ui
from .control_plane import ControlPlane, link_from_environment
from .host import Clip, Host, Model, current_host, pause
from .lora_cache import cache_in
from .lora_file import read_header
from .transport import TransportError

log = logging.getLogger(__name__)

VERSION_DEFAULT = -1.0
_LOCAL_NAME = re.compile(r"[^\\:*?\"<>|]+\.safetensors")


class CharacterLoRALoader:
    """A V1 node: (model, clip) with the character's LoRA, and the character's trigger word."""

    RETURN_TYPES = ("MODEL", "CLIP", "STRING")
    RETURN_NAMES = ("model", "clip", "trigger")
    FUNCTION = "load"
    CATEGORY = "Troupe"
    DESCRIPTION = "Puts a character's LoRA on the model. Version 0 is the active one, strength -1 the default."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL",),
                "clip": ("CLIP",),
                "character_id": ("STRING", {"default": "", "tooltip": "Without a server: a file in models/loras."}),
                "version": ("INT", {"default": 0, "min": 0, "max": 1_000_000}),
                "strength": ("FLOAT", {"default": VERSION_DEFAULT, "min": -1.0, "max": 4.0, "step": 0.05}),
            },
            "optional": {"sha256": ("STRING", {"default": ""})},
        }

    @classmethod
    def IS_CHANGED(cls, character_id: str, version: int, strength: float, sha256: str = "", **_links: Any) -> Any:
        """What decides whether a cached result still holds: the LoRA's digest, or NaN (never) where it is unknown."""
        if sha256:
            return sha256
        link = link_from_environment()
        if link is not None:
            # Not the host's pause: this is asked before the prompt runs, when there is nothing to interrupt.
            ticket = link.lora(character_id, version, time.sleep)
            return f"{ticket.sha256} {ticket.default_strength}"
        try:
            status = _local_file(current_host(), character_id).stat()
        except FileNotFoundError:
            return never_the_same()
        return f"{status.st_mtime_ns} {status.st_size}"

    @contained
    def load(
        self, model: Model, clip: Clip, character_id: str, version: int, strength: float, sha256: str = ""
    ) -> dict[str, Any]:
        """Raises TransportError, LoraCacheError, LoraFileError or RuntimeError, each with a sentence for people."""
        host = current_host()
        link = link_from_environment()
        if link is None:
            found = _find_locally(host, character_id)
        else:
            found = _find_by_control_plane(host, link, character_id, version, strength, sha256)
        applied = found.default_strength if strength == VERSION_DEFAULT else strength
        matched = total = 0
        if applied != 0:
            model, clip, matched, total = host.apply_lora(model, clip, found.state_dict, applied)
            if matched == 0:
                raise RuntimeError(
                    f"LoRA {found.label} was trained for base {found.base or 'unknown'}, and its {total} modules do "
                    "not fit the model that is loaded: it was not applied"
                )
            if matched < total:
                log.warning("only %d of %d modules of LoRA %s exist in this model", matched, total, found.label)
        shown = {
            "character_id": character_id,
            "version": found.version,
            "sha256": found.sha256,
            "strength": applied,
            "matched": matched,
            "total": total,
            "trigger": found.trigger,
        }
        return {"ui": ui(character=[shown]), "result": (model, clip, found.trigger)}


@dataclass(frozen=True)
class _Found:
    """A LoRA that was found, ready to be applied; `state_dict` is empty where strength 0 makes it needless."""

    label: str
    version: int
    sha256: str
    base: str
    trigger: str
    default_strength: float
    state_dict: Mapping[str, Any]


def _find_by_control_plane(
    host: Host, link: ControlPlane, character_id: str, version: int, strength: float, sha256: str
) -> _Found:
    ticket = link.lora(character_id, version, pause)
    if sha256 and sha256 != ticket.sha256:
        detail = f"{character_id} version {ticket.version} is not the LoRA {sha256[:12]}"
        raise TransportError(409, "wrong_lora", detail)
    label = f"{character_id} version {ticket.version} ({ticket.sha256[:12]})"
    wanted = ticket.default_strength if strength == VERSION_DEFAULT else strength
    if wanted == 0:
        return _Found(label, ticket.version, ticket.sha256, ticket.base, ticket.trigger, ticket.default_strength, {})
    cache = cache_in(host.loras_cache_dir())
    lora = cache.get(ticket.sha256, ticket.bytes, lambda offset: link.download(ticket.url, offset), pause)
    return _Found(
        label, ticket.version, ticket.sha256, ticket.base, ticket.trigger, ticket.default_strength, lora.state_dict
    )


def _find_locally(host: Host, name: str) -> _Found:
    """An artist's own file in models/loras, by name; its trigger and base are read from its metadata."""
    from safetensors.torch import load

    path = _local_file(host, name)
    header = read_header(path)
    base = header.metadata.get("ss_base_model_version", "")
    return _Found(path.name, 0, "", base, header.trigger, 1.0, load(path.read_bytes()))


def _local_file(host: Host, name: str) -> Path:
    name = name.replace("\\", "/").strip()
    if not name.endswith(".safetensors"):
        name += ".safetensors"
    parts = name.split("/")
    if not _LOCAL_NAME.fullmatch(name) or ".." in parts or "" in parts:
        raise FileNotFoundError(f"not the name of a LoRA file: {name!r}")
    for folder in host.models_dir("loras"):
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(
        f"no control plane is known here (TROUPE_CONTROL_PLANE_URL), and models/loras has no file {name}"
    )
