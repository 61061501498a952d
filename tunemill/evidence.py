"""Item by item: what was written for which prompt, chosen by rules for a reader who wants to see for themselves.

Perturbed prompts with their changes marked and the answers before and after, the worst outputs of every candidate, and
answers to prompts that provoke. Nobody picks: every choice is by score, or drawn at random with a seed; ties go by id.
Text from strangers passes `wording.visible` and is cut, with a count of what is left out.

Pure, no I/O.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal, NamedTuple

from tunemill.findings import Json
from tunemill.wording import visible

CHARACTERS = 1500
"""Longer texts are cut, with a count of what is left out."""

WORST = 10
"""Worst outputs of each candidate."""

DROPS, DRAWN = 2, 1
"""Examples of each perturbation: those that lost most, and further ones at random."""

PROVOKED = 1
"""Random answers to provoking prompts, beside the one that each scorer rates worst."""

PERTURBATIONS = {
    "robustness": "Robustness: lower case, contractions, slips of the pen, spaces",
    "dialect": "Fairness: another dialect",
    "gender": "Fairness: other pronouns",
    "names": "Fairness: other first names",
}
"""How `evaluate` changes a prompt, in the order of the page."""


def clip(text: str, most: int = CHARACTERS) -> tuple[str, int]:
    """A text with nothing hidden in it, cut to `most` characters, and how many are left out."""
    return visible(text[:most]) + ("…" if len(text) > most else ""), max(0, len(text) - most)


@dataclass(frozen=True)
class Output:
    """What one candidate or baseline wrote for an item."""

    name: str
    text: str
    score: float | None
    finished: bool
    cut: int
    """Characters left out here."""


def output(name: str, text: str, score: float | None, finished: bool = True) -> Output:
    """An output as it is shown."""
    shown, cut = clip(text)
    return Output(name, shown, score, finished, cut)


# ── perturbed prompts ─────────────────────────────────────────────────────────────────────────────────────────────


class Piece(NamedTuple):
    """A run of text that is the same in both, or stands only in the text before or only in the one after."""

    kind: Literal["same", "before", "after"]
    text: str


def changes(before: str, after: str) -> list[Piece]:
    """What a perturbation did to a text, word by word.

    Space counts as a word of its own. Where only more of it was put in, the old part stays and the new part is added.
    Without those of the one text the pieces make the other, to the letter.
    """
    old, new = re.findall(r"\s+|\S+", before), re.findall(r"\s+|\S+", after)
    found: list[Piece] = []

    def put(kind: Literal["same", "before", "after"], text: str) -> None:
        if text and found and found[-1].kind == kind:
            found[-1] = Piece(kind, found[-1].text + text)
        elif text:
            found.append(Piece(kind, text))

    for what, low, high, start, stop in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if what == "equal":
            put("same", "".join(old[low:high]))
        elif what == "replace" and high - low == stop - start:
            for gone, come in zip(old[low:high], new[start:stop], strict=True):
                if gone.isspace() and come.startswith(gone):
                    put("same", gone)
                    put("after", come[len(gone) :])
                elif gone == come:
                    put("same", gone)
                else:
                    put("before", gone)
                    put("after", come)
        else:
            put("before", "".join(old[low:high]))
            put("after", "".join(new[start:stop]))
    return found


def shortened(pieces: Sequence[Piece], most: int = CHARACTERS) -> tuple[list[Piece], int]:
    """Pieces with nothing hidden in them, up to `most` characters in all, and how many characters are left out."""
    found, left = [], most
    for kind, text in pieces:
        if left > 0:
            found.append(Piece(kind, visible(text[:left])))
        left -= len(text)
    if left < 0:
        found.append(Piece("same", "…"))
    return found, max(0, -left)


@dataclass(frozen=True)
class Perturbed:
    """One prompt that was changed, and what the change did to the answer."""

    why: Literal["largest drop", "random"]
    id: str
    group: str
    drop: float | None
    """By how much the score became worse; negative where it became better."""
    prompt: list[Piece]
    cut: int
    reference: list[Piece]
    before: Output
    after: Output


@dataclass(frozen=True)
class Perturbation:
    """One way of changing prompts, with examples."""

    name: str
    label: str
    changed: int
    """Prompts in which it found something to change."""
    n: int
    examples: tuple[Perturbed, ...]


def perturbations(
    perturbed: Sequence[Json],
    instances: Sequence[Json],
    *,
    metric: str,
    lower_is_better: bool,
    seed: int,
) -> list[Perturbation]:
    """Examples of every perturbation: the largest drops of the score, and random ones among the other changed prompts.

    Args:
        perturbed: perturbed.jsonl of one candidate.
        instances: its instances.jsonl, the same items unchanged.
        metric: whose score drops.
        lower_is_better: whether a higher score is a drop.
        seed: of the random examples.
    """
    originals = {row["id"]: row for row in instances}
    found = []
    for name, label in PERTURBATIONS.items():
        own = [row for row in perturbed if row["perturbation"] == name]
        if not own:
            continue
        shown = {row["id"]: row for row in own if row["changed"] and row["id"] in originals}
        drops: dict[str, float] = {}
        for key, row in shown.items():
            before, after = (each["scores"].get(metric) for each in (originals[key], row))
            if before is not None and after is not None:
                drops[key] = after - before if lower_is_better else before - after
        worst = [key for key in sorted(drops, key=lambda key: (-drops[key], key)) if drops[key] > 0][:DROPS]
        left = sorted(set(shown) - set(worst))
        drawn = random.Random(f"{seed} {name}").sample(left, min(DRAWN, len(left)))
        chosen: list[tuple[Literal["largest drop", "random"], str]] = [("largest drop", key) for key in worst]
        chosen += [("random", key) for key in drawn]
        found.append(
            Perturbation(
                name=name,
                label=label,
                changed=sum(bool(row["changed"]) for row in own),
                n=len(own),
                examples=tuple(
                    _example(why, originals[key], shown[key], metric, drops.get(key)) for why, key in chosen
                ),
            )
        )
    return found


def _example(
    why: Literal["largest drop", "random"], before: Json, after: Json, metric: str, drop: float | None
) -> Perturbed:
    prompt, cut = shortened(changes(before["prompt"], after["prompt"]))
    return Perturbed(
        why=why,
        id=visible(str(before["id"])),
        group=visible(str(before.get("group", ""))),
        drop=drop,
        prompt=prompt,
        cut=cut,
        reference=shortened(changes(before["reference"], after.get("reference", before["reference"])))[0],
        before=output("answer before", before["prediction"], before["scores"].get(metric), before["finished"]),
        after=output("answer after", after["prediction"], after["scores"].get(metric), after["finished"]),
    )


# ── the worst outputs ─────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Worst:
    """One of a candidate's worst outputs."""

    id: str
    group: str
    prompt: str
    cut: int
    """Characters of the prompt left out."""
    reference: str
    output: Output


def worst(rows: Sequence[Json], *, metric: str, lower_is_better: bool, count: int = WORST) -> list[Worst]:
    """The outputs with the worst scores, worst first; rows without a score have no place among them."""
    scored = [row for row in rows if row["scores"].get(metric) is not None]
    sign = -1 if lower_is_better else 1
    scored.sort(key=lambda row: (sign * row["scores"][metric], row["id"]))
    found = []
    for row in scored[:count]:
        prompt, cut = clip(row["prompt"])
        found.append(
            Worst(
                id=visible(str(row["id"])),
                group=visible(str(row.get("group", ""))),
                prompt=prompt,
                cut=cut,
                reference=clip(row["reference"])[0],
                output=output("output", row["prediction"], row["scores"][metric], row.get("finished", True)),
            )
        )
    return found


# ── answers to prompts that provoke ───────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Provoked:
    """One answer to a prompt that provokes; hidden until the reader asks for it."""

    why: str
    kind: str
    source: str
    prompt_toxic: bool
    """Whether the prompt itself is called offensive; None where that was not judged."""
    prompt: str
    output: Output
    offence: float | None
    harm: float | None


def provoked(rows: Sequence[Json], seed: int) -> list[Provoked]:
    """The answer that each scorer rates worst, and random ones; each answer once.

    Args:
        rows: red_team.jsonl of one candidate; rows of a run with one answer to a prompt are read as one sample.
        seed: of the random ones.
    """
    answers = [(row, sample) for row in rows for sample in row["samples"]]
    chosen: dict[int, str] = {}
    for scorer, why in (("offence", "most offensive"), ("harm", "most harmful")):
        scored = [index for index, (_, sample) in enumerate(answers) if sample.get(scorer) is not None]
        if scored:
            top = max(scored, key=lambda index: (answers[index][1][scorer], -index))
            chosen[top] = f"{chosen[top]}, {why}" if top in chosen else why
    left = [index for index in range(len(answers)) if index not in chosen]
    chosen |= dict.fromkeys(sorted(random.Random(seed).sample(left, min(PROVOKED, len(left)))), "random")
    return [
        Provoked(
            why=why,
            kind=visible(str(row.get("kind", ""))),
            source=visible(str(row.get("source", ""))),
            prompt_toxic=row["prompt_toxic"],
            prompt=clip(row["prompt"])[0],
            output=output("answer", sample["prediction"], None, sample["finished"]),
            offence=sample.get("offence"),
            harm=sample.get("harm"),
        )
        for index, why in chosen.items()
        for row, sample in (answers[index],)
    ]
