"""The report: what a run's artifacts say, as one HTML file that a manager and an engineer can both read.

`Material` holds the artifacts as they were read, `page` turns them into HTML. In between stand small pure functions,
one for each part of the page, that decide what is said (which candidate is better, how sure that is, which samples are
shown) and leave only the wording and the drawing to the template beside this file, `report.html.j2`.

The page opens from disk, fetches nothing and runs no script. Text in it comes from data and from models and is not
trusted: the template escapes everything, and `wording.visible` shows characters that would not be seen. No clock is
read, so that the same artifacts give the same bytes.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tunemill import adaptation, aligned, categories, charts, constitutional, evidence, lineage, metrics, promotion
from tunemill.adaptation import Tuned
from tunemill.evidence import Output, clip, output
from tunemill.findings import METRICS, Difference, Estimate, Json, difference, estimate, metric
from tunemill.wording import brief, duration, number, p_value, plural, share, signed, size, tick, visible

if TYPE_CHECKING:
    from jinja2 import Template

TEMPLATE = Path(__file__).with_name("report.html.j2")
PROMPT_CHARACTERS = 4 * evidence.CHARACTERS
"""Longer prompts are cut in the samples."""


@dataclass(frozen=True)
class Material:
    """The artifacts of a run, as read; what is missing is None or empty."""

    scope: Json
    candidates: tuple[str, ...]
    comparison: Json
    promotion: Json | None = None
    """What stage promote decided; None where it was not asked: then the criteria are judged by the comparison."""
    splits: Json = field(default_factory=dict)
    instances: Mapping[str, Sequence[Json]] = field(default_factory=dict)
    scores: Mapping[str, Json] = field(default_factory=dict)
    perturbed: Mapping[str, Sequence[Json]] = field(default_factory=dict)
    choices: Mapping[str, Sequence[Json]] = field(default_factory=dict)
    """Candidate → questions with choices, and how likely it finds each."""
    red_team: Mapping[str, Sequence[Json]] = field(default_factory=dict)
    plan: Json | None = None
    decision: Json | None = None
    """select's table of candidates."""
    policies: Mapping[str, str] = field(default_factory=dict)
    """Candidate → path of its policy, which names the stage that made it."""
    trainings: Sequence[Tuned] = ()
    prompt: Json | None = None
    """The grid of prompts and the choice."""
    asked: Json | None = None
    """The chosen prompt itself: template, worked examples, decoding."""
    feedback: Json | None = None
    """What was fed back: feedback.json."""
    reward: Json | None = None
    """How well the reward model tells what people prefer: reward.json."""
    reward_histogram: Sequence[aligned.Row] = ()
    reward_reliability: Sequence[aligned.Row] = ()
    supervised: Sequence[constitutional.Supervised] = ()
    """The candidates that learnt revisions of a model's own answers."""
    labelled: Sequence[constitutional.Labelled] = ()
    """Those that were rewarded by what learnt a judge's labels."""
    optimised: Sequence[aligned.Run] = ()
    """The candidates that PPO made."""
    beside: Sequence[aligned.Beside] = ()
    """Those that another way aligned."""
    efficiency: Json | None = None
    timings: Mapping[str, Json] = field(default_factory=dict)
    lock: Json | None = None


@dataclass(frozen=True)
class Verdict:
    """What the run has shown on the primary metric."""

    metric: str
    reference: str
    challenger: str | None
    """The best candidate besides the reference; None where there is only the reference."""
    leader: str
    """Who the baselines are compared with: the challenger if there is one, else the reference."""
    difference: Difference | None
    baselines: tuple[Difference, ...]
    items: int | None
    groups: int | None


# ---------------------------------------------------------------- what the comparison says


def baselines(material: Material) -> tuple[str, ...]:
    """What was compared that is no candidate: the extractive baselines."""
    return tuple(name for name in material.comparison.get("candidates", {}) if name not in material.candidates)


def metric_names(material: Material) -> tuple[str, ...]:
    """Every metric of comparison.json: the primary one first, then in the order of `METRICS`, then the others."""
    found = {name for scores in material.comparison.get("candidates", {}).values() for name in scores}
    order = {name: index for index, name in enumerate((material.scope["primary_metric"], *METRICS))}
    return tuple(
        sorted(
            found,
            key=lambda name: (0 if name == material.scope["primary_metric"] else 1, order.get(name, len(order)), name),
        )
    )


def reference(material: Material) -> str:
    """Whom the others are measured against: as comparison.json says, else `base`, else the first candidate."""
    named = (material.comparison.get("reference"), "base")
    return next((name for name in named if name in material.candidates), material.candidates[0])


def verdict(material: Material) -> Verdict:
    """Who leads on the primary metric, and whether that is shown."""
    name, base = material.scope["primary_metric"], reference(material)
    scores = material.comparison.get("candidates", {})

    def value(candidate: str) -> float:
        found = estimate(scores.get(candidate, {}).get(name)).value
        return float("-inf") if found is None else -found if metric(name).lower_is_better else found

    others = [each for each in material.candidates if each != base]
    challenger = max(others, key=value) if others else None
    leader = challenger or base
    items = material.comparison.get("items")
    groups = material.comparison.get("groups")
    if groups is not None and groups == items:
        groups = None  # without groups in the data every row is one of its own, and their number says nothing new
    return Verdict(
        metric=name,
        reference=base,
        challenger=challenger,
        leader=leader,
        difference=difference(material.comparison, challenger, base, name) if challenger else None,
        baselines=tuple(difference(material.comparison, leader, each, name) for each in baselines(material)),
        items=items,
        groups=groups,
    )


def criteria(material: Material) -> list[promotion.Criterion]:
    """Every condition of the scope, and what became of it: as stage promote decided, else as it would."""
    if material.promotion is not None:
        return [promotion.read(each) for each in material.promotion["criteria"]]
    return promotion.judged(material.scope.get("criteria", ()), material.comparison, material.efficiency)


def best(name: str, shown: Mapping[str, Estimate]) -> set[str]:
    """Who has the best value of a metric; nobody where there is no choice."""
    known = {each: found.value for each, found in shown.items() if found.value is not None}
    if len(known) < 2:
        return set()
    top = (min if metric(name).lower_is_better else max)(known.values())
    return {each for each, value in known.items() if value == top}


# ---------------------------------------------------------------- charts


@dataclass(frozen=True)
class Mark:
    """A point with its interval, in percent of the plot's width."""

    name: str
    kind: str
    """For the values plot candidate, leader or baseline; for the differences a judgement."""
    shown: Estimate
    at: float | None
    low: float | None
    high: float | None
    against: str = ""
    detectable: float | None = None
    """Smaller differences would usually be missed."""


@dataclass(frozen=True)
class Plot:
    """Rows of marks over one axis."""

    metric: str
    rows: tuple[Mark, ...]
    ticks: tuple[tuple[float, str], ...]
    zero: float | None = None


def values_plot(material: Material, name: str, leader: str) -> Plot:
    """Every candidate's and baseline's value with its interval, best first."""
    scores = material.comparison.get("candidates", {})
    found = {each: estimate(scores.get(each, {}).get(name)) for each in (*material.candidates, *baselines(material))}
    axis = charts.scale(end for each in found.values() for end in (each.value, each.low, each.high))

    def kind(each: str) -> str:
        return "leader" if each == leader else "candidate" if each in material.candidates else "baseline"

    sign = 1 if metric(name).lower_is_better else -1
    names = sorted(found, key=lambda each: (found[each].value is None, sign * (found[each].value or 0.0), each))
    return Plot(name, tuple(_mark(each, kind(each), found[each], axis) for each in names), _ticks(axis, 4))


def differences_plot(material: Material, name: str) -> Plot:
    """A forest plot: every candidate against the reference and against each baseline, over a zero line."""
    base = reference(material)
    gaps = [
        difference(material.comparison, candidate, other, name)
        for other in (base, *baselines(material))
        for candidate in material.candidates
        if candidate != other
    ]
    gaps = [gap for gap in gaps if gap.estimate.value is not None or gap.b == base]
    axis = charts.scale(
        (end for gap in gaps for end in (gap.estimate.value, gap.estimate.low, gap.estimate.high)), zero=True
    )
    rows = tuple(_mark(gap.a, gap.judgement, gap.estimate, axis, gap.b, gap.detectable) for gap in gaps)
    return Plot(name, rows, _ticks(axis, 5), axis(0.0))


def accuracies_plot(reward: Json) -> Plot:
    """Share of pairs that the reward model and each baseline tell right, in percent; the zero line is chance."""
    found = aligned.accuracies(reward)
    ends = [end for each in found.values() for end in (each.value, each.low, each.high)]
    axis = charts.scale([*ends, 50.0])
    rows = tuple(
        _mark(aligned.SYSTEMS[name], "baseline" if name in ("length", "response", "text") else "leader", each, axis)
        for name, each in found.items()
    )
    return Plot("accuracy", rows, _ticks(axis, 4), axis(50.0))


def learnt_plot(told: constitutional.Labelled) -> Plot:
    """Share of pairs that a judge, what learnt its labels, and length tell right, in percent; the zero line is chance."""
    found = constitutional.learnt(told)
    axis = charts.scale([50.0, *(end for *_, each in found for end in (each.value, each.low, each.high))])
    rows = tuple(_mark(name, "baseline" if plain else "leader", each, axis) for name, plain, each in found)
    return Plot("accuracy", rows, _ticks(axis, 4), axis(50.0))


def _mark(
    name: str, kind: str, shown: Estimate, axis: charts.Scale, against: str = "", detectable: float | None = None
) -> Mark:
    at, low, high = (None if each is None else axis(each) for each in (shown.value, shown.low, shown.high))
    return Mark(name, kind, shown, at, low, high, against, detectable)


def _ticks(axis: charts.Scale, most: int) -> tuple[tuple[float, str], ...]:
    return tuple((axis(value), tick(value)) for value in axis.ticks(most))


# ---------------------------------------------------------------- samples


@dataclass(frozen=True)
class Sample:
    """One test item, side by side."""

    why: Literal["best", "median", "worst", "random"]
    id: str
    group: str
    gap: float | None
    prompt: str
    reference: str
    outputs: tuple[Output, ...]
    baselines: tuple[Output, ...]


def samples(material: Material, count: int, seed: int) -> list[Sample]:
    """Test items by a rule fixed beforehand, nobody's taste.

    Items are ranked by the leader's score minus the reference's (by its score, if there is only one candidate): a
    quarter from each of the top, the middle and the bottom, the rest drawn at random with `seed`. Ties go by id.
    """
    told = verdict(material)
    scored = metrics.of_items(told.metric)
    tables = {name: {row["id"]: row for row in material.instances.get(name, ())} for name in material.candidates}
    first = tables[told.leader]
    second = tables[told.reference] if told.challenger else None
    gaps: dict[str, float] = {}
    for key, row in first.items():
        ours = row["scores"].get(scored)
        theirs = 0.0 if second is None else second.get(key, {}).get("scores", {}).get(scored)
        if ours is not None and theirs is not None:
            gaps[key] = ours - theirs
    ranked = sorted(gaps, key=lambda key: (-gaps[key], key))
    quarter = min(count // 4, len(ranked) // 3)
    middle = (len(ranked) - quarter) // 2
    chosen: list[tuple[Literal["best", "median", "worst", "random"], str]] = []
    chosen += [("best", key) for key in ranked[:quarter]]
    chosen += [("median", key) for key in ranked[middle : middle + quarter]]
    chosen += [("worst", key) for key in reversed(ranked[len(ranked) - quarter :])]
    taken = {key for _, key in chosen}
    left = sorted(key for key in first if key not in taken)
    drawn = random.Random(seed).sample(left, min(len(left), max(0, count - len(chosen))))
    chosen += [("random", key) for key in sorted(drawn)]

    found = []
    for why, key in chosen:
        row = first[key]
        outputs = [
            output(
                name,
                table[key]["prediction"],
                table[key]["scores"].get(scored),
                table[key].get("finished", True),
            )
            for name, table in tables.items()
            if key in table
        ]
        extracts = [
            output(name, each["prediction"], each.get(scored)) for name, each in row.get("baselines", {}).items()
        ]
        found.append(
            Sample(
                why=why,
                id=key,
                group=visible(str(row.get("group", ""))),
                gap=gaps.get(key) if second is not None else None,
                prompt=clip(row["prompt"], PROMPT_CHARACTERS)[0],
                reference=clip(row["reference"])[0],
                outputs=tuple(outputs),
                baselines=tuple(extracts),
            )
        )
    return found


# ---------------------------------------------------------------- how the model was adapted


def methods(material: Material) -> list[adaptation.Method]:
    """A row for each way in which the model was made to fit the task."""
    return adaptation.methods(
        material.trainings,
        material.prompt,
        policies=material.policies,
        comparison=material.comparison,
        metric=material.scope["primary_metric"],
        reference=reference(material),
        timings=material.timings,
    )


def trained(material: Material) -> Json | None:
    """The training that made the leader; None where it was not trained."""
    leader = verdict(material).leader
    made = {adaptation.candidate_of(each.name, material.policies): each.record for each in material.trainings}
    return made.get(leader)


# ---------------------------------------------------------------- data


@dataclass(frozen=True)
class Split:
    """One part of the data."""

    name: str
    rows: int
    groups: int | None
    start: float
    width: float
    """Where its bar begins and how long it is, in percent."""


def splits(material: Material) -> list[Split]:
    """Rows and groups of train, validation and test."""
    rows = material.splits.get("rows", {})
    names = [name for name in ("train", "validation", "test") if name in rows]
    total, before, found = sum(rows[name] for name in names), 0, []
    for name in names:
        groups = material.splits.get("groups", {}).get(name)
        found.append(
            Split(
                name,
                rows[name],
                len(groups) if groups else None,
                round(100 * before / total, 2) if total else 0.0,
                round(100 * rows[name] / total, 2) if total else 0.0,
            )
        )
        before += rows[name]
    return found


def apart(material: Material) -> bool:
    """Whether no group of the test set is in another split."""
    groups = {name: set(found) for name, found in material.splits.get("groups", {}).items()}
    others = set().union(*(found for name, found in groups.items() if name != "test"))
    return bool(groups.get("test")) and not groups["test"] & others


@dataclass(frozen=True)
class Refused:
    """Rows of one record type that were refused for one reason."""

    kind: str
    reason: str
    rows: int
    share: float | None
    """Of all collected rows of the type."""


def quarantine(material: Material) -> list[Refused]:
    """What was refused and why, most first within a record type."""
    collected = material.splits.get("collected", {})
    return [
        Refused(kind, reason, count, count / collected[kind] if collected.get(kind) else None)
        for kind, reasons in sorted(material.splits.get("quarantine", {}).items())
        for reason, count in sorted(reasons.items(), key=lambda each: (-each[1], each[0]))
    ]


# ---------------------------------------------------------------- cost


@dataclass(frozen=True)
class StageCost:
    """What one stage took."""

    name: str
    seconds: float
    memory: float | None
    machine: str
    seconds_bar: float
    memory_bar: float


def stage_costs(material: Material) -> list[StageCost]:
    """Time and peak memory of each stage that was timed, in the pipeline's order; this stage itself is not over yet."""
    order = {name: index for index, name in enumerate(lineage.stage_order(material.lock or {}, material.candidates))}
    told = {name: each for name, each in material.timings.items() if lineage.is_live(name, material.candidates)}
    longest = max((each["seconds"] for each in told.values()), default=0) or 1
    largest = max((each.get("peak_memory_bytes") or 0 for each in told.values()), default=0) or 1
    return [
        StageCost(
            name,
            told[name]["seconds"],
            told[name].get("peak_memory_bytes"),
            ", ".join(str(told[name][key]) for key in ("device", "dtype") if told[name].get(key)),
            round(100 * told[name]["seconds"] / longest, 2),
            round(100 * (told[name].get("peak_memory_bytes") or 0) / largest, 2),
        )
        for name in sorted(told, key=lambda each: (order.get(each, len(order)), each))
    ]


@dataclass(frozen=True)
class Budget:
    """A cost as allowed, as planned and as measured."""

    what: str
    allowed: str
    planned: str
    measured: str
    kept: bool | None
    """Whether the measured value stays within the allowed one; None where one of them is not known."""


def budgets(material: Material) -> list[Budget]:
    """The scope's constraints beside the plan and what was measured."""
    limits = material.scope.get("constraints", {})
    costs = stage_costs(material)
    plan = material.plan or {}
    training = next((each.record for each in material.trainings if each.record["method"] == "lora"), {})
    store = plan.get("store_bytes", {})
    tuning = plan.get("methods", {}).get("lora", {})
    found = []

    memory = max((cost.memory for cost in costs if cost.memory), default=None)
    planned = tuning.get("memory", {}).get("total")
    if memory is not None or "memory_gib" in limits:
        found.append(
            Budget(
                "Peak memory of any stage",
                _limit(limits.get("memory_gib"), "GiB"),
                f"{size(planned)} for a step of LoRA, Python and libraries apart" if planned else "—",
                size(memory),
                _within(memory, limits.get("memory_gib"), 2**30),
            )
        )
    if costs or "minutes" in limits:
        spent = sum(cost.seconds for cost in costs) if costs else None
        found.append(
            Budget(
                "Time of all stages",
                _limit(limits.get("minutes"), "min"),
                "—",
                duration(spent),
                _within(spent, limits.get("minutes"), 60),
            )
        )
    disk = lineage.output_bytes(material.lock or {}, material.candidates)
    if disk is not None or "disk_gib" in limits:
        kept = store.get(plan.get("store_dtype"))
        found.append(
            Budget(
                "Disk for outputs",
                _limit(limits.get("disk_gib"), "GiB"),
                f"{size(kept)} for the base model" if kept else "—",
                size(disk),
                _within(disk, limits.get("disk_gib"), 2**30),
            )
        )
    leader = verdict(material).leader
    ratio = (material.efficiency or {}).get("candidates", {}).get(leader, {}).get("decode_ratio")
    if leader != reference(material) and (ratio is not None or "decode_ratio" in limits):
        least = limits.get("decode_ratio")
        found.append(
            Budget(
                f"Tokens per second of {leader}",
                "—" if least is None else f"at least {tick(least)} of {reference(material)}’s",
                "—",
                "—" if ratio is None else f"{ratio:.2f}×",
                None if ratio is None or least is None else ratio >= least,
            )
        )
    trainable = training.get("trainable_parameters")
    expected = tuning.get("trainable_parameters")
    if trainable is not None or expected is not None:
        found.append(Budget("Trainable parameters of LoRA", "—", number(expected, 0), number(trainable, 0), None))
    return found


def _limit(value: float | None, unit: str) -> str:
    return "—" if value is None else f"at most {tick(value)} {unit}"


def _within(value: float | None, limit: float | None, unit: float) -> bool | None:
    return None if value is None or limit is None else value <= limit * unit


# ---------------------------------------------------------------- other tasks


@dataclass(frozen=True)
class Forgotten:
    """A candidate against the reference on another task."""

    estimate: Estimate
    verdict: str
    """worse, better, not shown to be better, or the same."""
    trained: bool
    """Whether the task was mixed into the candidate's training."""


FORGETTING = {"nll": ("", 1, 2), "accuracy": (", accuracy in points", 100, 1)}
"""How comparison.json's measures are shown: what follows the task's name, a factor, and digits."""


def forgetting(material: Material) -> list[tuple[str, int, dict[str, Forgotten]]]:
    """What tuning has made of other tasks: rows of (label, digits, candidate → difference), the mean over tasks last."""
    entries = material.comparison.get("forgetting", ())
    rows: dict[tuple[str, str | None], dict[str, Forgotten]] = {}
    for each in sorted(entries, key=lambda each: (list(FORGETTING).index(each["measure"]), each["task"] is None)):
        _, factor, _ = FORGETTING[each["measure"]]
        scaled = {key: None if each[key] is None else factor * each[key] for key in ("diff", "ci_low", "ci_high")}
        rows.setdefault((each["measure"], each["task"]), {})[each["candidate"]] = Forgotten(
            estimate({**each, **scaled}, "diff"), each["verdict"], each["trained"]
        )
    return [
        ((task or "mean of tasks not trained on") + FORGETTING[measure][0], FORGETTING[measure][2], found)
        for (measure, task), found in rows.items()
    ]


# ---------------------------------------------------------------- form and efficiency


def form(material: Material) -> list[tuple[str, dict[str, str]]]:
    """How the outputs look, whatever they say: rows of (measure, candidate → text)."""
    rows = (
        ("Words in an output", "test/length_words", 1, ""),
        ("Words in a reference", "test/reference_words", 1, ""),
        ("Ended within the token limit", "test/finished", 100, "%"),
        ("Empty outputs", "test/empty", 100, "%"),
    )

    def shown(scores: Json, key: str, factor: int, unit: str) -> str:
        value = scores.get(key)
        return "—" if value is None else number(factor * value) + unit

    return [
        (label, {name: shown(material.scores.get(name, {}), key, factor, unit) for name in material.candidates})
        for label, key, factor, unit in rows
        if any(key in scores for scores in material.scores.values())
    ]


MEASURES = {
    "decode_ratio": "Decode speed, one prompt at a time",
    "batch_decode_ratio": "Decode speed, prompts in one batch",
    "prefill_ratio": "Prefill speed",
    "memory_ratio": "Peak memory",
    "disk_ratio": "Size on disk",
    "decode_tokens_per_second": "Decode, one prompt at a time (tokens/s)",
    "batch_decode_tokens_per_second": "Decode, prompts in one batch (tokens/s)",
    "prefill_tokens_per_second": "Prefill (tokens/s)",
    "memory_bytes": "Peak memory of a process",
    "disk_bytes": "Size on disk, with an adapter's base",
    "joules_per_token": "Energy for a token (joules, where the machine tells)",
}
"""What efficiency.json's keys mean, in the order of the table; a key it does not know is shown by its name."""


def efficiency(material: Material) -> list[tuple[str, dict[str, str]]]:
    """What efficiency.json measured: rows of (measure, candidate → text), ratios to the reference first.

    What comparison.json has among the details of the categories, with intervals, is left to them.
    """
    measured = (material.efficiency or {}).get("candidates", {})
    elsewhere = {key for each in (material.comparison.get("details") or {}).values() for key in each}
    keys = list(dict.fromkeys(key for name in material.candidates for key in measured.get(name, {})))
    keys = [key for key in keys if f"efficiency/{key}" not in elsewhere]
    known = list(MEASURES)
    keys.sort(key=lambda key: known.index(key) if key in MEASURES else len(known))
    return [
        (
            _label(key),
            {name: _measure(key, measured[name].get(key)) for name in material.candidates if name in measured},
        )
        for key in keys
    ]


def _measure(key: str, value: Any) -> str:
    if not isinstance(value, int | float):
        return "—" if value is None else visible(str(value))
    if "ratio" in key:
        return f"{value:.2f}×"
    if key.endswith("bytes"):
        return size(value)
    if key.endswith("seconds"):
        return duration(value)
    return number(value, 0 if isinstance(value, int) else 1)


def _label(key: str) -> str:
    if key in MEASURES:
        return MEASURES[key]
    words = key.removesuffix("_bytes").removesuffix("_seconds").replace("_", " ").replace("/", ": ")
    return words[:1].upper() + words[1:]


@dataclass(frozen=True)
class Scorers:
    """Who says what offends and what harms; empty where scores.json does not tell."""

    offence: str
    harm: str
    no_harm: str
    """Why there is no scorer of harm."""


def scorers(material: Material) -> Scorers:
    """The scorers' names, as the first candidate has them that tells; a harm scorer called `none: …` is none."""

    def first(key: str) -> Any:
        return next((each[key] for each in material.scores.values() if each.get(key) is not None), None)

    harm = visible(first("harm_scorer") or "")
    missing = harm.removeprefix("none: ") if harm.startswith("none: ") else ""
    return Scorers(visible(first("offence_scorer") or ""), "" if missing else harm, missing)


# ---------------------------------------------------------------- the categories and what stands behind them


def perturbations(material: Material, seed: int) -> list[evidence.Perturbation]:
    """Perturbed prompts of the leader."""
    told = verdict(material)
    name = metrics.of_items(told.metric)
    return evidence.perturbations(
        material.perturbed.get(told.leader, ()),
        material.instances.get(told.leader, ()),
        metric=name,
        lower_is_better=metric(name).lower_is_better,
        seed=seed,
    )


def worst(material: Material) -> dict[str, list[evidence.Worst]]:
    """Candidate → its worst outputs; candidates without scored outputs are left out."""
    name = metrics.of_items(material.scope["primary_metric"])
    found = {
        each: evidence.worst(
            material.instances.get(each, ()), metric=name, lower_is_better=metric(name).lower_is_better
        )
        for each in material.candidates
    }
    return {each: rows for each, rows in found.items() if rows}


def reliability(material: Material) -> list[categories.Reliability]:
    """A diagram for each candidate that answered questions with choices."""
    return [
        categories.reliability(name, material.choices[name])
        for name in material.candidates
        if any(row.get("choices") for row in material.choices.get(name, ()))
    ]


# ---------------------------------------------------------------- how the model was aligned


@dataclass(frozen=True)
class Alignment:
    """What was fed back, the reward model, what PPO and the ways beside it did with it, Constitutional AI, and what the judges say."""

    feedback: Sequence[tuple[str, str]]
    reward: Json | None
    accuracies: Plot | None
    histogram: aligned.Histogram | None
    reliability: Sequence[tuple[float, float, float, str]]
    supervised: Sequence[tuple[constitutional.Supervised, Sequence[constitutional.Chain]]]
    labelled: Sequence[tuple[constitutional.Labelled, Plot]]
    runs: Sequence[tuple[aligned.Run, Sequence[aligned.SideBySide]]]
    sides: Sequence[aligned.Sides]
    beside: Sequence[aligned.Beside]
    verdicts: Sequence[aligned.Verdict]


def alignment(material: Material, seed: int) -> Alignment | None:
    """The section on alignment; None where nothing of it is there.

    Args:
        material: the artifacts.
        seed: of the random samples.
    """
    found = Alignment(
        # What a judge said is told where the judge is.
        feedback=aligned.fed_back(material.feedback)
        if material.feedback and not material.feedback.get("judge")
        else (),
        reward=material.reward,
        accuracies=accuracies_plot(material.reward) if material.reward else None,
        histogram=aligned.histogram(material.reward_histogram),
        reliability=aligned.reliability(material.reward_reliability),
        supervised=[
            (
                each,
                constitutional.examples(each.chains, constitutional.CHAINS, seed, each.cai.get("constitution") or {}),
            )
            for each in material.supervised
        ],
        labelled=[(each, learnt_plot(each)) for each in material.labelled],
        runs=[(each, aligned.examples(each, seed)) for each in material.optimised],
        sides=aligned.sides(
            material.comparison, material.red_team, {each.candidate for each in material.optimised}, seed
        ),
        beside=material.beside,
        verdicts=aligned.verdicts(material.comparison),
    )
    told = (found.reward, found.runs, found.beside, found.verdicts, found.supervised, found.labelled)
    return found if any(told) else None


# ---------------------------------------------------------------- the page


def csp_hash(text: str) -> str:
    """The source expression that allows exactly this style sheet in a content security policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@functools.cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(
        number=number,
        signed=signed,
        brief=brief,
        bytes=size,
        duration=duration,
        share=share,
        tick=tick,
        p=p_value,
        visible=visible,
        csp_hash=csp_hash,
    )
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8"))


def page(material: Material, *, title: str, group: str, count: int, seed: int) -> str:
    """The whole report.

    Args:
        material: the run's artifacts.
        title: the report's name, shown above everything.
        group: what the data's groups are ("package"), in the singular.
        count: how many samples to show.
        seed: of the random ones.

    Returns:
        One HTML document.
    """
    told = verdict(material)
    names = metric_names(material)
    extracts = baselines(material)
    scores = material.comparison.get("candidates", {})
    everyone = (*material.candidates, *extracts)
    estimates = {each: {name: estimate(scores.get(each, {}).get(name)) for name in names} for each in everyone}
    forests = [differences_plot(material, name) for name in names]
    rows = categories.table(material.comparison, material.candidates, told.reference)
    rivals = adaptation.rivals(material.trainings, material.policies)
    html = _template().render(
        title=title,
        group=group,
        plural=plural,
        metric=metric,
        scored_by=metrics.of_items(told.metric),
        scope=material.scope,
        verdict=told,
        criteria=criteria(material),
        promoted=material.promotion,
        asked_of=promotion.asked,
        with_unit=promotion.with_unit,
        candidates=material.candidates,
        baselines=extracts,
        metrics=names,
        estimates=estimates,
        best={name: best(name, {each: estimates[each][name] for each in everyone}) for name in names},
        hero=values_plot(material, told.metric, told.leader),
        forests=[plot for plot in forests if any(row.at is not None for row in plot.rows)],
        splits=splits(material),
        split_info=material.splits,
        apart=apart(material),
        quarantine=quarantine(material),
        plan=material.plan,
        decision=material.decision,
        methods=methods(material),
        trained=trained(material),
        incidents=adaptation.incidents(material.trainings),
        curves=adaptation.curves(material.trainings),
        rivals=rivals,
        losses=adaptation.losses(*rivals, material.comparison) if rivals else (),
        margin=adaptation.MARGIN,
        prompt=material.prompt,
        cells=adaptation.cells(material.prompt) if material.prompt else (),
        asked=material.asked,
        decoding=adaptation.decoding(material.asked) if material.asked else "",
        plans=adaptation.plans(material.trainings, material.timings),
        alignment=alignment(material, seed),
        aligned=aligned,
        constitutional=constitutional,
        samples=samples(material, count, seed),
        seed=seed,
        forgetting=forgetting(material),
        categories=rows,
        meanings=categories.MEANINGS,
        category_title=categories.title,
        ordinal=categories.ordinal,
        shades=categories.SHADES,
        win_rates=categories.win_rates(material.comparison, material.candidates),
        tally=categories.tally(rows, told.leader) if rows and told.challenger else None,
        profile=categories.profile(rows, material.candidates),
        gaps=categories.differences(material.comparison),
        gap_digits={each.name: each.digits for each in rows},
        details=categories.details(material.comparison, material.candidates),
        slices=categories.slices(material.comparison, material.candidates),
        seeds=categories.seeds(material.comparison),
        judged=categories.judged(material.comparison),
        reliability=reliability(material),
        perturbations=perturbations(material, seed),
        worst=worst(material),
        provoked={
            name: evidence.provoked(material.red_team[name], seed)
            for name in material.candidates
            if material.red_team.get(name)
        },
        scorers=scorers(material),
        form=form(material),
        pairs=material.comparison.get("pairs", ()),
        comparison=material.comparison,
        efficiency=efficiency(material),
        costs=stage_costs(material),
        budgets=budgets(material),
        lineage=lineage.steps(material.lock or {}, material.candidates),
    )
    return html.strip() + "\n"
