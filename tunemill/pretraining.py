"""Raw text as training pairs: causal blocks, and span corruption (Raffel et al. 2020, section 3.1.4)."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import pairwise

from tunemill.losses import Encoded

SHORTEST = 8
"""Tokens of the shortest text that spans are taken out of."""


def causal_blocks(documents: Sequence[Sequence[int]], end: int, length: int) -> list[Encoded]:
    """Documents put end to end and cut into blocks; every token but a block's first is to be predicted.

    Args:
        documents: token ids.
        end: token between two documents.
        length: tokens of a block.

    Returns:
        Pairs of a block's first token and the rest; what is left over at the end makes a shorter block.
    """
    stream = [token for document in documents for token in (*document, end)]
    blocks = [stream[at : at + length] for at in range(0, len(stream), length)]
    return [Encoded([block[0]], block[1:]) for block in blocks if len(block) > 1]


def taken(length: int, density: float, span: float) -> tuple[int, int]:
    """(tokens to take out of a text, spans that they make).

    Raises:
        ValueError: more spans than tokens that are kept between them.
    """
    count = max(1, round(length * density))
    spans = max(1, round(count / span))
    if length - count < spans:
        raise ValueError(f"{length} tokens are too few to take {spans} spans out of")
    return count, spans


def corrupt(
    tokens: Sequence[int], sentinels: Sequence[int], end: int, density: float, span: float, seed: str
) -> Encoded:
    """Take spans out of a text, and ask for them: T5's objective.

    `a b c d e f g` with `c d` and `g` taken out: input `a b <0> e f <1>`, target `<0> c d <1> g <2>`, each with the end
    token. As in the paper's code a text begins with what is kept and ends with what is taken out.

    Args:
        tokens: of the text.
        sentinels: ids that mark where something is missing, in the order in which they are used.
        end: the token that ends both sequences.
        density: share of tokens to take out.
        span: mean length of a span.
        seed: of the choice; the same one takes out the same spans.

    Returns:
        The corrupted text as prompt, the spans as completion.

    Raises:
        ValueError: too short a text, or more spans than sentinels.
    """
    chosen = random.Random(seed)
    count, spans = taken(len(tokens), density, span)
    if spans >= len(sentinels):
        raise ValueError(f"{spans} spans need {spans + 1} sentinels, the vocabulary has {len(sentinels)}")
    # Kept and taken stretches alternate, beginning with a kept one; their lengths are random, their sums fixed.
    kept_lengths = _parts(len(tokens) - count, spans, chosen)
    taken_lengths = _parts(count, spans, chosen)
    prompt: list[int] = []
    completion: list[int] = []
    at = 0
    for mark, keep, take in zip(sentinels, kept_lengths, taken_lengths, strict=False):
        prompt += [*tokens[at : at + keep], mark]
        completion += [mark, *tokens[at + keep : at + keep + take]]
        at += keep + take
    return Encoded([*prompt, end], [*completion, sentinels[spans], end])


def pieces(documents: Sequence[Sequence[int]], length: int, least: int = SHORTEST) -> Iterator[list[int]]:
    """Each document in pieces of at most `length` tokens; pieces of fewer than `least` are left out."""
    for document in documents:
        for at in range(0, len(document), length):
            piece = list(document[at : at + length])
            if len(piece) >= least:
                yield piece


def _parts(total: int, count: int, chosen: random.Random) -> list[int]:
    """`count` positive numbers that add up to `total`, every division as likely as any other."""
    cuts = [0, *sorted(chosen.sample(range(1, total), count - 1)), total]
    return [after - before for before, after in pairwise(cuts)]
