"""Report: what was asked, what was done, which candidate won and how sure that is, as one HTML file.

python -m stages.report --scope artifacts/scope --data artifacts/validate --select artifacts/select \
        --evaluations artifacts/evaluate --efficiency artifacts/efficiency --comparison reports/comparison.json \
        --compress artifacts/compress/compress.json --promotion artifacts/promote/decision.json \
        --timings metrics --lock dvc.lock \
        --out reports/report.html --out-tradeoff reports/tradeoff.csv
"""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from tunemill import aligned, constitutional
from tunemill.adaptation import ALIGNING, COMPRESSING, CurvePoint, Tuned, tradeoff_csv
from tunemill.artifacts import AGAIN, read_json, read_lock, read_text, read_timings
from tunemill.checkpoints import write_text
from tunemill.errors import UserError
from tunemill.log import Log
from tunemill.material import Material
from tunemill.params import Candidates, Params
from tunemill.report import methods, page
from tunemill.stage import Metrics, main
from tunemill.verdicts import criteria


class Config(Params):
    """What the report shows."""

    title: str = Field(min_length=1)
    """Name of the report, above everything; the use case's own title comes from scope."""
    group: str = Field(min_length=1)
    """What one group of the data is, in the singular: "package" for the default corpus."""
    samples: int = Field(ge=0, le=200)
    """How many test items to show side by side: a quarter each of best, median, worst, the rest at random."""
    seed: int = Field(ge=0)
    """Of the random samples."""


def run(
    cfg: Config,
    *,
    scope: Path,
    data: Path,
    select: Path,
    evaluations: Path,
    efficiency: Path | None,
    comparison: Path,
    compress: Path | None = None,
    promotion: Path | None = None,
    timings: Path | None,
    lock: Path | None,
    candidates: Candidates,
    out: Path,
    out_tradeoff: Path,
    log: Log,
) -> Metrics:
    """Write the report as `out`, and quality against trained parameters for `dvc plots` as `out_tradeoff`."""
    # 1. Read: only what the candidates name; an optional part that is not there is said to be missing on the page.
    names = tuple(candidates.root)
    policies = {name: candidate.policy for name, candidate in candidates.root.items()}
    asked = next((read_json(path) for name in names if (path := evaluations / name / "prompt.json").exists()), None)
    taught = taught_by_people(evaluations, names)
    material = Material(
        scope=read_json(scope / "scope.json"),
        candidates=names,
        comparison=read_json(comparison),
        splits=read_json(data / "splits.json"),
        instances={name: read_rows(evaluations / name / "instances.jsonl") for name in names},
        scores={name: read_json(evaluations / name / "scores.json") for name in names},
        perturbed=read_optional(evaluations, names, "perturbed.jsonl"),
        choices=read_optional(evaluations, names, "tasks.jsonl"),
        red_team=read_optional(evaluations, names, "red_team.jsonl"),
        plan=read_json(select / "plan.json"),
        decision=read_json(select / "candidates.json"),
        policies=policies,
        bases={name: candidate.base for name, candidate in candidates.root.items()},
        trainings=read_trainings(evaluations, policies),
        prompt=asked["found"] if asked else None,
        asked=asked,
        feedback=read_feedback(taught) if taught else None,
        reward=read_json(taught / "reward.json") if taught else None,
        reward_histogram=read_table(taught / "reward_histogram.csv") if taught else (),
        reward_reliability=read_table(taught / "reward_reliability.csv") if taught else (),
        supervised=read_supervised(evaluations, names),
        labelled=read_labelled(evaluations, names),
        optimised=read_optimised(evaluations, names),
        beside=read_beside(evaluations, names),
        efficiency=read_json(efficiency / "efficiency.json") if efficiency else None,
        compress=read_json(compress) if compress else None,
        promotion=read_json(promotion) if promotion else None,
        timings=read_timings(timings) if timings else {},
        lock=read_lock(lock) if lock else None,
    )

    # 2. Say it.
    html = page(material, title=cfg.title, group=cfg.group, count=cfg.samples, seed=cfg.seed)
    write_text(out, html)
    write_text(out_tradeoff, tradeoff_csv(methods(material), material.scope["primary_metric"]))
    log.note(f"{len(html.encode()) / 1024:.0f} KiB, opens in any browser")
    outcomes = [each.outcome for each in criteria(material)]
    return {"criteria": len(outcomes), "criteria_met": outcomes.count("met")}


def read_rows(path: Path) -> list[dict[str, Any]]:
    """A JSONL file of objects.

    Raises:
        UserError: the file is missing, or a line is damaged.
    """
    lines = read_text(path).split("\n")
    return [_object(f"{path}:{number}", line) for number, line in enumerate(lines, start=1) if line.strip()]


def read_optional(evaluations: Path, names: tuple[str, ...], file: str) -> dict[str, list[dict[str, Any]]]:
    """Candidate → rows of its `file`; candidates that have none are left out.

    Raises:
        UserError: a line is damaged.
    """
    return {name: read_rows(path) for name in names if (path := evaluations / name / file).exists()}


def read_trainings(evaluations: Path, policies: Mapping[str, str]) -> list[Tuned]:
    """The training of each stage that adapted a candidate; of several seeds the first. What aligned one is no adaptation.

    Args:
        evaluations: folder of the stage `evaluate`, which keeps what a policy tells about its training.
        policies: candidate → path of its policy.
    """
    found: dict[str, Tuned] = {}
    for name, policy in policies.items():
        folder, parts = evaluations / name, Path(policy).parts
        stage = parts[1] if parts[0] == "artifacts" and len(parts) > 2 else name
        if stage in found or not (folder / "training.json").exists():
            continue
        record = read_json(folder / "training.json")
        if record.get("method") not in (*ALIGNING, *COMPRESSING):
            found[stage] = Tuned(stage, record, read_curve(folder / "curve.csv"))
    return list(found.values())


def read_curve(path: Path) -> list[CurvePoint]:
    """The training curve; an empty field is a value that was not measured.

    Raises:
        UserError: a column is missing, or a field is no number.
    """
    points = []
    rows = csv.DictReader(read_text(path).splitlines())
    for number, row in enumerate(rows, start=2):
        try:
            loss, validation = (float(row[name]) if row[name] else None for name in ("loss", "validation_loss"))
            points.append(CurvePoint(int(row["step"]), loss, validation))
        except (KeyError, TypeError, ValueError):
            raise UserError(
                "not a row of a training curve",
                where=f"{path}:{number}",
                expected="numbers in the columns step, loss and validation_loss (empty where not measured)",
                fix=AGAIN,
            ) from None
    return points


def read_feedback(folder: Path) -> dict[str, Any] | None:
    """What a policy's reward model learnt from; None where that is not known."""
    return read_json(folder / "feedback.json") if (folder / "feedback.json").exists() else None


def is_labelled(feedback: Mapping[str, Any] | None) -> bool:
    """Whether a judge labelled pairs (stage rl_cai)."""
    return bool(feedback and feedback.get("judge"))


def taught_by_people(evaluations: Path, names: tuple[str, ...]) -> Path | None:
    """Folder of the first candidate whose reward model learnt what people said; of the first with a reward model where none did."""
    folders = [evaluations / name for name in names if (evaluations / name / "reward.json").exists()]
    return next((each for each in folders if not is_labelled(read_feedback(each))), next(iter(folders), None))


def read_supervised(evaluations: Path, names: tuple[str, ...]) -> list[constitutional.Supervised]:
    """What sl_cai told of the candidates that it made; trainings on the same chains are one."""
    found: list[constitutional.Supervised] = []
    for name in names:
        folder = evaluations / name
        if not (folder / "cai.json").exists():
            continue
        cai, chains = read_json(folder / "cai.json"), read_rows(folder / "chains.jsonl")
        same = next((at for at, each in enumerate(found) if (each.cai, each.chains) == (cai, chains)), None)
        if same is not None:
            found[same] = dataclasses.replace(found[same], candidates=(*found[same].candidates, name))
        else:
            training, curve = read_json(folder / "training.json"), read_table(folder / "curve.csv")
            found.append(constitutional.Supervised((name,), cai, chains, training, curve))
    return found


def read_labelled(evaluations: Path, names: tuple[str, ...]) -> list[constitutional.Labelled]:
    """What rl_cai told of its judge, and reward of the model that learnt its labels; policies rewarded by the same are one."""
    found: list[constitutional.Labelled] = []
    for name in names:
        folder = evaluations / name
        feedback = read_feedback(folder)
        if feedback is None or not is_labelled(feedback) or not (folder / "reward.json").exists():
            continue
        reward = read_json(folder / "reward.json")
        same = next((at for at, each in enumerate(found) if (each.feedback, each.reward) == (feedback, reward)), None)
        if same is not None:
            found[same] = dataclasses.replace(found[same], candidates=(*found[same].candidates, name))
        else:
            found.append(constitutional.Labelled((name,), feedback, reward))
    return found


def read_optimised(evaluations: Path, names: tuple[str, ...]) -> list[aligned.Run]:
    """What PPO told of each candidate that it made."""
    return [
        aligned.Run(
            candidate=name,
            record=read_json(folder / "ppo.json"),
            training=read_json(folder / "training.json"),
            curve=read_table(folder / "updates.csv"),
            monitor=read_table(folder / "monitor.csv"),
            samples=read_rows(folder / "samples.jsonl"),
            feedback=read_feedback(folder),
        )
        for name in names
        if ((folder := evaluations / name) / "ppo.json").exists()
    ]


def read_beside(evaluations: Path, names: tuple[str, ...]) -> list[aligned.Beside]:
    """What the ways beside PPO told of each candidate that they made."""
    return [
        aligned.Beside(name, read_json(folder / "training.json"), read_table(folder / "updates.csv"))
        for name in names
        if ((folder := evaluations / name) / "updates.csv").exists() and not (folder / "ppo.json").exists()
    ]


def read_table(path: Path) -> list[aligned.Row]:
    """A CSV file of numbers; an empty field is a value that was not measured.

    Raises:
        UserError: the file is missing, or a field is no number.
    """
    rows = csv.DictReader(read_text(path).splitlines())
    found = []
    for number, row in enumerate(rows, start=2):
        try:
            found.append({name: float(value) if value else None for name, value in row.items()})
        except (TypeError, ValueError):
            raise UserError(
                "not a row of numbers",
                where=f"{path}:{number}",
                expected=f"a number or nothing in each of {', '.join(rows.fieldnames or ())}",
                fix=AGAIN,
            ) from None
    return found


def _object(where: Path | str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"not valid JSON: {error.msg}", where=str(where), fix=AGAIN) from None
    if not isinstance(value, dict):
        raise UserError(f"holds a {type(value).__name__}", where=str(where), expected="a JSON object", fix=AGAIN)
    return value


if __name__ == "__main__":
    main(run)
