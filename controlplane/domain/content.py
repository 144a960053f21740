"""What is not made here: no explicit content at all, nothing mature of minors or of real people.

This is a tripwire over words, not a judge of pictures: it refuses what a request says outright. A rating is
``general`` (the default) or ``mature`` (violence, horror, artistic nudity of fictional adults). There is no setting
that turns these rules off.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

from controlplane.errors import ContentRefused, Unprocessable

Rating = Literal["general", "mature"]

RATINGS: tuple[Rating, ...] = ("general", "mature")

_MINOR = """child children childlike kid kids girl girls boy boys baby babies toddler toddlers infant infants teen teens
teenage teenager teenagers preteen preteens tween minor minors underage schoolgirl schoolgirls schoolboy schoolboys
loli lolita lolicon shota shotacon youngster juvenile newborn kindergartner daughter son jailbait
elementary-schooler middle-schooler high-schooler"""
_EXPLICIT = """nsfw porn porno pornographic pornography hentai xxx explicit sex sexual sexually intercourse blowjob
handjob cum cumshot ejaculation orgasm masturbating masturbation masturbate penis vagina pussy cock dildo fellatio
cunnilingus genitals genitalia bukkake gangbang creampie ahegao futanari rape raped fuck fucked fucking"""
_NUDITY = """nude nudes nudity naked topless bottomless undressed unclothed lingerie underwear erotic erotica sensual
seductive sexy aroused nipples nipple breasts bikini thong fetish bdsm bondage stripper striptease lewd"""
_AGE = re.compile(r"\b(\d{1,2})[\s-]*(?:years?[\s-]*old|yrs?[\s-]*old|y/?o)\b|\bage[sd]?\s*:?\s*(\d{1,2})\b")


def _any_of(words: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![a-z])(?:{'|'.join(re.escape(word) for word in words.split())})(?![a-z])")


_MINOR_WORDS, _EXPLICIT_WORDS, _NUDITY_WORDS = _any_of(_MINOR), _any_of(_EXPLICIT), _any_of(_NUDITY)


def denotes_minor(text: str) -> bool:
    """Whether a text speaks of somebody under 18: by a word such as ``girl`` or by an age."""
    low = text.lower()
    ages = (int(first or second) for first, second in _AGE.findall(low))
    return _MINOR_WORDS.search(low) is not None or any(age < 18 for age in ages)


def checked_rating(rating: str | None) -> Rating:
    """The rating, ``general`` for None. Raises Unprocessable for any other word."""
    if rating is None:
        return "general"
    for known in RATINGS:
        if rating == known:
            return known
    detail = f"rating is one of {', '.join(RATINGS)}; explicit content is not made here"
    raise Unprocessable(detail, errors=[{"pointer": "/rating", "detail": detail}])


def check_content(rating: Rating, wanted: Iterable[str], about: Iterable[str], is_real: bool) -> None:
    """Raise ContentRefused where the ``wanted`` texts (prompt, motion) are not made of a character so described.

    ``about`` are the texts that describe the character (class word, name, description); negative prompts belong to
    neither, they say what is to be left out.
    """
    prompt = " ".join(wanted).lower()
    suggestive = _NUDITY_WORDS.search(prompt) is not None
    if _EXPLICIT_WORDS.search(prompt):
        raise _refused("explicit sexual content is not made here")
    if (rating == "mature" or suggestive) and denotes_minor(" ".join([prompt, *about])):
        raise _refused("nothing mature or suggestive is made of minors")
    if (rating == "mature" or suggestive) and is_real:
        raise _refused("nothing mature or suggestive is made of real people")
    if suggestive and rating != "mature":
        raise _refused("nudity and suggestive scenes need rating mature, and a fictional adult")


def _refused(detail: str) -> ContentRefused:
    return ContentRefused(detail, errors=[{"pointer": "/prompt", "detail": detail}])
