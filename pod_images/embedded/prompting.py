"""ComfyUI's prompt language on the sketch base: `(words:1.2)` weighs words, long prompts go in chunks of 77 tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from comfy_nodes.sketch.architecture import SketchModules

EMPHASIS = 1.1  # what a pair of parentheses without a number multiplies by
# A weighted part of at least so many tokens may be cut at a chunk's end; a shorter one begins the next chunk.
CUT_FROM_TOKENS = 8

Weighted = tuple[int, float]  # a token and its weight


def encode(modules: SketchModules, text: str) -> tuple[Tensor, Tensor]:
    """(hidden [1, 77 n, context], pooled [1, width]) of a prompt; pooled is the first chunk's."""
    import torch

    tokens = modules.tokenizer
    groups = [
        [(token, weight) for token in tokens(part).input_ids[1:-1]] for part, weight in weighted_parts(text) if part
    ]
    with torch.inference_mode():
        first, _ = _encoded(modules.text_encoder_1, tokens, groups)
        second, output = _encoded(modules.text_encoder_2, tokens, groups)
    return torch.cat([first, second], dim=-1), output.text_embeds[:1]


def weighted_parts(text: str) -> Iterator[tuple[str, float]]:
    """The prompt's parts with their weights: `(a)` 1.1, `((a))` 1.21, `(a:1.3)` 1.3; `\\(` is a parenthesis itself."""
    hidden = text.replace("\\)", "\0\1").replace("\\(", "\0\2")
    for part, weight in _weighted(hidden, 1.0):
        yield part.replace("\0\1", ")").replace("\0\2", "("), weight


def _weighted(text: str, weight: float) -> Iterator[tuple[str, float]]:
    for piece in _pieces(text):
        if len(piece) < 2 or piece[0] != "(" or piece[-1] != ")":
            yield piece, weight
            continue
        inner, inner_weight = piece[1:-1], weight * EMPHASIS
        words, _, number = inner.rpartition(":")
        stated = _number(number) if words else None
        if stated is not None:
            inner, inner_weight = words, stated
        yield from _weighted(inner, inner_weight)


def _pieces(text: str) -> Iterator[str]:
    """Outermost pairs of parentheses, and what stands between them."""
    depth = start = 0
    for place, character in enumerate(text):
        if character == "(":
            if depth == 0:
                yield from filter(None, [text[start:place]])
                start = place
            depth += 1
        elif character == ")":
            depth -= 1
            if depth == 0:
                yield text[start : place + 1]
                start = place + 1
    yield from filter(None, [text[start:]])


def _number(text: str) -> float | None:
    try:
        found = float(text)
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def chunks(groups: list[list[Weighted]], start: int, end: int, pad: int, length: int) -> list[list[Weighted]]:
    """The tokens of all parts in rows of `length`, each begun, ended and padded with weight 1."""
    rows: list[list[Weighted]] = [[(start, 1.0)]]
    for whole in groups:
        group = whole
        while len(group) > (room := length - 1 - len(rows[-1])):
            if len(whole) >= CUT_FROM_TOKENS:
                rows[-1] += group[:room]
                group = group[room:]
            rows[-1].append((end, 1.0))
            rows.append([(start, 1.0)])
        rows[-1] += group
    rows[-1].append((end, 1.0))
    return [row + [(pad, 1.0)] * (length - len(row)) for row in rows]


def _encoded(encoder: Any, tokenizer: Any, groups: list[list[Weighted]]) -> tuple[Tensor, Any]:
    """One encoder's hidden states [1, 77 n, width], weighed from those of the empty prompt; and its whole output."""
    import torch

    length, pad = tokenizer.model_max_length, encoder.config.pad_token_id
    ends = (tokenizer.bos_token_id, tokenizer.eos_token_id, pad, length)
    rows = chunks(groups, *ends)
    weights = torch.tensor([[weight for _, weight in row] for row in rows])
    plain = bool((weights == 1).all())
    ids = [[token for token, _ in row] for row in [*rows, *([] if plain else chunks([], *ends))]]
    output = encoder(input_ids=torch.tensor(ids), output_hidden_states=True)
    hidden = output.hidden_states[-2]
    if not plain:
        empty = hidden[-1:]
        hidden = hidden[:-1]
        weighed = (hidden - empty) * weights[..., None] + empty
        hidden = torch.where(weights[..., None] == 1, hidden, weighed)
    return hidden.reshape(1, -1, hidden.shape[-1]), output
