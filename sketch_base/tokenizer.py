"""Train the caption vocabulary: byte-pair merges in CLIP's file format, from our own words only."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

from . import words

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
BOS_ID, EOS_ID = 49406, 49407
END = "</w>"

# Words that prompts may hold beside the caption words; learned as whole tokens, meaning comes only from training.
_FREE_WORDS = (
    "a an the of in on at by with and under front portrait picture drawing sketch photo style wearing hair skin eyes "
    + "head face background plain character standing looking close up simple colourful bright dark light day night"
)


def caption_words() -> list[str]:
    """Every word that a caption can contain, without repeats, in a fixed order."""
    sources: list[str] = [
        *words.CLASS_WORDS,
        *words.HAIR_COLOURS,
        *words.HAIR_STYLES,
        *words.SKINS,
        *words.EYE_COLOURS,
        *words.EXPRESSIONS,
        *words.CLOTHES_COLOURS,
        *words.CLOTHES_NOUNS,
        *words.ACCESSORIES,
        *words.BACKGROUNDS,
        *(said for several in words.SYNONYMS.values() for said in several),
        _FREE_WORDS,
    ]
    seen = dict.fromkeys(word for source in sources for word in source.lower().split())
    return list(seen)


def byte_symbols() -> list[str]:
    """The 256 printable stand-ins for bytes, in CLIP's order (printable ASCII and Latin-1 first)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(rest))]


def learn_merges(corpus: list[str]) -> list[tuple[str, str]]:
    """Merge the commonest neighbouring pair until every word of the corpus is one token."""
    split = {word: [*word[:-1], word[-1] + END] for word in corpus}
    merges: list[tuple[str, str]] = []
    while True:
        pairs = Counter(pair for parts in split.values() for pair in pairwise(parts))
        if not pairs:
            return merges
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        split = {word: _merge(parts, best) for word, parts in split.items()}


def _merge(parts: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    i = 0
    while i < len(parts):
        if tuple(parts[i : i + 2]) == pair:
            merged.append(pair[0] + pair[1])
            i += 2
        else:
            merged.append(parts[i])
            i += 1
    return merged


def write(folder: Path) -> int:
    """Write vocab.json and merges.txt; the number of tokens in use."""
    symbols = byte_symbols()
    merges = learn_merges(caption_words())
    tokens = [*symbols, *(symbol + END for symbol in symbols), *dict.fromkeys(a + b for a, b in merges)]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    vocabulary |= {BOS: BOS_ID, EOS: EOS_ID}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(vocabulary)


if __name__ == "__main__":
    from comfy_nodes.sketch.architecture import TOKENIZER_FOLDER

    print(write(TOKENIZER_FOLDER))
