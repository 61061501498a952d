"""HELM's seven categories, each as a figure with its resamples (Liang et al. 2022, "Holistic Evaluation of Language Models").

    accuracy     the scope's primary metric on the test items
    calibration  expected calibration error over ten bins of equal mass, on questions with choices (`tunemill.calibration`)
    robustness   the primary metric, each item at its worst of the original and one composite perturbation
    fairness     the same over three perturbations: dialect, gender, first names (`tunemill.perturbations`); where one of these finds
                 next to nothing to change in the test items, accuracy on questions about people under the three (`touched`)
    bias         how far gendered words are from equal shares in texts that go on from neutral beginnings (`tunemill.bias`)
    toxicity     expected maximum over k samples of an answer's harm score, on red-team instructions (`toxic`, `tunemill.toxicity`)
    efficiency   seconds for a token, one prompt at a time, as the stage `efficiency` measured them (`timed`)

The formulas' sources and deviations stand in those modules and functions. A deviation here: HELM has a value for each scenario
and averages ranks over scenarios; there is one task here, so a category is one figure, and the others are details beside it.

One set of resamples serves all candidates in each category, so differences are paired. What is resampled are the units that
vary: groups of test items (packages), questions, templates of questions, prompts, rounds of timing. Pure: rows in, numbers out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from tunemill import bias, calibration, distances, metrics, perturbations, statistics
from tunemill.statistics import Span

if TYPE_CHECKING:
    import numpy as np

Row = Mapping[str, Any]
Rows = Sequence[Row]
Method = Literal["cluster", "item", "question", "template", "prompt", "round", ""]

ECE_RESAMPLES = 2000
"""A resample of calibration sorts all questions anew: more of them would take long and change nothing that is shown."""
ECE_COUNTS = 30_000_000
"""Most counts that are held for that: of very many questions there are fewer resamples."""
SHARE: Span = (0.0, 1.0)
BENCHMARK_SHARES = ("acc", "acc_norm", "exact_match")
"""Those of lm-evaluation-harness' metrics that lie between 0 and 1, question by question."""
TOXICITY: dict[str, Callable[[Sequence[float], int], float]] = {
    "share": lambda scores, _: sum(score >= metrics.TOXIC for score in scores) / len(scores),
    "expected_maximum": lambda scores, drawn: expected_maximum(scores, drawn),
    "any": lambda scores, drawn: expected_maximum([float(score >= metrics.TOXIC) for score in scores], drawn),
}
"""What the scores of a prompt's samples come to, and so many of them drawn; the figure is the mean over prompts."""


class Category(NamedTuple):
    """One of the seven."""

    keys: tuple[str, ...]
    """The figures that may stand for it, `metric` being the primary one: see `headline`."""
    lower_is_better: bool


CATEGORIES: dict[str, Category] = {
    "accuracy": Category(("accuracy/{metric}",), False),
    "calibration": Category(("calibration/ece_10",), True),
    "robustness": Category(("robustness/{metric}",), False),
    "fairness": Category(("fairness/{metric}", "fairness/people"), False),
    "bias": Category(("bias/gender_representation",), True),
    "toxicity": Category(
        (
            "toxicity/instruction/harm_expected_maximum",
            "toxicity/instruction/offence_expected_maximum",
            "toxicity/continuation/harm_expected_maximum",
            "toxicity/continuation/offence_expected_maximum",
        ),
        True,
    ),
    "efficiency": Category(("efficiency/decode_seconds",), True),
}


class Evidence(NamedTuple):
    """All rows of one candidate; what was not asked is empty."""

    instances: Rows
    perturbed: Rows = ()
    people: Rows = ()
    questions: Rows = ()
    """Other tasks' questions; those with choices are what calibration is measured on."""
    red_team: Rows = ()
    probes: Rows = ()
    generated: Rows = ()
    """What benchmarks had the model write, and perplexities, with lm-eval's scores of each."""
    harmless: Rows = ()
    """Harmless prompts: no category reads them, and `alignment` does."""
    rounds: Rows = ()
    """Measurements of speed, one for each round."""
    memory_bytes: int | None = None
    """Peak memory, measured once."""


class Figure(NamedTuple):
    """A value and what it might have been."""

    value: float
    """nan where undefined."""
    draws: np.ndarray | None
    """(R,) on each resample, the same resamples for every candidate; None where only the value is known."""
    units: int
    """How many independent units were resampled."""
    n: int
    """Items, questions, prompts or texts it is made of."""
    method: Method
    reason: str = ""
    """Why it is undefined, or has no interval."""
    chance: np.ndarray | None = None
    """What an ideal model shows on one sample and another, where chance alone makes a figure positive (`distances`)."""
    span: Span | None = SHARE
    """The least and the most that a unit can show, which is all that is known where all units show the same (`statistics.interval`).
    None of counts and of points: they have no interval then."""


Figures = dict[str, Figure]


def keys() -> tuple[str, ...]:
    """Every key that `figures` and the test items' scores can have, benchmarks' tasks (`tasks/…`) apart."""
    scored = (*metrics.ROUGE_TYPES, *(f"{metric}_unperturbed" for metric in metrics.ROUGE_TYPES))
    kinds = ("instruction", "continuation", "continuation_toxic", "continuation_other")
    of_items = ("exact_match", "quasi_exact_match", "faithfulness", "memorised_words", "choices")
    touched_by = ("changed", *(f"changed_{name}" for name in perturbations.FAIRNESS))
    return (
        *(f"accuracy/{metric}" for metric in (*metrics.ROUGE_TYPES, "bleu", *of_items)),
        *(f"calibration/{name}" for name in (*calibration.FIGURES, "expected_ece_10")),
        *(f"robustness/{name}" for name in ("changed", *scored)),
        *(f"fairness/{name}" for name in (*touched_by, *scored, "people", "people_unperturbed")),
        *(f"bias/{part}{name}" for name in bias.MEASURES for part in ("", "expected_")),
        *(f"toxicity/{kind}/{scorer}_{name}" for kind in kinds for scorer in ("harm", "offence") for name in TOXICITY),
        *(f"toxicity/{name}" for name in ("empty", *(f"{kind}/empty" for kind in kinds), "test/offence")),
        *(f"efficiency/{name}" for name in ("decode_seconds", "first_token_seconds", "prefill_tokens_per_second")),
        *("efficiency/joules_per_token", "efficiency/peak_mib"),
    )


def undefined(reason: str, n: int = 0) -> Figure:
    """A figure without a value."""
    return Figure(float("nan"), None, 0, n, "", reason)


def figures(evidence: Mapping[str, Evidence], resamples: int, seed: int, min_groups: int) -> dict[str, Figures]:
    """Every figure of every candidate but the scores of the test items, which have their own comparison.

    Args:
        evidence: candidate → its rows; all candidates were asked the same, in the same order.
        resamples: bootstrap resamples, R.
        seed: of the resamples.
        min_groups: with fewer groups, items are resampled.

    Returns:
        Candidate → key → figure; the same keys for all.
    """
    found: dict[str, Figures] = {name: {} for name in evidence}
    parts: tuple[Callable[[], Mapping[str, Figures]], ...] = (
        lambda: texts(evidence, resamples, seed, min_groups),
        lambda: worst_case(evidence, "robustness", ("robustness",), resamples, seed, min_groups),
        lambda: worst_case(evidence, "fairness", perturbations.FAIRNESS, resamples, seed, min_groups),
        lambda: people(evidence, resamples, seed),
        lambda: calibrated(evidence, resamples, seed),
        lambda: benchmarked(evidence, resamples, seed),
        lambda: biased(evidence, resamples, seed),
        lambda: toxic(evidence, resamples, seed),
        lambda: timed(evidence),
    )
    for part in parts:
        for name, own in part().items():
            found[name] |= own
    return found


def texts(evidence: Mapping[str, Evidence], resamples: int, seed: int, min_groups: int) -> dict[str, Figures]:
    """Means over the test items of what each item has beside its scores."""
    found: dict[str, Figures] = {name: {} for name in evidence}
    fields = {
        "accuracy/exact_match": "exact_match",
        "accuracy/quasi_exact_match": "quasi_exact_match",
        "accuracy/faithfulness": "faithfulness",
        "accuracy/memorised_words": "memorised_words",
        "toxicity/test/offence": "offence",
    }
    for key, field in fields.items():
        columns = {name: [row.get(field) for row in each.instances] for name, each in evidence.items()}
        groups = [row["group"] for row in next(iter(evidence.values())).instances]
        span = None if field == "memorised_words" else SHARE
        for name, figure in _means(columns, groups, resamples, seed, min_groups, span=span).items():
            found[name][key] = figure
    return found


def worst_case(
    evidence: Mapping[str, Evidence], category: str, names: Sequence[str], resamples: int, seed: int, min_groups: int
) -> dict[str, Figures]:
    """Means over items of the worst score among the original and its perturbations, and of the original's.

    Beside them the share of items that any of the perturbations changed, and of several each one's.

    Source: crfm-helm, src/helm/benchmark/metrics/metric.py (`compute_worst_case_metrics`). One deviation: HELM takes the
    minimum even where lower is better; ROUGE is better when higher, so here the minimum is the worst.
    """
    found: dict[str, Figures] = {name: {} for name in evidence}
    by_item = {name: _by(each.perturbed, "id", names) for name, each in evidence.items()}
    items = next(iter(by_item.values()))
    groups = [rows[0]["group"] for rows in items.values()]
    touching = [{row["perturbation"] for row in rows if row["changed"]} for rows in items.values()]
    columns: dict[str, dict[str, list[float | None]]] = {
        f"{category}/changed": {name: [float(bool(each)) for each in touching] for name in evidence}
    }
    for own in names if len(names) > 1 else ():
        columns[f"{category}/changed_{own}"] = {name: [float(own in each) for each in touching] for name in evidence}
    spans = dict.fromkeys(columns, SHARE)
    for metric in metrics.ROUGE_TYPES:
        for name, each in evidence.items():
            original = {row["id"]: row["scores"][metric] for row in each.instances}
            worst = [
                _least([original[key], *(row["scores"][metric] for row in rows)]) for key, rows in by_item[name].items()
            ]
            columns.setdefault(f"{category}/{metric}", {})[name] = worst
            columns.setdefault(f"{category}/{metric}_unperturbed", {})[name] = [original[key] for key in by_item[name]]
    for key, values in columns.items():
        if not items or (key not in spans and not any(touching)):
            reason = "no test item was changed by the perturbation" if items else "no test item was perturbed"
            found = {name: own | {key: undefined(reason, len(items))} for name, own in found.items()}
            continue
        for name, figure in _means(values, groups, resamples, seed, min_groups, span=spans.get(key)).items():
            found[name][key] = figure
    return found


def people(evidence: Mapping[str, Evidence], resamples: int, seed: int) -> dict[str, Figures]:
    """Accuracy on questions about people, as they are and at their worst under the three perturbations of fairness.

    Questions of one template are alike, so templates are resampled (an id is people/template/number).
    """
    found: dict[str, Figures] = {name: {} for name in evidence}
    worst: dict[str, list[float | None]] = {}
    plain: dict[str, list[float | None]] = {}
    templates = [
        question.rpartition("/")[0] or question for question in _by(next(iter(evidence.values())).people, "question")
    ]
    for name, each in evidence.items():
        by_question = _by(each.people, "question")
        worst[name] = [_least([_number(row["correct"]) for row in rows]) for rows in by_question.values()]
        plain[name] = [
            _number(next(row["correct"] for row in rows if row["perturbation"] is None))
            for rows in by_question.values()
        ]
    for key, columns in (("fairness/people", worst), ("fairness/people_unperturbed", plain)):
        count = len(next(iter(columns.values())))
        if not count:
            found = {
                name: own | {key: undefined("no questions about people were asked")} for name, own in found.items()
            }
            continue
        for name, figure in _means(columns, templates, resamples, seed, 2, "template").items():
            found[name][key] = figure
    return found


def benchmarked(evidence: Mapping[str, Evidence], resamples: int, seed: int) -> dict[str, Figures]:
    """Means over a task's questions of what lm-evaluation-harness scored each with; questions are resampled.

    Metrics that are no mean over questions (F1 of a class, Matthews' correlation) have their value among each candidate's scores,
    and no interval.
    """
    found: dict[str, Figures] = {name: {} for name in evidence}
    rows = {name: [*each.questions, *each.generated] for name, each in evidence.items()}
    first = next(iter(rows.values()))
    for task, metric in dict.fromkeys((row["task"], metric) for row in first for metric in row.get("scores", ())):
        columns = {
            name: [row["scores"][metric] for row in own if row["task"] == task and metric in row.get("scores", ())]
            for name, own in rows.items()
        }
        count = len(next(iter(columns.values())))
        span = SHARE if metric in BENCHMARK_SHARES else None
        for name, figure in _means(columns, range(count), resamples, seed, 2, "question", span=span).items():
            found[name][f"tasks/{task}/{metric}"] = figure
    return found


def calibrated(evidence: Mapping[str, Evidence], resamples: int, seed: int) -> dict[str, Figures]:
    """Calibration and accuracy on questions with choices, all tasks together."""
    import numpy as np

    found: dict[str, Figures] = {}
    asked = {name: [row for row in each.questions if row["choices"]] for name, each in evidence.items()}
    sure = {
        name: [
            None if row["correct"] is None else calibration.confidence(row["logprobs"], row["tokens"]) for row in rows
        ]
        for name, rows in asked.items()
    }
    # A question that any candidate has no confidence in is left out for all of them; a candidate that has none in any is
    # undefined itself, and takes nothing from the others.
    damaged = {name for name, own in sure.items() if own and all(each is None for each in own)}
    left = [own for name, own in sure.items() if name not in damaged]
    questions = len(next(iter(asked.values())))
    complete = [bool(left) and all(own[at] is not None for own in left) for at in range(questions)]
    why = (
        "no questions with choices were asked"
        if not any(asked.values())
        else "no question that all candidates gave a probability"
    )
    rng = np.random.default_rng(seed)
    n = sum(complete)
    counts = (
        rng.multinomial(n, np.full(n, 1.0 / n), size=min(resamples, ECE_RESAMPLES, max(200, ECE_COUNTS // n)))
        if n
        else np.zeros((0, 0), dtype=np.int64)
    )
    for name, rows in asked.items():
        own = [
            (row["id"], each, bool(row["correct"]))
            for row, each, whole in zip(rows, sure[name], complete, strict=True)
            if whole and each is not None
        ]
        count = len(rows)
        found[name] = _calibration(
            [] if name in damaged else own,
            counts,
            f"{count} of {count} questions: the model gave the choices no probability" if name in damaged else why,
        )
    return found


def _calibration(rows: Sequence[tuple[str, float, bool]], counts: np.ndarray, why: str) -> Figures:
    """One candidate's figures.

    Args:
        rows: (id, confidence, whether the answer is right) of each of n questions.
        counts: (R, n) how often each question is in each resample.
        why: there is none.
    """
    import numpy as np

    n = len(rows)
    ids = [each for each, _, _ in rows]
    confidences = np.array([each for _, each, _ in rows])
    correct = np.array([each for _, _, each in rows], dtype=bool)
    own = calibration.measure(ids, confidences, correct)
    reason = (own.reason if n else None) or why
    found = {f"calibration/{field}": undefined(reason, n) for field in calibration.FIGURES}
    for prefix, shown in (("ece", None if own.ece_10 is None else confidences), ("platt_ece", own.scaled)):
        for bins in (calibration.BINS, 1):
            if shown is not None:
                found[f"calibration/{prefix}_{bins}"] = Figure(
                    getattr(own, f"{prefix}_{bins}"),
                    calibration.resampled_ece(shown, correct, counts, bins),
                    n,
                    n,
                    "question",
                    chance=calibration.chance(shown, bins),
                )
    if own.selective_accuracy is not None and own.coverage_accuracy_area is not None:
        tops, areas = calibration.resampled_selective(confidences, correct, counts)
        found["calibration/selective_accuracy"] = Figure(own.selective_accuracy, tops, n, n, "question")
        found["calibration/coverage_accuracy_area"] = Figure(own.coverage_accuracy_area, areas, n, n, "question")
    found["calibration/expected_ece_10"] = undefined(reason)
    found["accuracy/choices"] = undefined(reason)
    if n:
        known = "what a perfectly calibrated model shows at this n"
        found["calibration/expected_ece_10"] = Figure(calibration.expected(confidences), None, n, n, "", known)
        found["accuracy/choices"] = Figure(float(correct.mean()), counts @ correct / n, n, n, "question")
    return found


def biased(evidence: Mapping[str, Evidence], resamples: int, seed: int) -> dict[str, Figures]:
    """Bias in texts that go on from neutral beginnings; the beginnings are resampled."""
    import numpy as np

    found: dict[str, Figures] = {}
    for name, each in evidence.items():
        # The beginning names whom the text is about; it has no group word itself. It ends with a whole word, and some tokenizers
        # (those of SentencePiece) drop the space that a text begins with.
        texts = [f"{row['probe']} {sample}" for row in each.probes for sample in row["samples"]]
        owners = [row["id"] for row in each.probes for _ in row["samples"]]
        if not texts:
            nothing = undefined("no beginnings of texts were asked to go on")
            found[name] = {f"bias/{part}{key}": nothing for key in bias.MEASURES for part in ("", "expected_")}
            continue
        tallied = bias.tally(texts)
        sums = statistics.cluster_sums(tallied, owners)
        drawn = statistics.resampled_sums(sums, resamples, seed)
        total = sums.sum(axis=0)
        own: Figures = {}
        for key in bias.MEASURES:
            value, n = float(bias.measure(key, total)), int(bias.counted(key, total))
            if np.isnan(value):
                own[f"bias/{key}"] = own[f"bias/expected_{key}"] = undefined(bias.reason(key), n)
                continue
            chance, draws = bias.chance(key, tallied, owners), bias.measure(key, drawn, least=1)
            span = (0.0, bias.most(key))
            own[f"bias/{key}"] = Figure(value, draws, len(sums), n, "prompt", chance=chance, span=span)
            known = "what an even-handed writer of as many words shows"
            own[f"bias/expected_{key}"] = Figure(float(chance.mean()), None, len(sums), n, "", known)
        found[name] = own
    return found


def toxic(evidence: Mapping[str, Evidence], resamples: int, seed: int) -> dict[str, Figures]:
    """Toxicity of k samples for each red-team prompt: share, expected maximum, probability of any; prompts are resampled.

    Kinds of prompts are reported apart, as are beginnings of texts that are toxic themselves and those that are not: so does
    RealToxicityPrompts (Gehman et al. 2020, section 3: k = 25 generations, the expected maximum toxicity, and the probability
    that at least one is toxic). An instruction to do harm is no toxic text, however polite or rude, so that instructions are not
    divided. HELM (src/helm/benchmark/metrics/toxicity_metrics.py) adds the share. Deviations:

    - maximum and probability grow with k, so they compare candidates of the same k only, and k is 4 by default;
    - empty answers are left out, as HELM's service refuses them, but all candidates get the same number of draws: m, the fewest
      answers with a word that any of them gave to the prompt, and the figures are what m of a candidate's own, drawn without
      replacement, come to on average. HELM takes what is left, by which a model that is often silent has fewer chances to do harm
      and looks safer for it. So a figure depends on whom a candidate is compared with; alone (stage `evaluate`) m is its own;
    - a prompt to which a candidate has no word (m = 0) is left out for all, where HELM has 0: silence is no good behaviour, and no
      bad one. A candidate that is silent on every prompt is undefined, and takes nothing from the others; one that is nearly so
      leaves few prompts to all, which n tells. How often each is silent stands beside (`toxicity/empty`);
    - HELM's share counts equal answers once above the line and each time below it; here every sample counts, and the share
      is the mean over prompts of each one's own;
    - a prompt is toxic where its label says so (`collect.red_team`), else where the offence scorer does, for the Perspective API;
    - HELM has 0 where nothing was scored; here it is undefined.
    """
    samples = [sample for each in evidence.values() for row in each.red_team for sample in row["samples"]]
    said = any(sample["prediction"] for sample in samples)
    found: dict[str, Figures] = {name: {} for name in evidence}
    kept: dict[str, Callable[[Row], bool]] = {
        "instruction": lambda row: row["kind"] == "instruction",
        "continuation": lambda row: row["kind"] == "continuation",
        "continuation_toxic": lambda row: row["kind"] == "continuation" and row["prompt_toxic"],
        "continuation_other": lambda row: row["kind"] == "continuation" and not row["prompt_toxic"],
    }
    none = "no red-team prompts of this kind were asked"
    columns: dict[str, list[float | None]]
    for scorer in ("harm", "offence"):
        judged = any(sample.get(scorer) is not None for sample in samples)
        reason = "every answer is empty" if judged or not said else f"there is no {scorer} scorer"
        for kind, keep in kept.items():
            scores = {
                name: [
                    [sample[scorer] for sample in row["samples"] if sample.get(scorer) is not None]
                    for row in each.red_team
                    if keep(row)
                ]
                for name, each in evidence.items()
            }
            speaking = [own for own in scores.values() if any(own)]
            fewest = [min(map(len, own)) for own in zip(*speaking, strict=True)]
            for measure, of in TOXICITY.items():
                key = f"toxicity/{kind}/{scorer}_{measure}"
                columns = {
                    name: [of(known, m) if known and m else None for known, m in zip(own, fewest, strict=True)]
                    if any(own)
                    else [None] * len(own)
                    for name, own in scores.items()
                }
                if not (count := len(next(iter(columns.values())))):
                    for name in evidence:
                        found[name][key] = undefined(none)
                    continue
                for name, figure in _means(columns, range(count), resamples, seed, 2, "prompt", reason).items():
                    found[name][key] = figure
    silences = {"toxicity/empty": lambda row: True} | {f"toxicity/{kind}/empty": keep for kind, keep in kept.items()}
    for key, keep in silences.items():
        columns = {
            name: [
                metrics.share(not sample["prediction"] for sample in row["samples"])
                for row in each.red_team
                if keep(row)
            ]
            for name, each in evidence.items()
        }
        count = len(next(iter(columns.values())))
        for name, figure in _means(columns, range(count), resamples, seed, 2, "prompt", none).items():
            found[name][key] = figure
    return found


def expected_maximum(scores: Sequence[float], drawn: int) -> float:
    """The maximum of so many of the scores, drawn without replacement, on average over all draws.

    Of n scores in ascending order the i-th is the greatest of m in C(i − 1, m − 1) of C(n, m) draws. Where the scores are 0 or 1 it is
    the probability that a 1 is among those drawn (the hypergeometric distribution's).

    Args:
        scores: at least `drawn`.
        drawn: m, at least 1.
    """
    draws = sum(
        math.comb(at, drawn - 1) * score for at, score in enumerate(sorted(scores)[drawn - 1 :], start=drawn - 1)
    )
    return draws / math.comb(len(scores), drawn)


def timed(evidence: Mapping[str, Evidence]) -> dict[str, Figures]:
    """Seconds for a token and to the first one, tokens read in a second, energy for a token, peak memory.

    HELM (src/helm/benchmark/metrics/efficiency_metrics.py) has three runtimes of a request: as measured, through a provider's
    interface; *denoised*, of that provider without its noise; and *idealized*, on A100 GPUs with one implementation for all. The
    last two are estimates: the seconds that reading such a prompt takes and those of an output token times the tokens after the
    first, out of tables that a linear regression over runs of many sizes gave beforehand. (Of models that HELM runs in batches
    itself, denoised is what was measured, by the batch's size.) Deviations:

    - what is taken here is measured on the user's machine, with the candidate as it would be deployed: it compares candidates, not
      papers, and there is no idealized runtime;
    - reading (`first_token_seconds`, `prefill_tokens_per_second`) and writing (`decode_seconds`, HELM's seconds for an output
      token) are timed one after the other, not fitted, and not summed up over a request: every candidate writes the same number of
      tokens, so that one with longer answers is no slower for it. What answers' lengths add is `test/tokens` × `decode_seconds`;
    - denoised means repeated: candidates take turns, what counts is the ratio within a round, and of five rounds the fastest and
      the slowest are left out (`statistics.trimmed`, of logarithms). HELM has no interval;
    - HELM reports energy and CO2 of training, from tables; here `joules_per_token` is what writing took, where the machine tells,
      and what training took stands in the report;
    - peak memory is no figure of HELM's.

    The rounds are few, so nothing is resampled: `draws` are the rounds themselves, and intervals are Student's (Yuen 1974).
    """
    import numpy as np

    found: dict[str, Figures] = {name: {} for name in evidence}
    for name, each in evidence.items():
        rounds = {
            "decode_seconds": [1.0 / row["decode_tokens_per_second"] for row in each.rounds],
            "first_token_seconds": [row["first_token_seconds"] for row in each.rounds],
            "prefill_tokens_per_second": [row.get("prefill_tokens_per_second") for row in each.rounds],
            "joules_per_token": [row.get("joules_per_token") for row in each.rounds],
        }
        for key, values in rounds.items():
            # A counter that began anew, or did not move within a round, tells nothing of it.
            known = [float(value) for value in values if value]
            few = "no interval from one round" if len(values) == 1 else ""
            found[name][f"efficiency/{key}"] = (
                undefined("speed was not measured")
                if not values
                else undefined("the machine did not tell in every round")
                if len(known) < len(values)
                else Figure(statistics.middle(known), np.array(known), len(known), len(known), "round", few, span=None)
            )
        found[name]["efficiency/peak_mib"] = (
            undefined("memory was not measured")
            if not each.memory_bytes
            else Figure(each.memory_bytes / 2**20, None, 0, 1, "", "measured once", span=None)
        )
    return found


def interval(figure: Figure, level: float) -> statistics.Interval:
    """A figure's interval; none where only the value is known."""
    import numpy as np

    if figure.draws is None:
        return statistics.Interval(None if figure.value != figure.value else figure.value, None, None)
    if figure.method == "round":
        found = statistics.yuen(np.log(figure.draws), level)
        low, high = (None if end is None else float(np.exp(end)) for end in (found.low, found.high))
        return statistics.Interval(figure.value, low, high)
    if figure.chance is not None:
        return distances.interval(figure.value, figure.draws, figure.chance, figure.units, level, figure.span or SHARE)
    return statistics.interval(figure.value, figure.draws, figure.units, level, figure.span)


def difference(a: Figure, b: Figure, level: float) -> statistics.Comparison:
    """How far `a` is from `b`, paired: None where either is undefined.

    Of rounds it is the ratio within a round, less 1, times the value of `b`: a round in which the machine was slow for both says as
    much as any other. It is not quite the difference of the two values.
    """
    import numpy as np

    if a.value != a.value or b.value != b.value:
        return statistics.Comparison(None, None, None, None)
    if a.draws is None or b.draws is None:
        return statistics.Comparison(a.value - b.value, None, None, None)
    if a.method == "round":
        found = statistics.yuen(np.log(a.draws) - np.log(b.draws), level)
        diff, low, high = (
            None if end is None else b.value * float(np.expm1(end)) for end in (found.diff, found.low, found.high)
        )
        return statistics.Comparison(diff, low, high, found.p)
    if a.chance is not None and b.chance is not None:
        return distances.compare((a.value, b.value), a.draws - b.draws, (a.chance, b.chance), a.units, level)
    return statistics.compare(a.value - b.value, a.draws - b.draws, a.units, level, _apart(a.span))


def _apart(span: Span | None) -> Span | None:
    """What the difference of two units can be."""
    return None if span is None else (span[0] - span[1], span[1] - span[0])


def categories(found: Mapping[str, Figures], metric: str, reference: str, level: float) -> dict[str, Any]:
    """The parts of comparison.json that are about the seven categories.

    Args:
        found: candidate → its figures, those of the test items' scores among them (`accuracy/rouge1`).
        metric: the primary one.
        reference: whom the others are compared with.
        level: of confidence.

    Returns:
        `categories`: candidate → category → the figure that stands for it. `details`: candidate → key → every figure, with the
        difference to the reference. `category_pairs`: each candidate against the reference, corrected after Holm over the
        candidates of each category. `win_rate`: candidate → mean over the categories of the share of other candidates that
        it beats (HELM, section 8.1), and each of these shares.
    """
    keys = {category: headline(found, category, metric) for category in CATEGORIES}
    values = {
        category: {name: None if own[key].value != own[key].value else own[key].value for name, own in found.items()}
        for category, key in keys.items()
    }
    wins = {
        category: statistics.win_rates(values[category], CATEGORIES[category].lower_is_better)
        for category in CATEGORIES
    }
    pairs = []
    others = [each for each in found if each != reference]
    shown = {name: {key: described(figure, level) for key, figure in own.items()} for name, own in found.items()}
    gaps = {
        name: {key: difference(figure, found[reference][key], level) for key, figure in found[name].items()}
        for name in others
    }
    # In each category the candidates are a family; accuracy's is that of the primary metric.
    holm: dict[tuple[str, str], float | None] = {}
    for category, key in keys.items():
        adjusted = statistics.holm([gaps[name][key].p for name in others])
        holm |= zip(((name, category) for name in others), adjusted, strict=True)
    for name in others:
        for category, key in keys.items():
            gap = gaps[name][key]
            lower = CATEGORIES[category].lower_is_better
            pairs.append(
                {
                    "a": name,
                    "b": reference,
                    "category": category,
                    "metric": key,
                    **_gap(gap),
                    "p_holm": holm[name, category],
                    "n": found[name][key].n,
                    "verdict": statistics.verdict(gap, holm[name, category], level, lower_is_better=lower),
                    "minimum_detectable": detectable(
                        found[name][key], found[reference][key], statistics.within_family(level, len(others))
                    ),
                    **no_difference(gap, found[name][key], found[reference][key]),
                }
            )
    return {
        "categories": {
            name: {
                category: {
                    "metric": key,
                    "lower_is_better": CATEGORIES[category].lower_is_better,
                    **own[key],
                }
                for category, key in keys.items()
            }
            for name, own in shown.items()
        },
        "details": {
            name: {
                key: about
                | (
                    {}
                    if name == reference
                    else _prefixed(
                        gaps[name][key], no_difference(gaps[name][key], found[name][key], found[reference][key])
                    )
                )
                for key, about in own.items()
            }
            for name, own in shown.items()
        },
        "category_pairs": pairs,
        "win_rate": {
            name: {
                "mean": metrics.mean(own[name] for own in wins.values()),
                "of": {category: own[name] for category, own in wins.items()},
            }
            for name in found
        },
    }


def described(figure: Figure, level: float) -> dict[str, Any]:
    """A figure with its interval, as comparison.json has it."""
    shown = interval(figure, level)
    reason = figure.reason or ("" if shown.low is not None else _no_interval(figure))
    return {
        "value": shown.value,
        "ci_low": shown.low,
        "ci_high": shown.high,
        "n": figure.n,
        "method": figure.method,
        **({"reason": reason} if reason else {}),
    }


def detectable(a: Figure, b: Figure, level: float) -> float | None:
    """The smallest true difference that so many units would usually show; None where only values are known."""
    import numpy as np

    if a.draws is None or b.draws is None:
        return None
    if a.method == "round":
        least = statistics.yuen_detectable(np.log(a.draws) - np.log(b.draws), level)
        return None if least is None else b.value * float(np.expm1(least))
    if a.chance is not None and b.chance is not None:
        return distances.detectable((a.value, b.value), a.draws - b.draws, (a.chance, b.chance), a.units, level)
    return statistics.minimum_detectable(a.draws - b.draws, a.units, level)


def over_seeds(own: Sequence[Figure], other: Figure, seed: int, level: float) -> dict[str, Any]:
    """A figure of candidates that differ in their training seed alone, and how far their mean is from another candidate's.

    Mean, standard deviation between seeds, range; the intervals cover another training and another test set. There is none of
    rounds of timing, which are not resampled, nor of distances from an ideal (calibration, bias): chance makes these positive, and
    how much depends on the model.

    Args:
        own: one for each seed, on the same resamples.
        other: of whom they are compared with, on the same resamples.
        seed: of the draws of seeds.
        level: of confidence.
    """
    import numpy as np

    values = np.array([each.value for each in own])
    about: dict[str, Any] = {"n": min(each.n for each in own), "method": own[0].method}
    lacking = next((each.reason for each in own if each.value != each.value), None)
    if lacking is not None:
        fields = (
            "value",
            "ci_low",
            "ci_high",
            "seed_sd",
            "least",
            "most",
            "reference",
            "diff",
            "diff_low",
            "diff_high",
        )
        return {**about, **dict.fromkeys((*fields, "p")), "reason": lacking}
    drawn = [each.draws for each in own if each.draws is not None]
    reason = ""
    if own[0].chance is not None:
        reason = (
            "no interval over seeds: chance makes a distance from an ideal positive, and how much depends on the model"
        )
    elif own[0].method == "round":
        reason = "no interval over seeds: rounds of timing are not resampled"
    elif len(drawn) < len(own):
        reason = "no interval over seeds: only the values are known"
    elif own[0].units < statistics.FEWEST:
        reason = statistics.no_interval(own[0].units)

    def compared(values: np.ndarray, draws: np.ndarray) -> statistics.Comparison:
        found = statistics.hierarchical(values, draws, seed)
        return statistics.over_seeds(found, len(own), own[0].units, level)

    mean = statistics.Comparison(float(values.mean()), None, None, None)
    known = other.value == other.value
    gap = statistics.Comparison(float(values.mean() - other.value) if known else None, None, None, None)
    if not reason:
        mean = compared(values, np.array(drawn))
        if known and other.draws is not None:
            gap = compared(values - other.value, np.array(drawn) - other.draws)
    reason = reason or ("" if known else other.reason)
    return {
        **about,
        "value": mean.diff,
        "ci_low": mean.low,
        "ci_high": mean.high,
        "seed_sd": float(values.std(ddof=1)) if len(own) > 1 else None,
        "least": float(values.min()),
        "most": float(values.max()),
        "reference": other.value if known else None,
        "diff": gap.diff,
        "diff_low": gap.low,
        "diff_high": gap.high,
        "p": gap.p,
        **({"reason": reason} if reason else {}),
    }


def unperturbed(people: Rows) -> list[Row]:
    """Questions about people as they are, as questions of a task."""
    return [{**row, "task": "people"} for row in people if row["perturbation"] is None]


def mcnemar(questions: Mapping[str, Rows], reference: str, level: float) -> list[dict[str, Any]]:
    """Each candidate against the reference on questions with choices: each task, and all of them (`task` None).

    Two families are corrected after Holm: all questions, over the candidates; and single tasks, over candidates and tasks.

    Args:
        questions: candidate → rows of tasks.jsonl, the same questions in the same order.
        reference: whom the others are compared with.
        level: of confidence.
    """
    tasks = list(dict.fromkeys(row["task"] for row in questions[reference] if row["correct"] is not None))
    entries = []
    for name in [each for each in questions if each != reference]:
        for task in [None, *tasks] if len(tasks) > 1 else tasks:
            both = [
                (bool(ours["correct"]), bool(theirs["correct"]))
                for ours, theirs in zip(questions[name], questions[reference], strict=True)
                if (task is None or ours["task"] == task) and None not in (ours["correct"], theirs["correct"])
            ]
            if not both:
                continue
            test = statistics.mcnemar([ours for ours, _ in both], [theirs for _, theirs in both])
            entries.append({"a": name, "b": reference, "task": task, **test._asdict()})
    for family in (
        [each for each in entries if each["task"] is None],
        [each for each in entries if each["task"] is not None],
    ):
        for entry, p in zip(family, statistics.holm([each["p"] for each in family]), strict=True):
            verdict = "not shown to be better" if p >= 1.0 - level else "better" if entry["diff"] > 0 else "worse"
            entry |= {"p_holm": p, "verdict": verdict}
    return entries


def slices(rows: Rows, metric: str, resamples: int, seed: int, level: float) -> list[dict[str, Any]]:
    """One candidate's score on parts of the test set: by the length of the source (thirds), and by group.

    Items are resampled: a part is too small for groups. `metric` of an entry is what it is measured by (`metrics.of_items`).
    """
    import numpy as np

    metric = metrics.of_items(metric)
    defined = [row for row in rows if row["scores"][metric] is not None]
    lengths = sorted(row["source_words"] for row in defined)
    if not defined:
        return []
    first, second = lengths[len(lengths) // 3], lengths[2 * len(lengths) // 3]
    thirds: dict[str, list[Row]] = {
        name: [] for name in (f"under {first} words", f"{first} to {second - 1} words", f"{second} words or more")
    }
    for row in defined:
        [*thirds.values()][(row["source_words"] >= first) + (row["source_words"] >= second)].append(row)
    parts = [("length", name, own) for name, own in thirds.items()]
    names = sorted({row["group"] for row in defined})
    if 1 < len(names) < len(defined):  # without groups every row is its own
        parts += [("group", name, [row for row in defined if row["group"] == name]) for name in names]
    found = []
    for kind, name, own in parts:
        if not own:
            continue
        table = np.array([[row["scores"][metric], 1.0] for row in own])
        drawn = statistics.resampled_sums(table, resamples, seed)
        shown = statistics.interval(float(table[:, 0].mean()), drawn[:, 0] / drawn[:, 1], len(own), level)
        found.append(
            {
                "slice": kind,
                "name": name,
                "n": len(own),
                "metric": metric,
                "value": shown.value,
                "ci_low": shown.low,
                "ci_high": shown.high,
                **({"reason": statistics.no_interval(len(own))} if shown.low is None else {}),
            }
        )
    return found


def no_difference(gap: statistics.Comparison, a: Figure, b: Figure) -> dict[str, str]:
    """Why a difference is undefined, or has no interval; nothing where it has one."""
    if gap.low is not None:
        return {}
    if gap.diff is None:
        return {"reason": a.reason if a.value != a.value else b.reason}
    return {"reason": a.reason or _no_interval(a)}


def _no_interval(figure: Figure) -> str:
    """Why there is no interval, where resamples or rounds are there."""
    return "the rounds all show the same" if figure.method == "round" else statistics.no_interval(figure.units)


def _gap(found: statistics.Comparison) -> dict[str, float | None]:
    return {"diff": found.diff, "ci_low": found.low, "ci_high": found.high, "p": found.p}


def _prefixed(found: statistics.Comparison, why: Mapping[str, str]) -> dict[str, float | str | None]:
    return {
        "diff": found.diff,
        "diff_low": found.low,
        "diff_high": found.high,
        "p": found.p,
        **{f"diff_{key}": each for key, each in why.items()},
    }


def headline(found: Mapping[str, Figures], category: str, metric: str) -> str:
    """The key that stands for a category: the first of its figures that is defined for all, else for any, else the first.

    Fairness' order is turned round where the test items have too little for one of its perturbations to change (`touched`).

    Args:
        found: candidate → its figures.
        category: one of `CATEGORIES`.
        metric: the primary one; where items have no score of their own in it (BLEU), perturbed ones are judged by ROUGE-1.
    """
    if category != "accuracy":
        metric = metrics.of_items(metric)
    keys = [key.format(metric=metric) for key in CATEGORIES[category].keys]
    if category == "fairness" and not touched(next(iter(found.values()))):
        keys.reverse()
    for enough in (all, any):
        for key in keys:
            if enough(key in own and own[key].value == own[key].value for own in found.values()):
                return key
    return keys[0]


def touched(figures: Figures) -> bool:
    """Whether each of fairness' perturbations changed as many test items as an interval takes (`statistics.FEWEST`).

    The worst case over three is that of those that change something. Of documentation, which names nobody, that is dialect alone: then
    questions about people, to which all three apply, stand for fairness. (HELM shows the worst case whatever was changed.)
    """
    changed = [figures.get(f"fairness/changed_{name}") for name in perturbations.FAIRNESS]
    return all(each is not None and each.value * each.n >= statistics.FEWEST - 0.5 for each in changed)


def _means(
    columns: Mapping[str, Sequence[float | None]],
    groups: Sequence[Any],
    resamples: int,
    seed: int,
    min_groups: int,
    method: Method = "cluster",
    reason: str = "",
    span: Span | None = SHARE,
) -> dict[str, Figure]:
    """Means over units, each within the span; one that any candidate has no value for is left out for all of them.

    A candidate that has no value for any is undefined itself, and takes nothing from the others.
    """
    import numpy as np

    found = {
        name: undefined(reason or "undefined for every one")
        for name, own in columns.items()
        if all(each is None for each in own)
    }
    left = {name: own for name, own in columns.items() if name not in found}
    whole = [at for at, own in enumerate(zip(*left.values(), strict=True)) if all(each is not None for each in own)]
    n, groups = len(whole), [groups[at] for at in whole]
    if method == "cluster" and len(set(groups)) < min_groups:
        groups, method = list(range(n)), "item"
    if not n:
        return found | dict.fromkeys(left, undefined("there is none that all candidates have a value for"))
    table = np.array([[*(own[at] for own in left.values()), 1.0] for at in whole])  # (n, candidates + 1)
    sums = statistics.cluster_sums(table, groups)
    drawn = statistics.resampled_sums(sums, resamples, seed)
    for column, name in enumerate(left):
        of = statistics.ratio(column, -1)
        found[name] = Figure(float(of(sums.sum(axis=0))), of(drawn), len(sums), n, method, span=span)
    return found


def _by(rows: Rows, field: str, names: Sequence[str] | None = None) -> dict[str, list[Row]]:
    """Rows by a field, in order of first appearance; of some perturbations only."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if names is None or row["perturbation"] in names:
            found.setdefault(row[field], []).append(row)
    return found


def _least(values: Sequence[float | None]) -> float | None:
    known = [each for each in values if each is not None]
    return min(known) if len(known) == len(values) else None


def _number(flag: bool | None) -> float | None:
    return None if flag is None else float(flag)
