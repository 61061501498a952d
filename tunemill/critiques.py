"""Chains of critiques and revisions (Bai et al. 2022, section 3.1): a model says what is wrong with an answer, and mends it.

In each round one principle is drawn for each answer, the model is asked for a critique of it, and then for a revision; the revision is
what the next round starts from. All chains go through a round together: their critiques are generated in one batch plan, then their
revisions, and what their conversations begin with, the worked examples, is read once (`sampling`).

Not every revision is fit to learn from. One that is left out, with its reason, leaves the chain where it was, and the next round tries
again from there:

- *no critique*: nothing was criticised, or the critique is the answer over again, so that nothing was there to revise by;
- *empty*: no word;
- *unfinished*: it did not end within its limit;
- *copy*: nearly the answer, the prompt or the critique over again;
- *echo*: it repeats a part of what it was asked to do ("Rewrite your answer so that …"), as a small model does that takes a request for
  something to go on with;
- *refusal*: a prompt that harms nobody is refused;
- *not better*: a judge of answers (the reward model) does not like it better than what it revises. A small model's critique may just go
  on with the harmful text, and the revision with it: only someone who reads both can tell.

The paper learns from every revision, its model being large enough.

Pure but for the journals of what is written: chains in, chains out.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tunemill import constitution
from tunemill.constitution import Constitution, Kind
from tunemill.metrics import mean
from tunemill.models import Conversation, Prompt
from tunemill.refusals import phrases
from tunemill.sampling import Generation

Write = Callable[[Sequence[Prompt], str], Sequence[Generation]]
"""Conversations, and what is being written ("critiques, round 1") → what comes next in each."""
Score = Callable[[Sequence[str], Sequence[str]], Sequence[float | None]]
"""Prompts and answers → how good each answer is; None where that cannot be said."""

REASONS = ("no critique", "empty", "unfinished", "copy", "echo", "refusal", "not better")
"""Why a revision is left out."""
ALIKE = 0.9
"""Two texts whose words, in their order, are the same to this share (difflib's ratio) are copies of one another."""
ECHO = 5
"""So many words in a row of a request, in a revision, repeat it."""


class Step(NamedTuple):
    """One critique and one revision."""

    principle: str
    """By whose requests."""
    critique: str
    revision: str
    reason: str | None
    """Why the revision is left out (`REASONS`); None: it is fit."""
    before: float | None
    """Score of what was revised; None where nobody scores."""
    after: float | None
    """Score of the revision; None where nobody scores, or it was left out before anybody did."""


@dataclass
class Chain:
    """A prompt, the first answer to it, and what became of that."""

    id: str
    kind: Kind
    prompt: str
    source: str
    """Name of the set that the prompt is from."""
    answer: str
    steps: list[Step] = field(default_factory=list)

    @property
    def current(self) -> str:
        """The last fit revision, or the answer."""
        return next((each.revision for each in reversed(self.steps) if each.reason is None), self.answer)

    @property
    def fit(self) -> list[str]:
        """All revisions to learn from, in the order of the rounds."""
        return [each.revision for each in self.steps if each.reason is None]

    def told(self) -> dict[str, Any]:
        """As JSON has it."""
        return {**vars(self), "steps": [each._asdict() for each in self.steps]}


def run(
    chains: Sequence[Chain],
    rules: Constitution,
    rounds: int,
    seed: int,
    write_critiques: Write,
    write_revisions: Write,
    score: Score | None,
    shots: int | None = None,
) -> None:
    """Put chains through rounds of critique and revision; each of them gains a step in each round.

    Args:
        chains: with their first answer.
        rules: the constitution.
        rounds: how many.
        seed: of the principles drawn.
        write_critiques: the model that criticises.
        write_revisions: the model that revises.
        score: who says whether a revision is better than what it revises; None: nobody.
        shots: most worked examples to show; None: all.
    """
    for number in range(1, rounds + 1):
        # 1. A principle each, and the critique by it.
        drawn = [constitution.draw(rules, each.kind, seed, each.prompt, number) for each in chains]
        asked: list[Conversation] = [
            constitution.critique(rules, each.kind, principle, each.prompt, each.current, shots)
            for each, principle in zip(chains, drawn, strict=True)
        ]
        said = [each.text.strip() for each in write_critiques(asked, f"critiques, round {number}")]

        # 2. The revision by that critique.
        further = [
            constitution.revision(rules, conversation, principle, critique)
            for conversation, principle, critique in zip(asked, drawn, said, strict=True)
        ]
        written = write_revisions(further, f"revisions, round {number}")

        # 3. What is fit to learn from.
        reasons = [
            unfit(
                each.kind,
                each.prompt,
                each.current,
                critique,
                made.text.strip(),
                made.finished,
                (first[-1][1], second[-1][1]),
            )
            for each, critique, made, first, second in zip(chains, said, written, asked, further, strict=True)
        ]
        before, after = _scores(score, chains, written, reasons)
        for at, each in enumerate(chains):
            reason, old, new = reasons[at], before[at], after[at]
            if reason is None and score is not None and (old is None or new is None or new <= old):
                reason = "not better"
            each.steps.append(Step(drawn[at], said[at], written[at].text.strip(), reason, old, new))


def _scores(
    score: Score | None, chains: Sequence[Chain], written: Sequence[Generation], reasons: Sequence[str | None]
) -> tuple[list[float | None], list[float | None]]:
    """Of what is revised and of the revisions; None where a revision is out already, or nobody scores."""
    before: list[float | None] = [None] * len(chains)
    after: list[float | None] = [None] * len(chains)
    kept = [at for at, reason in enumerate(reasons) if reason is None]
    if score is not None and kept:
        prompts = [chains[at].prompt for at in kept]
        found = score(
            [*prompts, *prompts], [*(chains[at].current for at in kept), *(written[at].text.strip() for at in kept)]
        )
        for place, at in enumerate(kept):
            before[at], after[at] = found[place], found[place + len(kept)]
    return before, after


def unfit(
    kind: Kind, prompt: str, current: str, critique: str, revision: str, finished: bool, requests: Sequence[str]
) -> str | None:
    """Why a revision is not to be learnt from, as far as its words tell; None: they tell nothing against it.

    Args:
        kind: of the prompt.
        prompt: what was asked.
        current: what is revised.
        critique: what was said of it.
        revision: what was made of it.
        finished: whether it ended by itself.
        requests: by which critique and revision were asked for.
    """
    if not _words(critique) or same(critique, current) or same(critique, prompt):
        return "no critique"
    if not _words(revision):
        return "empty"
    if not finished:
        return "unfinished"
    if any(same(revision, each) for each in (current, prompt, critique)):
        return "copy"
    if any(_runs(revision) & _runs(each) for each in requests):
        return "echo"
    if kind != "red_team" and phrases([revision]) == [1.0]:
        return "refusal"
    return None


def same(one: str, other: str) -> bool:
    """Whether two texts have nearly the same words in the same order."""
    return difflib.SequenceMatcher(None, _words(one), _words(other), autojunk=False).ratio() >= ALIKE


def _runs(text: str) -> set[tuple[str, ...]]:
    """All runs of `ECHO` words in a text."""
    words = _words(text)
    return {tuple(words[at : at + ECHO]) for at in range(len(words) - ECHO + 1)}


def _words(text: str) -> list[str]:
    """Lower-case words without what stands around them: runs of letters, digits and what joins them."""
    return re.findall(r"\w+(?:['’-]\w+)*", text.lower())


def counts(chains: Sequence[Chain]) -> list[dict[str, int]]:
    """Of each round: revisions, those that are fit, and how many were left out for each reason."""
    rounds = max((len(each.steps) for each in chains), default=0)
    found = []
    for number in range(rounds):
        reasons = Counter(each.steps[number].reason for each in chains)
        found.append({"revisions": len(chains), "fit": reasons[None], **{name: reasons[name] for name in REASONS}})
    return found


def of_each_kind(chains: Sequence[Chain]) -> dict[str, int]:
    """Prompts of each kind."""
    return {kind: count for kind in constitution.KINDS if (count := sum(each.kind == kind for each in chains))}


def by_kind(chains: Sequence[Chain]) -> dict[str, dict[str, int]]:
    """Of each kind of prompts: revisions, and how many are fit."""
    return {
        kind: {
            "revisions": sum(len(each.steps) for each in own),
            "fit": sum(len(each.fit) for each in own),
        }
        for kind in of_each_kind(chains)
        if (own := [each for each in chains if each.kind == kind])
    }


def scores(chains: Sequence[Chain]) -> dict[str, float | None]:
    """What the picker makes of the revisions that are fit, and of what they revise."""
    fit = [step for each in chains for step in each.steps if step.reason is None]
    return {"before": mean(each.before for each in fit), "after": mean(each.after for each in fit)}


def reasons(counted: Sequence[Mapping[str, int]]) -> str:
    """Why revisions were left out, in words."""
    total = {name: sum(each[name] for each in counted) for name in REASONS}
    return ", ".join(f"{name} {count}" for name, count in total.items() if count)


def sentence(counted: Sequence[Mapping[str, int]]) -> str:
    """What came of the rounds, in words."""
    revisions, fit = (sum(each[name] for each in counted) for name in ("revisions", "fit"))
    left_out = reasons(counted)
    return f"{fit} of {revisions} revisions are fit to learn from" + (f" (left out: {left_out})" if left_out else "")
