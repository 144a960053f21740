"""The values of a drawing: what a portrait is made of, the hand it is drawn in, and where its parts are."""

from __future__ import annotations

from dataclasses import dataclass, field

from .words import Rgb


@dataclass(frozen=True)
class Style:
    """The hand a portrait is drawn in; never captioned."""

    outline: float = 1.4  # width in portrait units, 0 = none
    ink: Rgb | None = (30, 24, 30)  # None = a darker shade of each fill
    shading: str = "flat"  # flat | soft | cel
    eyes: str = "iris"  # iris | dot | big
    head_width: float = 24.0
    head_height: float = 28.0
    eye_scale: float = 1.0
    jaw: float = 0.85  # 0.6 pointed .. 1.0 square
    angular: bool = False  # few corners instead of curves: kept out of every training set
    hatch: bool = False  # hatched shadows: kept out of every training set


@dataclass(frozen=True)
class Portrait:
    """Everything that determines one drawing. Names are words of `words.py`; positions are portrait units."""

    class_word: str = "person"
    hair_colour: str = "brown"
    hair_style: str = "short"
    skin: str = "light"
    eye_colour: str = "brown"
    expression: str = "neutral"
    clothes_colour: str = "blue"
    clothes_noun: str = "shirt"
    accessory: str = ""  # "" = none
    accessory_colour: str = "red"
    background: str = "plain white background"
    style: Style = field(default_factory=Style)
    dx: float = 0.0
    dy: float = 0.0
    tilt: float = 0.0  # horizontal shift of the face inside the head
    jitter: int = 0  # colour shift and scenery seed


@dataclass(frozen=True)
class Anchors:
    """Where things are on one drawing (portrait units), and the colours in use; marks are placed by these."""

    cx: float  # centre of the head
    cy: float
    rx: float  # half width and half height of the head
    ry: float
    face_x: float  # centre line of the face
    eye_y: float
    eye_dx: float  # distance of an eye from the centre line
    eye_r: float
    mouth_y: float
    shoulder_y: float
    skin: Rgb
    hair: Rgb
    eye: Rgb
    clothes: Rgb
    extra: Rgb
