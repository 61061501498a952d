"""Constitutional AI, as the report tells it: critiques and revisions, whole chains to read, the judge, and what learnt its labels.

What is said follows from the numbers alone. Where the reward model picked the revisions, that its score rose shows nothing, and the
page says so; where the reward model judged, no principle was asked, whatever the constitution holds; what was not measured is called
that. Which chains are shown is decided by rule, or drawn at random with a seed. Their text is harmful, and comes from strangers: it
passes `evidence.clip`.

Pure, no I/O: records of stages sl_cai and rl_cai in, what the page says out.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from tunemill import aligned
from tunemill.evidence import Output, clip, output
from tunemill.findings import Estimate, Json
from tunemill.wording import number, plural, signed, visible

CHAINS = 12
"""Most chains that are shown."""
COIN = math.log(2.0)
"""Negative log-likelihood, in nats, of one who always says one half."""

KINDS = {
    "red_team": "prompts that provoke harm",
    "harmless": "everyday questions",
    "task": "prompts of the use case",
}
"""Kinds of prompts in words; an unknown one goes by its own name."""
KIND = {"red_team": "provokes harm", "harmless": "everyday question", "task": "prompt of the use case"}
"""The same, of a single prompt."""
REASONS = {
    "no critique": "nothing was criticised, or the critique is the answer over again",
    "empty": "there is no word in it",
    "unfinished": "it did not end within its limit",
    "copy": "it is nearly the answer, the prompt or the critique over again",
    "echo": "it repeats what it was asked to do",
    "refusal": "it refuses a prompt that harms nobody",
    "not better": "who picked does not like it better than what it revises",
}
"""Why a revision is left out, in words; an unknown reason goes by its own name."""
PICKERS = {
    "model": "the reward model",
    "classifier": "a text classifier",
    "offence": "the classifier of offensive language",
    "length": "length alone, as a control",
    "shuffled": "scores dealt out at random, as a control",
}
"""Who leaves out revisions; an unknown kind goes by its own name."""


@dataclass(frozen=True)
class Supervised:
    """What stage sl_cai told of the policies that it made of one set of chains: cai.json, chains.jsonl, training.json, curve.csv."""

    candidates: tuple[str, ...]
    """More than one: trainings that differ in their seed."""
    cai: Json
    chains: Sequence[Json]
    training: Json
    """Of the first."""
    curve: Sequence[aligned.Row]
    """Of the first."""


@dataclass(frozen=True)
class Labelled:
    """What stage rl_cai told of a judge, and stage reward of the model that learnt its labels: feedback.json, reward.json."""

    candidates: tuple[str, ...]
    """The policies that were rewarded by it."""
    feedback: Json
    reward: Json


# ── critiques and revisions ───────────────────────────────────────────────────────────────────────────────────────


def summary(cai: Json) -> list[tuple[str, str]]:
    """cai.json as labels and texts."""
    counted = cai.get("rounds") or ()
    fit, revisions = (sum(each[name] for each in counted) for name in ("fit", "revisions"))
    share = f" ({number(100 * fit / revisions, 0)}%)" if revisions else ""
    kinds = cai.get("kinds") or {}
    each_kind = [
        f"{number(own['fit'], 0)} of {number(own['revisions'], 0)} to {_kind(name)}" for name, own in kinds.items()
    ]
    found = [
        ("Who criticised and revised", _who(cai.get("critic"))),
        ("Who picked", _picker(cai.get("picker"))),
        (
            "Prompts asked",
            ", ".join(f"{_kind(name)} {number(count, 0)}" for name, count in (cai.get("prompts") or {}).items()) or "—",
        ),
        (
            "Revisions fit to learn from",
            f"{number(fit, 0)} of {number(revisions, 0)}{share}, in {plural(len(counted), 'round')}"
            + (f": {', '.join(each_kind)}" if len(each_kind) > 1 else ""),
        ),
    ]
    left_out = {name: sum(each.get(name) or 0 for each in counted) for name in reasons(cai)}
    if left_out:
        found.append(("Left out", "; ".join(f"{number(count, 0)} {_reason(name)}" for name, count in left_out.items())))
    found.append(("Score of what is fit", _scores(cai)))
    beside = {visible(name.replace("'", "’")): count for name, count in (cai.get("helpful") or {}).items() if count}
    helpful = [f"{number(count, 0)} of {name}" for name, count in beside.items()]
    found.append(("Learnt beside them", ", ".join(helpful) or "nothing"))
    return found


def _kind(name: str) -> str:
    return KINDS.get(name, f"prompts of kind {visible(name)}")


def _reason(name: str) -> str:
    return f"{visible(name)} ({REASONS[name]})" if name in REASONS else visible(name)


def _who(source: Json | None) -> str:
    """A model that writes or labels, as `feedback.Model` tells of itself."""
    kind, name = (source or {}).get("kind"), visible(str((source or {}).get("name") or ""))
    if kind == "self":
        return "the policy itself"
    if kind == "endpoint":
        return f"{name}, behind an endpoint"
    if kind == "hub":
        return f"{name}, of a hub"
    return name or "not told"


def _picker(source: Json | None) -> str:
    if source is None:
        return "nobody: what is fit by its words was learnt from, better or not"
    kind = source.get("kind")
    less = ", less what it makes of length" if kind == "model" and source.get("length") else ""
    name = PICKERS.get(str(kind), visible(str(kind)))
    return f"{name}{less}: only a revision that it likes better than what it revises was learnt from"


def _scores(cai: Json) -> str:
    scores = cai.get("scores") or {}
    before, after = scores.get("before"), scores.get("after")
    if before is None or after is None:
        return "not scored" if cai.get("picker") is None else "none is fit, so there is none"
    return (
        f"{number(before, 2)} before, {number(after, 2)} after, on average. Those whose score did not rise were left out by this very "
        "score, so the rise shows nothing by itself"
    )


class Round(NamedTuple):
    """One round of critiques and revisions."""

    number: int
    revisions: int
    fit: int
    left_out: Mapping[str, int]
    """Reason → revisions; for each reason that occurred in any round."""


def reasons(cai: Json) -> tuple[str, ...]:
    """Why revisions were left out: each reason that occurred, in the order of cai.json."""
    counted = cai.get("rounds") or ()
    names = dict.fromkeys(name for each in counted for name in each if name not in ("revisions", "fit"))
    return tuple(name for name in names if any(each.get(name) for each in counted))


def rounds(cai: Json) -> list[Round]:
    """The rounds, in their order."""
    names = reasons(cai)
    return [
        Round(at, each["revisions"], each["fit"], {visible(name): each.get(name) or 0 for name in names})
        for at, each in enumerate(cai.get("rounds") or (), start=1)
    ]


class Principle(NamedTuple):
    """One principle of the constitution, as the critic was asked by it."""

    name: str
    critique: str
    """Asks what is wrong with an answer."""
    asked: int
    """Critiques by it."""
    fit: int
    """Of their revisions."""


def principles(cai: Json, chains: Sequence[Json]) -> list[Principle]:
    """The constitution, and how often each of its principles was drawn."""
    steps = [step for each in chains for step in each["steps"]]
    return [
        Principle(
            visible(name),
            clip(text)[0],
            sum(step["principle"] == name for step in steps),
            sum(step["principle"] == name and step["reason"] is None for step in steps),
        )
        for name, text in (cai.get("constitution") or {}).items()
    ]


def tuned(told: Supervised) -> str:
    """The tuning on the revisions, in words."""
    losses = [loss for row in told.curve if (loss := row.get("loss")) is not None]
    said = f"Tuned on them for {plural(told.training.get('steps'), 'step')} of {plural(told.training.get('batch_size'), 'pair')}"
    if losses:
        last = losses[-10:]
        said += f"; the loss was {number(losses[0], 2)} at first and {number(sum(last) / len(last), 2)} in the end"
        said += f" (mean of the last {len(last)})" if len(last) > 1 else ""
    more = f" What is shown of the training is {visible(told.candidates[0])}’s." if len(told.candidates) > 1 else ""
    return f"{said}.{more}"


def curve(told: Supervised) -> list[aligned.Panel]:
    """The loss, step by step; nothing where it was not kept."""
    rows = [{"step": row.get("step"), "loss": row.get("loss")} for row in told.curve]
    return aligned.beside_panels(aligned.Beside(told.candidates[0], {"method": "sl_cai"}, rows))


# ── whole chains ──────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Step:
    """One critique and one revision, as they are shown."""

    number: int
    principle: str
    request: str
    """How the principle asks for a critique; empty where the constitution does not have it."""
    critique: Output
    revision: Output
    kept: bool
    left_out: str
    """Why it is left out, in words; empty where it is kept."""
    before: float | None
    after: float | None


@dataclass(frozen=True)
class Chain:
    """A prompt, the first answer, and every step from there."""

    why: str
    kind: str
    source: str
    prompt: str
    cut: int
    """Characters of the prompt left out here."""
    answer: Output
    steps: tuple[Step, ...]
    kept: int
    """Revisions that are learnt from."""
    rise: tuple[float, float] | None
    """Score of the first answer and of the last fit revision; None where nobody scored, or nothing is fit."""


def examples(chains: Sequence[Json], count: int, seed: int, requests: Mapping[str, str]) -> list[Chain]:
    """The chain whose score rose most, the one with most revisions left out, and random ones; each once.

    Args:
        chains: rows of chains.jsonl.
        count: most that are shown.
        seed: of the random ones.
        requests: principle → how it asks for a critique.
    """
    chosen: dict[int, str] = {}

    def best(values: Mapping[int, float], why: str) -> None:
        top = max(values, key=lambda at: (values[at], -at), default=None)
        if top is not None and values[top] > 0 and len(chosen) < count:
            chosen[top] = why

    rises = {at: ends[1] - ends[0] for at, each in enumerate(chains) if (ends := _rise(each)) is not None}
    best(rises, "score rose most")
    left_out = {at: sum(step["reason"] is not None for step in each["steps"]) for at, each in enumerate(chains)}
    best({at: lost for at, lost in left_out.items() if at not in chosen}, "most revisions left out")
    rest = [at for at in range(len(chains)) if at not in chosen]
    drawn = random.Random(f"{seed} chains").sample(rest, max(0, min(len(rest), count - len(chosen))))
    chosen |= dict.fromkeys(sorted(drawn), "random")
    return [_chain(chains[at], why, requests) for at, why in chosen.items()]


def _rise(chain: Json) -> tuple[float, float] | None:
    """Score of the first answer, and of the last fit revision. Until a revision is fit, what is scored is the answer."""
    first = next((each["before"] for each in chain["steps"] if each["before"] is not None), None)
    last = next((each["after"] for each in reversed(chain["steps"]) if each["reason"] is None), None)
    return None if first is None or last is None else (first, last)


def _chain(row: Json, why: str, requests: Mapping[str, str]) -> Chain:
    prompt, cut = clip(row["prompt"])
    return Chain(
        why=why,
        kind=KIND.get(row["kind"], visible(row["kind"])),
        source=visible(row["source"]),
        prompt=prompt,
        cut=cut,
        answer=output("answer", row["answer"], None),
        steps=tuple(
            Step(
                number=at,
                principle=visible(each["principle"]),
                request=clip(requests.get(each["principle"], ""))[0],
                critique=output("critique", each["critique"], None),
                revision=output("revision", each["revision"], None, each["reason"] != "unfinished"),
                kept=each["reason"] is None,
                left_out="" if each["reason"] is None else _reason(each["reason"]),
                before=each["before"],
                after=each["after"],
            )
            for at, each in enumerate(row["steps"], start=1)
        ),
        kept=sum(each["reason"] is None for each in row["steps"]),
        rise=_rise(row),
    )


# ── the judge, and what learnt its labels ─────────────────────────────────────────────────────────────────────────


class Agreed(NamedTuple):
    """How far a judge agrees with people."""

    outcome: Literal["better", "worse", "unproven"] | None
    """better: above chance, its whole interval; None: not measured."""
    verdict: str
    said: str
    shown: Estimate
    """In percent."""


def agreement(feedback: Json) -> Agreed:
    """What the judge's labels of pairs that people have compared show."""
    told = feedback.get("judge") or {}
    quality = told.get("quality") or {}
    own = quality.get("agreement") or {}
    value, low, high = (own.get(key) for key in ("value", "low", "high"))
    pairs, unusable = quality.get("pairs") or 0, quality.get("unusable") or 0
    if value is None:
        said = (
            f"not known: none of its {plural(unusable, 'label')} of pairs that people compared is usable"
            if unusable
            else "not measured: it was asked about no pair that people have compared, so how good its labels are is not known"
        )
        return Agreed(None, "agreement with people is not known", said, Estimate(None, n=pairs, reason="not measured"))
    ends = [None if end is None else 100 * end for end in (low, high)]
    shown = Estimate(100 * value, ends[0], ends[1], pairs)
    groups = f" in {plural(quality['groups'], 'group')} of near duplicates" if quality.get("groups") else ""
    outcome: Literal["better", "worse", "unproven"] = "unproven"
    if low is None or high is None:
        between, rest = "", "There is no interval, so whether that is more than chance is not known."
    else:
        between = f" ({number(shown.low)} to {number(shown.high)}%)"
        outcome = "better" if low > 0.5 else "worse" if high < 0.5 else "unproven"
        rest = {
            "better": "The whole interval lies above it.",
            "worse": "The whole interval lies below it.",
            "unproven": "It lies within the interval: that the judge is better than chance is not shown.",
        }[outcome]
    near = quality.get("same_length") or {}
    counts_words = outcome == "better" and near.get("low") is not None and near["low"] <= 0.5
    if counts_words:
        outcome = "unproven"
    if near.get("value") is not None:
        span = f" ({number(100 * near['low'])} to {number(100 * near['high'])}%)" if near.get("low") is not None else ""
        rest += (
            f" Where both answers are about as long: {number(100 * near['value'])}%{span} of "
            f"{plural(quality.get('same_length_pairs') or 0, 'pair')}"
            + (", so it may do no more than count words." if counts_words else ".")
        )
    said = f"{number(shown.value)}%{between} of {plural(pairs, 'pair')}{groups}; chance is 50%. {rest}"
    if told.get("kind") == "reward":
        said += " Each pair was told by a reward model that had not learnt it"
        said += f"; {number(unusable, 0)} more were not told." if unusable else "."
    elif unusable:
        said += f" Of {number(unusable, 0)} more it gave no usable label."
    verdict = {
        "better": "judge above chance",
        "worse": "judge below chance",
        "unproven": "judge not shown to be above chance" + (" at equal length" if counts_words else ""),
    }[outcome]
    return Agreed(outcome, verdict, said, shown)


def judge(feedback: Json) -> list[tuple[str, str]]:
    """The judge of feedback.json, as labels and texts."""
    told, label = feedback.get("judge") or {}, feedback.get("label") or {}
    quality = told.get("quality") or {}
    by_reward = told.get("kind") == "reward"
    who = (
        "the reward model that learnt what people said. It scores the answers one by one"
        if by_reward
        else f"{_who(told)}, asked by the constitution"
    )
    if told.get("thoughts"):
        who += ", thinking aloud first: its labels are held between 40 and 60%"
    drawn = told.get("principles") or {}
    return [
        ("Who judged", who),
        ("Agreement with people", agreement(feedback).said),
        ("Calibration on people’s pairs", _calibrated(quality)),
        (
            "Position bias: how much more than 50% the answer that stands first is given",
            "none: it reads one answer at a time, in no order"
            if by_reward
            else _both(
                quality.get("position_bias"), label.get("position_bias"), lambda each: f"{signed(100 * each)} points on"
            ),
        ),
        (
            "Orders that contradict each other",
            "none: there is no order"
            if by_reward
            else _both(
                quality.get("contradictory"), label.get("contradictory"), lambda each: f"{number(100 * each, 0)}% of"
            ),
        ),
        ("How sure its labels are", _sure(label)),
        (
            "Principles asked by",
            "none: the reward model knows no principles, and the constitution had no say in these labels"
            if by_reward
            else ", ".join(f"{visible(name)} {number(count, 0)}" for name, count in drawn.items()) or "not told",
        ),
    ]


def _both(people: float | None, own: float | None, said: Callable[[float], str]) -> str:
    """A figure on people's pairs and on those that were labelled."""
    known = ((people, "people’s pairs"), (own, "those it labelled"))
    return ", ".join(f"{said(value)} {what}" for value, what in known if value is not None) or "not measured"


def _calibrated(quality: Json) -> str:
    ece, nll = quality.get("ece") or {}, quality.get("nll")
    found = []
    if ece.get("value") is not None:
        low, high = ece.get("low"), ece.get("high")
        between = f" ({number(low, 3)} to {number(high, 3)})" if low is not None and high is not None else ""
        found.append(f"expected calibration error {number(ece['value'], 3)}{between}")
    if nll is not None:
        found.append(f"{number(nll, 2)} nats a pair, where always saying 50% has {number(COIN, 2)}")
    return "; ".join(found) or "not measured"


def _sure(label: Json) -> str:
    sure, pairs = label.get("mean_probability"), label.get("pairs")
    if sure is None:
        return "not told"
    return (
        f"the better answer has {number(100 * sure)}% on average, over {plural(pairs, 'pair')} that it labelled; "
        "50% would say nothing, 100% is a hard label"
    )


def flattered(told: Labelled) -> bool:
    """Whether the labels come from a reward model, which had learnt the pairs that people compared."""
    return bool((told.feedback.get("judge") or {}).get("kind") == "reward")


def learnt(told: Labelled) -> list[tuple[str, bool, Estimate]]:
    """What tells pairs right, and how often, in percent: what it is, whether it is a baseline, the share with its interval.

    The judge on pairs that people compared; the preference model that learnt its labels on all pairs, and on people's alone; and length
    alone on the same, since people often prefer the shorter answer.
    """
    agreed = agreement(told.feedback)
    found = [("the judge, people’s pairs", False, agreed.shown)] if agreed.shown.value is not None else []
    names = ["all", "people"] if aligned.is_mixed(told.reward) else ["all"]
    shown = {name: aligned.accuracies(told.reward, name) for name in names}
    for system, title, is_baseline in (("reward", "preference model", False), ("length", "length alone", True)):
        for name in names:
            if system in shown[name]:
                which = {"all": "all pairs", "people": "people’s pairs"}[name]
                found.append((f"{title}, {which}", is_baseline, shown[name][system]))
    return found
