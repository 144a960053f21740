"""The vocabulary: CLIP's file format, our words whole, anything else spelt out and read back."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from comfy_nodes.sketch.architecture import SKETCH, TOKENIZER_FOLDER
from sketch_base import tokenizer
from sketch_base.drawing import caption, random_portrait

if TYPE_CHECKING:
    from transformers import CLIPTokenizer


@pytest.fixture(scope="module")
def clip() -> CLIPTokenizer:
    return SKETCH.build_tokenizer()


def test_the_committed_files_are_what_the_script_writes(tmp_path: Path) -> None:
    tokenizer.write(tmp_path)
    for name in ("vocab.json", "merges.txt"):
        assert (tmp_path / name).read_bytes() == (TOKENIZER_FOLDER / name).read_bytes()


def test_begin_and_end_keep_clips_ids() -> None:
    vocabulary = json.loads((TOKENIZER_FOLDER / "vocab.json").read_text(encoding="utf-8"))
    assert (vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"]) == (49406, 49407)


def test_every_caption_word_is_one_token(clip: CLIPTokenizer) -> None:
    spelt = [word for word in tokenizer.caption_words() if len(clip.tokenize(word)) != 1]
    assert spelt == []


def test_a_caption_is_read_back_word_for_word(clip: CLIPTokenizer) -> None:
    rng = random.Random(4)
    for _ in range(50):
        said = caption(random_portrait(rng), rng, "qexzlo")
        ids = clip(said).input_ids
        assert clip.decode(ids, skip_special_tokens=True).replace(" ,", ",").strip() == said


def test_the_longest_caption_fits_into_the_positions(clip: CLIPTokenizer) -> None:
    rng = random.Random(5)
    longest = max(len(clip(caption(random_portrait(rng), None, "xqzvwkjyqx")).input_ids) for _ in range(200))
    assert longest <= SKETCH.positions


def test_any_unicode_text_is_spelt_in_known_tokens(clip: CLIPTokenizer) -> None:
    ids = clip("Zoë 漢字 🎭 مرحبا").input_ids
    assert max(ids[1:-1]) < len(clip)
    assert clip.unk_token_id not in ids[1:-1]
