"""Phases: what each took, beside what was planned, and the cheat-sheet."""

from __future__ import annotations

from tests import report_artifacts as made
from tests.tunemill.test_report import TRAININGS, material
from tunemill import phases

TIMINGS = {
    "scope": {"seconds": 1.0},
    "select": {"seconds": 39.0, "step_tokens": 1536, "step_seconds/full": 1.5, "step_seconds/lora": 1.5},
    "sft": {"seconds": 100.0, "peak_memory_bytes": 5 * 2**30, "training_seconds": 80.0},
    "lora": {"seconds": 60.0, "peak_memory_bytes": 3 * 2**30, "training_seconds": 50.0},
    "ppo@harm": {"seconds": 200.0},
    "evaluate@lora": {"seconds": 90.0},
    "evaluate@gone": {"seconds": 1e6},
    "bespoke": {"seconds": 10.0},
    "report": {"seconds": 1e6},
}


def test_stages_are_summed_by_phase_in_the_lifecycles_order():
    found = {each.sheet.name: each for each in phases.phases(material(timings=TIMINGS, trainings=TRAININGS, lock=None))}
    assert list(found) == ["Scope and data", "Select", "Tune", "Align", "Evaluate", "bespoke"]
    assert found["Tune"].stages == ("sft", "lora") and found["Tune"].seconds == 160.0
    assert found["Tune"].memory == 5 * 2**30 and found["Tune"].share == 32.0
    assert (
        found["Align"].stages == ("ppo",) and found["Align"].seconds == 200.0
    )  # a run of a stage that is no candidate's
    assert sum(each.share for each in found.values()) == 100.0
    assert found["bespoke"].sheet.objective == "—"


def test_what_was_planned_stands_beside_what_the_same_trainings_took():
    found = {each.sheet.name: each for each in phases.phases(material(timings=TIMINGS, trainings=TRAININGS, lock=None))}
    tune = found["Tune"]
    step = 1.5 / 1536 * made.training("lora")["tokens"]
    assert tune.time is not None and tune.time.planned == 2 * step and tune.time.measured == 130.0
    assert tune.planned_memory is not None and tune.planned_memory.planned == sum(
        value for key, value in made.training("sft")["planned"]["bytes"].items() if key != "total"
    )
    assert found["Align"].time is None and found["Align"].planned_memory is None


def test_the_disk_is_what_the_lock_says():
    found = {each.sheet.name: each for each in phases.phases(material(timings=TIMINGS))}
    assert found["Select"].disk == 269_030_016
    assert found["Tune"].disk == 3 * 9_800_000


def test_every_stage_of_the_cheat_sheet_is_in_one_phase():
    stages = [stage for sheet in phases.SHEETS for stage in sheet.stages]
    assert len(stages) == len(set(stages))


def test_what_ran_side_by_side_took_less_than_its_sum():
    def costs(*spans: tuple[float | None, float]) -> list[phases.StageCost]:
        return [phases.StageCost(f"s{at}", seconds, None, "", 0, 0, began) for at, (began, seconds) in enumerate(spans)]

    apart = costs((100.0, 10.0), (110.0, 5.0), (500.0, 1.0))
    assert phases.spent(apart) == 16.0 and phases.side_by_side(apart) is None
    # One within another, one that overlaps, and one of which nobody knows when it began.
    beside = costs((200.0, 10.0), (100.0, 10.0), (102.0, 2.0), (105.0, 15.0), (None, 4.0))
    assert phases.spent(beside) == 20.0 + 10.0 + 4.0
    together = phases.side_by_side(beside)
    assert together is not None and round(together, 3) == round(41 / 34, 3)
    assert phases.spent([]) == 0.0 and phases.side_by_side([]) is None

    timings = {"scope": {"seconds": 60.0, "began": 1000.0}, "select": {"seconds": 60.0, "began": 1030.0}}
    budgets = {each.what: each for each in phases.budgets(material(timings=timings, trainings=(), lock=None))}
    assert budgets["Time of all stages"].measured == "1 min 30 s"
