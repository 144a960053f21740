"""Characters and their versions: values, names, slugs and trigger words."""

from __future__ import annotations

import re
import secrets
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from controlplane.errors import Unprocessable

Subject = Literal["fictional", "real"]
VersionStatus = Literal["training", "ready", "failed", "cancelled"]
CharacterStatus = Literal["training", "ready", "failed"]

MAX_NAME_CHARS = 120
MAX_SLUG_CHARS = 60
MAX_DESCRIPTION_CHARS = 4000
DEFAULT_CLASS_WORD = "person"

# Control characters, lone surrogates, line and paragraph separators; format characters (joined emoji) are text.
_NOT_TEXT = {"Cc", "Cs", "Zl", "Zp"}
_CLASS_WORD = re.compile(r"[a-z][a-z' -]{0,38}[a-z]|[a-z]")


@dataclass(frozen=True)
class Consent:
    """Who vouches that a real person agreed, to which wording, and when (seconds since the epoch)."""

    attested_by: str
    text_version: str
    attested_at: float | None = None


@dataclass(frozen=True)
class Character:
    """A character: who it is and which of its versions is in use."""

    project_id: str
    id: str
    name: str
    class_word: str
    trigger_word: str
    base_model: str
    created_at: float
    updated_at: float
    description: str = ""
    subject: Subject = "fictional"
    consent: Consent | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    active_version: int | None = None
    cover_asset_id: str | None = None

    @property
    def trigger_phrase(self) -> str:
        """Trigger and class word, as they begin every caption and every prompt."""
        return f"{self.trigger_word} {self.class_word}"


@dataclass(frozen=True)
class Version:
    """One trained LoRA of a character, or the training that will make it."""

    project_id: str
    character_id: str
    number: int
    status: VersionStatus
    base_model: str
    recipe: str
    recipe_digest: str
    dataset_id: str
    job_id: str
    created_at: float
    lora_asset_id: str | None = None
    lora_sha256: str | None = None
    default_strength: float = 1.0
    score: float | None = None
    proof: Mapping[str, Any] | None = None
    error: Mapping[str, Any] | None = None
    finished_at: float | None = None

    @property
    def is_usable(self) -> bool:
        """Whether pictures can be made with it."""
        return self.status == "ready" and self.lora_sha256 is not None


def status_of(character: Character, versions: list[Version]) -> CharacterStatus:
    """``ready`` while a version is active; else ``training`` while one is on its way; else ``failed``."""
    if character.active_version is not None:
        return "ready"
    return "training" if any(version.status == "training" for version in versions) else "failed"


def checked_name(name: str, pointer: str = "/name") -> str:
    """The name, trimmed. Raises Unprocessable unless it has 1 to 120 characters and no control characters."""
    trimmed = name.strip()
    if not trimmed:
        raise Unprocessable("a name is needed", errors=[{"pointer": pointer, "detail": "the name is empty"}])
    if len(trimmed) > MAX_NAME_CHARS:
        detail = f"the name has {len(trimmed)} characters, at most {MAX_NAME_CHARS} are allowed"
        raise Unprocessable(detail, errors=[{"pointer": pointer, "detail": detail}])
    if any(unicodedata.category(char) in _NOT_TEXT for char in trimmed):
        detail = "the name contains control characters"
        raise Unprocessable(detail, errors=[{"pointer": pointer, "detail": detail}])
    return trimmed


def checked_class_word(word: str | None) -> str:
    """The class word in lower case, ``person`` for None. Raises Unprocessable for anything but short plain words."""
    if word is None:
        return DEFAULT_CLASS_WORD
    plain = " ".join(word.lower().split())
    if not _CLASS_WORD.fullmatch(plain):
        detail = "a class word is one or a few plain words such as woman, man, person, creature (a-z, at most 40)"
        raise Unprocessable(detail, errors=[{"pointer": "/class_word", "detail": detail}])
    return plain


def checked_description(text: str) -> str:
    """The description, trimmed. Raises Unprocessable above 4000 characters."""
    if len(text) > MAX_DESCRIPTION_CHARS:
        detail = f"the description has {len(text)} characters, at most {MAX_DESCRIPTION_CHARS} are allowed"
        raise Unprocessable(detail, errors=[{"pointer": "/description", "detail": detail}])
    return text.strip()


def slug_of(name: str) -> str:
    """A safe id ``[a-z0-9-]`` from any name; empty where nothing of the name survives."""
    latin = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", latin).strip("-")[:MAX_SLUG_CHARS].rstrip("-")


def free_slug(name: str, taken: Callable[[str], bool]) -> str:
    """The first of ``slug``, ``slug-2``, ``slug-3``... that is not ``taken``; ``character-<random>`` of none."""
    slug = slug_of(name)
    if not slug:
        slug = f"character-{secrets.token_hex(5)}"
    if not taken(slug):
        return slug
    number = 2
    while taken(f"{slug}-{number}"):
        number += 1
    return f"{slug}-{number}"
