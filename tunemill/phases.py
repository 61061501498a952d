"""What every phase of the lifecycle took, beside what was planned and allowed, and the course's cheat-sheet beside it.

The cheat-sheet is the one of "Generative AI with Large Language Models" (DeepLearning.AI and AWS, 2023): for each phase how
long it usually takes, what is customised in it, what its objective is and how much expertise it needs; in our own words. Pure, no I/O.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tunemill import adaptation, lineage
from tunemill.adaptation import Held
from tunemill.material import Material, reference
from tunemill.verdicts import verdict
from tunemill.wording import duration, number, size, tick


@dataclass(frozen=True)
class Sheet:
    """A row of the cheat-sheet."""

    name: str
    stages: tuple[str, ...]
    usual: str
    customised: str
    objective: str
    expertise: str


SHEETS = (
    Sheet(
        "Scope and data",
        ("scope", "collect", "validate"),
        "hours to days, mostly of people",
        "nothing of the model: the use case, the criteria, the data",
        "say what success is before anything is tried; rows that can be trusted",
        "of the subject more than of models",
    ),
    Sheet(
        "Select",
        ("select",),
        "hours",
        "which model, its size, its licence",
        "a base that fits the task and the machine",
        "medium",
    ),
    Sheet(
        "Pre-train",
        ("pretrain",),
        "days to months",
        "architecture, vocabulary and all weights, on very much text of the domain",
        "predict the next token",
        "high",
    ),
    Sheet(
        "Prompt",
        ("prompt",),
        "no training",
        "no weights: the prompt, worked examples, decoding",
        "do the task better",
        "low",
    ),
    Sheet(
        "Tune",
        ("sft", "lora", "prompt_tune", "ia3"),
        "minutes to hours",
        "all weights, adapters or a soft prompt, on examples of the task",
        "do the task better",
        "medium",
    ),
    Sheet(
        "Align",
        (
            "harm", "feedback", "reward", "ppo", "sl_cai", "rl_cai", "dpo", "kto", "grpo", "rloo", "best_of",
        ),
        "minutes to hours, and people’s time for feedback",
        "weights or adapters, by a reward model that learnt what people or a constitution prefer",
        "be helpful, honest and harmless",
        "medium to high",
    ),
    Sheet(
        "Compress",
        ("distill", "quantize", "prune", "compress"),
        "minutes to hours",
        "fewer layers, fewer bits, fewer weights",
        "answer faster in less memory",
        "medium",
    ),
    Sheet(
        "Evaluate",
        ("evaluate", "efficiency", "judge", "compare"),
        "minutes to hours",
        "nothing",
        "know which is better, and how sure that is",
        "medium",
    ),
    Sheet(
        "Integrate",
        ("promote", "report", "apply"),
        "minutes",
        "what the model is used in",
        "ship it only if the criteria are met",
        "low",
    ),
)  # fmt: skip
"""The phases, in the lifecycle's order; a stage that none of them knows is told as a phase of its own."""


# ── what each stage took ──────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class StageCost:
    """What one stage took."""

    name: str
    seconds: float
    memory: float | None
    machine: str
    seconds_bar: float
    memory_bar: float
    began: float | None = None
    """Seconds since 1970; None where nothing says when."""


def spent(costs: Sequence[StageCost]) -> float:
    """Seconds in which stages were at work: those that ran side by side took less than their sum."""
    total, until = 0.0, float("-inf")
    for each in sorted(costs, key=lambda cost: cost.began or 0.0):
        if each.began is None:
            total += each.seconds
            continue
        total += max(0.0, each.began + each.seconds - max(until, each.began))
        until = max(until, each.began + each.seconds)
    return total


def side_by_side(costs: Sequence[StageCost]) -> float | None:
    """How many stages were at work at a time, on average; None where it was one after the other."""
    together = sum(each.seconds for each in costs) / (spent(costs) or 1.0)
    return together if together > 1.05 else None


def stage_costs(material: Material) -> list[StageCost]:
    """Time and peak memory of each stage that was timed, in the pipeline's order; this stage itself is not over yet."""
    lock = material.lock or {}
    order = {name: index for index, name in enumerate(lineage.stage_order(lock, material.candidates))}
    told = {name: each for name, each in material.timings.items() if lineage.is_live(name, material.candidates, lock)}
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
            told[name].get("began"),
        )
        for name in sorted(told, key=lambda each: (order.get(each, len(order)), each))
    ]


# ── what each phase took ──────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Phase:
    """A phase as it went, beside the cheat-sheet's row of it."""

    sheet: Sheet
    stages: tuple[str, ...]
    """Those that ran, one name for all runs of a stage."""
    seconds: float | None
    share: float
    """Of the time of all phases, percent."""
    memory: float | None
    disk: int | None
    time: Held | None
    """Training loops as planned and as measured; None where nothing was planned."""
    planned_memory: Held | None
    """The largest planned memory of a training beside the measured one of the same."""


def phases(material: Material) -> list[Phase]:
    """The phases that ran, in the lifecycle's order."""
    costs = stage_costs(material)
    total = sum(each.seconds for each in costs) or 1.0
    sizes = lineage.stage_bytes(material.lock or {}, material.candidates)
    plans = adaptation.plans(material.trainings, material.timings)
    ran = list(dict.fromkeys([*(_stage(each.name) for each in costs), *(_stage(name) for name in sizes)]))
    known = {stage for sheet in SHEETS for stage in sheet.stages}
    others = [Sheet(stage, (stage,), "—", "—", "—", "—") for stage in ran if stage not in known]
    found = []
    for sheet in (*SHEETS, *others):
        stages = tuple(stage for stage in sheet.stages if stage in ran)
        if not stages:
            continue
        own = [each for each in costs if _stage(each.name) in stages]
        disk = [count for name, count in sizes.items() if _stage(name) in stages]
        foretold = [each for each in plans if each.name in stages]
        times = [each.time for each in foretold if each.time.planned is not None]
        memories = [each.memory for each in foretold if each.memory.planned is not None]
        seconds = sum(each.seconds for each in own)
        found.append(
            Phase(
                sheet=sheet,
                stages=stages,
                seconds=seconds if own else None,
                share=round(100 * seconds / total, 2),
                memory=max((each.memory for each in own if each.memory), default=None),
                disk=sum(disk) if disk else None,
                time=Held(_sum(each.planned for each in times), _sum(each.measured for each in times))
                if times
                else None,
                planned_memory=max(memories, key=lambda each: each.planned or 0.0) if memories else None,
            )
        )
    return found


def _stage(name: str) -> str:
    return name.partition("@")[0]


def _sum(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


# ── what was allowed ──────────────────────────────────────────────────────────────────────────────────────────────


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
        took = spent(costs) if costs else None
        found.append(
            Budget(
                "Time of all stages",
                _limit(limits.get("minutes"), "min"),
                "—",
                duration(took),
                _within(took, limits.get("minutes"), 60),
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
    who = verdict(material).leader
    ratio = (material.efficiency or {}).get("candidates", {}).get(who, {}).get("decode_ratio")
    if who != reference(material) and (ratio is not None or "decode_ratio" in limits):
        least = limits.get("decode_ratio")
        found.append(
            Budget(
                f"Tokens per second of {who}",
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
