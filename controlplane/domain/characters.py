"""Characters and their versions: values, names, slugs and trigger words."""

from __future__ import annotations

import re
import secrets
import unicodedata
from collections.abc import Callable, Container, Mapping
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

COMMON_TOKENS = frozenset(
    # Words a model already knows: as a trigger they would bring their own meaning along.
    """person people human woman women female lady girl girls mother sister queen princess man men male boy boys father
    brother king prince child children baby teen adult elder young old creature robot animal monster dragon horse bird
    fish wolf bear lion tiger fox rabbit photo picture image portrait drawing painting sketch style anime manga cartoon
    render film movie poster logo text black white brown blond blonde green blue pink purple orange yellow gold golden
    silver grey gray dark light bright hair eyes face head hand hands body skin nose mouth smile smiling happy angry
    surprised neutral shirt dress coat jacket hoodie suit armor armour robe scarf glasses helmet crown beard wearing
    background forest beach city street room house home garden mountain space night sunset winter summer spring rain
    snow fire water stone wood metal glass flower tree sword magic hero wizard witch knight pirate soldier doctor
    nurse teacher student chef with from that this over under front side view close full long short curly straight
    large small detail detailed quality best masterpiece simple plain model base lora test character trigger name
    none null true false default star moon earth ocean river love peace dream ghost angel demon devil death""".split()
)

_CONTROL = {"Cc", "Cs", "Co", "Cn"}
_TRIGGER = re.compile(r"[a-z0-9]{4,10}")
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
    if any(unicodedata.category(char) in _CONTROL for char in trimmed):
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


def slug_of(name: str) -> str:
    """A safe id ``[a-z0-9-]`` from any name; empty where nothing of the name survives."""
    latin = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", latin).strip("-")[:MAX_SLUG_CHARS].rstrip("-")


def free_slug(name: str, taken: Callable[[str], bool]) -> str:
    """The slug of a name that is not ``taken``: itself, else with ``-2``, ``-3``...; ``character-<random>`` if empty."""
    slug = slug_of(name)
    if not slug:
        slug = f"character-{secrets.token_hex(5)}"
    if not taken(slug):
        return slug
    number = 2
    while taken(f"{slug}-{number}"):
        number += 1
    return f"{slug}-{number}"


def checked_trigger(trigger: str, taken: Container[str]) -> str:
    """A trigger word that somebody chose. Raises Unprocessable where it cannot be one."""
    word = trigger.strip().lower()
    detail = ""
    if not _TRIGGER.fullmatch(word):
        detail = "a trigger word has 4 to 10 letters a-z or digits"
    elif word in COMMON_TOKENS:
        detail = f"{word!r} is a common word: the model already means something by it"
    elif word in taken:
        detail = f"{word!r} is the trigger word of another character"
    if detail:
        raise Unprocessable(detail, errors=[{"pointer": "/trigger_word", "detail": detail}])
    return word


def made_trigger(slug: str, taken: Container[str]) -> str:
    """A trigger word from a slug: its letters where they are no common word, else letters that mean nothing."""
    letters = slug.replace("-", "")
    for candidate in (slug.split("-")[0], letters[:10]):
        if _TRIGGER.fullmatch(candidate) and candidate not in COMMON_TOKENS and candidate not in taken:
            return candidate
    stem = "".join(char for char in letters if char.isalpha())[:3] or "zq"
    while True:
        candidate = stem + "".join(secrets.choice("bcdfghjklmnpqrstvwxz") for _ in range(4))
        if candidate not in COMMON_TOKENS and candidate not in taken:
            return candidate
