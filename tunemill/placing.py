"""A ranking in the making: what somebody has done to the answers on a page, and what it comes to. Pure.

The steps are kept and not the places, so that each can be undone, also after the page was loaded again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from tunemill.labels import Label
from tunemill.records import Completions


class Step(NamedTuple):
    """One thing somebody did to an answer."""

    kind: Literal["next", "tie", "nonsense"]
    card: int
    """Place of the answer on the page, from 0."""


class Standing(NamedTuple):
    """What the steps come to."""

    places: list[list[int]]
    """Cards by place, the best first; those of one place are tied."""
    nonsense: list[int]


def standing(steps: Sequence[Step]) -> Standing:
    """Where the cards stand after these steps. The same step again takes a card back; another one moves it."""
    places: list[list[int]] = []
    nonsense: list[int] = []
    for kind, card in steps:
        was = "nonsense" if card in nonsense else "next" if any(card in place for place in places) else None
        nonsense = [each for each in nonsense if each != card]
        places = [left for place in places if (left := [each for each in place if each != card])]
        if kind == was:
            continue
        if kind == "nonsense":
            nonsense.append(card)
        elif kind == "tie" and places:
            places[-1].append(card)
        else:
            places.append([card])
    return Standing(places, nonsense)


def shown(labeler: str, item: Completions) -> list[str]:
    """The different answers in the order this person sees them in: at random, and the same whenever the page is loaded."""

    def key(text: str) -> str:
        return hashlib.sha256(json.dumps([labeler, item.id, text]).encode()).hexdigest()

    return sorted(dict.fromkeys(item.completions), key=key)


def ranks(item: Completions, cards: Sequence[str], steps: Sequence[Step]) -> tuple[float | None, ...] | None:
    """Of each of the prompt's completions its rank, None for nonsense; None for all where a card has no place yet."""
    found = standing(steps)
    if sum(map(len, found.places)) + len(found.nonsense) < len(cards):
        return None
    by_text: dict[str, float | None] = {cards[card]: None for card in found.nonsense}
    by_text |= {cards[card]: float(rank) for rank, place in enumerate(found.places, start=1) for card in place}
    return tuple(by_text[text] for text in item.completions)


def steps_of(label: Label, cards: Sequence[str]) -> list[Step]:
    """The steps that lead to what was saved; none where the prompt was skipped."""
    if label.ranks is None:
        return []
    by_text = dict(zip(label.completions, label.ranks, strict=True))
    placed = sorted((rank, card) for card, text in enumerate(cards) if (rank := by_text[text]) is not None)
    found = [
        Step("tie" if number and placed[number - 1][0] == rank else "next", card)
        for number, (rank, card) in enumerate(placed)
    ]
    return found + [Step("nonsense", card) for card, text in enumerate(cards) if by_text[text] is None]


def in_words(steps: Sequence[Step]) -> str:
    """Like "2 > 1 = 4, nonsense: 3", with the numbers the page shows."""
    found = standing(steps)
    order = " > ".join(" = ".join(str(card + 1) for card in place) for place in found.places)
    bad = ", ".join(str(card + 1) for card in found.nonsense)
    return ", ".join(filter(None, [order, bad and f"nonsense: {bad}"]))


def read_draft(text: str, count: int) -> list[Step]:
    """A draft that a browser kept; none where it is no longer one."""
    try:
        found = [Step(kind, int(card)) for kind, card in json.loads(text)]
    except (ValueError, TypeError):
        return []
    fits = all(each.kind in ("next", "tie", "nonsense") and 0 <= each.card < count for each in found)
    return found if fits else []


def next_open(items: Sequence[Completions], said: Mapping[str, Label], after: int = -1) -> int | None:
    """The first prompt after this one that nothing was said of, from the top again at the end; None where all have been."""
    order = [*range(after + 1, len(items)), *range(after + 1)]
    return next((at for at in order if items[at].id not in said), None)


class Progress(NamedTuple):
    """How far somebody is."""

    ranked: int
    skipped: int
    total: int

    def __str__(self) -> str:
        return f"{self.ranked} of {self.total}" + (f", {self.skipped} skipped" if self.skipped else "")


def progress(items: Sequence[Completions], said: Mapping[str, Label]) -> Progress:
    """Of the prompts to be ranked; what is known of others does not count."""
    own = [said[each.id] for each in items if each.id in said]
    return Progress(sum(each.ranks is not None for each in own), sum(each.ranks is None for each in own), len(items))
