"""How a model was made to fit the task, as the report tells it: prompts, trainings, their quality, and the plan kept or not.

Pure, no I/O: records of the stages in, what the page says out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Literal

from tunemill import charts, statistics
from tunemill.findings import Difference, Estimate, Json, difference, estimate, relative
from tunemill.wording import number, plural, tick, visible

TRAINED = {
    "full": "all weights",
    "lora": "low-rank adapters",
    "qlora": "low-rank adapters on quantised weights",
    "prompt_tuning": "a soft prompt",
    "ia3": "scales of keys, values and layers (IA³)",
}
"""What a method trains, in words; an unknown method goes by its own name."""

ALIGNING = ("ppo", "sl_cai", "dpo", "kto", "grpo", "rloo")
"""Methods that do not make a model fit the task: their loss is another one, and what they bring is told elsewhere."""

COMPRESSING = ("distill", "prune")
"""Methods that make a model smaller: told elsewhere too."""

LAB_LOSSES = {"rouge1": 3.2, "rouge2": 9.4, "rougeL": 4.0}
"""Percent that LoRA lost against full tuning in the lab of FLAN-T5-base on DialogSum (ROUGE-1 0.4081 against 0.4216)."""

MARGIN = 3.2
"""Percent of full tuning's value: what LoRA may lose and still be called no worse. The reference's own loss on ROUGE-1."""

TOLERANCE = 0.2
"""A measured value further than this share from the planned one is marked."""

CURVE_POINTS = 600
"""Most points in a drawn curve."""

STYLES = 4
"""Line styles that the page tells apart without colour: by dash and by marker."""


@dataclass(frozen=True)
class CurvePoint:
    """One row of a training curve."""

    step: int
    loss: float | None
    validation_loss: float | None


@dataclass(frozen=True)
class Tuned:
    """One training: its stage's name, training.json and curve.csv."""

    name: str
    record: Json
    curve: Sequence[CurvePoint] = ()


def candidate_of(name: str, policies: Mapping[str, str]) -> str | None:
    """The first candidate whose policy lies in a stage's folder; the one of that name where no stage made it.

    Args:
        name: of the stage, which is its folder's name.
        policies: candidate → path of its policy.
    """
    made = (each for each, policy in policies.items() if name in PurePath(policy).parts[:-1])
    return next(made, name if name in policies else None)


# ── one table, a row for each method ──────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Method:
    """One way to make the model fit the task, what it took and what it brought."""

    name: str
    candidate: str | None
    """Whom it made; None where nobody evaluates it."""
    trained: str
    trainable: int
    total: int | None
    steps: str
    seconds: float | None
    memory: float | None
    before: float | None
    """Validation loss before the first step."""
    after: float | None
    """Validation loss after the last step."""
    quality: Estimate
    gain: Difference | None
    """Over the reference; None for the reference itself."""

    @property
    def share(self) -> float | None:
        """Trained parameters, in percent of all."""
        return None if not self.total else 100 * self.trainable / self.total


def methods(
    trainings: Sequence[Tuned],
    prompt: Json | None,
    *,
    policies: Mapping[str, str],
    comparison: Json,
    metric: str,
    reference: str,
    timings: Mapping[str, Json],
) -> list[Method]:
    """The reference, the chosen prompt and every training; empty where nothing was adapted.

    Args:
        trainings: what was trained.
        prompt: prompt.json of the stage `prompt`, with the grid.
        policies: candidate → path of its policy.
        comparison: comparison.json.
        metric: the primary one.
        reference: the candidate that the others are compared with.
        timings: stage → seconds and peak memory.
    """
    if not trainings and prompt is None:
        return []
    total = next((each.record["total_parameters"] for each in trainings if each.record["method"] == "full"), None)

    def row(name: str, candidate: str | None, trained: str, record: Json, curve: Sequence[CurvePoint]) -> Method:
        validated = [point.validation_loss for point in curve if point.validation_loss is not None]
        spent = timings.get(name, {}) if candidate != reference else {}
        entry = comparison.get("candidates", {}).get(candidate, {}).get(metric)
        return Method(
            name=name,
            candidate=candidate,
            trained=trained,
            trainable=record.get("trainable_parameters", 0),
            total=record.get("total_parameters", total),
            steps=f"{number(record['steps'], 0)} × {plural(record['batch_size'], 'pair')}" if record else "",
            seconds=spent.get("seconds"),
            memory=spent.get("peak_memory_bytes"),
            before=validated[0] if len(validated) > 1 else None,
            after=validated[-1] if len(validated) > 1 else None,
            quality=estimate(entry) if candidate else Estimate(None, reason="no candidate of this run"),
            gain=difference(comparison, candidate, reference, metric) if candidate and candidate != reference else None,
        )

    found = [row(reference, reference, "nothing", {}, ())]
    if prompt is not None:
        shots = plural(prompt["chosen"]["shots"], "worked example")
        found.append(row("prompt", candidate_of("prompt", policies), f"nothing: a template, {shots}", {}, ()))
    for each in trainings:
        method = str(each.record["method"])
        found.append(
            row(each.name, candidate_of(each.name, policies), TRAINED.get(method, method), each.record, each.curve)
        )
    return found


def incidents(trainings: Sequence[Tuned]) -> list[str]:
    """What did not go as it was asked for, in words: smaller micro-batches, lowered learning rates."""
    said = []
    for each in trainings:
        record = each.record
        pairs, micro = record["batch_size"], record["micro_batch"]
        if micro < pairs:
            said.append(
                f"{each.name} computed the {plural(pairs, 'pair')} of a step {number(micro, 0)} at a time: less memory, the same step."
            )
        asked, got = record["learning_rate_asked"], record["learning_rate"]
        if got < asked:
            said.append(
                f"{each.name} met a gradient that was no number: it went back to its last checkpoint, "
                f"and on at a learning rate of {_rate(got)} instead of {_rate(asked)}."
            )
    return said


def _rate(value: float) -> str:
    return f"{value:.3g}".replace("e-0", "e-")


# ── the curves ────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Series:
    """One training's curve, in a view box of 100 by 100."""

    name: str
    style: int
    """Which dash and marker it is drawn with."""
    line: str
    """Validation loss; the smoothed training loss where none was measured."""
    thin: str
    """The smoothed training loss beside the validation loss."""
    points: tuple[tuple[float, float, str], ...]
    """Where the validation loss was measured: x, y, and what is said of it."""
    summary: str


@dataclass(frozen=True)
class Chart:
    """All curves over one pair of axes."""

    series: tuple[Series, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]

    @property
    def summary(self) -> str:
        """What the chart shows, in words."""
        return ". ".join(f"{each.name}: {each.summary}" for each in self.series)


def curves(trainings: Sequence[Tuned]) -> Chart | None:
    """Validation loss by step, and the training loss smoothed; None without a loss to draw."""
    trained, validated = {}, {}
    for each in trainings:
        loss = [(float(point.step), point.loss) for point in each.curve if point.loss is not None]
        means = charts.running_mean([value for _, value in loss], window(len(loss)))
        trained[each.name] = list(zip([step for step, _ in loss], means, strict=True))
        validated[each.name] = [
            (float(point.step), point.validation_loss) for point in each.curve if point.validation_loss is not None
        ]
    drawn = [point for found in (trained, validated) for points in found.values() for point in points]
    if not drawn:
        return None
    x = charts.scale([step for step, _ in drawn], margin=0.0)
    y = charts.scale([loss for _, loss in drawn], flip=True)

    def path(points: Sequence[tuple[float, float]]) -> str:
        return charts.line(charts.thin(points, CURVE_POINTS), x, y)

    series = []
    for index, name in enumerate(each.name for each in trainings if trained[each.name] or validated[each.name]):
        measured = validated[name]
        series.append(
            Series(
                name=name,
                style=index % STYLES,
                line=path(measured or trained[name]),
                thin=path(trained[name]) if measured else "",
                points=tuple(
                    (x(step), y(loss), f"{name}, step {number(step, 0)}: validation loss {number(loss, 3)}")
                    for step, loss in measured
                ),
                summary=_summary(trained[name], measured),
            )
        )
    return Chart(
        tuple(series), tuple((x(at), tick(at)) for at in x.ticks(6)), tuple((y(at), tick(at)) for at in y.ticks(5))
    )


def window(steps: int) -> int:
    """Steps that the training loss is averaged over: a tenth of them."""
    return max(1, round(steps / 10))


def _summary(trained: Sequence[tuple[float, float]], measured: Sequence[tuple[float, float]]) -> str:
    if not measured:
        return f"training loss from {number(trained[0][1], 2)} to {number(trained[-1][1], 2)}"
    lowest = min(measured, key=lambda point: point[1])
    said = f"validation loss from {number(measured[0][1], 2)} to {number(measured[-1][1], 2)}"
    rose = lowest[1] < measured[-1][1]
    return f"{said}, lowest {number(lowest[1], 2)} at step {number(lowest[0], 0)}" if rose else said


# ── LoRA against full tuning ──────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Loss:
    """What LoRA loses against full tuning on one metric, in percent of full tuning's value."""

    metric: str
    lost: Estimate
    reference: float
    outcome: statistics.Guard | Literal["not resolved"]


def losses(lora: str, full: str, comparison: Json) -> list[Loss]:
    """LoRA's relative loss on ROUGE-1, 2 and L, and whether non-inferiority is shown with the margin `MARGIN`.

    The interval is that of the ratio, both values resampled together. "No worse" takes an upper end below the margin, "worse" a
    lower end above it; everything between them is not shown. It is not resolved where half the interval is as wide as the
    margin: so few items could not show that nothing is lost.

    Args:
        lora: the candidate tuned with LoRA.
        full: the candidate all of whose weights were tuned.
        comparison: comparison.json.
    """
    found = []
    for metric, reference in LAB_LOSSES.items():
        lost = relative(comparison, lora, full, metric).turned()
        interval = statistics.Interval(lost.value, lost.low, lost.high)
        outcome: statistics.Guard | Literal["not resolved"]
        outcome = statistics.no_worse(interval, MARGIN, lower_is_better=True)
        if outcome == "not shown" and interval.low is not None and not statistics.resolves(interval, MARGIN):
            outcome = "not resolved"
        found.append(Loss(metric, lost, reference, outcome))
    return found


def rivals(trainings: Sequence[Tuned], policies: Mapping[str, str]) -> tuple[str, str] | None:
    """The candidates tuned with LoRA and in full; None unless there are both."""
    made = {each.record["method"]: candidate_of(each.name, policies) for each in reversed(trainings)}
    lora, full = made.get("lora") or made.get("qlora"), made.get("full")
    return (lora, full) if lora and full else None


# ── the grid of prompts ───────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Cell:
    """One prompt that was tried."""

    template: str
    shots: int
    decoding: str
    score: Estimate
    finished: float | None
    """Percent of the answers that ended by themselves."""
    tokens: float | None
    """Mean length of an answer."""
    is_chosen: bool


def cells(prompt: Json) -> list[Cell]:
    """The grid of templates, numbers of worked examples and decodings, in the order in which it was tried."""
    return [
        Cell(
            template=visible(each["template"]),
            shots=each["shots"],
            decoding=visible(each["decoding"]),
            score=Estimate(each["score"], each.get("ci_low"), each.get("ci_high"), each.get("n")),
            finished=None if each.get("finished") is None else 100 * each["finished"],
            tokens=each.get("tokens"),
            is_chosen=each["chosen"],
        )
        for each in prompt["cells"]
    ]


def decoding(asked: Json) -> str:
    """How the chosen prompt's answers are written, in words.

    Args:
        asked: the prompt.json that lies in the policy's folder.
    """
    values = asked["decoding"]
    if not values["temperature"]:
        return f"the likeliest token every time, at most {values['max_new_tokens']}"
    among = [f"temperature {values['temperature']:g}"]
    among += [f"the {values['top_k']} likeliest tokens"] if values["top_k"] else []
    among += [f"the likeliest tokens with a probability of {values['top_p']:g} together"] if values["top_p"] < 1 else []
    return f"tokens drawn at random ({', '.join(among)}), at most {values['max_new_tokens']}"


# ── planned against measured ──────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Held:
    """A measured value held against the planned one, in bytes or seconds."""

    planned: float | None
    measured: float | None

    @property
    def ratio(self) -> float | None:
        """Measured over planned."""
        return self.measured / self.planned if self.planned and self.measured is not None else None

    @property
    def is_off(self) -> bool:
        """Whether the plan is wrong by more than a fifth."""
        return self.ratio is not None and abs(self.ratio - 1) > TOLERANCE + 1e-9

    @property
    def said(self) -> str:
        """In words."""
        if self.ratio is None:
            return "not measured" if self.planned else "not planned"
        off = round(100 * (self.ratio - 1))
        return "as planned" if off == 0 else f"{abs(off)}% {'more' if off > 0 else 'less'} than planned"


@dataclass(frozen=True)
class Kept:
    """One stage's memory and time, as planned and as measured."""

    name: str
    memory: Held
    time: Held
    parts: tuple[tuple[str, float], ...]
    """What the planned memory is for, in bytes."""


def plans(trainings: Sequence[Tuned], timings: Mapping[str, Json]) -> list[Kept]:
    """Every training's plan beside what it took; what is missing on either side is None.

    Memory was planned by the training itself (training.json: planned). Time was foretold by `select`, which measures a step
    of each method on this machine, and is no part of any result: it stands among the timings. It goes by the tokens that were
    trained on, and is that of the training loop, without loading, validating and saving.

    Args:
        trainings: what was trained.
        timings: stage → seconds, peak memory, and what else was measured.
    """
    found = []
    probed = timings.get("select", {})
    for each in trainings:
        planned: Mapping[str, Any] = each.record.get("planned") or {}
        spent, memory = timings.get(each.name, {}), planned.get("bytes") or {}
        step, tokens = probed.get(f"step_seconds/{each.record['method']}"), probed.get("step_tokens")
        seconds = None if step is None or not tokens else step / tokens * each.record["tokens"]
        found.append(
            Kept(
                each.name,
                Held(memory.get("total"), spent.get("peak_memory_bytes")),
                Held(seconds, spent.get("training_seconds")),
                tuple((part, value) for part, value in memory.items() if part != "total" and value),
            )
        )
    return found


# ── for `dvc plots` ───────────────────────────────────────────────────────────────────────────────────────────────


def tradeoff_csv(found: Sequence[Method], metric: str) -> str:
    """Quality against trained parameters as CSV, a line for each training that was evaluated."""
    lines = ["candidate,trainable_parameters,metric,value,ci_low,ci_high"]
    for each in found:
        if each.candidate is not None and each.trainable and each.quality.value is not None:
            ends = ("" if end is None else f"{end:.6g}" for end in (each.quality.low, each.quality.high))
            lines.append(f"{each.candidate},{each.trainable},{metric},{each.quality.value:.6g},{','.join(ends)}")
    return "\n".join(lines) + "\n"
