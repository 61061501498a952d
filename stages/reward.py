r"""Reward: teach a model which of two answers people prefer, and measure it on prompts that it did not learn from.

    python -m stages.reward --candidate harm --policy artifacts/feedback/policy \
        --preferences artifacts/feedback/preferences.jsonl --completions artifacts/feedback/completions.jsonl \
        --out artifacts/reward/harm

Bradley-Terry with a low-rank adapter and a linear head on the starting policy's own weights (`tunemill.reward_models`): PPO loads both
beside its other adapters, on the same base.

How good it is, is measured by cross-validation over groups of near-duplicate prompts: a model is trained without each part of them and
asked about it. The model that is kept has seen all pairs, so it is not the one that was measured, but one of more pairs. Beside its
accuracy stand what length alone tells, and a ridge regression on TF-IDF weights of the answer, and of prompt and answer, dealt into the
same parts. "Beats" is said where the interval of the difference, which resamples groups, lies above zero. People prefer short answers
here; so the accuracy is told by how the two answers' lengths differ, too. A reward that follows length is a defect to show.
With `length_control` it is mended, too: what the reward model makes of the length of the starting policy's own answers (`completions`)
is taken off its scores (`rlhf.LengthLine`). What is left usually tells less of people's pairs, where length does tell something, and
is what a policy can be trained by without its answers just becoming short. Both are measured.

Pairs may come from people, from a model's labels (stage `rl_cai`), or from both; a pair counts with the probability that its label
gives it (a soft label). What people said is measured apart, too.

Writes adapter/ (the adapter, head.safetensors and a card), reward.json (everything measured), curve.csv (the training), folds.csv,
margins.csv (of each pair, by the model that had not learnt it), lengths.csv, reliability.csv and histogram.csv.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from tunemill import checkpoints, journal, pairwise, records
from tunemill.errors import UserError
from tunemill.log import Log
from tunemill.params import Params
from tunemill.records import Completions, Preference
from tunemill.rlhf import LengthLine
from tunemill.runtime import Runtime, seed_everything
from tunemill.stage import Metrics, main

if TYPE_CHECKING:
    import numpy as np

    from tunemill import reward_models
    from tunemill.losses import Encoded

CONTROLLED = "controlled"
"""The reward model's scores, less what they say of length."""
BASELINES = {
    "length": "length alone",
    "response": "TF-IDF of the answer",
    "text": "TF-IDF of prompt and answer",
}
"""What the reward model is measured beside."""
SYSTEMS = ("reward", CONTROLLED, *BASELINES)
SUBSETS = ("all", "chosen_longer", "length_matched", "people")
"""All pairs; those whose longer answer is preferred; those of about the same length; those that people compared."""
ENDS = {"": 0, "_low": 1, "_high": 2}
"""What a metric's key ends in → which part of an interval it is."""


NO_LINE = (
    "length is NOT taken out of the reward: the starting policy's answers to each prompt are all of one length "
    "(raise feedback.max_new_tokens, or feedback.completions)"
)

LEAST = 1e-9
"""Scores closer together than this are the same: what an optimizer's first step moves a reward that has learnt nothing by."""


class Config(Params):
    """How the reward model is trained and measured."""

    seed: int = Field(ge=0)
    """Of new weights, of the order of the pairs, of the folds and of the resamples."""
    rank: int = Field(ge=1, le=256)
    """Rank r of the update B·A."""
    alpha: int = Field(ge=1, le=1024)
    """The update is scaled by alpha / rank."""
    targets: str | tuple[str, ...]
    """Names of the adapted layers; "all-linear" takes every linear layer but the output head."""
    balance_lengths: bool
    """Whether pairs are weighted so that the longer answer is preferred as often as the shorter one, wherever it learns. It is measured
    on the pairs as they are."""
    length_control: bool
    """Whether what the reward says of the starting policy's answers by their length alone is taken off it."""
    head_penalty: float = Field(gt=0)
    """What keeps the head small that a regression on the untrained states starts from."""
    learning_rate: float = Field(gt=0, le=1)
    """Peak AdamW learning rate of adapter and head."""
    warmup_steps: int = Field(ge=0)
    """Steps until the peak; afterwards linear to zero."""
    max_grad_norm: float = Field(gt=0)
    """Gradients are clipped to this norm."""
    steps: int = Field(ge=1)
    """Optimizer steps of the model that is kept."""
    folds: int = Field(ge=2)
    """Parts of the cross-validation. So many groups of prompts are needed at least."""
    fold_steps: int = Field(ge=1)
    """Optimizer steps of each of its models."""
    batch_size: int = Field(ge=1)
    """Pairs in a step."""
    max_tokens: int = Field(ge=16)
    """Answers are cut off here, prompt included, and counted."""
    checkpoint_steps: int = Field(ge=1)
    """Steps between two checkpoints: what a kill can cost."""
    batch_tokens: int = Field(ge=1)
    """Most tokens of a batch that is only read, padding included."""
    resamples: int = Field(ge=100)
    """Bootstrap resamples of groups, for the intervals."""


def run(
    cfg: Config,
    *,
    policy: Path,
    preferences: Path,
    completions: Path,
    out: Path,
    work: Path,
    runtime: Runtime,
    log: Log,
) -> Metrics:
    """Train on `preferences`, take length out by `completions`, measure by cross-validation, and write the reward model under `out`."""
    import numpy as np

    from tunemill import backbone, cards, losses, models, reward_models

    # 1. Pairs as token ids, dealt into folds that keep near-duplicate prompts together.
    tokenizer = models.load_tokenizer(policy)
    preferred = records.read(preferences, Preference)
    data = reward_models.encode(tokenizer, preferred, cfg.max_tokens)
    used = [preferred[at] for at in data.kept]
    check(cfg, used, data.left_out, preferences)
    folds = pairwise.deal([each.group for each in used], cfg.folds, cfg.seed)
    sampled = records.read(completions, Completions) if cfg.length_control else []
    own = reward_models.answered(tokenizer, sampled, cfg.max_tokens)
    if cfg.length_control:
        tellable(own, completions, log)

    # 2. What the untrained model makes of every answer: the head starts from a regression on it.
    model = models.load_base(policy, runtime)
    reward_models.fits(model.config, [*data.rows, *own.rows])
    pad = reward_models.unused_token(tokenizer, [*data.rows, *own.rows])
    states = remembered(
        work / "states.npy",
        lambda: reward_models.states(
            model, data.rows, pad, batch_tokens=cfg.batch_tokens, title="read the answers", log=log
        ),
    )
    finite(states, "the states of the starting policy")
    chosen, rejected = (np.array([getattr(pair, name) for pair in data.pairs]) for name in ("chosen", "rejected"))
    weights = np.array([pair.weight for pair in data.pairs])
    probabilities = np.array([pair.probability for pair in data.pairs])
    ratio = pairwise.length_ratio([each.chosen for each in used], [each.rejected for each in used])
    tokens = np.array([len(row.completion) for row in data.rows])

    def read(rows: Sequence[Encoded], trainee: Any, title: str) -> list[float]:
        """What a reward model makes of answers."""
        states = reward_models.states(model, rows, pad, batch_tokens=cfg.batch_tokens, title=title, log=log)
        return [float(each) for each in states @ trainee.head.cpu().numpy()]

    def line_of(trainee: Any, title: str) -> LengthLine | None:
        """What it makes of their length; None where that is not asked, or cannot be told."""
        if not own.differ:
            return None
        scores = read(own.rows, trainee, title)
        finite(np.array(scores), "the scores of the policy's own answers")
        return LengthLine.fit(scores, own.tokens, own.prompts)

    def taught(items: np.ndarray, steps: int, name: str, title: str) -> tuple[Any, list[Any]]:
        """A reward model of some pairs, on the language model, and its training curve."""
        seed_everything(cfg.seed)  # of the adapter's new weights
        gaps = states[chosen[items]] - states[rejected[items]]
        counted = pairwise.balanced(weights[items], ratio[items]) if cfg.balance_lengths else weights[items]
        head = pairwise.fit(gaps, probabilities[items], counted, cfg.head_penalty)
        trainee = reward_models.attach(model, models.low_rank(cfg.rank, cfg.alpha, cfg.targets), torch_row(head))
        settings = reward_models.Settings(
            steps, cfg.batch_size, cfg.learning_rate, cfg.warmup_steps, cfg.max_grad_norm, cfg.checkpoint_steps
        )
        points = reward_models.train(
            trainee,
            tokenizer,
            data,
            [data.pairs[at]._replace(weight=weight) for at, weight in zip(items, counted.tolist(), strict=True)],
            settings,
            cfg.seed,
            runtime=runtime,
            work=work / name,
            log=log,
            title=title,
        )
        return trainee, points

    # 3. Cross-validation: each fold's answers are scored by a model that has not seen their prompts.
    margins, controlled = np.zeros(len(used)), np.zeros(len(used))
    lines: list[float | None] = []
    scored: dict[str, np.ndarray] = {name: np.zeros(len(used)) for name in ("chosen", "rejected")}
    table = []
    done = {entry["fold"]: entry for entry in journal.recover(work / "folds.jsonl")}
    for fold in range(cfg.folds):
        known, held_out = (np.flatnonzero((np.array(folds) == fold) == inside) for inside in (False, True))
        if fold not in done:
            trainee, points = taught(known, cfg.fold_steps, f"fold-{fold}", f"fold {fold + 1} of {cfg.folds}")
            rows = sorted({*chosen[held_out].tolist(), *rejected[held_out].tolist()})
            found = np.array(read([data.rows[row] for row in rows], trainee, f"score fold {fold + 1}"))
            finite(found, f"the scores of fold {fold + 1}")
            line = line_of(trainee, f"length of answers, fold {fold + 1}")
            trainee.release()
            slope = line.slope if line else None
            done[fold] = {"fold": fold, "rows": rows, "scores": found.tolist(), "loss": points[-1].loss, "slope": slope}
            journal.append(work / "folds.jsonl", done[fold])
        score = dict(zip(done[fold]["rows"], done[fold]["scores"], strict=True))
        for name, places in (("chosen", chosen), ("rejected", rejected)):
            scored[name][held_out] = [score[place] for place in places[held_out].tolist()]
        gaps = scored["chosen"][held_out] - scored["rejected"][held_out]
        margins[held_out] = np.where(np.abs(gaps) < LEAST, 0.0, gaps)
        longer = np.log1p(tokens[chosen[held_out]]) - np.log1p(tokens[rejected[held_out]])
        lines.append(done[fold]["slope"])
        controlled[held_out] = np.where(np.abs(gaps) < LEAST, 0.0, gaps - (lines[-1] or 0.0) * longer)
        table.append(
            {
                "fold": fold + 1,
                "groups": len({used[at].group for at in held_out}),
                "pairs": len(held_out),
                "trained_pairs": len(known),
                "loss": round(done[fold]["loss"], 6),
                "accuracy": share(margins[held_out], weights[held_out]),
            }
        )

    # 4. Measure, beside the baselines.
    found = measure(cfg, used, margins, controlled if None not in lines else None, weights, folds)
    said = np.array([each.source != "ai" for each in used], dtype=bool)
    bars = pairwise.reliability(margins[said] if said.any() else margins)
    # A reward is known up to a function of the prompt: each pair is shown about its own middle.
    middle = (scored["chosen"] + scored["rejected"]) / 2.0
    columns = pairwise.histogram(scored["chosen"] - middle, scored["rejected"] - middle)

    # 5. The model that is kept learns from all pairs.
    trainee, points = taught(np.arange(len(used)), cfg.steps, "all", "training on all pairs")
    finite(trainee.head.cpu().numpy(), "the head")
    line = line_of(trainee, "length of answers")
    reward_models.save(trainee, out / "adapter")
    told = {
        "kind": "model",  # among the rewards of `tunemill.rewards`
        "vocabulary": backbone.vocabulary(tokenizer),
        "weights": backbone.weights(policy),
        "length": length(line, own),
        "constant": bool((margins == 0).all()),
        "pairs": len(used),
        "prompts": len({each.prompt for each in used}),
        "groups": len({each.group for each in used}),
        "answers": len(data.rows),
        "cut": data.cut,
        "left_out": data.left_out,
        "training": {
            "steps": cfg.steps,
            "batch_size": cfg.batch_size,
            "learning_rate": cfg.learning_rate,
            "balance_lengths": cfg.balance_lengths,
            "epochs": cfg.steps * cfg.batch_size / len(used),
            "trainable_parameters": trainable(trainee.policy),
            "trainer": "trl.RewardTrainer" if losses.start_token(model) is None else "transformers.Trainer",
            "dtype": runtime.dtype,
            "loss_first": points[0].loss,
            "loss_last": points[-1].loss,
        },
        "held_out": found,
    }
    checkpoints.write_json(out / "reward.json", told)
    write_csv(out / "curve.csv", [point._asdict() for point in points])
    write_csv(out / "folds.csv", table)
    write_csv(out / "margins.csv", margins_of(used, folds, margins, controlled if None not in lines else None))
    write_csv(out / "lengths.csv", found["by_length"])
    write_csv(out / "reliability.csv", [bar._asdict() for bar in bars])
    write_csv(out / "histogram.csv", [column._asdict() for column in columns])
    text = (
        "A reward model: a low-rank adapter of the model named above and a head (head.safetensors, `weight`). The reward of an answer "
        "is head · hidden state, after the last norm, at the answer's last token; it is known up to a function of the prompt."
    )
    cards.write(out / "adapter", "Reward model", policy, text, facts(cfg, told), model.config.is_encoder_decoder)
    log.note(sentence(found))
    return flat(told)


# ── before ────────────────────────────────────────────────────────────────────────────────────────────────────────


def check(cfg: Config, used: Sequence[Preference], left_out: Mapping[str, int], path: Path) -> None:
    """Refuse pairs that nothing can be learnt or measured from.

    Raises:
        UserError: there are none, or of fewer groups of prompts than folds.
    """
    counts = ", ".join(f"{reason} {count}" for reason, count in left_out.items() if count)
    if not used:
        raise UserError(
            "no pair of answers to learn from" + (f": {counts}" if counts else ""),
            where=str(path),
            expected="answers to one prompt of which one is preferred",
            fix="raise reward.max_tokens"
            if counts
            else "rank answers (make label), or name ratings in collect.ratings",
        )
    groups = len({each.group for each in used})
    if groups < cfg.folds:
        raise UserError(
            f"{groups} groups of prompts cannot be dealt into {cfg.folds} folds",
            where="params.yaml: reward.folds",
            expected=f"at most {groups}" if groups > 1 else "pairs of at least two different prompts",
            fix="lower it, or rank answers to more prompts",
        )


def tellable(own: reward_models.Answered, path: Path, log: Log) -> None:
    """Say where the policy's answers cannot show what a reward makes of their length.

    Raises:
        UserError: there are none.
    """
    if not own.rows:
        raise UserError(
            "no answers of the starting policy, to see what the reward makes of length"
            + (f": {own.left_out} prompts are too long" if own.left_out else ""),
            where=str(path),
            expected="answers that stage `feedback` sampled",
            fix="raise feedback.prompts or reward.max_tokens, or set reward.length_control: false",
        )
    if not own.differ:
        log.note(NO_LINE)


def length(line: LengthLine | None, own: reward_models.Answered) -> dict[str, float | None] | None:
    """What is written down of the line."""
    if line is None:
        return None
    error = line.error if math.isfinite(line.error) else None
    answers = {"answers": len(own.rows), "prompts": len({*own.prompts}), "prompts_left_out": own.left_out}
    return {"slope": line.slope, "slope_error": error, "log_tokens": line.log_tokens, **answers}


def torch_row(values: np.ndarray) -> Any:
    """(H,) as a tensor in float32."""
    import torch

    return torch.from_numpy(values).float()


def remembered(path: Path, compute: Any) -> np.ndarray:
    """What was computed before a kill, or is now."""
    import numpy as np

    if not path.is_file():
        found = compute()
        partial = path.with_name(f".{path.name}")
        with partial.open("wb") as file:
            np.save(file, found)
        partial.replace(path)
    kept: np.ndarray = np.load(path)
    return kept


def finite(values: np.ndarray, what: str) -> None:
    """Refuse what is no number.

    Raises:
        UserError: something is not.
    """
    import numpy as np

    lost = int((~np.isfinite(values)).sum())
    if lost:
        raise UserError(
            f"{what} are no numbers ({lost} of {values.size})",
            where="reward",
            expected="finite rewards",
            fix="lower reward.learning_rate, or look at the starting policy: did its tuning diverge?",
        )


# ── measured ──────────────────────────────────────────────────────────────────────────────────────────────────────


def measure(
    cfg: Config,
    used: Sequence[Preference],
    margins: np.ndarray,
    controlled: np.ndarray | None,
    weights: np.ndarray,
    folds: Sequence[int],
) -> dict[str, Any]:
    """Accuracy of the reward model, with length and without, and of the baselines, by subset and by length; calibration."""
    import numpy as np

    chosen, rejected = [each.chosen for each in used], [each.rejected for each in used]
    groups = [each.group for each in used]
    whole = [
        [f"{each.prompt}\n\n{text}" for each, text in zip(used, texts, strict=True)] for texts in (chosen, rejected)
    ]
    systems = {
        "reward": margins,
        **({CONTROLLED: controlled} if controlled is not None else {}),
        "length": pairwise.length_margins(chosen, rejected),
        "response": pairwise.tfidf_margins(chosen, rejected, weights, folds),
        "text": pairwise.tfidf_margins(whole[0], whole[1], weights, folds),
    }
    ratio = pairwise.length_ratio(chosen, rejected)
    places = pairwise.bins(ratio)
    subsets = {
        "all": np.ones(len(used), dtype=bool),
        "chosen_longer": ratio > 1.0,
        "length_matched": places == pairwise.BINS.index("about as long"),
        "people": np.array([each.source != "ai" for each in used], dtype=bool),
    }

    def within(inside: np.ndarray) -> dict[str, Any]:
        own = [group for group, here in zip(groups, inside, strict=True) if here]
        accuracy, less = pairwise.accuracies(
            {name: each[inside] for name, each in systems.items()},
            "reward",
            weights[inside],
            own,
            cfg.resamples,
            cfg.seed,
        )
        return {
            "pairs": int(inside.sum()),
            "groups": len(set(own)),
            "accuracy": {name: each._asdict() for name, each in accuracy.items()},
            "less": {name: less[name]._asdict() for name in BASELINES},
            "beats": {name: (low := less[name].low) is not None and low > 0 for name in BASELINES},
        }

    by_length = []
    for place, name in enumerate(pairwise.BINS):
        own = within(places == place)
        row: dict[str, Any] = {"preferred_is": name, "pairs": own["pairs"], "groups": own["groups"]}
        for system in systems:
            accuracy = own["accuracy"][system]
            row |= {f"{system}{end}": accuracy[("value", "low", "high")[at]] for end, at in ENDS.items()}
        by_length.append(row)
    # A model's label says how sure it is and not what is right: calibration is by what people said, where they said anything.
    told = subsets["people"] if subsets["people"].any() else subsets["all"]
    own_groups = [group for group, here in zip(groups, told, strict=True) if here]
    calibrated = pairwise.calibrated(margins[told], own_groups, cfg.resamples, cfg.seed)
    return {
        **{name: within(inside) for name, inside in subsets.items()},
        "by_length": by_length,
        "chosen_shorter": float((ratio < 1.0).mean()),
        "calibration": {
            "ece": calibrated.ece._asdict() if calibrated.ece else None,
            "expected_of_chance": calibrated.expected,
            "nll": calibrated.nll,
            "reason": None if calibrated.ece else "all pairs are told right, or all wrong",
        },
        "folds": cfg.folds,
        "fold_steps": cfg.fold_steps,
    }


def margins_of(
    used: Sequence[Preference], folds: Sequence[int], margins: np.ndarray, controlled: np.ndarray | None
) -> list[dict[str, Any]]:
    """Rows of margins.csv: how much more the preferred answer of each pair was rewarded by the model that had not learnt the pair.

    `controlled` has length taken out; it is empty where that was not asked, or could not be told of some fold.
    """
    without = [None] * len(used) if controlled is None else controlled.tolist()
    return [
        {"id": each.id, "fold": fold + 1, "source": each.source, "margin": margin, "controlled": less}
        for each, fold, margin, less in zip(used, folds, margins.tolist(), without, strict=True)
    ]


def share(margins: np.ndarray, weights: np.ndarray) -> float:
    """Weighted accuracy of some pairs."""
    return round(float(weights @ pairwise.credit(margins) / weights.sum()), 6)


def trainable(policy: Any) -> int:
    """Parameters that were trained, the head included."""
    return sum(each.numel() for each in policy.parameters() if each.requires_grad)


def flat(told: Mapping[str, Any]) -> dict[str, float | None]:
    """The stage's metrics, the same keys whatever is defined."""
    held_out = told["held_out"]
    found: dict[str, float | None] = {
        "pairs": told["pairs"],
        "prompts": told["prompts"],
        "cut": told["cut"],
        **{f"left_out/{reason}": count for reason, count in told["left_out"].items()},
        "train/loss_first": told["training"]["loss_first"],
        "train/loss_last": told["training"]["loss_last"],
        "held_out/nll": held_out["calibration"]["nll"],
        "held_out/chosen_shorter": held_out["chosen_shorter"],
        "constant": float(told["constant"]),
        **{f"length/{key}": told["length"][key] if told["length"] else None for key in ("slope", "slope_error")},
    }
    bounds = ("value", "low", "high")
    for subset in SUBSETS:
        key = "held_out" if subset == "all" else f"held_out/{subset}"
        found[f"{key}/pairs"] = held_out[subset]["pairs"]
        for system in SYSTEMS:
            name = "accuracy" if system == "reward" else f"accuracy_{system}"
            own = held_out[subset]["accuracy"].get(system) or dict.fromkeys(bounds)
            found |= {f"{key}/{name}{end}": own[bounds[at]] for end, at in ENDS.items()}
        for system in BASELINES:
            less = held_out[subset]["less"][system]
            found |= {f"{key}/less_{system}{end}": less[("diff", "low", "high")[at]] for end, at in ENDS.items()}
    ece = held_out["calibration"]["ece"] or dict.fromkeys(bounds)
    return found | {f"held_out/ece{end}": ece[bounds[at]] for end, at in ENDS.items()}


def ranged(value: Mapping[str, float | None], key: str = "value") -> str:
    """A figure with its interval."""
    if value[key] is None:
        return "undefined"
    text = f"{value[key]:.2f}"
    return text if value["low"] is None else f"{text} [{value['low']:.2f}, {value['high']:.2f}]"


def sentence(held_out: Mapping[str, Any]) -> str:
    """How good the reward model is, in words."""
    own = held_out["all"]
    beside = ", ".join(f"{title} {ranged(own['accuracy'][name])}" for name, title in BASELINES.items())
    beaten = [title for name, title in BASELINES.items() if own["beats"][name]]
    matched = held_out["length_matched"]
    return (
        f"accuracy on {own['pairs']} pairs of {own['groups']} groups of prompts it did not learn from: "
        f"{ranged(own['accuracy']['reward'])}"
        + (f" (length taken out: {ranged(own['accuracy'][CONTROLLED])})" if CONTROLLED in own["accuracy"] else "")
        + f"; {beside}; "
        + ("it beats " + " and ".join(beaten) if beaten else "it is not shown to beat any of these")
        + f"; of about the same length ({matched['pairs']} pairs): {ranged(matched['accuracy']['reward'])}"
    )


def taken_off(length: Mapping[str, float]) -> str:
    """A length line as a formula."""
    return f"{length['slope']:.3f} · (log(1 + tokens of the answer) − {length['log_tokens']:.3f})"


def facts(cfg: Config, told: Mapping[str, Any]) -> dict[str, object]:
    """What the model card tells."""
    own = told["held_out"]["all"]
    return {
        "training pairs": f"{told['pairs']:,} of {told['prompts']} prompts",
        "optimizer steps": f"{cfg.steps} of {cfg.batch_size} pairs",
        "peak learning rate": f"{cfg.learning_rate:g}",
        "seed": cfg.seed,
        "accuracy, cross-validated": ranged(own["accuracy"]["reward"]),
        **(
            {"the same, length taken out": ranged(own["accuracy"][CONTROLLED])} if CONTROLLED in own["accuracy"] else {}
        ),
        **({"taken off its score": taken_off(told["length"])} if told["length"] else {}),
        **{f"beside it: {title}": ranged(own["accuracy"][name]) for name, title in BASELINES.items()},
        "where people prefer the longer answer": ranged(told["held_out"]["chosen_longer"]["accuracy"]["reward"]),
    }


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows with a header; what is undefined is empty, numbers have six digits."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {
            key: "" if value is None else float(f"{value:.6g}") if isinstance(value, float) else value
            for key, value in row.items()
        }
        for row in rows
    )
    checkpoints.write_text(path, text.getvalue())


if __name__ == "__main__":
    main(run)
