"""The report: what a run's artifacts say, as one HTML file that a manager and an engineer can both read.

`page` turns a `Material` (what was read) into HTML. In between stand small pure functions, one for each part of the page,
here and in the modules named after what they tell of; they decide what is said (which candidate is better, how sure that
is, which samples are shown) and leave only the wording and the drawing to the templates in the folder `report/` beside
this file: `page.html.j2`, a file for each part of a chapter, one style sheet and one script.

The page opens from disk and fetches nothing. Its one script adds what makes it handier (a mark's figures at the pointer
or by arrow keys, sorting, switching series and colours) and nothing that is read: without it everything is there. Text
comes from data and from models and is not trusted: the templates escape everything, the content security policy allows
exactly the one style sheet and the one script, and `wording.visible` shows characters that would not be seen. No clock
is read, so that the same artifacts give the same bytes.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Literal

from tunemill import (
    adaptation,
    aligned,
    categories,
    compressed,
    constitutional,
    downloads,
    evidence,
    lineage,
    metrics,
    phases,
    plots,
    summary,
    verdicts,
)
from tunemill.evidence import Output, clip, output
from tunemill.findings import MEASURES, Estimate, Json, estimate, metric
from tunemill.material import Material, baselines, metric_names
from tunemill.summary import methods
from tunemill.verdicts import verdict
from tunemill.wording import brief, duration, number, p_value, plural, share, signed, size, tick, visible

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).with_suffix("")
"""The folder of this module's name: templates, style sheet and script."""
PROMPT_CHARACTERS = 4 * evidence.CHARACTERS
"""Longer prompts are cut in the samples."""
CHAPTERS = {
    "verdict": ("Scope and verdict", ("scope", "verdict")),
    "data": ("Data", ("data",)),
    "model": ("Selection and plan", ("model",)),
    "adaptation": ("Adaptation", ("adaptation", "prompting")),
    "alignment": ("Alignment", ("alignment",)),
    "constitutional-ai": ("Constitutional AI", ("constitutional",)),
    "evaluation": ("Evaluation", ("results", "categories", "perturbations", "forgetting", "safety")),
    "compression": ("Compression", ("compression", "speed")),
    "cost": ("Time, memory and cost", ("cost",)),
    "lineage": ("Lineage", ("lineage",)),
    "samples": ("Samples", ("samples",)),
    "limits": ("Limits and harms", ("limits",)),
    "reproduce": ("How to reproduce it", ("reproduce",)),
}
"""Anchor → title and the templates that the chapter is made of, in the page's order."""


@dataclass(frozen=True)
class Chapter:
    """A chapter of the page."""

    id: str
    title: str
    found: str
    """What was found, in one sentence."""
    parts: tuple[str, ...]
    """Names of its templates."""


# ── samples ───────────────────────────────────────────────────────────────────────────────────────────────────────────


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


# ── how the model was adapted ─────────────────────────────────────────────────────────────────────────────────────────


def trained(material: Material) -> Json | None:
    """The training that made the leader; None where it was not trained."""
    leader = verdict(material).leader
    made = {adaptation.candidate_of(each.name, material.policies): each.record for each in material.trainings}
    return made.get(leader)


# ── data ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


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


# ── other tasks ───────────────────────────────────────────────────────────────────────────────────────────────────────


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


# ── form and efficiency ───────────────────────────────────────────────────────────────────────────────────────────────


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


# ── the categories and what stands behind them ────────────────────────────────────────────────────────────────────────


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


# ── how the model was aligned ─────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Alignment:
    """What was fed back, the reward model, what PPO and the ways beside it did with it, Constitutional AI, and what the judges say."""

    feedback: Sequence[tuple[str, str]]
    reward: Json | None
    accuracies: plots.Plot | None
    histogram: aligned.Histogram | None
    reliability: Sequence[tuple[float, float, float, str]]
    supervised: Sequence[tuple[constitutional.Supervised, Sequence[constitutional.Chain]]]
    labelled: Sequence[tuple[constitutional.Labelled, plots.Plot]]
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
        accuracies=plots.accuracies_plot(material.reward) if material.reward else None,
        histogram=aligned.histogram(material.reward_histogram),
        reliability=aligned.reliability(material.reward_reliability),
        supervised=[
            (
                each,
                constitutional.examples(each.chains, constitutional.CHAINS, seed, each.cai.get("constitution") or {}),
            )
            for each in material.supervised
        ],
        labelled=[(each, plots.learnt_plot(each)) for each in material.labelled],
        runs=[(each, aligned.examples(each, seed)) for each in material.optimised],
        sides=aligned.sides(
            material.comparison, material.red_team, {each.candidate for each in material.optimised}, seed
        ),
        beside=material.beside,
        verdicts=aligned.verdicts(material.comparison),
    )
    told = (found.reward, found.runs, found.beside, found.verdicts, found.supervised, found.labelled)
    return found if any(told) else None


# ── where the shipped model came from ─────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Shipped:
    """The model that the page is about, for whoever wants to load it."""

    name: str
    policy: str
    base: str
    stage: str
    """Which stage made it, as `dvc repro` calls it; empty where dvc.lock does not tell."""
    is_adapter: bool
    is_gguf: bool


def shipped(material: Material) -> Shipped:
    """The candidate that was decided on, else the leader."""
    name = verdict(material).leader
    told = material.promotion or {}
    policy = str(told.get("policy") or material.policies.get(name, ""))
    base = str(told.get("base") or material.bases.get(name, ""))
    made = lineage.maker(material.lock or {}, material.candidates, policy)
    runtime = next((each.runtime for each in _variants(material) if each.is_advised), "")
    return Shipped(
        name=visible(name),
        policy=visible(policy),
        base=visible(base),
        stage=made or "",
        is_adapter=PurePath(policy).name.startswith("adapter"),
        is_gguf=policy.startswith("artifacts/compress") and runtime == "llama.cpp",
    )


def _variants(material: Material) -> Sequence[compressed.Variant]:
    told = compressed.compressed(material.compress)
    return told.variants if told else ()


# ── the page ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def chapters(material: Material, alignment: Alignment | None) -> list[Chapter]:
    """The chapters of this run's page; of alignment only what there is."""
    told = summary.found(material)
    left_out = set()
    if alignment is None or not (alignment.verdicts or alignment.reward or alignment.runs or alignment.beside):
        left_out.add("alignment")
    if alignment is None or not (alignment.supervised or alignment.labelled):
        left_out.add("constitutional-ai")
    return [
        Chapter(name, title, told[name], tuple(f"{part}.html.j2" for part in parts))
        for name, (title, parts) in CHAPTERS.items()
        if name not in left_out
    ]


def anchor(name: str) -> str:
    """A stage's name as part of an id: different names stay different."""
    return re.sub(r"[^A-Za-z0-9_-]", lambda found: f".{ord(found.group()):x}", name)


def csp_hash(text: str) -> str:
    """The source expression that allows exactly this style sheet or script in a content security policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@functools.cache
def _templates() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
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
        anchor=anchor,
    )
    environment.globals.update(
        judgements={"better": "better", "worse": "worse", "unproven": "not shown to be better"},
        signs={"better": "✓", "met": "✓", "worse": "✕", "missed": "✕", "unproven": "?", "undefined": "?"},
        plural=plural,
        metric=metric,
        aligned=aligned,
        constitutional=constitutional,
        category_title=categories.title,
        ordinal=categories.ordinal,
    )
    return environment


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
    from markupsafe import Markup

    told = verdict(material)
    names = metric_names(material)
    extracts = baselines(material)
    scores = material.comparison.get("candidates", {})
    everyone = (*material.candidates, *extracts)
    estimates = {each: {name: estimate(scores.get(each, {}).get(name)) for name in names} for each in everyone}
    forests = [plots.differences_plot(material, name) for name in names]
    rows = categories.table(material.comparison, material.candidates, told.reference)
    rivals = adaptation.rivals(material.trainings, material.policies)
    ship = shipped(material)
    told_of_alignment = alignment(material, seed)
    scored_by = metrics.of_items(told.metric)
    css, script = (Markup((TEMPLATES / name).read_text(encoding="utf-8")) for name in ("style.css", "script.js"))
    html = (
        _templates()
        .get_template("page.html.j2")
        .render(
            css=css,
            css_hash=csp_hash(css),
            script=script,
            script_hash=csp_hash(script),
            title=title,
            group=group,
            chapters=chapters(material, told_of_alignment),
            lines=summary.lines(material, group),
            promoted=verdicts.decision(material),
            main_metric=metric(told.metric),
            # One output has no score of its own in a metric of the whole test set.
            item_metric=metric(scored_by),
            scored_by=scored_by,
            by_item=""
            if scored_by == told.metric
            else f" {metric(told.metric).label} is of the whole test set: single items go by {metric(scored_by).label}.",
            scope=material.scope,
            verdict=told,
            criteria=verdicts.criteria(material),
            candidates=material.candidates,
            baselines=extracts,
            metrics=names,
            estimates=estimates,
            best={name: verdicts.best(name, {each: estimates[each][name] for each in everyone}) for name in names},
            hero=plots.values_plot(material, told.metric, told.leader),
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
            alignment=told_of_alignment,
            samples=samples(material, count, seed),
            seed=seed,
            forgetting=forgetting(material),
            categories=rows,
            meanings=categories.MEANINGS,
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
            compressed=compressed.compressed(material.compress),
            phases=phases.phases(material),
            costs=(costs := phases.stage_costs(material)),
            spent=phases.spent(costs),
            side_by_side=phases.side_by_side(costs),
            budgets=phases.budgets(material),
            lineage=lineage.steps(material.lock or {}, material.candidates),
            graph=lineage.graph(material.lock or {}, material.candidates, ship.policy, ship.name),
            shipped=ship,
            downloads=downloads.files(material),
        )
    )
    return html.strip() + "\n"
