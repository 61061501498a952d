"""Which rows of unequal length are read together, so that the least is computed."""

from __future__ import annotations

from collections.abc import Sequence

PASS = 128
"""What one pass of a model more costs, as tokens: padding is avoided, and a beginning shared, where that saves more.
Measured on two cores; an accelerator would have it larger, but has tokens to spare."""


def plan(sizes: Sequence[int], known: int, tokens: int, rows: int) -> list[tuple[int, ...]]:
    """Put rows into batches of similar size, the largest first, so that the least is computed: padding, and `PASS` for each.

    Args:
        sizes: tokens of each row.
        known: of these, tokens that are not computed again.
        tokens: most tokens of a batch, padding and known ones included; a single larger row is a batch of its own.
        rows: most rows in a batch.

    Returns:
        Indices of the rows in each batch; every index once.
    """
    order = sorted(range(len(sizes)), key=lambda index: (-sizes[index], index))
    least: list[tuple[int, int]] = [(0, 0)]  # what the first n rows cost at least, and where their last batch begins
    for end in range(1, len(order) + 1):
        ways = []
        for first in range(end - 1, max(-1, end - 1 - rows), -1):
            width, count = sizes[order[first]], end - first
            if count > 1 and count * width > tokens:
                break  # one that begins earlier is wider
            ways.append((least[first][0] + count * (width - known) + PASS, first))
        least.append(min(ways))
    found, end = [], len(order)
    while end:
        found.append(tuple(order[least[end][1] : end]))
        end = least[end][1]
    return found[::-1]
