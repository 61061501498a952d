"""From what people, or models, ranked or scored to pairs that a reward model can learn. Pure: rankings in, pairs and counts out.

A ranking of k completions holds up to k(k−1)/2 pairs (Ouyang et al. 2022, section 3.5). Several people's rankings of one prompt are
taken together, pair by pair: what most of them prefer is chosen, and the share that does is kept as the pair's probability. No pair
is made of

- a tie, or of ranks closer together than `gap` (human scores are coarse),
- completions that as many prefer as not,
- completions that stand in a circle (a over b, b over c, c over a): no scores could rank them so, and nobody knows which of the
  three is the mistake,
- a completion that somebody marked as nonsense: that it is worse than another says nothing about what makes an answer good.

One prompt with many answers would outvote all others, so pairs are capped for each prompt, and weighted so that every prompt counts
the same. What was left out is counted, with the reason.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

Ranker = Literal["person", "model"]
"""Who ranked: what a model says enters by the same record as what people say, and only this tells them apart."""


class Ranking(NamedTuple):
    """What one person, or one model, said of the answers to one prompt."""

    prompt: str
    completions: tuple[str, ...]
    ranks: tuple[float | None, ...]
    """Of each completion, the lower the better; equal ones are ties. None: this labeler marked it as nonsense."""
    labeler: str
    ranked_by: Ranker = "person"
    """What the labeler is. A pair is made by the same rules either way."""


class Pair(NamedTuple):
    """Two answers to one prompt, the better one first."""

    prompt: str
    chosen: str
    rejected: str
    probability: float
    """Share of those with an opinion who prefer the chosen one: more than one half."""
    weight: float
    """One over the number of the prompt's pairs: all prompts weigh the same."""


class Pairs(NamedTuple):
    """All pairs, and how many there might have been."""

    pairs: list[Pair]
    left_out: dict[str, int]
    """Reason (tie, contradiction, circle, nonsense, cap) → pairs of completions."""


def pairs(rankings: Sequence[Ranking], *, gap: float = 0.0, cap: int, seed: int) -> Pairs:
    """Make pairs.

    Args:
        rankings: any number of people, prompts and answers; prompts come back in the order they are first met in.
        gap: ranks at most this far apart are a tie.
        cap: most pairs of one prompt.
        seed: of the choice among more; each prompt's depends on nothing else but its text.

    Raises:
        ValueError: a ranking has more ranks than completions, or fewer.
    """
    by_prompt: dict[str, list[Ranking]] = {}
    for each in rankings:
        if len(each.ranks) != len(each.completions):
            raise ValueError(f"{len(each.ranks)} ranks of {len(each.completions)} completions by {each.labeler}")
        by_prompt.setdefault(each.prompt, []).append(each)
    found: list[Pair] = []
    left_out = Counter[str]()
    for prompt, own in by_prompt.items():
        preferred, reasons = _preferred(own, gap)
        left_out += reasons
        chosen = sorted(preferred, key=lambda pair: _order(seed, prompt, *pair))[:cap]
        left_out["cap"] += len(preferred) - len(chosen)
        # In the order of the completions, so that a file of them reads like the rankings it came from.
        for better, worse in [pair for pair in preferred if pair in set(chosen)]:
            found.append(Pair(prompt, better, worse, preferred[better, worse], 1.0 / len(chosen)))
    return Pairs(found, dict(+left_out))


def _preferred(rankings: Sequence[Ranking], gap: float) -> tuple[dict[tuple[str, str], float], Counter[str]]:
    """(better, worse) → share of people who say so, of one prompt; and why other pairs are none."""
    reasons = Counter[str]()
    completions = list(dict.fromkeys(text for each in rankings for text in each.completions))
    nonsense = {
        text for each in rankings for text, rank in zip(each.completions, each.ranks, strict=True) if rank is None
    }
    votes: dict[tuple[str, str], list[int]] = {}  # pair → 1 for the first, -1 for the second, 0 for a tie
    for each in rankings:
        ranks = dict(zip(each.completions, each.ranks, strict=True))
        for first, second in itertools.combinations(sorted(ranks, key=completions.index), 2):
            ours, theirs = ranks[first], ranks[second]
            if ours is None or theirs is None or first in nonsense or second in nonsense:
                votes.setdefault((first, second), [])
                continue
            away = theirs - ours
            votes.setdefault((first, second), []).append(0 if abs(away) <= gap else 1 if away > 0 else -1)
    won: dict[tuple[str, str], float] = {}
    for (first, second), cast in votes.items():
        ahead, behind = cast.count(1), cast.count(-1)
        if first in nonsense or second in nonsense:
            reasons["nonsense"] += 1
        elif not ahead and not behind:
            reasons["tie"] += 1
        elif ahead == behind:
            reasons["contradiction"] += 1
        else:
            pair = (first, second) if ahead > behind else (second, first)
            won[pair] = max(ahead, behind) / (ahead + behind)
    circles = _together(completions, list(won))
    kept = {pair: share for pair, share in won.items() if circles[pair[0]] != circles[pair[1]]}
    reasons["circle"] += len(won) - len(kept)
    return kept, +reasons


def _together(names: Sequence[str], edges: Sequence[tuple[str, str]]) -> Mapping[str, int]:
    """Which strongly connected component each name is in: those that stand in a circle with each other."""
    reaches = {name: {name} for name in names}
    # Few answers to a prompt, so the closure is found by going on until nothing is added.
    while any(not reaches[second] <= reaches[first] for first, second in edges):
        for first, second in edges:
            reaches[first] |= reaches[second]
    found: dict[str, int] = {}
    for number, name in enumerate(names):
        found.setdefault(name, number)
        for other in names:
            if other in reaches[name] and name in reaches[other]:
                found.setdefault(other, found[name])
    return found


def _order(seed: int, *texts: str) -> str:
    """A place in a shuffled order that depends on nothing else."""
    return hashlib.sha256(json.dumps([seed, *texts]).encode()).hexdigest()
