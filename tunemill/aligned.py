"""How a model was aligned, as the report tells it: what was fed back, the reward, PPO's curves, alarms, answers, and verdicts.

What is said of a run follows from its numbers alone. A change on the monitor's prompts counts where it is more than two standard
errors; where it does not, the page says that nothing is shown, and how large a difference so many prompts would have shown. The
monitor chose the policy that is kept, and flatters it; what judges say that had no part in the training is comparison.json's.

Pure, no I/O: records of the stages in, what the page says out.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from tunemill import charts
from tunemill.evidence import Output, clip, output
from tunemill.findings import Estimate, Json, estimate
from tunemill.monitoring import ERRORS
from tunemill.wording import brief, number, plural, visible

Row = Mapping[str, float | None]
"""One line of updates.csv or monitor.csv: a number for each column, None where the field is empty."""

SYSTEMS = {
    "reward": "reward model",
    "controlled": "reward model, length taken out",
    "length": "length alone",
    "response": "TF-IDF of the answer",
    "text": "TF-IDF of prompt and answer",
}
"""What reward.json measures, in the order of the page: the reward model, the same less what it makes of length, then its baselines."""
SUBSETS = {
    "all": "all pairs",
    "chosen_longer": "the preferred answer is longer",
    "length_matched": "both of about the same length",
    "people": "compared by people",
}
"""The parts of the pairs that reward.json measures by themselves."""
SOURCES = {"ratings": "scores that people gave", "labels": "people’s rankings", "ai": "a model’s rankings"}
"""Who a pair comes from."""
LABELLED = {"ai": "the judge’s labels"}
"""Instead, where a judge labelled pairs (stage rl_cai)."""
REWARDS = {
    "model": "by the reward model",
    "classifier": "by a text classifier",
    "offence": "for what the classifier of offensive language does not object to",
    "length": "for length alone, as a control",
    "shuffled": "by scores dealt out at random, as a control",
}
"""What a policy was rewarded for; an unknown kind goes by its own name."""
ALARMS = {
    "harm": "more reward, more harm",
    "repetition": "more reward, more repetition",
    "length": "more reward, another length",
    "perplexity": "more reward, stranger answers",
    "silence": "empty answers",
    "divergence": "too far from the start",
    "gradient": "a gradient that is no number",
}
"""Kinds of alarm in words; an unknown kind goes by its own name."""
EXAMPLES = 2
"""Random answers before and after, beside those that changed most."""
CURVE_POINTS = 400
"""Most points in a drawn curve."""
FAR = 5.0
"""A limit so many times as high as anything reached is drawn at the chart's upper edge: to scale, nothing else could be seen."""


# ── what was fed back ─────────────────────────────────────────────────────────────────────────────────────────────


def fed_back(feedback: Json) -> list[tuple[str, str]]:
    """feedback.json as labels and texts."""
    titles = SOURCES | LABELLED if feedback.get("judge") else SOURCES
    sources = [
        f"{number(count, 0)} from {titles.get(name, visible(name))}"
        for name, count in feedback.get("pairs_of", {}).items()
        if count
    ]
    found = [
        (
            "Pairs",
            f"{number(feedback['pairs'], 0)} of {plural(feedback['pair_prompts'], 'prompt')}, "
            f"in {plural(feedback['groups'], 'group')} of near duplicates"
            + (f"; {', '.join(sources)}" if sources else ""),
        )
    ]
    left_out = [f"{visible(reason)} {number(count, 0)}" for reason, count in feedback["left_out"].items() if count]
    if left_out:
        found.append(("Pairs left out", ", ".join(left_out)))
    if feedback.get("chosen_shorter") is not None:
        found.append(
            ("The shorter one is preferred", f"in {number(100 * feedback['chosen_shorter'], 0)}% of the pairs")
        )
    found += [
        (f"Agreement of {title}", _agreement(own))
        for name, title in (("ratings", "those who scored"), ("labels", "those who ranked"))
        if (own := feedback.get("agreement", {}).get(name))
    ]
    if feedback.get("refused"):
        found.append(("Labels refused", f"{number(feedback['refused'], 0)}, each kept with its reason"))
    if feedback.get("prompts", {}).get("to_rank"):
        found.append(("Prompts whose answers wait to be ranked", number(feedback["prompts"]["to_rank"], 0)))
    return found


def _agreement(own: Json) -> str:
    """Krippendorff's alpha, and Kendall's W where there is one; or why there is neither."""
    if own.get("alpha") is None:
        return visible(own.get("reason") or "undefined")
    shared = plural(own["answers"], "answer") if "answers" in own else plural(own.get("prompts"), "prompt")
    said = f"Krippendorff’s alpha {number(own['alpha'], 2)} ({own['scale']}, {shared})"
    return said if own.get("w") is None else f"{said}, Kendall’s W {number(own['w'], 2)}"


# ── the reward model ──────────────────────────────────────────────────────────────────────────────────────────────


def accuracies(reward: Json, subset: str = "all") -> dict[str, Estimate]:
    """System → share of held-out pairs that it tells right, in percent with its interval."""
    own = reward["held_out"][subset]
    return {name: _percent(own["accuracy"].get(name), own["pairs"]) for name in SYSTEMS if name in own["accuracy"]}


def _percent(entry: Json | None, pairs: int) -> Estimate:
    if entry is None or entry["value"] is None:
        return Estimate(None, n=pairs, reason="no such pairs" if not pairs else "undefined")
    value, low, high = (None if entry[key] is None else 100 * entry[key] for key in ("value", "low", "high"))
    return Estimate(value, low, high, pairs)


class Beaten(NamedTuple):
    """The reward model against one baseline, on the same pairs."""

    name: str
    more: Estimate
    """Points of accuracy that the reward model has more."""
    outcome: Literal["better", "worse", "unproven"]
    said: str


def beaten(reward: Json) -> list[Beaten]:
    """Whether it beats each baseline: as reward.json says, which asks that the whole interval lies above zero."""
    own = reward["held_out"]["all"]
    found = []
    for name, title in SYSTEMS.items():
        if name not in own["less"]:
            continue
        less = own["less"][name]
        diff, low, high = (None if less[key] is None else 100 * less[key] for key in ("diff", "low", "high"))
        outcome: Literal["better", "worse", "unproven"]
        outcome = "better" if own["beats"][name] else "worse" if high is not None and high < 0 else "unproven"
        said = {"better": "beats", "worse": "is worse than", "unproven": "is not shown to beat"}[outcome]
        found.append(Beaten(name, Estimate(diff, low, high, own["pairs"]), outcome, f"{said} {title}"))
    return found


def length_told(reward: Json) -> str:
    """What became of length, in words."""
    line = reward.get("length")
    if not line:
        return "Length is left in it: a policy may gain by the length of its answers alone."
    found = accuracies(reward).get("controlled")
    told = "" if found is None or found.value is None else f": {number(found.value, 1)}% of the pairs"
    slope = brief(line["slope"], sign=True)
    answers = (
        f" ({plural(line['answers'], 'answer')} to {plural(line['prompts'], 'prompt')})" if "answers" in line else ""
    )
    return (
        f"A policy is rewarded by what is left when length is taken out of it{told}. What is taken off is {slope} for each unit of "
        f"log(1 + tokens), as the starting policy’s own answers show it{answers}. "
        "The other figures here are of the reward with its length."
    )


class Part(NamedTuple):
    """Accuracy on one part of the pairs."""

    name: str
    pairs: int
    groups: int
    shown: Mapping[str, Estimate]
    """System → accuracy in percent."""


def is_mixed(reward: Json) -> bool:
    """Whether a model labelled some of the pairs: then what people said is measured apart, too."""
    held_out = reward["held_out"]
    return "people" in held_out and held_out["people"]["pairs"] != held_out["all"]["pairs"]


def who_prefers(reward: Json) -> str:
    """Whose preference a reward model is asked for, in words that follow "which of two answers"."""
    return "is the better one by its label, a judge’s or people’s" if is_mixed(reward) else "people prefer"


def parts(reward: Json) -> list[Part]:
    """Accuracy on all pairs, where the preferred answer is longer, at the same length, and on people's where that is not all."""
    held_out = reward["held_out"]
    return [
        Part(title, held_out[name]["pairs"], held_out[name]["groups"], accuracies(reward, name))
        for name, title in SUBSETS.items()
        if name in held_out and (name != "people" or is_mixed(reward))
    ]


def by_length(reward: Json) -> list[Part]:
    """Accuracy by how long the preferred answer is beside the other one."""
    return [
        Part(
            visible(row["preferred_is"]),
            row["pairs"],
            row["groups"],
            {
                name: _percent(
                    {"value": row[name], "low": row[f"{name}_low"], "high": row[f"{name}_high"]}, row["pairs"]
                )
                for name in SYSTEMS
                if name in row
            },
        )
        for row in reward["held_out"].get("by_length", ())
    ]


def calibrated(reward: Json) -> str:
    """Calibration of the reward model, in words."""
    found = reward["held_out"].get("calibration") or {}
    ece = found.get("ece")
    if not ece or ece["value"] is None:
        return f"Calibration is undefined: {visible(found.get('reason') or 'not measured')}."
    said = f"Expected calibration error {number(ece['value'], 3)}"
    if ece["low"] is not None:
        said += f" ({number(ece['low'], 3)} to {number(ece['high'], 3)})"
    if found.get("expected_of_chance") is not None:
        said += f"; chance alone would make it {number(found['expected_of_chance'], 3)}"
    return f"{said}."


class Column(NamedTuple):
    """Two bars of the histogram, in percent: preferred answers upwards from the middle, the others downwards."""

    x: float
    width: float
    up: float
    down: float
    said: str


@dataclass(frozen=True)
class Histogram:
    """How the rewards of preferred and other answers lie."""

    columns: tuple[Column, ...]
    ticks: tuple[tuple[float, str], ...]
    zero: float | None
    """Where a reward of 0 lies; None outside of the bars."""
    summary: str


def histogram(rows: Sequence[Row]) -> Histogram | None:
    """Bars over one axis, from histogram.csv; None without any."""
    known = [(each["low"], each["high"], each["chosen"], each["rejected"]) for each in rows]
    bars = [
        (low, high, up or 0.0, down or 0.0) for low, high, up, down in known if low is not None and high is not None
    ]
    most = max((max(up, down) for _, _, up, down in bars), default=0.0)
    if not most:
        return None
    axis = charts.Scale(bars[0][0], bars[-1][1])
    columns = [
        Column(
            axis(low),
            round(axis(high) - axis(low), 2),
            round(50 * up / most, 2),
            round(50 * down / most, 2),
            f"{brief(low)} to {brief(high)}: {number(up, 0)} preferred, {number(down, 0)} others",
        )
        for low, high, up, down in bars
    ]
    above = [
        100 * sum(bar[at] for bar in bars if bar[0] + bar[1] > 0) / max(1.0, sum(bar[at] for bar in bars))
        for at in (2, 3)
    ]
    return Histogram(
        tuple(columns),
        tuple((axis(at), brief(at)) for at in axis.ticks(5)),
        axis(0.0) if axis.low < 0.0 < axis.high else None,
        f"Above zero: {number(above[0], 0)}% of the preferred answers and {number(above[1], 0)}% of the others",
    )


def reliability(rows: Sequence[Row]) -> list[tuple[float, float, float, str]]:
    """From reliability.csv: percent from the left, from the top, from the top to the diagonal, and what is said of the point."""
    across, up = charts.Scale(0.5, 1.0), charts.Scale(0.0, 1.0, flip=True)
    found = []
    for row in rows:
        sure, right, pairs = (row[name] for name in ("confidence", "accuracy", "pairs"))
        if sure is not None and right is not None:
            said = f"{plural(pairs, 'pair')}: {number(100 * sure, 0)}% sure, {number(100 * right, 0)}% right"
            found.append((across(sure), up(right), up(sure), said))
    return found


# ── PPO: what it did, and what that shows ─────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Run:
    """One policy that PPO made: ppo.json, training.json, updates.csv, monitor.csv and samples.jsonl."""

    candidate: str
    record: Json
    training: Json
    curve: Sequence[Row]
    monitor: Sequence[Row]
    samples: Sequence[Json]
    feedback: Json | None = None
    """What the reward model learnt from: feedback.json."""


class Notice(NamedTuple):
    """An alarm, all of its kind together."""

    title: str
    when: str
    text: str
    """What the last of them said."""


def notices(record: Json) -> list[Notice]:
    """The alarms of a run, in the order of their first update."""
    by_kind: dict[str, list[Json]] = {}
    for each in record["alarms"]:
        by_kind.setdefault(each["kind"], []).append(each)
    found = []
    for kind, own in by_kind.items():
        first, last = own[0]["update"], own[-1]["update"]
        when = f"update {first}" if len(own) == 1 else f"{len(own)} times from update {first} to {last}"
        found.append(Notice(ALARMS.get(kind, visible(kind)), when, visible(own[-1]["text"])))
    return found


def _reason(reward: Json, feedback: Json | None = None) -> str:
    """What a policy was rewarded for, in words that follow "rewarded"."""
    less = ", less what it makes of length" if reward["kind"] == "model" and reward.get("length") else ""
    return f"{_rewarded(reward, feedback)}{less}"


def _rewarded(reward: Json, feedback: Json | None) -> str:
    kind, judge = reward["kind"], (feedback or {}).get("judge")
    if kind == "model" and judge:
        # A reward model that judges is asked by no principle.
        whose = "another reward model’s labels" if judge.get("kind") == "reward" else "the constitution’s labels"
        return f"by the reward model learnt from {whose}"
    return REWARDS.get(kind, f"for {visible(kind)}")


def rewarded(run: Run) -> str:
    """What tells one run from another, in words that follow its candidate's name."""
    return f"rewarded {_rewarded(run.record['reward'], run.feedback)}"


def budget(run: Run) -> str:
    """What was spent, and which policy was kept."""
    record = run.record
    spent = f"Rewarded {_reason(record['reward'], run.feedback)}: {plural(record['updates'], 'update')}"
    if record["updates"] != record["asked_updates"]:
        spent += f" of {number(record['asked_updates'], 0)}"
    if run.training.get("examples"):
        spent += f", {plural(run.training['examples'], 'response')} in all"
    if record["kept"] == 0:
        return f"{spent}. No later policy did better by the monitor: what was kept is the starting policy itself."
    away = f"{number(record['kl'], 2)} nats a response from the start (the limit is {brief(record['kl_limit'])})"
    return f"{spent}. The policy after update {record['kept']} was kept, {away}."


def lessons(run: Run) -> list[str]:
    """What the run shows and what it cannot show, sentence by sentence."""
    record, said = run.record, []
    if record["stopped"]:
        said.append(f"It stopped early: {visible(record['stopped'])}.")
    if record["kept"] == 0:
        said.append("Since nothing was learnt that the monitor likes, there is no difference to be measured.")
        return said
    on = f"on the monitor’s {plural(record['monitored'], 'prompt')}, which it was not trained on"
    rise = change(record["reward_change"], record["monitored"])
    if rise is not None:
        verb = {"up": "rose", "down": "fell", "none": "is not shown to have changed"}[rise.direction]
        said.append(f"Its reward {verb} {on}: {rise.said}.")
    harm = change(record["harm_change"], record["monitored"])
    if harm is None:
        said.append("No judge of harm watched this run, so it cannot say whether more reward is less harm.")
    elif harm.direction == "none":
        said.append(
            f"This run does not show less harm. By the monitor judge it changed by {harm.said}, and zero lies within."
        )
        if harm.detectable:
            said.append(
                f"On so many prompts a true difference below {brief(harm.detectable, 2)} would usually be missed: "
                "whether there is one, this run cannot tell."
            )
    elif harm.direction == "down":
        said.append(
            f"By the monitor judge there is less harm: {harm.said}. The same judge chose this policy among "
            f"{plural(len(run.monitor), 'look')}, so its figure is too kind; only judges that had no part in the training can show it."
        )
    else:
        said.append(f"By the monitor judge there is more harm: {harm.said}.")
    updates = [each["update"] for each in record["alarms"]]
    if updates:
        early = min(updates) > record["kept"]
        said.append(
            f"The policy that was kept is of update {record['kept']}, "
            + ("before the first alarm." if early else f"and the first alarm is of update {min(updates)}.")
        )
    return said


class Change(NamedTuple):
    """A paired change with its standard error, as the page says it."""

    direction: Literal["up", "down", "none"]
    """none: zero lies within two standard errors."""
    said: str
    detectable: float | None
    """The smallest true difference that so many prompts find in four cases of five; None where nothing varies."""


def change(found: Sequence[float] | None, count: int) -> Change | None:
    """What a change of a mean shows; None where it was not measured.

    Args:
        found: mean and standard error.
        count: prompts that it is a mean over.
    """
    from scipy.special import stdtrit

    if found is None:
        return None
    mean, error = found
    low, high = mean - ERRORS * error, mean + ERRORS * error
    direction: Literal["up", "down", "none"] = "up" if low > 0 else "down" if high < 0 else "none"
    reach = float(stdtrit(count - 1, 0.975) + stdtrit(count - 1, 0.8)) if count > 1 else 0.0
    said = f"{brief(mean, sign=True)} ({brief(low, sign=True)} to {brief(high, sign=True)}, two standard errors either way)"
    return Change(direction, said, reach * error or None)


# ── the curves ────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One of the small charts, in a view box of 100 by 100."""

    title: str
    across: str
    """What the horizontal axis counts."""
    thin: str = ""
    """A line over every update, on prompts that are trained on; empty for none."""
    line: str = ""
    """A line through the monitor's looks; empty for none."""
    points: tuple[tuple[float, float, bool, str], ...] = ()
    """The monitor's looks: x, y, whether this is the policy that was kept, what is said of it."""
    kept: float | None = None
    """Where the update lies that was kept; None in a chart over something else."""
    alarms: tuple[tuple[float, str], ...] = ()
    """Where an alarm was raised, and what it is called."""
    limit: tuple[float, str] | None = None
    """A level that must not be passed, at the upper edge where it is far above, and its name."""
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    summary: str


PANELS = (
    ("Reward", "reward", "reward"),
    ("KL from the start, nats a response", "kl", "kl"),
    ("Entropy, nats a token", "entropy", None),
    ("Tokens in a response", "tokens", "tokens"),
    ("Harm, by the monitor judge", None, "harm"),
    ("Repetition, share of 4-grams that stood there before", "repetition", "repetition"),
    ("Perplexity of the answers under the reference", None, "perplexity"),
    ("Empty answers, share", "silent", "silent"),
)
"""What is drawn over the updates: title, column of updates.csv, column of monitor.csv."""


def panels(run: Run) -> list[Panel]:
    """All that is watched, by update, and reward against divergence; what was not measured is left out."""
    drawn = [_by_update(run, *each) for each in PANELS]
    found = [each for each in drawn if each is not None]
    return [*found, *([against] if (against := _against(run)) is not None else [])]


def _column(rows: Sequence[Row], across: str, name: str | None) -> list[tuple[float, float]]:
    pairs = [] if name is None else [(row.get(across), row.get(name)) for row in rows]
    return [(x, y) for x, y in pairs if x is not None and y is not None]


def _by_update(run: Run, title: str, trained: str | None, watched: str | None) -> Panel | None:
    thin, looks = _column(run.curve, "update", trained), _column(run.monitor, "update", watched)
    if not thin and not looks:
        return None
    limit = run.record["kl_limit"] if "kl" in (trained, watched) else None
    values = [value for _, value in (*thin, *looks)]
    far = limit is not None and limit > FAR * max(values)
    x = charts.scale([0.0, *(at for at, _ in (*thin, *looks))], margin=0.0)
    # A share that is 0 throughout lies on the lower edge, and has no values below it.
    whole = [] if any(values) else [1.0]
    y = charts.scale([None if far else limit, *values, *whole], zero=limit is not None, flip=True)
    kept = float(run.record["kept"])
    told = looks or thin
    said = f"{title}: from {brief(told[0][1])} to {brief(told[-1][1])}"
    return Panel(
        title=title,
        across="update",
        thin=charts.line(charts.thin(thin, CURVE_POINTS), x, y) if len(thin) > 1 else "",
        line=charts.line(looks, x, y) if len(looks) > 1 else "",
        points=tuple(
            (x(at), y(value), at == kept, f"{title}, update {number(at, 0)}: {brief(value)}") for at, value in looks
        ),
        kept=x(kept),
        alarms=tuple(
            (x(at), ALARMS.get(kind, visible(kind)))
            for at, kind in sorted({(float(each["update"]), each["kind"]) for each in run.record["alarms"]})
        ),
        limit=None if limit is None else (y(limit), f"limit {brief(limit)}" + (", far above" if far else "")),
        x_ticks=tuple((x(at), brief(at)) for at in x.ticks(5) if at == round(at)),
        y_ticks=tuple((y(at), brief(at)) for at in y.ticks(4)),
        summary=f"{said}, limit {brief(limit)}" if limit is not None else said,
    )


def _against(run: Run) -> Panel | None:
    """Reward against divergence, as Gao et al. (2023) draw it: what a nat away from the start brings."""
    looks = _column(run.monitor, "kl", "reward")
    if len(looks) < 2:
        return None
    x, y = charts.scale([at for at, _ in looks], zero=True), charts.scale([value for _, value in looks], flip=True)
    updates = [row.get("update") for row in run.monitor if row.get("kl") is not None and row.get("reward") is not None]
    kept = updates.index(run.record["kept"]) if run.record["kept"] in updates else None
    return Panel(
        title="Reward against KL",
        across="nats a response",
        line=charts.line(looks, x, y),
        points=tuple(
            (
                x(at),
                y(value),
                place == kept,
                f"update {number(updates[place], 0)}: reward {brief(value)} at {brief(at)} nats a response",
            )
            for place, (at, value) in enumerate(looks)
        ),
        x_ticks=tuple((x(at), brief(at)) for at in x.ticks(4)),
        y_ticks=tuple((y(at), brief(at)) for at in y.ticks(4)),
        summary=f"Reward against KL: {brief(looks[0][1])} at {brief(looks[0][0])} nats, {brief(looks[-1][1])} at {brief(looks[-1][0])}",
    )


@dataclass(frozen=True)
class Beside:
    """A policy that another way than PPO aligned: training.json and updates.csv."""

    candidate: str
    training: Json
    curve: Sequence[Row]


BESIDE = {
    "reward": "Reward",
    "margin": "Margin of the preferred answer, β · log-ratios",
    "accuracy": "Pairs told right",
    "kl": "KL from the start, nats a response",
    "entropy": "Entropy, nats a token",
    "tokens": "Tokens in a response",
    "loss": "Loss",
}
"""What is drawn of the ways beside PPO: column of updates.csv → title, those that a curve has."""


def beside_budget(run: Beside) -> str:
    """What was spent, and which policy was kept."""
    training = run.training
    seen = "pair" if "reward" not in training else "response"
    said = f"{plural(training['steps'], 'optimizer step')} of {plural(training['batch_size'], seen)}"
    if "reward" in training:
        said += f", rewarded {_reason(training['reward'])}"
    return f"{said}. Nobody watched it: the last policy was kept, whatever its divergence."


def beside_panels(run: Beside) -> list[Panel]:
    """A line for each column that the curve has, by step or update."""
    across = "update" if run.curve and "update" in run.curve[0] else "step"
    found = []
    for name, title in BESIDE.items():
        points = _column(run.curve, across, name)
        # KTO's divergence is an estimate from answers to other prompts, and no distance that the policy has come.
        if len(points) < 2 or (name, run.training["method"]) == ("kl", "kto"):
            continue
        x = charts.scale([0.0, *(at for at, _ in points)], margin=0.0)
        y = charts.scale([value for _, value in points], flip=True)
        found.append(
            Panel(
                title=title,
                across=across,
                thin=charts.line(charts.thin(points, CURVE_POINTS), x, y),
                x_ticks=tuple((x(at), brief(at)) for at in x.ticks(5) if at == round(at)),
                y_ticks=tuple((y(at), brief(at)) for at in y.ticks(4)),
                summary=f"{title}: from {brief(points[0][1])} to {brief(points[-1][1])}",
            )
        )
    return found


LOOKS = (
    ("kl", "KL", 1, 2),
    ("reward", "Reward", 1, 2),
    ("harm", "Harm", 1, 3),
    ("tokens", "Tokens", 1, 1),
    ("repetition", "Repeated 4-grams, %", 100, 1),
    ("perplexity", "Perplexity", 1, 1),
    ("silent", "Empty, %", 100, 0),
    ("finished", "Ended, %", 100, 0),
)
"""Columns of monitor.csv: name, heading, factor, digits."""


def looks(run: Run) -> list[tuple[int, bool, tuple[str, ...]]]:
    """The monitor's looks: update, whether it was kept, a text for each of `LOOKS`."""
    return [
        (
            int(row["update"] or 0),
            row["update"] == run.record["kept"],
            tuple(
                number(None if (value := row.get(name)) is None else factor * value, digits)
                for name, _, factor, digits in LOOKS
            ),
        )
        for row in run.monitor
    ]


# ── answers before and after ──────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class SideBySide:
    """A prompt that provokes, answered by the starting policy and by the aligned one; hidden until asked for."""

    why: str
    prompt: str
    before: Output
    after: Output
    reward: tuple[float | None, float | None]
    harm: tuple[float | None, float | None]
    veil: tuple[str, str]
    """What stands blurred in the place of the two answers: their shape, and not a letter of them."""


def examples(run: Run, seed: int) -> list[SideBySide]:
    """What the monitor saw change; nothing where the starting policy itself was kept.

    Args:
        run: whose samples are read.
        seed: of the random ones.
    """
    return [] if run.record["kept"] == 0 else side_by_side(run.samples, run.candidate, seed)


def answered(ours: Sequence[Json], theirs: Sequence[Json]) -> list[Json]:
    """The first answers of an aligned candidate, and of the one it started from, to the same red-team instructions.

    Args:
        ours: rows of red_team.jsonl of the aligned one.
        theirs: of the other.

    Returns:
        As PPO's samples.jsonl has them, without rewards: nobody scored these.
    """
    before = {row["id"]: row["samples"][0] for row in theirs if row["samples"]}
    return [
        {
            "prompt": row["prompt"],
            "before": before[row["id"]]["prediction"],
            "after": row["samples"][0]["prediction"],
            "reward": [None, None],
            "harm": [before[row["id"]].get("harm"), row["samples"][0].get("harm")],
        }
        for row in ours
        if row["kind"] == "instruction" and row["samples"] and row["id"] in before
    ]


class Sides(NamedTuple):
    """Answers of an aligned candidate beside those of the one it started from, to test prompts."""

    name: str
    start: str
    pairs: list[SideBySide]


def sides(comparison: Json, red_team: Mapping[str, Sequence[Json]], shown: Collection[str], seed: int) -> list[Sides]:
    """Before and after of every aligned candidate that has no monitor to show them.

    Args:
        comparison: comparison.json, which says who was aligned from whom.
        red_team: candidate → rows of red_team.jsonl.
        shown: candidates that are shown by the monitor's samples.
        seed: of the random ones.
    """
    found = []
    for entry in comparison.get("alignment") or ():
        name, start = entry["name"], entry["against"]
        if entry.get("control") or len(entry["of"]) > 1 or name in shown:
            continue
        pairs = side_by_side(answered(red_team.get(name, ()), red_team.get(start, ())), name, seed)
        if pairs:
            found.append(Sides(visible(name), visible(start), pairs))
    return found


def side_by_side(samples: Sequence[Json], name: str, seed: int) -> list[SideBySide]:
    """The answers whose harm rose and fell most and whose reward rose most, and random ones; each prompt once.

    Args:
        samples: prompt, before, after, and reward and harm of both.
        name: of the candidate, which the random ones hang on too.
        seed: of the random ones.
    """
    chosen: dict[int, str] = {}
    for measure, sign, why in (
        ("harm", 1, "harm rose most"),
        ("harm", -1, "harm fell most"),
        ("reward", 1, "reward rose most"),
    ):
        gaps = {
            index: sign * (after - before)
            for index, (before, after) in enumerate(row[measure] for row in samples)
            if before is not None and after is not None
        }
        top = max(gaps, key=lambda index: (gaps[index], -index), default=None)
        if top is not None and gaps[top] > 0:
            chosen[top] = f"{chosen[top]}, {why}" if top in chosen else why
    left = [index for index in range(len(samples)) if index not in chosen]
    drawn = random.Random(f"{seed} {name}").sample(left, min(EXAMPLES, len(left)))
    chosen |= dict.fromkeys(sorted(drawn), "random")
    found = []
    for index, why in chosen.items():
        row = samples[index]
        before, after = (output(each, row[each], None) for each in ("before", "after"))
        found.append(
            SideBySide(
                why=why,
                prompt=clip(row["prompt"])[0],
                before=before,
                after=after,
                reward=(row["reward"][0], row["reward"][1]),
                harm=(row["harm"][0], row["harm"][1]),
                veil=(veil(before.text), veil(after.text)),
            )
        )
    return found


VEILED = 220
"""Characters of an answer whose shape is shown before it is opened."""


def veil(text: str) -> str:
    """The shape of a text: a block for every character that is no space. No one reads, finds or copies what it says."""
    return "".join(" " if each.isspace() else "▆" for each in text[:VEILED]).strip()


# ── what the judges say ───────────────────────────────────────────────────────────────────────────────────────────

MEASURES = {
    "harm": ("Harm, by the primary judge", 3),
    "harm_matched": ("Harm, by the primary judge, at matched length", 3),
    "harm_embedding": ("Harm, by the judge that reads embeddings", 3),
    "offence": ("Offence", 3),
    "refusal": ("Refusals, by a judge", 3),
    "refusal_phrases": ("Refusals in so many words", 3),
    "asks_back": ("Only a question back", 3),
    "helpful": ("Helpfulness: likeness to a right answer", 3),
    "nonsense": ("Nonsense: empty, or repeating itself", 3),
    "surprise": ("Surprise of the base model, nats a token", 2),
    "words": ("Words in an answer", 1),
}
"""Measures of comparison.json: label and digits; one that is not known goes by its own name, with three digits."""


class Measured(NamedTuple):
    """One measure of an aligned candidate and of the one it started from."""

    label: str
    digits: int
    reference: float | None
    value: float | None
    gap: Estimate
    detectable: float | None
    seeds: tuple[Estimate, ...]
    """The difference of each training, where there are several."""


class Condition(NamedTuple):
    """One of the things that "less harmful" rests on, or a guard beside them."""

    what: str
    holds: bool | None
    """None where there is nobody to judge it."""
    why: str


@dataclass(frozen=True)
class Verdict:
    """What compare says of an aligned candidate, or of several of one method, against the one that it started from or a control."""

    name: str
    of: tuple[str, ...]
    """The trainings that it is about."""
    against: str
    said: str
    outcome: Literal["better", "worse", "unproven"]
    """better: it may be called less harmful."""
    is_part: bool
    """Whether it is one of several trainings that are judged together, too."""
    is_control: bool
    """Whether it is held against a control here, not against what it started from."""
    conditions: tuple[Condition, ...]
    """All of which that takes."""
    guards: tuple[Condition, ...]
    """What should not have been lost."""
    drift: str
    """How far it has come from the model that it sits on; empty where nobody read that, and beside a control."""
    measures: tuple[Measured, ...]
    continuations: tuple[Measured, ...]
    """Of texts that go on from a beginning, which are reported apart."""
    harmless: tuple[Measured, ...]
    """Of answers to harmless prompts; none where none were asked."""


def verdicts(comparison: Json) -> list[Verdict]:
    """The entries of comparison.json: alignment, in its words: several trainings together, each by itself, and against controls."""
    entries = comparison.get("alignment") or ()
    found = []
    for each in sorted(entries, key=lambda each: (each.get("control", False), len(each["of"]) < 2)):
        measures, safe = _measured(each["measures"]), each.get("harmless", {})
        harm = estimate(each["measures"]["harm"], "diff")
        outcome: Literal["better", "worse", "unproven"] = "better" if each["less_harmful"] else "unproven"
        found.append(
            Verdict(
                name=visible(each["name"]),
                of=tuple(visible(name) for name in each["of"]),
                against=visible(each["against"]),
                said=visible(each["sentence"]),
                outcome="worse" if harm.low is not None and harm.low > 0 else outcome,
                is_part=any(each is not other and set(each["of"]) < set(other["of"]) for other in entries),
                conditions=_conditions(each["conditions"]),
                guards=_conditions(each["guards"]),
                drift="" if each.get("control") else _drifted(each.get("drift")),
                measures=measures,
                is_control=each.get("control", False),
                continuations=_measured(each["continuation"]),
                harmless=_measured(safe) if any(one["n"] for one in safe.values()) else (),
            )
        )
    return found


def _drifted(told: Json | None) -> str:
    if told is None or told["value"] is None:
        return ""
    value, error, *each = (number(one, 2) for one in (told["value"], told["error"], *told["each"]))
    several = f", of each training {', '.join(each)}" if len(each) > 1 else ""
    return (
        f"Its answers are {value} nats likelier for it than for the model that it was trained on, ± {error} (a standard error; "
        f"{plural(told['answers'], 'answer')}{several}). That estimates the KL divergence where they are drawn from the whole "
        "distribution (evaluate.top_p: 1)."
    )


def _conditions(entries: Sequence[Json]) -> tuple[Condition, ...]:
    return tuple(Condition(visible(each["what"]), each["holds"], visible(each["why"])) for each in entries)


def _measured(entries: Mapping[str, Json]) -> tuple[Measured, ...]:
    order = list(MEASURES)
    names = sorted(entries, key=lambda name: order.index(name) if name in MEASURES else len(order))
    found = []
    for name in names:
        entry, (label, digits) = entries[name], MEASURES.get(name, (visible(name), 3))
        found.append(
            Measured(
                label,
                digits,
                entry.get("reference"),
                entry.get("value"),
                estimate(entry, "diff"),
                entry.get("minimum_detectable"),
                tuple(estimate(one, "diff") for one in entry.get("seeds", ())),
            )
        )
    return tuple(found)
