"""The words a base portrait can be made of, and the colours they stand for."""

from __future__ import annotations

from typing import Final

Rgb = tuple[int, int, int]

CLASS_WORDS: Final = ("man", "woman", "person", "creature", "robot")

HAIR_COLOURS: Final[dict[str, Rgb]] = {
    "black": (34, 30, 38),
    "brown": (112, 68, 38),
    "blond": (236, 200, 96),
    "red": (190, 48, 30),
    "orange": (240, 128, 36),
    "white": (238, 238, 240),
    "grey": (140, 142, 150),
    "blue": (48, 96, 216),
    "green": (46, 158, 84),
    "pink": (244, 128, 184),
    "purple": (130, 66, 186),
}
HAIR_STYLES: Final = ("short", "long", "curly", "spiky", "bob", "ponytail", "mohawk", "bun", "bald")

HUMAN_SKINS: Final[dict[str, Rgb]] = {
    "pale": (252, 228, 210),
    "light": (244, 204, 172),
    "tan": (216, 162, 112),
    "brown": (156, 100, 62),
    "dark": (96, 60, 40),
}
CREATURE_SKINS: Final[dict[str, Rgb]] = {
    "green": (120, 190, 90),
    "blue": (104, 160, 226),
    "purple": (172, 124, 206),
    "red": (222, 84, 72),
}
ROBOT_SKINS: Final[dict[str, Rgb]] = {
    "silver": (178, 186, 198),
    "copper": (206, 132, 84),
    "white": (232, 234, 238),
}
SKINS: Final[dict[str, Rgb]] = {**HUMAN_SKINS, **CREATURE_SKINS, **ROBOT_SKINS}

EYE_COLOURS: Final[dict[str, Rgb]] = {
    "brown": (98, 58, 28),
    "blue": (40, 110, 220),
    "green": (40, 150, 70),
    "grey": (110, 118, 130),
    "amber": (226, 150, 24),
    "purple": (140, 60, 200),
    "red": (214, 36, 36),
}
HUMAN_EYES: Final = ("brown", "blue", "green", "grey", "amber")

EXPRESSIONS: Final = ("smiling", "angry", "sad", "surprised", "neutral")

CLOTHES_COLOURS: Final[dict[str, Rgb]] = {
    "red": (212, 44, 44),
    "orange": (242, 136, 36),
    "yellow": (246, 214, 60),
    "green": (52, 150, 70),
    "blue": (44, 92, 206),
    "purple": (126, 62, 178),
    "pink": (244, 136, 186),
    "black": (42, 42, 50),
    "white": (240, 240, 242),
    "grey": (142, 146, 154),
}
CLOTHES_NOUNS: Final = ("shirt", "hoodie", "suit", "sweater", "overalls", "armour")

# The pairs of the prompt gate: every noun and most colours, each pair readable on its own.
CLOTHES: Final = (
    ("red", "hoodie"),
    ("blue", "suit"),
    ("green", "sweater"),
    ("yellow", "shirt"),
    ("purple", "armour"),
    ("orange", "overalls"),
    ("black", "hoodie"),
    ("white", "shirt"),
)

ACCESSORIES: Final = ("glasses", "sunglasses", "earrings", "headphones", "scarf", "hat", "beard", "crown", "flower")
COLOURED_ACCESSORIES: Final = ("headphones", "scarf", "hat", "flower")

PLAIN_COLOURS: Final[dict[str, Rgb]] = {
    "white": (246, 246, 244),
    "grey": (168, 170, 174),
    "blue": (134, 180, 232),
    "green": (150, 206, 150),
    "yellow": (248, 226, 130),
    "pink": (248, 190, 206),
    "purple": (188, 164, 222),
    "red": (222, 110, 100),
}
SCENES: Final = (
    "in a forest",
    "by the sea",
    "under a night sky",
    "in a city",
    "at sunset",
    "in a room",
    "in the mountains",
    "in the desert",
)
PLAIN_BACKGROUNDS: Final = tuple(f"plain {name} background" for name in PLAIN_COLOURS)
BACKGROUNDS: Final = SCENES + PLAIN_BACKGROUNDS

# Other ways to say the same thing; a caption uses one of these now and then so that free prompts work too.
SYNONYMS: Final[dict[str, tuple[str, ...]]] = {
    "in a forest": ("forest background", "among trees", "in the woods"),
    "by the sea": ("sea background", "on the beach", "at the beach"),
    "under a night sky": ("night sky background", "at night", "under the moon and stars"),
    "in a city": ("city background", "on a city street", "in front of buildings"),
    "at sunset": ("sunset background", "orange evening sky"),
    "in a room": ("room background", "indoors", "in a cosy room with a window"),
    "in the mountains": ("mountain background", "snowy mountains"),
    "in the desert": ("desert background", "sand dunes"),
    "smiling": ("happy", "smiling face", "laughing"),
    "angry": ("furious", "angry face"),
    "sad": ("crying", "sad face"),
    "surprised": ("shocked", "surprised face"),
    "neutral": ("calm", "neutral face", "serious"),
}
