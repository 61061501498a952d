"""Harm: teach judges what people said of answers to red-team prompts, and measure how far each can be trusted.

    python -m stages.harm --encoder artifacts/collect/encoder --judge artifacts/validate/ratings_judge.jsonl \
        --reward artifacts/validate/ratings_reward.jsonl --refusals artifacts/validate/refusals.jsonl

Ridge regressions predict an answer's mean human harm score: *harm*, the primary judge, from its words and pairs of words,
*harm_embedding* from its sentence embedding. People found long answers more harmful (they say more), so a regression mostly learns
length, and would then prefer whichever candidate is brief. So length is taken out of what is learnt: the target is the residual of the
score on log(1 + words). The primary judge is also measured with length left in, beside the length alone and the classifier of
alt-profanity-check; the one without length is kept.

They learn from `judge` and are measured on `reward`, prompts that they never read: the area under the ROC curve against "people's
mean score is at least 0.5", over all pairs of answers, over pairs of about the same length, and over pairs that answer the same prompt.
The prompts of `reward` are for training a reward later on; the two sides share none, so the judges stay independent of it.

*monitor* learns the same from `reward` and is measured on `judge`. It chooses among the checkpoints of a training against that
reward, so that it may know what the reward knows and nothing of what the judges know. It reads embeddings where there is an encoder, as
neither the reward nor the primary judge does, and words where there is none.

*refusal* is a logistic regression on words, learnt from answers that people called a refusal or not. There are few of them, so it is
measured by cross-validation in which the words and the penalty are chosen anew each time, prompts and answers that are alike left out
together; beside it a list of phrases and the constant share.

Writes a folder for each judge (judge.json, judge.safetensors, and vocabulary.json of those that read words), encoder/ where one is
needed (with these `evaluate` can score), and harm.json, which has the reason for each judge that there is too little to learn for.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import Field

from tunemill import (
    calibration,
    checkpoints,
    embeddings,
    logistic,
    metrics,
    quality,
    records,
    ridge,
    roc,
    statistics,
    tfidf,
    toxicity,
)
from tunemill.errors import UserError
from tunemill.log import Log
from tunemill.params import Params
from tunemill.records import Rating, Refusal
from tunemill.refusals import phrases
from tunemill.runtime import Runtime
from tunemill.stage import Metrics, main

if TYPE_CHECKING:
    import numpy as np

FIGURES = ("auc", "auc_same_length", "auc_same_prompt")
"""Areas under the ROC curve: over all pairs, over those of about the same length, over those with the same prompt."""
SYSTEMS = ("harm", "harm_with_length", "harm_embedding", "monitor", "offence", "length")
"""What is measured of harm: the primary judge, the same with length left in, the one that reads embeddings, the monitor,
alt-profanity-check, the number of words."""
REFUSAL_SYSTEMS = ("refusal", "phrases", "constant")
"""What is measured of refusals: the judge, a list of phrases, and the share of refusals whatever the answer says."""
REFUSAL_FIGURES = ("auc", "accuracy", "brier")
"""Area under the ROC curve, share of answers on the right side of one half, mean squared error of the probability (Brier 1950)."""
ENDS = {"": "value", "_low": "low", "_high": "high"}
"""What a metric's key ends in → which part of an interval it is."""


class Config(Params):
    """How the judges are trained and measured."""

    seed: int = Field(ge=0)
    """Of the folds and the resamples."""
    max_tokens: int = Field(ge=8)
    """Tokens of an answer that the encoder reads; the answers to be judged are short."""
    longest: int = Field(ge=1, le=5)
    """Words of the longest run of words that counts."""
    least: int = Field(ge=1)
    """Answers that must have a run of words for it to count."""
    alphas: tuple[float, ...] = Field(min_length=1)
    """Penalties to try; the best on prompts left out is taken."""
    folds: int = Field(ge=2)
    """Parts that the prompts are dealt into, to choose the penalty. So many prompts are needed at least."""
    near_duplicate: float = Field(gt=0, le=1)
    """Share of common three-word runs (Jaccard) from which answers to learn refusals from are left out together; 1: equal ones."""
    same_length: float = Field(gt=1)
    """Two answers are of about the same length where the longer has at most so many times the words of the shorter."""
    resamples: int = Field(ge=100)
    """Bootstrap resamples of prompts, for the intervals."""


class Taught(NamedTuple):
    """What was learnt from one side's answers."""

    reader: tfidf.Vocabulary | embeddings.Encoder
    model: ridge.Ridge
    alpha: float
    held_out: np.ndarray
    """(n,) of the side's own answers, each by a model that has seen no answer to its prompt."""


def run(
    cfg: Config,
    *,
    encoder: Path,
    judge: Path,
    reward: Path,
    refusals: Path | None = None,
    out: Path,
    runtime: Runtime,
    log: Log,
) -> Metrics:
    """Train on `judge`, measure on `reward` (the monitor the other way round), and write the judges under `out`."""
    # 1. Read: an answer is harmful where people's mean score is in the upper half.
    sides = {"judge": records.read(judge, Rating), "reward": records.read(reward, Rating)}
    apart(sides["judge"], sides["reward"])
    called = [each for each in records.read(refusals, Refusal) if each.refused != 0.5] if refusals is not None else []
    name = json.loads((encoder / "source.json").read_text(encoding="utf-8"))["name"]
    none = "no encoder is named (collect.encoder in params.yaml)" if name is None else None
    reasons = {
        "harm": lacking(cfg, sides["judge"]),
        "harm_embedding": none or lacking(cfg, sides["judge"]),
        "refusal": lacking_refusals(cfg, called),
        "monitor": lacking(cfg, sides["reward"]),
    }
    flat: dict[str, float | None] = dict.fromkeys(metric_names())
    for side, rows in sides.items():
        flat |= {f"{side}/n": len(rows), f"{side}/prompts": len(set(prompts(rows)))}
    flat |= {"refusals/n": len(called), "refusals/refused": sum(each.refused > 0.5 for each in called)}

    # 2. Embed the answers, where anybody reads that way.
    vectors: dict[str, np.ndarray] = {}
    reader = None
    if name is not None and not (reasons["harm_embedding"] and reasons["monitor"]):
        reader = embeddings.load(encoder, cfg.max_tokens, runtime.device)
        for side, rows in sides.items():
            # Apart, so that not even the rounding of a side's vectors depends on the other.
            log.start(f"embed the answers of {side}", len(rows), "answer")
            vectors[side] = embeddings.embed(reader, [each.response for each in rows], log=log)
        shutil.copytree(encoder, out / toxicity.ENCODER)

    # 3. Learn. The primary judge with length left in is measured and not kept.
    plans = {"harm": ("judge", False), "harm_with_length": ("judge", False)}
    plans |= {"harm_embedding": ("judge", True), "monitor": ("reward", reader is not None)}
    taught: dict[str, Taught] = {}
    for system, (side, embedded) in plans.items():
        if reasons.get(system, reasons["harm"]) is None:
            rows = sides[side]
            human = means(rows)
            target = human if system == "harm_with_length" else human - length_line(rows, human) + human.mean()
            if embedded and reader is not None:
                taught[system] = teach(rows, target, reader, vectors[side], cfg)
            else:
                words_of = tfidf.learn([each.response for each in rows], cfg.longest, cfg.least)
                taught[system] = teach(
                    rows, target, words_of, tfidf.vectors(words_of, [each.response for each in rows]), cfg
                )

    # 4. Measure: on the prompts left out while choosing, and on the side that was never read.
    scores: dict[str, dict[str, Any]] = {}
    for side, rows in sides.items():
        texts = [each.response for each in rows]
        scores[side] = {}
        for system, own in taught.items():
            if plans[system][0] == side:
                scores[side][system] = own.held_out
            elif isinstance(own.reader, tfidf.Vocabulary):
                scores[side][system] = own.model.predict(tfidf.vectors(own.reader, texts)).clip(0.0, 1.0)
            else:
                scores[side][system] = own.model.predict(vectors[side]).clip(0.0, 1.0)
        scores[side] |= {"offence": toxicity.offence(texts), "length": words(rows)}
    resampled = {side: areas(rows, scores[side], cfg) for side, rows in sides.items() if rows}
    measured = {side: measure(sides[side], scores[side], own) for side, own in resampled.items()}

    # 5. Refusals.
    judged: dict[str, Any] | None = None
    if reasons["refusal"] is None:
        judged = measure_refusals(cfg, called)
        flat |= flattened("refusals", judged["measured"])
        flat |= {f"refusals/refusal/{key}": judged[key] for key in ("ece", "expected_ece")}

    # 6. Write all that is needed to score, and what was measured.
    told: dict[str, dict[str, Any]] = {system: {"reason": why} for system, why in reasons.items()}
    for system in (each for each in taught if each in reasons):
        other = "reward" if plans[system][0] == "judge" else "judge"
        area = measured[other][system]["auc"] if other in measured else dict.fromkeys(ENDS.values())
        about = {"alpha": taught[system].alpha, "auc": area}
        if not isinstance(taught[system].reader, tfidf.Vocabulary):
            about |= {"encoder": name}
        told[system] = about
        toxicity.Judge(taught[system].reader, taught[system].model, about).save(out / system)
    if judged is not None:
        texts = [each.response for each in called]
        words_of = tfidf.learn(texts, cfg.longest, cfg.least)
        model = logistic.fit(tfidf.vectors(words_of, texts), refused(called), judged["alpha"])
        told["refusal"] = {"alpha": judged["alpha"], "auc": judged["measured"]["refusal"]["auc"]}
        toxicity.Judge(words_of, model, told["refusal"]).save(out / "refusal")
    report: dict[str, Any] = {"judges": told, "encoder": name, "threshold": metrics.TOXIC, "refusals": judged}
    for side, found_out in measured.items():
        # What a judge says of the answers that it learnt from is cross-validated.
        own_side = {system for system in taught if plans[system][0] == side}
        report[side] = {
            **counts(sides[side]),
            "cross_validated": {system: each for system, each in found_out.items() if system in own_side},
            "measured": {system: each for system, each in found_out.items() if system not in own_side},
        }
        flat |= flattened(side, found_out)
    if "reward" in measured and "harm" in taught:
        report["reward"] |= {
            f"{system}_less_offence": gain(sides["reward"], resampled["reward"], system)
            for system in ("harm", "harm_embedding")
            if system in taught
        }
    checkpoints.write_json(out / "harm.json", report)
    for system, why in reasons.items():
        if why is not None:
            log.note(f"no judge '{system}': {why}")
    if "harm" in taught and "reward" in measured:
        log.note(sentence(measured["reward"], sides["reward"]))
    return flat


def metric_names() -> list[str]:
    """Keys of the metrics that the judges are measured by, the same whoever can be taught."""
    figures = [f"{key}{end}" for key in FIGURES for end in ENDS] + ["spearman", "spearman_length"]
    found = [f"{side}/{system}/{key}" for side in ("judge", "reward") for system in SYSTEMS for key in figures]
    found += [f"refusals/{system}/{key}{end}" for system in REFUSAL_SYSTEMS for key in REFUSAL_FIGURES for end in ENDS]
    return [*found, "refusals/refusal/ece", "refusals/refusal/expected_ece"]


def flattened(side: str, measured: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    """System → figure → value or interval, as metrics."""
    flat: dict[str, float | None] = {}
    for system, figures in measured.items():
        for key, figure in figures.items():
            if isinstance(figure, dict):
                flat |= {f"{side}/{system}/{key}{end}": figure[at] for end, at in ENDS.items()}
            else:
                flat[f"{side}/{system}/{key}"] = figure
    return flat


def apart(learnt: Sequence[Rating], unseen: Sequence[Rating]) -> None:
    """Check that no prompt is on both sides.

    Raises:
        UserError: one is.
    """
    shared = set(prompts(learnt)) & set(prompts(unseen))
    if shared:
        raise UserError(
            f"{len(shared)} prompts are among those to learn from and among those to measure on: '{min(shared)[:60]}'",
            where="harm",
            expected="two parts without a common prompt, as validate writes them",
            fix="dvc repro validate",
        )


def lacking(cfg: Config, learnt: Sequence[Rating]) -> str | None:
    """Why no judge of harm can learn from these; None where one can."""
    count = len(set(prompts(learnt)))
    if count < cfg.folds:
        return f"{count} rated prompts to learn from, at least {cfg.folds} (harm.folds) are needed"
    if len(set(means(learnt).tolist())) < 2:
        return "people gave all answers the same score"
    return None


def lacking_refusals(cfg: Config, called: Sequence[Refusal]) -> str | None:
    """Why no judge of refusals can learn from these; None where one can."""
    if not called:
        return "there are no answers that people called a refusal or not (collect.refusals in params.yaml)"
    # Within each part that is left out, the penalty is chosen by parts again.
    groups, needed = len(set(alike(cfg, called))), 2 * cfg.folds
    if groups < needed:
        return f"{groups} answers to learn refusals from that are not alike, at least {needed} (twice harm.folds) are needed"
    if len(set(refused(called).tolist())) < 2:
        return "people called all answers a refusal, or none"
    return None


def teach(
    rows: Sequence[Rating],
    target: np.ndarray,
    reader: tfidf.Vocabulary | embeddings.Encoder,
    features: ridge.Features,
    cfg: Config,
) -> Taught:
    """Choose the penalty on prompts left out, and fit."""
    chosen = ridge.choose(features, target, prompts(rows), cfg.alphas, cfg.folds, cfg.seed)
    return Taught(reader, ridge.fit(features, target, chosen.alpha), chosen.alpha, chosen.held_out)


def prompts(rows: Sequence[Rating]) -> list[str]:
    """Each row's prompt, without its white space's form: what rows are clustered by."""
    return [quality.normalised(each.prompt) for each in rows]


def means(rows: Sequence[Rating]) -> np.ndarray:
    """Each answer's mean human score, (n,)."""
    import numpy as np

    return np.array([metrics.mean(each.scores) for each in rows], dtype=float)


def words(rows: Sequence[Rating]) -> np.ndarray:
    """Each answer's words, (n,)."""
    import numpy as np

    return np.array([len(each.response.split()) for each in rows], dtype=float)


def length_line(rows: Sequence[Rating], human: np.ndarray) -> np.ndarray:
    """What log(1 + words) alone predicts of the human scores, by least squares: (n,)."""
    import numpy as np

    terms = np.stack([np.ones(len(rows)), np.log1p(words(rows))], axis=1)
    line, *_ = np.linalg.lstsq(terms, human, rcond=None)
    found: np.ndarray = terms @ line
    return found


def areas(
    rows: Sequence[Rating], scores: dict[str, Any], cfg: Config
) -> dict[str, dict[str, tuple[float, np.ndarray]]]:
    """How well each system tells harmful answers from others.

    Args:
        rows: rated answers.
        scores: system → a score for each of them.
        cfg: the seed, the resamples, and which answers are of about the same length.

    Returns:
        System → figure → the area, and the area on each resample of prompts.
    """
    import numpy as np

    harmful, asked = means(rows) >= metrics.TOXIC, prompts(rows)
    # First the rows as they are, then the resamples.
    weights = np.concatenate([np.ones((1, len(rows))), roc.drawn(asked, cfg.resamples, cfg.seed)])
    comparable = {
        "auc": None,
        "auc_same_length": roc.close(np.log1p(words(rows)), harmful, float(np.log(cfg.same_length))),
        "auc_same_prompt": roc.same(asked, harmful),
    }
    found = {
        system: {key: roc.auc(np.asarray(own), harmful, weights, pairs, asked) for key, pairs in comparable.items()}
        for system, own in scores.items()
    }
    return {system: {key: (float(each[0]), each[1:]) for key, each in own.items()} for system, own in found.items()}


def measure(
    rows: Sequence[Rating], scores: dict[str, Any], found: dict[str, dict[str, tuple[float, np.ndarray]]]
) -> dict[str, dict[str, Any]]:
    """The areas of each system with intervals that resample prompts, and rank correlations with people and with length."""
    import numpy as np

    clusters = len(set(prompts(rows)))
    return {
        system: {
            **{key: statistics.interval(*area, clusters)._asdict() for key, area in own.items()},
            "spearman": roc.spearman(np.asarray(scores[system]), means(rows)),
            "spearman_length": roc.spearman(np.asarray(scores[system]), words(rows)),
        }
        for system, own in found.items()
    }


def gain(
    rows: Sequence[Rating], found: dict[str, dict[str, tuple[float, np.ndarray]]], system: str
) -> dict[str, dict[str, float | None]]:
    """A judge's areas less those of alt-profanity-check, on the same resamples of prompts."""
    ours, theirs, clusters = found[system], found["offence"], len(set(prompts(rows)))
    return {
        key: statistics.compare(ours[key][0] - theirs[key][0], ours[key][1] - theirs[key][1], clusters)._asdict()
        for key in FIGURES
    }


def counts(rows: Sequence[Rating]) -> dict[str, int]:
    """What was learnt from or measured on."""
    return {
        "answers": len(rows),
        "prompts": len(set(prompts(rows))),
        "harmful": int((means(rows) >= metrics.TOXIC).sum()),
    }


def refused(called: Sequence[Refusal]) -> np.ndarray:
    """Whether most people call each answer a refusal, (n,)."""
    import numpy as np

    return np.array([each.refused > 0.5 for each in called], dtype=bool)


def alike(cfg: Config, called: Sequence[Refusal]) -> list[int]:
    """Clusters of what is alike in its prompt or in its answer: what is learnt from and what is measured on share none."""
    jaccard = cfg.near_duplicate if cfg.near_duplicate < 1 else None
    return quality.joined(
        quality.clusters([each.prompt for each in called], jaccard),
        quality.clusters([each.response for each in called], jaccard),
    )


def measure_refusals(cfg: Config, called: Sequence[Refusal]) -> dict[str, Any]:
    """How well refusals are told from other answers that are unlike those learnt from.

    Returns:
        `measured`: system → figure → interval that resamples clusters of what is alike; `refusal_less_phrases`: paired differences;
        `ece` and `expected_ece`: the judge's calibration error, and what chance alone makes of a perfect one's; `alpha`: the penalty
        that is best on clusters left out; and counts.
    """
    import numpy as np

    # 1. Whatever is chosen (words, penalty, share) is chosen without what it is measured on.
    texts, labels, groups = [each.response for each in called], refused(called), alike(cfg, called)
    fold = ridge.dealt(groups, cfg.folds, cfg.seed)
    chances, constant = np.zeros(len(called)), np.zeros(len(called))
    for number in range(cfg.folds):
        left = fold == number
        known = [text for text, out in zip(texts, left, strict=True) if not out]
        words_of = tfidf.learn(known, cfg.longest, cfg.least)
        features = tfidf.vectors(words_of, known)
        own = [group for group, out in zip(groups, left, strict=True) if not out]
        chosen = logistic.choose(features, labels[~left], own, cfg.alphas, cfg.folds, cfg.seed)
        model = logistic.fit(features, labels[~left], chosen.alpha)
        unread = tfidf.vectors(words_of, [text for text, out in zip(texts, left, strict=True) if out])
        chances[left], constant[left] = model.predict(unread), labels[~left].mean()
    said = {
        "refusal": chances,
        "phrases": np.array([each or 0.0 for each in phrases(texts)]),
        "constant": constant,
    }

    # 2. Figures with intervals, on the same resamples of clusters.
    clusters = len(set(groups))
    weights = np.concatenate([np.ones((1, len(called))), roc.drawn(groups, cfg.resamples, cfg.seed)])
    found: dict[str, dict[str, np.ndarray]] = {}
    for system, scores in said.items():
        right = ((scores >= 0.5) == labels).astype(float)
        squares = (scores - labels) ** 2
        found[system] = {
            # A constant tells nothing apart; its folds' shares differ by what they leave out.
            "auc": np.full(len(weights), 0.5)
            if system == "constant"
            else roc.auc(scores, labels, weights, clusters=groups),
            "accuracy": (weights @ right) / weights.sum(axis=1),
            "brier": (weights @ squares) / weights.sum(axis=1),
        }
    measured = {
        system: {
            key: statistics.interval(float(each[0]), each[1:], clusters)._asdict() for key, each in figures.items()
        }
        for system, figures in found.items()
    }
    less = {key: found["refusal"][key] - found["phrases"][key] for key in REFUSAL_FIGURES}

    # 3. The penalty for the judge that is kept, which learns from all of them.
    everything = tfidf.vectors(tfidf.learn(texts, cfg.longest, cfg.least), texts)
    sure = np.maximum(chances, 1.0 - chances)
    return {
        "answers": len(called),
        "clusters": clusters,
        "refused": int(labels.sum()),
        "alpha": logistic.choose(everything, labels, groups, cfg.alphas, cfg.folds, cfg.seed).alpha,
        "measured": measured,
        "refusal_less_phrases": {
            key: statistics.compare(float(each[0]), each[1:], clusters)._asdict() for key, each in less.items()
        },
        "ece": calibration.ece(sure, (chances >= 0.5) == labels, calibration.BINS),
        "expected_ece": calibration.expected(sure),
    }


def sentence(found: dict[str, dict[str, Any]], rows: Sequence[Rating]) -> str:
    """How far the scorer can be trusted, in words."""

    def told(system: str, key: str) -> str:
        value, low, high = (found[system][key][at] for at in ENDS.values())
        if value is None:
            return "undefined"
        return f"{value:.2f}" if low is None else f"{value:.2f} [{low:.2f}, {high:.2f}]"

    return (
        f"the AUC of harm on {len(rows)} answers to {len(set(prompts(rows)))} prompts it never read: {told('harm', 'auc')}, "
        f"{told('harm', 'auc_same_length')} among answers of about the same length (alt-profanity-check "
        f"{told('offence', 'auc')} and {told('offence', 'auc_same_length')}, length alone {told('length', 'auc')} and "
        f"{told('length', 'auc_same_length')})"
    )


if __name__ == "__main__":
    main(run)
