"""Promote: check the scope's criteria against what was measured, and write down the decision and the model's card.

    python -m stages.promote --scope artifacts/scope --data artifacts/validate --select artifacts/select \
        --evaluations artifacts/evaluate --efficiency artifacts/efficiency --comparison reports/comparison.json \
        --timings metrics --lock dvc.lock --out artifacts/promote

The criteria decide, and nothing else does (`tunemill.promotion`): each is about a value, a difference or a ratio with its interval. A
refusal is a result like a promotion, and no failure of this stage. Under `out`:

- decision.json: the verdict, every criterion with its value, interval and shortfall, hashes of what was judged and by which items;
- README.md: the model card (Mitchell et al. 2019, "Model cards for model reporting") in the hub's layout (`tunemill.model_card`);
- scores.jsonl: the score of every test item, by which the registry compares a later newcomer with this one.

Nothing is registered here: that is `python -m tunemill.registry`, at the end of `make run` and by `make promote`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from tunemill import artifacts, cards, checkpoints, metrics, model_card, promotion, records
from tunemill.errors import UserError, nearest
from tunemill.log import Log
from tunemill.params import Candidates, Params
from tunemill.stage import Metrics, main


class Config(Params):
    """What is to be promoted, and as what."""

    candidate: str
    """The candidate that ships if all criteria are met."""
    model: str | None = Field(pattern=r"^[\w][\w .-]{0,99}$")
    """Its name in the registry; null: the scope's name."""
    champion_margin: float = Field(ge=0)
    """Points of the primary metric that it may be worse than the registry's present champion and still take its place."""
    weights_mib: float = Field(ge=0)
    """Up to this size the registry keeps the policy's files with the version; of a larger policy a list with hashes. MiB."""
    language: tuple[str, ...] = Field(min_length=1)
    """Languages of the task's texts, ISO 639-1, for the model card."""


def run(
    cfg: Config,
    *,
    scope: Path,
    data: Path,
    select: Path,
    evaluations: Path,
    efficiency: Path | None = None,
    compress: Path | None = None,
    comparison: Path,
    timings: Path | None = None,
    lock: Path | None = None,
    candidates: Candidates,
    out: Path,
    log: Log,
) -> Metrics:
    """Write decision.json, README.md and scores.jsonl under `out`."""
    # 1. Read what was asked, and what was measured.
    name = cfg.candidate
    if name not in candidates.root:
        raise UserError(
            f"'{name}' is no candidate",
            where="params.yaml: promote.candidate",
            expected="one of " + ", ".join(candidates.root),
            exit_code=2,
        )
    goal, compared = artifacts.read_json(scope / "scope.json"), artifacts.read_json(comparison)
    measured = artifacts.read_json(efficiency / "efficiency.json") if efficiency else None
    scores = artifacts.read_json(evaluations / name / "scores.json")
    rows = [row for _, row in records.read_objects(evaluations / name / "instances.jsonl")]
    policy, base = Path(candidates.root[name].policy), Path(candidates.root[name].base)
    adapter = (policy / "adapter_config.json").is_file()
    artifacts.evaluated(name, scores["policy_hash"], policy, base)

    # 2. Decide.
    measurable(goal["criteria"], compared)
    criteria = promotion.judged(goal["criteria"], compared, measured)
    verdict, sentence = promotion.verdict(name, criteria)
    primary = compared["primary_metric"]
    known = cards.front_matter(policy / "README.md") or cards.front_matter(base / "README.md")
    decision: dict[str, Any] = {
        "candidate": name,
        "model": cfg.model or goal["name"],
        "verdict": verdict,
        "sentence": sentence,
        "criteria": [each.written() for each in criteria],
        "policy": policy.as_posix(),
        "base": base.as_posix(),
        "policy_hash": scores["policy_hash"],
        "base_hash": checkpoints.tree_hash(base),
        "test_hash": test_hash([row["id"] for row in rows]),
        "test_items": len(rows),
        "primary_metric": primary,
        "score": compared["candidates"][name][primary],
        "reference": compared["reference"],
        "champion_margin": cfg.champion_margin,
        "weights_mib": cfg.weights_mib,
        # How the registry resamples when it compares with its champion: as the comparison did.
        "bootstrap": {key: compared[key] for key in ("method", "resamples", "seed", "level")}
        | {"metric": metrics.of_items(primary)},
        "base_model": known.get("base_model", base.name),
        "license": known.get("license", "unknown"),
    }

    # 3. Write: the decision, the card that is made of facts alone, and each item's scores.
    checkpoints.write_json(out / "decision.json", decision)
    training = evaluations / name / "training.json"
    facts = model_card.Facts(
        scope=goal,
        decision=decision,
        criteria=criteria,
        comparison=compared,
        efficiency=measured,
        compress=artifacts.read_json(compress / "compress.json") if compress else None,
        splits=artifacts.read_json(data / "splits.json"),
        plan=artifacts.read_json(select / "plan.json"),
        scores=scores,
        training=artifacts.read_json(training) if training.is_file() else None,
        lock=artifacts.read_lock(lock) if lock else {},
        timings=artifacts.read_timings(timings) if timings else {},
        kind="adapter" if adapter else "gguf" if any(policy.glob("*.gguf")) else "model",
        language=cfg.language,
    )
    checkpoints.write_text(out / "README.md", model_card.card(facts))
    records.write_objects(
        out / "scores.jsonl", [{"id": row["id"], "group": row["group"], **row["scores"]} for row in rows]
    )
    log.note(sentence)
    met = sum(each.outcome == "met" for each in criteria)
    return {"criteria": len(criteria), "criteria_met": met, "promoted": int(verdict == "promoted")}


def test_hash(ids: Sequence[str]) -> str:
    """SHA-256 of the ids of the items that were answered, as `validate` hashes those of a split."""
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()


def measurable(criteria: Sequence[Mapping[str, Any]], comparison: Mapping[str, Any]) -> None:
    """See that every criterion names a metric that there is.

    Raises:
        UserError: one does not.
    """
    known = promotion.known(comparison)
    for index, rule in enumerate(criteria):
        if rule["metric"] not in known:
            near = nearest(rule["metric"], known)
            raise UserError(
                f"nothing has measured '{rule['metric']}'",
                where=f"params.yaml: scope.criteria.{index}.metric",
                expected="one of " + ", ".join(known),
                fix=f"did you mean '{near}'?" if near else "name one of these",
                exit_code=2,
            )


if __name__ == "__main__":
    main(run)
