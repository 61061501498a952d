"""Harm: teach a judge what people said of answers to red-team prompts, and measure how far it can be trusted.

    python -m stages.harm --encoder artifacts/collect/encoder --judge artifacts/validate/ratings_judge.jsonl \
        --reward artifacts/validate/ratings_reward.jsonl

A ridge regression on sentence embeddings of the answer predicts its mean human harm score. People found long answers more harmful
(they say more), so a regression mostly learns length, and would then prefer whichever candidate is brief. So length is taken out of
what is learnt: the target is the residual of the score on log(1 + words). Both regressions are measured, beside the length
alone and the classifier of alt-profanity-check; the one without length is kept.

It learns from `judge` and is measured on `reward`, prompts that it never read: the area under the ROC curve against "people's
mean score is at least 0.5", over all pairs of answers, over pairs of about the same length, and over pairs that answer the same prompt.
The prompts of `reward` are for training a reward later on; the two sides share none, so the judge stays independent of it.

Writes encoder/, scorer.safetensors and scorer.json (all that `evaluate` needs), and harm.json. Where there is no encoder, or too
little to learn from, harm.json has the reason and nothing else is written.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from tunemill import checkpoints, embeddings, metrics, quality, records, ridge, roc, statistics, toxicity
from tunemill.errors import UserError
from tunemill.log import Log
from tunemill.params import Params
from tunemill.records import Rating
from tunemill.runtime import Runtime
from tunemill.stage import Metrics, main

if TYPE_CHECKING:
    import numpy as np

FIGURES = ("auc", "auc_same_length", "auc_same_prompt")
"""Areas under the ROC curve: over all pairs, over those of about the same length, over those with the same prompt."""
SYSTEMS = ("harm", "harm_with_length", "offence", "length")
"""What is measured: the scorer that is kept, the same with length left in, alt-profanity-check, the number of words."""


class Config(Params):
    """How the judge is trained and measured."""

    seed: int = Field(ge=0)
    """Of the folds and the resamples."""
    max_tokens: int = Field(ge=8)
    """Tokens of an answer that the encoder reads; the answers to be judged are short."""
    alphas: tuple[float, ...] = Field(min_length=1)
    """Penalties to try; the best on prompts left out is taken."""
    folds: int = Field(ge=2)
    """Parts that the judge's prompts are dealt into, to choose the penalty. So many prompts are needed at least."""
    same_length: float = Field(gt=1)
    """Two answers are of about the same length where the longer has at most so many times the words of the shorter."""
    resamples: int = Field(ge=100)
    """Bootstrap resamples of prompts, for the intervals."""


def run(cfg: Config, *, encoder: Path, judge: Path, reward: Path, out: Path, runtime: Runtime, log: Log) -> Metrics:
    """Train on `judge`, measure on `reward`, and write the scorer under `out`."""
    # 1. Read: an answer is harmful where people's mean score is in the upper half.
    learnt, unseen = records.read(judge, Rating), records.read(reward, Rating)
    apart(learnt, unseen)
    name = json.loads((encoder / "source.json").read_text(encoding="utf-8"))["name"]
    flat: dict[str, float | None] = dict.fromkeys(metric_names())
    for side, rows in (("judge", learnt), ("reward", unseen)):
        flat |= {f"{side}/n": len(rows), f"{side}/prompts": len(set(prompts(rows)))}
    if missing := lacking(cfg, name, learnt):
        log.note(f"no harm scorer: {missing}")
        checkpoints.write_json(out / "harm.json", {"reason": missing})
        return flat

    # 2. Embed the answers.
    reader = embeddings.load(encoder, cfg.max_tokens, runtime.device)
    log.start("read the answers", len(learnt) + len(unseen), "answer")
    vectors = embeddings.embed(reader, [each.response for each in (*learnt, *unseen)], log=log)
    taught, tested = vectors[: len(learnt)], vectors[len(learnt) :]

    # 3. Take length out of the target, choose the penalty, fit.
    human = means(learnt)
    residual = human - length_line(learnt, human)
    targets = {"harm": residual + human.mean(), "harm_with_length": human}
    chosen = {
        key: ridge.choose(taught, target, prompts(learnt), cfg.alphas, cfg.folds, cfg.seed)
        for key, target in targets.items()
    }
    fitted = {key: ridge.fit(taught, target, chosen[key].alpha) for key, target in targets.items()}

    # 4. Measure: on the prompts left out while choosing, and on those never read.
    offences = toxicity.offence([each.response for each in (*learnt, *unseen)])
    held_out = {key: each.held_out for key, each in chosen.items()} | {
        "offence": offences[: len(learnt)],
        "length": words(learnt),
    }
    within = measure(learnt, held_out, areas(learnt, held_out, cfg))
    scorer = toxicity.HarmScorer(reader, fitted["harm"], {})
    scores = {
        "harm": scorer.of_vectors([each.response for each in unseen], tested),
        "harm_with_length": fitted["harm_with_length"].predict(tested),
        "offence": offences[len(learnt) :],
        "length": words(unseen),
    }
    resampled = areas(unseen, scores, cfg)
    found = measure(unseen, scores, resampled)

    # 5. Write all that is needed to score, and what was measured.
    told = {
        "encoder": name,
        "max_tokens": cfg.max_tokens,
        "alpha": chosen["harm"].alpha,
        "auc": found["harm"]["auc"],
    }
    toxicity.HarmScorer(reader, fitted["harm"], told).save(out)
    shutil.copytree(encoder, out / toxicity.ENCODER)
    checkpoints.write_json(
        out / "harm.json",
        {
            "encoder": name,
            "alpha": {key: each.alpha for key, each in chosen.items()},
            "threshold": metrics.TOXIC,
            "judge": {**counts(learnt), "cross_validated": within},
            "reward": {**counts(unseen), "measured": found, "harm_less_offence": gain(unseen, resampled)},
        },
    )
    log.note(sentence(found, unseen))
    for side, measured in (("judge", within), ("reward", found)):
        for system, figures in measured.items():
            for key, figure in figures.items():
                if isinstance(figure, dict):
                    flat |= {f"{side}/{system}/{key}{end}": figure[at] for end, at in ENDS.items()}
                else:
                    flat[f"{side}/{system}/{key}"] = figure
    return flat


ENDS = {"": "value", "_low": "low", "_high": "high"}
"""What a metric's key ends in → which part of an interval it is."""


def metric_names() -> list[str]:
    """Keys of the metrics that a scorer is measured by, the same whether there is one or not."""
    figures = [f"{key}{end}" for key in FIGURES for end in ENDS] + ["spearman", "spearman_length"]
    return [f"{side}/{system}/{key}" for side in ("judge", "reward") for system in SYSTEMS for key in figures]


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


def lacking(cfg: Config, encoder: str | None, learnt: Sequence[Rating]) -> str | None:
    """Why no scorer can be trained; None where one can."""
    if encoder is None:
        return "no encoder is named (collect.encoder in params.yaml)"
    count = len(set(prompts(learnt)))
    if count < cfg.folds:
        return f"{count} rated prompts to learn from, at least {cfg.folds} (harm.folds) are needed"
    if len(set(means(learnt).tolist())) < 2:
        return "people gave all answers the same score"
    return None


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
    rows: Sequence[Rating], found: dict[str, dict[str, tuple[float, np.ndarray]]]
) -> dict[str, dict[str, float | None]]:
    """The scorer's areas less those of alt-profanity-check, on the same resamples of prompts."""
    ours, theirs, clusters = found["harm"], found["offence"], len(set(prompts(rows)))
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


def sentence(found: dict[str, dict[str, Any]], rows: Sequence[Rating]) -> str:
    """How far the scorer can be trusted, in words."""

    def told(system: str, key: str) -> str:
        value, low, high = (found[system][key][at] for at in ENDS.values())
        if value is None:
            return "undefined"
        return f"{value:.2f}" if low is None else f"{value:.2f} [{low:.2f}, {high:.2f}]"

    return (
        f"its AUC on {len(rows)} answers to {len(set(prompts(rows)))} prompts it never read: {told('harm', 'auc')}, "
        f"{told('harm', 'auc_same_length')} among answers of about the same length (alt-profanity-check "
        f"{told('offence', 'auc')} and {told('offence', 'auc_same_length')}, length alone {told('length', 'auc')} and "
        f"{told('length', 'auc_same_length')})"
    )


if __name__ == "__main__":
    main(run)
