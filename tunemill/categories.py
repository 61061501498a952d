"""The seven categories of an evaluation, as the report tells them: a table with ranks, a plot, and the figures behind both.

HELM (Liang et al. 2022, "Holistic Evaluation of Language Models") judges a model by accuracy, calibration, robustness,
fairness, bias, toxicity and efficiency together. `compare` makes every value; nothing is measured here. What is decided
here is what stands beside what: who ranks where in a category (its direction respected, ties sharing a rank), where a
value lies on its axis, and which reason is given where there is no value.

Pure, no I/O.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tunemill import calibration, charts, statistics
from tunemill.findings import METRICS, VERDICTS, Difference, Estimate, Json, Judgement, estimate, judge, metric
from tunemill.wording import number, plural, tick, visible

CATEGORIES = ("accuracy", "calibration", "robustness", "fairness", "bias", "toxicity", "efficiency")
"""In HELM's order, which is the order of the rows and of the axes."""

MEANINGS = {
    "accuracy": "whether the outputs are what was wanted",
    "calibration": "whether the model is as sure as it is right",
    "robustness": "what is left when the prompt is written carelessly",
    "fairness": "what is left when dialect, pronouns or first names are others",
    "bias": "whether groups of people are named equally often, and with the same things",
    "toxicity": "whether outputs offend",
    "efficiency": "what an answer costs",
}

SHADES = 5
"""Shades of the table from the worst (0) to the best."""

FIGURE_NAMES = {
    "calibration/ece_10": "expected calibration error, ten bins",
    "fairness/people": "right about people, worst of four",
    "bias/gender_representation": "female and male words, distance from equal shares",
    "toxicity/instruction/harm_expected_maximum": "harm in answers to instructions, highest of k",
    "toxicity/instruction/offence_expected_maximum": "offence in answers to instructions, highest of k",
    "toxicity/continuation/harm_expected_maximum": "harm in continued texts, highest of k",
    "toxicity/continuation/offence_expected_maximum": "offence in continued texts, highest of k",
    "efficiency/decode_seconds": "seconds for a token",
}
"""The figures that may stand for a category; those of the primary metric are named by `SCORED`."""

SCORED = {"accuracy": "", "robustness": ", worst of two wordings", "fairness": ", worst of four wordings"}
"""Category → what is said of the primary metric there."""

BIN_ROWS = 10
"""Fewest questions in a bin of a reliability diagram: the accuracy of fewer says little."""

STYLES = 6
"""Line styles of the plot; its markers carry numbers, so that more candidates than styles are still told apart."""

HEAD, STEP = 8, 16
"""Pixels of the plot: air around a category's marks, and from one candidate's mark to the next."""

FOOT = 28
"""Pixels for the numbers under a category's marks."""


def title(category: str) -> str:
    """A category's name as a heading."""
    return category[:1].upper() + category[1:].replace("_", " ")


def measure(key: str) -> str:
    """What a category's figure is, in words; its key, as comparison.json has it, where there are none."""
    if key in FIGURE_NAMES:
        return FIGURE_NAMES[key]
    category, _, rest = key.partition("/")
    score = rest.upper().replace("ROUGE", "ROUGE-")
    return f"{score}{SCORED[category]}" if category in SCORED and rest else key


def digits(values: Iterable[float | None]) -> int:
    """Decimal places that leave about three digits of the largest of `values`, so that one row is rounded alike."""
    largest = max((abs(value) for value in values if value is not None and math.isfinite(value)), default=0.0)
    if largest == 0:
        return 1
    return min(6, max(0, 2 - math.floor(math.log10(largest)))) if largest < 1000 else 0


# ── the table ─────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Cell:
    """One candidate's value in one category."""

    shown: Estimate
    rank: int | None
    """1 is the best; equal values share the better rank. None where it is undefined or there is nobody to beat."""
    tied: bool
    shade: int | None
    """How dark the cell is, 0 (worst) to `SHADES` − 1 (best); None like the rank."""
    against: Difference | None
    """The difference to the reference; None for the reference itself and where it was not tested."""


@dataclass(frozen=True)
class Category:
    """A row of the table: what the category is measured by, and every candidate's cell."""

    name: str
    label: str
    lower_is_better: bool
    digits: int
    cells: Mapping[str, Cell]


def table(comparison: Json, candidates: Sequence[str], reference: str) -> tuple[Category, ...]:
    """The table's rows in HELM's order, others that comparison.json has after them; none where it has none.

    Args:
        comparison: comparison.json.
        candidates: the columns.
        reference: whom the others are tested against.
    """
    measured = comparison.get("categories") or {}
    if not any(measured.get(name) for name in candidates):
        return ()
    found = {category for name in candidates for category in measured.get(name, {})}
    return tuple(
        _row(category, comparison, candidates, reference)
        for category in (*CATEGORIES, *sorted(found - set(CATEGORIES)))
    )


def _row(category: str, comparison: Json, candidates: Sequence[str], reference: str) -> Category:
    entries = {name: comparison["categories"].get(name, {}).get(category) for name in candidates}
    about: Json = next((each for each in entries.values() if each), {})
    lower = bool(about.get("lower_is_better", False))
    shown = {name: estimate(entry) for name, entry in entries.items()}
    values = {name: each.value for name, each in shown.items()}
    tested = {
        each.a: each for each in differences(comparison) if each.metric == category and each.b == reference != each.a
    }
    return Category(
        name=category,
        label=visible(measure(str(about.get("metric") or ""))),
        lower_is_better=lower,
        digits=digits(values.values()),
        cells={
            name: Cell(
                shown=shown[name],
                rank=rank(name, values, lower),
                tied=_ties(name, values) > 0,
                shade=shade(name, values, lower),
                against=tested.get(name),
            )
            for name in candidates
        },
    )


def rank(name: str, values: Mapping[str, float | None], lower_is_better: bool) -> int | None:
    """A candidate's rank in a category: one more than the number of candidates that are better than it."""
    own, others = values[name], [value for other, value in values.items() if other != name and value is not None]
    if own is None or not others:
        return None
    return 1 + sum(value < own if lower_is_better else value > own for value in others)


def shade(name: str, values: Mapping[str, float | None], lower_is_better: bool) -> int | None:
    """How dark a cell is: by the share of the others that are worse, ties counting half (HELM's win rate)."""
    rate = statistics.win_rates(values, lower_is_better)[name]
    return None if rate is None else math.floor((SHADES - 1) * rate + 0.5)


def _ties(name: str, values: Mapping[str, float | None]) -> int:
    own = values[name]
    return 0 if own is None else sum(value == own for other, value in values.items() if other != name)


def ordinal(rank: int) -> str:
    """A rank in words of two or three letters."""
    ending = "th" if rank % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(rank % 10, "th")
    return f"{rank}{ending}"


def win_rates(comparison: Json, candidates: Sequence[str]) -> dict[str, Estimate] | None:
    """Mean share of the other candidates that each one beats, in percent; None where comparison.json has none."""
    told = comparison.get("win_rate")
    if not told:
        return None

    def of(name: str) -> Estimate:
        entry = told.get(name) or {}
        mean = entry.get("mean")
        categories = sum(each is not None for each in (entry.get("of") or {}).values())
        reason = str(entry.get("reason") or "nobody to beat in any category") if mean is None else ""
        return Estimate(None if mean is None else 100 * mean, n=categories, reason=reason)

    return {name: of(name) for name in candidates}


class Tally(NamedTuple):
    """In how many categories a candidate is shown to be better or worse than the reference."""

    better: int
    worse: int
    unproven: int
    undefined: int


def tally(rows: Sequence[Category], candidate: str) -> Tally:
    """What may be said of a candidate over all categories: those without a tested difference count as undefined."""
    told = [
        None if each is None or each.estimate.value is None else each.judgement
        for each in (row.cells[candidate].against for row in rows)
    ]
    return Tally(told.count("better"), told.count("worse"), told.count("unproven"), told.count(None))


# ── the plot: parallel coordinates, an axis for each category ─────────────────────────────────────────────────────


@dataclass(frozen=True)
class Point:
    """One candidate's mark on one axis: percent from the left, pixels from the top."""

    number: int
    style: int
    x: float
    low: float | None
    high: float | None
    y: int
    said: str


@dataclass(frozen=True)
class Axis:
    """One category's axis; the right end is the better one, whichever way its values run."""

    title: str
    lower_is_better: bool
    top: int
    """Pixels from the plot's top to the axis' own part of it."""
    zone: int
    """That part's height in pixels, without its numbers."""
    points: tuple[Point, ...]
    ticks: tuple[tuple[float, str], ...]


@dataclass(frozen=True)
class Profile:
    """All axes, and a line through each candidate's marks."""

    axes: tuple[Axis, ...]
    lines: tuple[tuple[int, str, str], ...]
    """Style, candidate, and the SVG path in a view box of 100 by 100; the path is broken where a value is undefined."""
    height: int
    summary: str


def profile(rows: Sequence[Category], candidates: Sequence[str]) -> Profile | None:
    """Every candidate over every category; None where no value is defined.

    An axis reaches over all values and interval ends of its category, so that differences within the noise look like it.
    """
    if not any(cell.shown.value is not None for row in rows for cell in row.cells.values()):
        return None
    each_height = HEAD + STEP * len(candidates) + FOOT
    height, axes = each_height * len(rows), []
    paths: dict[str, list[tuple[float, float] | None]] = {name: [] for name in candidates}
    for index, row in enumerate(rows):
        known = [cell.shown for cell in row.cells.values() if cell.shown.value is not None]
        axis = charts.scale(
            (end for each in known for end in (each.value, each.low, each.high)), flip=row.lower_is_better
        )
        points = []
        for place, name in enumerate(candidates):
            shown = row.cells[name].shown
            if shown.value is None:
                paths[name].append(None)
                continue
            y = HEAD // 2 + STEP * place + STEP // 2
            low, high = (None if end is None else axis(end) for end in (shown.low, shown.high))
            points.append(Point(place + 1, place % STYLES, axis(shown.value), low, high, y, _said(name, row, shown)))
            paths[name].append((axis(shown.value), round(100 * (index * each_height + y) / height, 3)))
        axes.append(
            Axis(
                title=title(row.name),
                lower_is_better=row.lower_is_better,
                top=index * each_height,
                zone=HEAD + STEP * len(candidates),
                points=tuple(points),
                ticks=_ticks(axis, known),
            )
        )
    return Profile(
        axes=tuple(axes),
        lines=tuple((place % STYLES, name, broken_line(paths[name])) for place, name in enumerate(candidates)),
        height=height,
        summary=". ".join(_order(row, candidates) for row in rows),
    )


def _ticks(axis: charts.Scale, known: Sequence[Estimate]) -> tuple[tuple[float, str], ...]:
    """Up to three round values; where all values are the same, and the axis is wide around them for no reason, only that one."""
    ends = {end for each in known for end in (each.value, each.low, each.high) if end is not None}
    values = axis.ticks(3) if len(ends) > 1 else tuple(ends)
    return tuple((axis(value), tick(value)) for value in values)


def broken_line(points: Sequence[tuple[float, float] | None]) -> str:
    """An SVG path through points of a view box of 100 by 100; it is interrupted at None."""
    parts, pen = [], "M"
    for point in points:
        if point is None:
            pen = "M"
            continue
        parts.append(f"{pen}{point[0]:g} {point[1]:g}")
        pen = "L"
    return " ".join(parts)


def _said(name: str, row: Category, shown: Estimate) -> str:
    said = f"{name}, {row.name}: {number(shown.value, row.digits)}"
    if shown.low is None or shown.high is None:
        return said
    return f"{said} ({number(shown.low, row.digits)} to {number(shown.high, row.digits)})"


def _order(row: Category, candidates: Sequence[str]) -> str:
    known = [name for name in candidates if row.cells[name].shown.value is not None]
    if not known:
        return f"{title(row.name)}: undefined"
    known.sort(key=lambda name: row.cells[name].rank or 1)
    told = ", ".join(f"{name} {number(row.cells[name].shown.value, row.digits)}" for name in known)
    return f"{title(row.name)}, best first: {told}"


# ── the figures behind the table ──────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Row:
    """One figure of every candidate."""

    key: str
    label: str
    digits: int
    shown: Mapping[str, Estimate]


def details(comparison: Json, candidates: Sequence[str]) -> list[tuple[str, list[Row]]]:
    """Every further figure, by category in HELM's order; a key of no category stands under `other`."""
    told = comparison.get("details") or {}
    keys = list(dict.fromkeys(key for name in candidates for key in told.get(name, {})))
    found: dict[str, list[Row]] = {}
    for key in keys:
        head, slash, rest = key.partition("/")
        category = head if slash and head in CATEGORIES else "other"
        shown = {name: estimate(told.get(name, {}).get(key)) for name in candidates}
        label = (rest if category == head else key).replace("_", " ").replace("/", ": ")
        found.setdefault(category, []).append(
            Row(key, visible(label), digits(each.value for each in shown.values()), shown)
        )
    return [(category, found[category]) for category in (*CATEGORIES, "other") if category in found]


def differences(comparison: Json) -> list[Difference]:
    """The tested differences of the categories, by category in HELM's order; `metric` of each is the category."""
    measured = comparison.get("categories") or {}
    found = []
    for pair in comparison.get("category_pairs") or ():
        category, gap = str(pair["category"]), estimate(pair, "diff")
        lower = any(each.get(category, {}).get("lower_is_better") for each in measured.values())
        told = VERDICTS.get(pair.get("verdict") or "") or judge(gap, lower)
        found.append(Difference(pair["a"], pair["b"], category, gap, told, pair.get("minimum_detectable")))
    places = {category: index for index, category in enumerate(CATEGORIES)}
    return sorted(found, key=lambda each: places.get(each.metric, len(places)))


@dataclass(frozen=True)
class Slice:
    """A part of the test items, and every candidate's value on it."""

    name: str
    metric: str
    """What it is measured by: the primary metric, unless that is one of the whole test set only."""
    shown: Mapping[str, Estimate]


def slices(comparison: Json, candidates: Sequence[str]) -> dict[str, list[Slice]]:
    """What the items are sliced by → its parts, in the order of comparison.json."""
    told: dict[str, dict[str, dict[str, Estimate]]] = {}
    metrics: dict[str, str] = {}
    for name in candidates:
        for entry in (comparison.get("slices") or {}).get(name, ()):
            metrics[str(entry["slice"])] = str(entry["metric"])
            part = told.setdefault(str(entry["slice"]), {}).setdefault(str(entry["name"]), {})
            part[name] = estimate(entry)
    absent = Estimate(None, reason="not measured for this candidate")
    return {
        by: [
            Slice(visible(part), metrics[by], {name: shown.get(name, absent) for name in candidates})
            for part, shown in parts.items()
        ]
        for by, parts in told.items()
    }


@dataclass(frozen=True)
class Seeded:
    """A figure of one method over its training seeds."""

    label: str
    digits: int
    mean: Estimate
    sd: float | None
    """Between seeds."""
    least: float | None
    most: float | None
    """The lowest and the highest seed's."""
    gap: Estimate
    """To the reference."""


def seeds(comparison: Json) -> list[tuple[str, list[Seeded]]]:
    """Each method that was trained with several seeds, and its figures beside the primary metric, which `seeds` itself holds."""
    found = []
    for entry in comparison.get("seeds") or ():
        scores, told = entry.get("metrics") or {}, entry.get("categories") or {}
        further = [(metric(name).label, scores[name]) for name in METRICS if name in scores]
        further += [
            (f"{title(name)}: {measure(str(told[name]['metric']))}", told[name])
            for name in CATEGORIES
            if name in told and told[name]["metric"] != f"accuracy/{entry['metric']}"
        ]
        found.append((visible(str(entry["name"])), [_seeded(label, each) for label, each in further]))
    return found


def _seeded(label: str, entry: Json) -> Seeded:
    gap = {"diff": entry["diff"], "ci_low": entry["diff_low"], "ci_high": entry["diff_high"]}
    return Seeded(
        label=visible(label),
        digits=digits((entry["value"], entry["diff"])),
        mean=estimate(entry),
        sd=entry["seed_sd"],
        least=entry["least"],
        most=entry["most"],
        gap=estimate({**gap, "reason": entry.get("reason")}, "diff"),
    )


class Preference(NamedTuple):
    """How often a judge model prefers candidate `a` to `b`, ties counting half."""

    a: str
    b: str
    rate: Estimate
    """In percent."""
    judgement: Judgement
    counts: str
    """Won, tied, lost."""
    figures: tuple[tuple[str, str], ...]
    """What else the judge's table has of the pair: column → value."""


class Judged(NamedTuple):
    """What a judge model said: facts about it, and the pairs it compared."""

    facts: list[tuple[str, str]]
    pairs: list[Preference]


FIGURES = {
    "position_bias": "Position bias",
    "contradictory": "Contradicts itself",
    "unusable": "Unusable answers",
    "agreement": "Agrees with the metric",
}
"""Columns about the judge itself in the table of its pairs: shares, as comparison.json has them."""


def judged(comparison: Json) -> Judged | None:
    """The block `judge` of comparison.json; None where no judge was asked.

    Everything in it but the pairs is a fact, whatever it is called; `x_low` and `x_high` are the interval of `x`.
    """
    told = comparison.get("judge")
    if not told or all(each is None for each in told.values()):
        return None
    facts: list[tuple[str, str]] = []
    for key, value in told.items():
        if key == "pairs" or (key.endswith(("_low", "_high")) and key.rpartition("_")[0] in told):
            continue
        if isinstance(value, Mapping):
            facts += [(f"{_words(key)}: {_words(part)}", _plain(each)) for part, each in value.items()]
            continue
        low, high = (told.get(f"{key}_{end}") for end in ("low", "high"))
        between = "" if low is None or high is None else f" ({_plain(low)} to {_plain(high)})"
        facts.append((_words(key), _plain(value) + between))
    return Judged(facts, [_preference(pair) for pair in told.get("pairs") or ()])


def _preference(pair: Json) -> Preference:
    value, low, high = (pair.get(f"win_rate{end}") for end in ("", "_low", "_high"))
    percent = {"value": value, "ci_low": low, "ci_high": high}
    rate = estimate({**pair, **{key: None if each is None else 100 * each for key, each in percent.items()}})
    even = Estimate(None, low=None if low is None else low - 0.5, high=None if high is None else high - 0.5)
    return Preference(
        a=pair["a"],
        b=pair["b"],
        rate=rate,
        judgement=VERDICTS.get(pair.get("verdict") or "") or judge(even),
        counts=", ".join(_plain(pair.get(key)) for key in ("wins", "ties", "losses")),
        figures=tuple((label, number(pair.get(key), 2)) for key, label in FIGURES.items()),
    )


def _words(key: str) -> str:
    return title(visible(key).replace("/", ": "))


def _plain(value: Any) -> str:
    if value is None:
        return "—"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return number(value, 0 if isinstance(value, int) else digits([value]))
    return ", ".join(map(_plain, value)) if isinstance(value, list) else visible(str(value))


# ── calibration: the reliability diagram ──────────────────────────────────────────────────────────────────────────


class Bin(NamedTuple):
    """Questions of about equal confidence."""

    confidence: float
    accuracy: float
    n: int


@dataclass(frozen=True)
class Reliability:
    """How often a candidate is right where it is about as sure."""

    name: str
    n: int
    unusable: int
    """Questions without finite log-probabilities of all choices: they are in no bin."""
    bins: tuple[Bin, ...]
    reason: str
    """Why there are no bins."""
    points: tuple[tuple[float, float, str], ...]
    """Percent from the left (confidence) and from the top (accuracy), and what is said of the point."""

    @property
    def summary(self) -> str:
        """The diagram in words."""
        if not self.bins:
            return f"{self.name}: {self.reason}"
        right = math.fsum(each.accuracy * each.n for each in self.bins) / self.n
        sure = math.fsum(each.confidence * each.n for each in self.bins) / self.n
        return f"{self.name}: mean confidence {number(sure, 2)}, right in {number(right, 2)} of {plural(self.n, 'question')}"


def reliability(name: str, rows: Sequence[Json]) -> Reliability:
    """Bins of equal size by confidence: the softmax of the choices' log-probabilities per token, of the likeliest one.

    Args:
        name: of the candidate.
        rows: of tasks.jsonl: `choices`, `logprobs` (sum over a choice's tokens), `tokens`, `correct`.
    """
    asked = [row for row in rows if row["choices"]]
    judged = sorted(
        (level, row["correct"])
        for row in asked
        if row["correct"] is not None and (level := calibration.confidence(row["logprobs"], row["tokens"])) is not None
    )
    count = min(calibration.BINS, len(judged) // BIN_ROWS)
    bins = []
    # The same bins as calibration.ece's: sizes that differ by one at most, and questions of one confidence in the lower one.
    sure = [each for each, _ in judged]
    size, larger = divmod(len(judged), count or 1)
    edges = [bisect.bisect_right(sure, sure[at * size + min(at, larger) - 1]) for at in range(1, count)]
    for first, last in itertools.pairwise([0, *edges, len(judged)] if count else []):
        part = judged[first:last]
        if not part:
            continue
        bins.append(
            Bin(math.fsum(sure for sure, _ in part) / len(part), sum(right for _, right in part) / len(part), len(part))
        )
    unit = charts.Scale(0.0, 1.0)
    up = charts.Scale(0.0, 1.0, flip=True)
    return Reliability(
        name=name,
        n=len(judged),
        unusable=len(asked) - len(judged),
        bins=tuple(bins),
        reason="" if bins else f"{plural(len(judged), 'question')} with choices, at least {BIN_ROWS} are needed",
        points=tuple(
            (
                unit(each.confidence),
                up(each.accuracy),
                f"{plural(each.n, 'question')}: confidence {number(each.confidence, 2)}, right {number(each.accuracy, 2)}",
            )
            for each in bins
        ),
    )
