"""Trigger words: the token by which a LoRA's character is called, and what cannot be one."""

from __future__ import annotations

import re
import secrets
from collections.abc import Container

from controlplane.errors import Unprocessable

_TRIGGER = re.compile(r"[a-z0-9]{4,10}")
_COMMON = """
person people human woman women female lady girl girls mother sister queen princess man men male boy boys father
brother king prince child children baby teen adult elder young old creature robot animal monster dragon horse bird
fish wolf bear lion tiger fox rabbit photo picture image portrait drawing painting sketch style anime manga cartoon
render film movie poster logo text black white brown blond blonde green blue pink purple orange yellow gold golden
silver grey gray dark light bright hair eyes face head hand hands body skin nose mouth smile smiling happy angry
surprised neutral shirt dress coat jacket hoodie suit armor armour robe scarf glasses helmet crown beard wearing
background forest beach city street room house home garden mountain space night sunset winter summer spring rain snow
fire water stone wood metal glass flower tree sword magic hero wizard witch knight pirate soldier doctor nurse teacher
student chef with from that this over under front side view close full long short curly straight large small detail
detailed quality best masterpiece simple plain model base lora test character trigger name none null true false
default star moon earth ocean river love peace dream ghost angel demon devil death captain lord lady miss mister uncle
aunt grandma grandpa
"""

COMMON_TOKENS = frozenset(_COMMON.split())
"""Words a model already knows: as a trigger they would bring their own meaning along."""


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
