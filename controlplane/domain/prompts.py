"""Prompts: the words that reach the model, for pictures and for captions."""

from __future__ import annotations

import re

from controlplane.domain.characters import Character

SAMPLE_SCENES = ("smiling, plain background", "in a forest", "at night in a city")


def compose(prompt: str, character: Character | None) -> str:
    """The prompt with the character's trigger and class word first, unless the trigger is in it already."""
    text = " ".join(prompt.split())
    if character is None or _has_word(text, character.trigger_word):
        return text
    return f"{character.trigger_phrase}, {text}" if text else character.trigger_phrase


def caption_of(given: str | None, character: Character) -> str:
    """The kept caption, without the trigger phrase: what the user wrote, else nothing but the class word's scene.

    A template caption names no feature of the character: what a caption leaves out is what the trigger learns.
    """
    text = " ".join((given or "").split())
    for lead in (character.trigger_phrase, character.trigger_word):
        if re.match(rf"{re.escape(lead)}(\W|$)", text, re.IGNORECASE):
            text = text[len(lead) :].lstrip(" ,")
    # "woman, smiling" would say the class word twice behind the phrase.
    if re.match(rf"{re.escape(character.class_word)}\s*(,|$)", text, re.IGNORECASE):
        text = text[len(character.class_word) :].lstrip(" ,")
    return text


def training_caption(caption: str, character: Character) -> str:
    """What the trainer reads: ``trigger class`` first, then the caption."""
    return f"{character.trigger_phrase}, {caption}" if caption else character.trigger_phrase


def sample_prompts(character: Character) -> tuple[str, ...]:
    """What a training draws now and then so that people see how it goes."""
    return tuple(f"{character.trigger_phrase}, {scene}" for scene in SAMPLE_SCENES)


def _has_word(text: str, word: str) -> bool:
    return re.search(rf"(?<![a-z0-9]){re.escape(word)}(?![a-z0-9])", text, re.IGNORECASE) is not None
