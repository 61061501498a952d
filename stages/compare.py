"""Compare: what may be said about the candidates, with intervals and paired tests on the same test items.

    python -m stages.compare --evaluations artifacts/evaluate --efficiency artifacts/efficiency --scope artifacts/scope \
        --out reports/comparison.json --out-scores reports/scores.csv --out-table metrics/compare

Every interval resamples whole groups (packages), since items of one package are alike; where there are too few groups it
resamples items, and says so in `method`. Beside it stands the interval that takes items as independent (`item_…`). One
set of resamples serves all systems and metrics. "Better" is said only where the interval lies above zero and, for the
declared family (primary metric, each candidate against the reference), Holm's p-value is below 0.05 too. `relative` is the
difference in percent of the second's value, both resampled together.

Beside the scores stand HELM's seven categories (`tunemill.helm`): every figure with its interval and its paired difference to the
reference, the smallest difference that so many items would usually show, mean win rates, and McNemar's test of the questions
with choices. Candidates that differ in the training seed alone can be taken together (`seeds`). What tuning has made of other tasks
stands under `forgetting`: see `tunemill.forgetting`.

What alignment has done stands under `alignment`, for each candidate that `aligned` names, against the one that it started from:
the harm of its answers to red-team prompts, at matched length too, refusals, nonsense, how evasive it is on harmless prompts, and
guards on offence and on the task. "Less harmful" is said only where all of its conditions hold (`tunemill.alignment`). Candidates of
several training seeds are taken together there as well. `controls` names what else one is held against in the same way, and must have
less harm than: a policy with a reward that knows nothing of harm, say.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import Field, ValidationInfo, field_validator

from tunemill import alignment, forgetting, heldout, helm, metrics, promotion, records, statistics
from tunemill.checkpoints import write_json, write_text
from tunemill.errors import UserError
from tunemill.log import Log
from tunemill.params import Candidates, Params
from tunemill.stage import Metrics, main
from tunemill.wording import plural

if TYPE_CHECKING:
    import numpy as np

METRICS = (*metrics.ROUGE_TYPES, "bleu")
PLOTTED = metrics.ROUGE_TYPES
LEVEL = 0.95
FEWEST_SEEDS = 3
"""Fewest trainings that a verdict about a method may rest on."""
ENDS = (("least", "low"), ("most", "high"))
NO_REFERENCE = "no test item has a reference"
FURTHER = {
    "perturbed": ("id", "perturbed items"),
    "people": ("id", "questions about people"),
    "questions": ("task", "questions of other tasks"),
    "red_team": ("id", "red-team prompts"),
    "harmless": ("id", "harmless prompts"),
    "probes": ("id", "beginnings of texts"),
    "generated": ("task", "questions of benchmarks"),
}
"""What else all candidates must have been asked alike: the field of `helm.Evidence` → what its rows are grouped by, and are."""


class Margins(Params):
    """How much more of it (of help and the task: how much less) alignment may bring without its being called worse."""

    refusal: float = Field(gt=0, le=1)
    """Share of answers that refuse, by the judge and by the list of phrases each; of harmless prompts as well."""
    nonsense: float = Field(gt=0, le=1)
    """Share of answers that say nothing, or the same again and again."""
    surprise: float = Field(gt=0)
    """Nats per token that answers surprise the model that all candidates started from."""
    offence: float = Field(gt=0, le=1)
    """Probability that an answer is offensive."""
    helpful: float = Field(gt=0, le=1)
    """Likeness of answers to harmless prompts to right answers, 0 to 1."""
    task: float = Field(gt=0, le=100)
    """Points of the primary metric on the task."""


class Config(Params):
    """How the comparison is made."""

    seed: int = Field(ge=0)
    """Of the resamples."""
    resamples: int = Field(ge=1000, le=1_000_000)
    """Bootstrap resamples."""
    reference: str
    """The candidate that the others are compared with."""
    min_groups: int = Field(ge=statistics.FEWEST)
    """Fewest groups whose resampling gives an interval to rely on; below, items are resampled."""
    pairs: tuple[tuple[str, str], ...]
    """Further pairs to compare, beside those with the reference, the baselines and the scope's criteria."""
    seeds: dict[str, Annotated[tuple[str, ...], Field(min_length=1)]]
    """Name → candidates that are one method with several training seeds: they are compared with the reference together."""
    aligned: dict[str, str]
    """Aligned candidate → the candidate that its alignment started from, which it is compared with on red-team and harmless prompts."""
    controls: dict[str, Annotated[tuple[str, ...], Field(min_length=1)]]
    """Aligned candidate, or several of one method by its name under `seeds` → what else it is compared with there."""
    margins: Margins
    """Of these comparisons."""

    @field_validator("controls")
    @classmethod
    def _of_aligned(cls, value: dict[str, tuple[str, ...]], info: ValidationInfo) -> dict[str, tuple[str, ...]]:
        if not {"aligned", "seeds"} <= info.data.keys():  # a mistake there is told there
            return value
        starts: dict[str, str] = info.data["aligned"]
        trainings = {name: (name,) for name in starts}
        trainings |= {name: of for name, of in info.data["seeds"].items() if len(of) > 1 and {*of} <= {*starts}}
        for name, controls in value.items():
            if len({*controls}) < len(controls):
                raise ValueError(f"a control of '{name}' is named twice")
            if name not in trainings:
                raise ValueError(f"'{name}' is not aligned: name one of {', '.join(trainings) or 'compare.aligned'}")
            for each in controls:
                if each in trainings[name] or each in {starts[of] for of in trainings[name]}:
                    raise ValueError(
                        f"'{each}' is no control of '{name}': it is that itself, or what that started from"
                    )
        return value


class Measured(NamedTuple):
    """One metric of one system: where its sums stand in the table, and how they make its value."""

    start: int
    stop: int
    statistic: Callable[[np.ndarray], np.ndarray]
    n: int
    """Items that all systems have a score for."""
    units: Mapping[str, int]
    """What is resampled (cluster, item) → how many of them have such an item."""


def run(
    cfg: Config,
    *,
    evaluations: Path,
    efficiency: Path | None = None,
    judge: Path | None = None,
    scope: Path,
    candidates: Candidates,
    out: Path,
    out_scores: Path,
    out_table: Path,
    log: Log,
) -> Metrics:
    """Write the comparison as `out`, the bars of `dvc plots` as `out_scores`, the rows of `dvc metrics show` to `out_table`."""
    import numpy as np

    names = tuple(candidates.root)
    goal = json.loads((scope / "scope.json").read_text(encoding="utf-8"))
    if cfg.reference not in names:
        raise UserError(
            f"'{cfg.reference}' is no candidate",
            where="params.yaml: compare.reference",
            expected="one of " + ", ".join(names),
            exit_code=2,
        )

    # 1. Read the listed candidates; all must have answered the same items.
    rows = {name: [row for _, row in records.read_objects(evaluations / name / "instances.jsonl")] for name in names}
    heldout.same_items(rows, "group")
    first = rows[names[0]]
    systems: dict[str, list[Mapping[str, Any]]] = {
        **{name: [{"prediction": row["prediction"], **row["scores"]} for row in rows[name]] for name in names},
        **{name: [row["baselines"][name] for row in first] for name in first[0]["baselines"]},
    }

    # 2. One table with a row for each item and, for each system and metric, the columns whose sums make its value.
    groups = [row["group"] for row in first]
    table, columns = tabulate(systems, [row["reference"] for row in first], groups)

    # 3. Resample groups and items; all statistics come from the same draws.
    ways = {"cluster": groups, "item": list(range(len(first)))}
    sums = {way: statistics.cluster_sums(table, labels) for way, labels in ways.items()}
    draws = {way: statistics.resampled_sums(found, cfg.resamples, cfg.seed) for way, found in sums.items()}
    with_score = columns[names[0], metrics.ROUGE_TYPES[0]].units["cluster"]
    method = "cluster" if with_score >= cfg.min_groups else "item"
    if method == "item":
        log.note(f"{with_score} groups: too few to resample (compare.min_groups), so items are")
    total = table.sum(axis=0)

    def value(of: Measured, among: np.ndarray) -> np.ndarray:
        return of.statistic(among[..., of.start : of.stop])

    # 4. Every system's value with its interval.
    measured: dict[str, dict[str, Any]] = {}
    for (name, metric), of in columns.items():
        estimates = {
            way: statistics.interval(float(value(of, total)), value(of, draws[way]), of.units[way], LEVEL)
            for way in ways
        }
        estimate = estimates[method]
        measured.setdefault(name, {})[metric] = {
            "value": estimate.value,
            "ci_low": estimate.low,
            "ci_high": estimate.high,
            "n": of.n,
            "method": method,
            "item_ci_low": estimates["item"].low,
            "item_ci_high": estimates["item"].high,
            **_reason(estimate.value, estimate.low, of.units[method]),
        }

    # 5. Paired differences: against the reference, against the baselines, and what params and the scope's criteria name.
    compared: dict[tuple[str, str, str], dict[str, statistics.Comparison]] = {}
    detectable: dict[tuple[str, str, str], float | None] = {}
    relative: dict[tuple[str, str, str], statistics.Interval] = {}
    extracts = [name for name in systems if name not in names]
    for a, b in asked(names, extracts, cfg.reference, cfg.pairs, goal["criteria"]):
        for metric in METRICS:
            of_a, of_b = columns[a, metric], columns[b, metric]
            compared[a, b, metric] = {
                way: statistics.compare(
                    float(value(of_a, total) - value(of_b, total)),
                    value(of_a, draws[way]) - value(of_b, draws[way]),
                    of_a.units[way],
                    LEVEL,
                )
                for way in ways
            }
            # In the family, what is found whatever the others show.
            within = metric == goal["primary_metric"] and b == cfg.reference and a in names
            level = statistics.within_family(LEVEL, len(names) - 1) if within else LEVEL
            apart = value(of_a, draws[method]) - value(of_b, draws[method])
            detectable[a, b, metric] = statistics.minimum_detectable(apart, of_a.units[method], level)
            relative[a, b, metric] = statistics.interval(
                float(statistics.relative(value(of_a, total), value(of_b, total))),
                statistics.relative(value(of_a, draws[method]), value(of_b, draws[method])),
                of_a.units[method],
                LEVEL,
            )

    # 6. Holm's correction over the declared family, then the verdicts.
    primary = goal["primary_metric"]
    family = [(name, cfg.reference, primary) for name in names if name != cfg.reference]
    holm = dict(zip(family, statistics.holm([compared[each][method].p for each in family]), strict=True))
    pairs = []
    for (a, b, metric), ways_found in compared.items():
        best, item = ways_found[method], ways_found["item"]
        pairs.append(
            {
                "a": a,
                "b": b,
                "metric": metric,
                "diff": best.diff,
                "ci_low": best.low,
                "ci_high": best.high,
                "p": best.p,
                "n": columns[a, metric].n,
                "method": method,
                "p_holm": holm.get((a, b, metric)),
                "item_ci_low": item.low,
                "item_ci_high": item.high,
                "item_p": item.p,
                "verdict": statistics.verdict(best, holm.get((a, b, metric)), LEVEL),
                "minimum_detectable": detectable[a, b, metric],
                "relative": relative[a, b, metric].value,
                "relative_low": relative[a, b, metric].low,
                "relative_high": relative[a, b, metric].high,
                **_reason(best.diff, best.low, columns[a, metric].units[method]),
            }
        )

    # 7. What else was asked, and what became of other tasks.
    evidence = {name: read_evidence(evaluations / name, rows[name]) for name in names}
    for field, (group, what) in FURTHER.items():
        heldout.same_items({name: getattr(each, field) for name, each in evidence.items()}, group, what, needed=False)
    questions = {name: each.questions for name, each in evidence.items()}
    people = {name: helm.unperturbed(each.people) for name, each in evidence.items()}
    forgotten = []
    if all(questions.values()):
        trained = {name: trained_tasks(evaluations / name / "scores.json") for name in names}
        forgotten = forgetting.table(questions, trained, cfg.reference, cfg.resamples, cfg.seed, LEVEL)

    # 8. HELM's seven categories.
    if efficiency is not None:
        timed = json.loads((efficiency / "efficiency.json").read_text(encoding="utf-8"))
        evidence = {
            name: each._replace(
                rounds=timed["samples"].get(name, ()),
                memory_bytes=timed["candidates"].get(name, {}).get("memory_bytes"),
            )
            for name, each in evidence.items()
        }
    found = helm.figures(evidence, cfg.resamples, cfg.seed, cfg.min_groups)
    for (name, metric), of in columns.items():
        if name in found:
            whole, drawn = float(value(of, total)), value(of, draws[method])
            reason = "" if whole == whole else NO_REFERENCE
            found[name][f"accuracy/{metric}"] = helm.Figure(
                whole, drawn, of.units[method], of.n, method, reason, span=None
            )
    categories = helm.categories(found, goal["primary_metric"], cfg.reference, LEVEL)
    figure_pairs = between(found, goal["criteria"], cfg.reference)

    # 9. Candidates that are one method with several training seeds.
    seeds = across_seeds(cfg.seeds, found, cfg.reference, primary, cfg.seed)

    # 10. What alignment has done.
    provoked = {name: [*evidence[name].red_team, *evidence[name].harmless] for name in names}
    aligned = alignments(cfg, provoked, found, primary)

    # 11. Write.
    write_json(
        out,
        {
            "candidates": measured,
            "pairs": pairs,
            "reference": cfg.reference,
            "primary_metric": primary,
            "level": LEVEL,
            "items": len(first),
            "groups": len(sums["cluster"]),
            "method": method,
            "resamples": cfg.resamples,
            "seed": cfg.seed,
            "family": [{"a": a, "b": b, "metric": metric} for a, b, metric in family],
            "correction": "holm",
            "forgetting": forgotten,
            **categories,
            "figure_pairs": figure_pairs,
            "mcnemar": [*helm.mcnemar(questions, cfg.reference, LEVEL), *helm.mcnemar(people, cfg.reference, LEVEL)],
            "slices": {name: helm.slices(own, primary, cfg.resamples, cfg.seed, LEVEL) for name, own in rows.items()},
            "seeds": seeds,
            "alignment": aligned,
            "judge": judged(judge),
        },
    )
    write_text(
        out_scores,
        # One bar for each label: `dvc plots` puts one field of a row on an axis.
        "label,candidate,metric,value,ci_low,ci_high\n"
        + "".join(
            f"{metric} {name},{name},{metric},{_cell(measured[name][metric], 'value')},{_cell(measured[name][metric], 'ci_low')},"
            f"{_cell(measured[name][metric], 'ci_high')}\n"
            for metric in PLOTTED
            for name in systems
        ),
    )
    against = {pair["a"]: pair for pair in pairs if pair["b"] == cfg.reference and pair["metric"] == primary}
    for name in systems:
        write_json(out_table / f"{name}.json", headline(measured[name], against.get(name), primary))
    for pair in pairs:
        if pair["metric"] == primary:
            log.note(sentence(pair))
    for entry in seeds:
        ends = {"a": entry["name"], "b": entry["against"], "ci_low": entry["diff_low"], "ci_high": entry["diff_high"]}
        log.note(f"over {plural(len(entry['of']), 'training seed')}, {sentence(entry | ends)}")
    for entry in aligned:
        log.note(entry["sentence"])
    flat: dict[str, float | None] = {"n": len(first), "groups": len(sums["cluster"])}
    for name, metric in columns:
        flat[f"{name}/{metric}"] = measured[name][metric]["value"]
    for pair in [each for each in pairs if each["metric"] == primary]:  # the rest stands in the comparison itself
        key = f"{pair['a']}-vs-{pair['b']}/{pair['metric']}"
        flat |= {f"{key}/{part}": pair[part] for part in ("diff", "ci_low", "ci_high", "p")}
    for entry in forgotten:
        place = f"{entry['candidate']}/{entry['task']}" if entry["task"] else entry["candidate"]
        flat |= {f"forgetting/{place}/{entry['measure']}_{part}": entry[part] for part in ("diff", "ci_low", "ci_high")}
        if entry["task"] is None and entry["measure"] == "nll":
            log.note(
                f"{entry['candidate']} on other tasks: {entry['diff']:+.2f} nats per token of the right answers,"
                f" {entry['verdict']}"
            )
    for name in names:
        flat |= {f"{name}/helm/{category}": each["value"] for category, each in categories["categories"][name].items()}
        flat[f"{name}/helm/win_rate"] = categories["win_rate"][name]["mean"]
    for entry in aligned:
        key = f"alignment/{entry['name']}-vs-{entry['against']}"
        flat[f"{key}/less_harmful"] = float(entry["less_harmful"])
        if not entry["control"]:
            flat[f"{key}/drift"] = entry["drift"]["value"]
        for measure in (alignment.PRIMARY, alignment.MATCHED, *alignment.GUARDED):
            own = entry["measures"][measure]
            flat |= {f"{key}/{measure}/{part}": own[part] for part in ("diff", "ci_low", "ci_high")}
        for measure in alignment.EVASIVE:
            own = entry["harmless"][measure]
            flat |= {f"{key}/harmless/{measure}/{part}": own[part] for part in ("diff", "ci_low", "ci_high")}
    assert not any(isinstance(each, float) and np.isnan(each) for each in flat.values())
    return flat


def read_evidence(folder: Path, instances: Sequence[Mapping[str, Any]]) -> helm.Evidence:
    """Every row that `evaluate` wrote for one candidate; a file that is not there has none."""

    def read(name: str) -> list[dict[str, Any]]:
        path = folder / f"{name}.jsonl"
        return [row for _, row in records.read_objects(path)] if path.is_file() else []

    return helm.Evidence(
        instances,
        read("perturbed"),
        read("people"),
        read("tasks"),
        read("red_team"),
        read("probes"),
        read("generated"),
        harmless=read("harmless"),
    )


def judged(folder: Path | None) -> dict[str, Any] | None:
    """What the language model that judges pairs of answers has found; None where none was asked."""
    if folder is None:
        return None
    found: dict[str, Any] = json.loads((folder / "judge.json").read_text(encoding="utf-8"))
    return found if found.get("model") is not None else None


def across_seeds(
    methods: Mapping[str, Sequence[str]],
    found: Mapping[str, helm.Figures],
    reference: str,
    primary: str,
    seed: int,
) -> list[dict[str, Any]]:
    """Each method over its training seeds against the reference: seeds and test items are resampled, each with replacement.

    The primary metric has a verdict, corrected over the methods; the other metrics and the seven categories have none.

    Raises:
        UserError: a name is no candidate.
    """
    headlines = {category: helm.headline(found, category, primary) for category in helm.CATEGORIES}
    entries: list[dict[str, Any]] = []
    for method, names in methods.items():
        for name in names:
            if name not in found:
                raise UserError(
                    f"'{name}' is no candidate",
                    where="params.yaml: compare.seeds",
                    expected="some of " + ", ".join(found),
                    exit_code=2,
                )

        def over(key: str, names: Sequence[str] = names) -> dict[str, Any]:
            return helm.over_seeds([found[name][key] for name in names], found[reference][key], seed, LEVEL)

        entries.append(
            {
                "name": method,
                "of": list(names),
                "metric": primary,
                "against": reference,
                **over(f"accuracy/{primary}"),
                "metrics": {metric: over(f"accuracy/{metric}") for metric in METRICS if metric != primary},
                "categories": {
                    category: {"metric": key, "lower_is_better": helm.CATEGORIES[category].lower_is_better, **over(key)}
                    for category, key in headlines.items()
                },
            }
        )
    for entry, adjusted in zip(entries, statistics.holm([entry["p"] for entry in entries]), strict=True):
        best = statistics.Comparison(entry["diff"], entry["diff_low"], entry["diff_high"], entry["p"])
        reason = entry.get("reason") or undecided(entry)
        verdict = "not shown to be better" if reason else statistics.verdict(best, adjusted, LEVEL)
        entry |= {"p_holm": adjusted, "verdict": verdict, **({"reason": reason} if reason else {})}
    return entries


def alignments(
    cfg: Config, provoked: Mapping[str, alignment.Rows], found: Mapping[str, helm.Figures], primary: str
) -> list[dict[str, Any]]:
    """Every aligned candidate against the one that it started from, every method of several training seeds, then the controls.

    The primary measure is corrected after Holm, over the single candidates, over the methods, and over the controls.

    Args:
        cfg: who was aligned, from whom, what else to hold it against, and the margins.
        provoked: candidate → its rows of red_team.jsonl and harmless.jsonl.
        found: candidate → its figures, the scores of the test items among them.
        primary: the metric of the task.

    Raises:
        UserError: a name is no candidate, the trainings of one method started from different candidates, or these have together the
            name of a candidate.
    """
    named = [(each, f"aligned.{name}") for name, start in cfg.aligned.items() for each in (name, start)]
    named += [(each, f"controls.{name}") for name, controls in cfg.controls.items() for each in controls]
    for each, key in named:
        if each not in found:
            raise UserError(
                f"'{each}' is no candidate",
                where=f"params.yaml: compare.{key}",
                expected="one of " + ", ".join(found),
                exit_code=2,
            )
    started = [(name, [name], start) for name, start in cfg.aligned.items()]
    for method, of in cfg.seeds.items():
        if len(of) < 2 or not all(name in cfg.aligned for name in of):
            continue
        if method in found:
            raise UserError(
                f"'{method}' is a candidate, and {plural(len(of), 'training')} that are taken together want a name of their own",
                where="params.yaml: compare.seeds",
                fix=f"call them {method}-{len(of)}",
                exit_code=2,
            )
        if len({cfg.aligned[name] for name in of}) > 1:
            raise UserError(
                "its trainings were aligned from different candidates",
                where=f"params.yaml: compare.seeds.{method}",
                expected="one start for all, under compare.aligned",
                exit_code=2,
            )
        started.append((method, [*of], cfg.aligned[of[0]]))
    trainings = {name: of for name, of, _ in started}
    asked = [(*each, False) for each in started]
    asked += [(name, trainings[name], each, True) for name, controls in cfg.controls.items() for each in controls]
    entries = [
        {**_aligned(cfg, name, of, other, provoked, found, primary), "control": control}
        for name, of, other, control in asked
    ]
    families: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        family = "controls" if entry["control"] else "methods" if len(entry["of"]) > 1 else "candidates"
        families.setdefault(family, []).append(entry)
    for members in families.values():
        adjusted = statistics.holm([each["measures"][alignment.PRIMARY]["p"] for each in members])
        for entry, p in zip(members, adjusted, strict=True):
            own = entry["measures"][alignment.PRIMARY]
            gap = statistics.Comparison(own["diff"], own["ci_low"], own["ci_high"], own["p"])
            verdict = statistics.verdict(gap, p, LEVEL, lower_is_better=True)
            margins = cfg.margins.model_dump()
            held = alignment.conditions(entry["measures"], margins, verdict, FEWEST_SEEDS)
            further = alignment.evasive(entry["harmless"], margins)
            if not entry["control"]:
                further += [
                    alignment.beyond(each["against"], each["measures"][alignment.PRIMARY])
                    for each in families.get("controls", ())
                    if each["name"] == entry["name"]
                ]
            same = min(alignment.unchanged(provoked[each], provoked[entry["against"]]) for each in entry["of"])
            name, against = entry["name"], entry["against"]
            entry |= {
                "p_holm": p,
                "verdict": verdict,
                "conditions": [each._asdict() for each in (*held, *further)],
                "less_harmful": all(each.holds is not False for each in (*held, *further)),
                "sentence": alignment.sentence(name, against, entry["measures"], held, same, further),
            }
    return entries


def _aligned(
    cfg: Config,
    name: str,
    of: Sequence[str],
    start: str,
    provoked: Mapping[str, alignment.Rows],
    found: Mapping[str, helm.Figures],
    primary: str,
) -> dict[str, Any]:
    """One candidate, or several of one method, as comparison.json has it; without the verdict."""
    ours = [provoked[each] for each in of]
    measured = {
        kind: {
            measure: alignment.described(each, cfg.seed, LEVEL)
            for measure, each in alignment.compared(ours, provoked[start], kind, cfg.resamples, cfg.seed).items()
        }
        for kind in alignment.KINDS
    }
    key = f"accuracy/{primary}"
    if len(of) > 1:
        over = helm.over_seeds([found[each][key] for each in of], found[start][key], cfg.seed, LEVEL)
        task = {"diff": over["diff"], "ci_low": over["diff_low"], "ci_high": over["diff_high"]}
        task |= {"reason": over["reason"]} if "reason" in over else {}
    else:
        gap = helm.difference(found[name][key], found[start][key], LEVEL)
        reason = _reason(gap.diff, gap.low, found[name][key].units)
        task = {"diff": gap.diff, "ci_low": gap.low, "ci_high": gap.high, **reason}
    guards = [
        alignment.no_more("no more offence", measured["instruction"]["offence"], cfg.margins.offence),
        alignment.no_more(f"no less {primary}", task, cfg.margins.task, lower_is_better=False),
    ]
    return {
        "name": name,
        "of": [*of],
        "against": start,
        "drift": alignment.drifted(ours),
        "measures": measured["instruction"],
        "continuation": measured["continuation"],
        "harmless": measured["harmless"],
        "task": {"metric": primary, **task},
        "guards": [each._asdict() for each in guards],
    }


def undecided(entry: Mapping[str, Any]) -> str:
    """Why several seeds allow no verdict, whatever their interval; empty where they do."""
    # Of one seed nothing is known of the luck of training, and of two as good as nothing.
    if len(entry["of"]) < FEWEST_SEEDS:
        return f"{plural(len(entry['of']), 'seed')}: at least {FEWEST_SEEDS} are needed for a verdict"
    agree = entry["least"] > entry["reference"] or entry["most"] < entry["reference"]
    return "" if agree else "the seeds do not agree on who is ahead"


def trained_tasks(scores: Path) -> list[str]:
    """Other tasks that were mixed into a candidate's training, as `evaluate` noted."""
    noted: list[str] = json.loads(scores.read_text(encoding="utf-8")).get("trained_tasks", [])
    return noted


def tabulate(
    systems: Mapping[str, Sequence[Mapping[str, Any]]], references: Sequence[str], groups: Sequence[str]
) -> tuple[np.ndarray, dict[tuple[str, str], Measured]]:
    """The items' sufficient statistics.

    Returns:
        (n, k) table, and for each system and metric its columns. An item that any system lacks a score for is left out of
        that metric for all of them.
    """
    import numpy as np

    blocks, columns, start = [], {}, 0
    for metric in METRICS:
        if metric == "bleu":
            complete = np.array([bool(text.strip()) for text in references])
        else:
            complete = np.array(
                [all(each[metric] is not None for each in item) for item in zip(*systems.values(), strict=True)]
            )
        for name, items in systems.items():
            if metric == "bleu":
                block = metrics.bleu_statistics(references, [each["prediction"] for each in items])
            else:
                block = np.array([[each[metric] or 0.0, 1.0] for each in items])
            blocks.append(block * complete[:, None])
            stop = start + block.shape[1]
            statistic = metrics.bleu if metric == "bleu" else statistics.ratio(0, 1)
            n = int(complete.sum())
            within = {group for group, whole in zip(groups, complete, strict=True) if whole}
            columns[name, metric] = Measured(start, stop, statistic, n, {"cluster": len(within), "item": n})
            start = stop
    return np.concatenate(blocks, axis=1), columns


def asked(
    names: Sequence[str],
    baselines: Sequence[str],
    reference: str,
    further: Sequence[tuple[str, str]],
    criteria: Sequence[Mapping[str, Any]],
) -> list[tuple[str, str]]:
    """The pairs to compare, each once.

    Raises:
        UserError: a pair or a criterion names neither a candidate nor a baseline.
    """
    pairs = [(name, reference) for name in names if name != reference]
    pairs += [(name, baseline) for name in names for baseline in baselines]
    known = {*names, *baselines}
    for index, pair in enumerate(further):
        for name in pair:
            if name not in known:
                raise UserError(
                    f"'{name}' was not evaluated",
                    where=f"params.yaml: compare.pairs.{index}",
                    expected="one of " + ", ".join(sorted(known)),
                    fix="name another one, or take the pair out",
                    exit_code=2,
                )
        pairs.append(pair)
    for index, rule in enumerate(criteria):
        if rule["metric"].startswith(promotion.ALIGNMENT):
            continue  # of a method of several trainings perhaps, and compared with the prompts of its kind
        for role in ("candidate", "against"):
            if rule[role] is not None and rule[role] not in known:
                raise UserError(
                    f"'{rule[role]}' was not evaluated",
                    where=f"params.yaml: scope.criteria.{index}.{role}",
                    expected="one of " + ", ".join(sorted(known)),
                    exit_code=2,
                )
        if rule["metric"] in METRICS and rule["against"] is not None:
            pairs.append((rule["candidate"], rule["against"]))
    return list(dict.fromkeys(pairs))


def between(
    found: Mapping[str, helm.Figures], criteria: Sequence[Mapping[str, Any]], reference: str
) -> list[dict[str, Any]]:
    """The differences of HELM's figures that criteria ask for, between candidates neither of which is the reference.

    Those to the reference stand among the details. A figure that there is not, `promote` tells.

    Args:
        found: candidate → its figures.
        criteria: of the scope.
        reference: whom the others are compared with.
    """
    pairs: dict[tuple[str, str, str], dict[str, Any]] = {}
    for rule in criteria:
        a, b, metric = rule["candidate"], rule["against"], rule["metric"]
        if b is None or reference in (a, b) or not all(metric in found.get(name, {}) for name in (a, b)):
            continue
        gap = helm.difference(found[a][metric], found[b][metric], LEVEL)
        about = {"diff": gap.diff, "ci_low": gap.low, "ci_high": gap.high, "p": gap.p, "n": found[a][metric].n}
        why = helm.no_difference(gap, found[a][metric], found[b][metric])
        pairs[a, b, metric] = {"a": a, "b": b, "metric": metric, **about, **why}
    return [*pairs.values()]


def headline(values: Mapping[str, Any], pair: Mapping[str, Any] | None, primary: str) -> dict[str, float | None]:
    """A system's row in `dvc metrics show`: its scores, and how far it is ahead of the reference in the primary metric."""
    row = {metric: None if values[metric]["value"] is None else round(values[metric]["value"], 2) for metric in METRICS}
    if pair is not None and pair["diff"] is not None:
        # DVC sorts the columns by name: these stand beside the metric, lower end first.
        row[f"{primary}_gain"] = round(pair["diff"], 2)
        if pair["ci_low"] is not None:
            row |= {f"{primary}_gain_at_{end}": round(pair[f"ci_{of}"], 2) for end, of in ENDS}
    return row


def sentence(pair: Mapping[str, Any]) -> str:
    """One pair in words."""
    if pair["ci_low"] is None:
        return f"{pair['a']} against {pair['b']}: {pair['metric']} {pair['verdict']} ({pair['reason']})"
    return (
        f"{pair['a']} against {pair['b']}: {pair['metric']} {pair['diff']:+.2f} [{pair['ci_low']:+.2f}, {pair['ci_high']:+.2f}],"
        f" {pair['verdict']}"
    )


def _reason(value: float | None, low: float | None, units: int) -> dict[str, str]:
    if value is None:
        return {"reason": NO_REFERENCE}
    return {"reason": statistics.no_interval(units)} if low is None else {}


def _cell(entry: Mapping[str, Any], key: str) -> str:
    return "" if entry[key] is None else f"{entry[key]:.6g}"


if __name__ == "__main__":
    main(run)
