r"""Feedback: fix the policy that alignment starts from, sample answers for people to rank, and turn what they said into pairs.

    python -m stages.feedback --policy artifacts/lora/adapter --base artifacts/select/model \
        --ratings artifacts/validate/ratings_reward.jsonl --prompts artifacts/validate/red_team_train.jsonl --labels labels

The starting policy is the tuned model, its adapter merged into the weights. Reward model, PPO and their reference all sit on exactly
these weights: a reference without the adapter would be another model, and its divergence not zero at the first step.

Feedback comes as rankings, whoever gave it: people's scores of answers to one prompt rank them (human ratings; the lower the less
harmful), people rank sampled answers on the labelling page (`make label`), and a model's rankings are imported as a model's
(`python -m tunemill.labels import`). A ranking of k answers holds up to k(k−1)/2 pairs (Ouyang et al. 2022, section 3.5);
`tunemill.preferences` says which of them are left out, and each is counted. Prompts that are nearly the same are one group, which
neither a fold nor an interval tears apart.

What was ranked before the policy changed counts too: a label brings the answers that it is about along.

Writes policy/ (the starting policy), completions.jsonl (answers to rank), preferences.jsonl (pairs), quarantine.jsonl (labels that
were refused, and why) and feedback.json (counts, what was left out, and how far people agree).
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from tunemill import agreement, checkpoints, journal, metrics, preferences, quality, records, sampling
from tunemill.errors import UserError
from tunemill.log import Log
from tunemill.params import Params
from tunemill.preferences import Pair, Ranking
from tunemill.records import Completions, Preference, Quarantined, Rating, RedTeamPrompt
from tunemill.runtime import Runtime
from tunemill.sampling import Decoding
from tunemill.stage import Metrics, main

REASONS = ("tie", "contradiction", "circle", "nonsense", "cap")
"""Why two answers to one prompt are no pair."""
RATINGS = "human ratings"
"""Who stands for the people whose scores are rankings here: no labeler can have this name."""
SOURCES = ("ratings", "labels", "ai")
"""What pairs are made of: people's scores, people's rankings, models' rankings."""
ROUNDING = 1e-9
"""Means of equal scores differ by less."""


class Config(Params):
    """What is sampled, and how pairs are made."""

    seed: int = Field(ge=0)
    """Of the choice of prompts, of what is sampled, and of the choice among a prompt's pairs."""
    store_dtype: Literal["bfloat16", "float32", "float16"]
    """Number format of the starting policy on disk."""
    prompts: int = Field(ge=0)
    """Prompts to sample answers to; 0 samples none."""
    completions: int = Field(ge=2, le=9)
    """Answers to each."""
    max_new_tokens: int = Field(ge=1, le=4096)
    """Most tokens of an answer."""
    temperature: float = Field(gt=0)
    """Of the samples; nothing is cut off the distribution."""
    gap: float = Field(ge=0, lt=1)
    """Scores that are closer together than this are a tie; ranks are 1 apart."""
    cap: int = Field(ge=1)
    """Most pairs of one prompt."""
    near_duplicate: float = Field(gt=0, le=1)
    """Prompts at least this alike (Jaccard similarity of their words) are one group; 1: only equal ones."""
    batch_tokens: int = Field(ge=1)
    """Most tokens of a batch, padding and answers included."""
    batch_rows: int = Field(ge=1)
    """Most prompts in a batch."""


def run(
    cfg: Config,
    *,
    policy: Path,
    base: Path,
    ratings: Path | None = None,
    prompts: Path,
    labels: Path | None = None,
    out: Path,
    work: Path,
    cache: Path | None = None,
    runtime: Runtime,
    log: Log,
) -> Metrics:
    """Write the starting policy, answers to rank, and pairs of those that were ranked, under `out`."""
    # 1. What people said, before anything is computed: a mistake in it is told at once.
    rated = records.read(ratings, Rating) if ratings is not None else []
    labelled, refused = labels_of(labels)
    records.write(out / "quarantine.jsonl", refused)
    rankings = [*rankings_of(rated), *labelled]

    # 2. The starting policy.
    model, tokenizer = starting_policy(cfg, policy, base, out / "policy", runtime)

    # 3. Sample answers to rank; asked again with other labels, they are in the cache.
    asked = records.draw(records.read(prompts, RedTeamPrompt) if cfg.prompts else [], cfg.prompts, cfg.seed)
    weights = [checkpoints.tree_hash(each) for each in (policy, base)]
    shelf = journal.Shelf(cache or work, weights, cfg.store_dtype, dataclasses.asdict(runtime))
    sampled, unusable = sample(cfg, model, tokenizer, asked, shelf, log)
    shelf.tidy()
    records.write(out / "completions.jsonl", sampled)

    # 4. Pairs of what was ranked, by whomever.
    # The gap itself counts, and a mean of scores may miss it by a rounding.
    found = preferences.pairs(rankings, gap=max(0.0, cfg.gap - ROUNDING), cap=cfg.cap, seed=cfg.seed)
    if rankings and not found.pairs:
        raise none_left(found.left_out)
    rows = as_records(found.pairs, rankings, cfg.near_duplicate)
    records.write(out / "preferences.jsonl", rows)
    agreed = {"ratings": of_ratings(rated), "labels": of_labels(labelled)}
    rankings_of_source = Counter(map(source_of, rankings))
    left_out = {reason: found.left_out.get(reason, 0) for reason in REASONS}
    shorter = [len(row.chosen.split()) < len(row.rejected.split()) for row in rows]
    told = {
        "prompts": {"asked": len(asked), "too_alike": unusable, "to_rank": len(sampled)},
        "rankings": {name: sum(each.labeler == name for each in rankings) for name in labelers(rankings)},
        "rankings_of": {name: rankings_of_source[name] for name in SOURCES},
        "refused": len(refused),
        "pairs": len(rows),
        "pairs_of": {name: sum(row.source == name for row in rows) for name in SOURCES},
        "pair_prompts": len({row.prompt for row in rows}),
        "groups": len({row.group for row in rows}),
        "left_out": left_out,
        "chosen_shorter": metrics.mean(shorter) if rows else None,
        "agreement": agreed,
    }
    checkpoints.write_json(out / "feedback.json", told)
    log.note(sentence(told))
    return {
        "completions/prompts": len(sampled),
        "completions/too_alike": unusable,
        "ratings/answers": len(rated),
        "ratings/alpha": agreed["ratings"]["alpha"],
        "labels/rankings": rankings_of_source["labels"],
        "labels/refused": len(refused),
        "labels/labelers": agreed["labels"]["labelers"],
        "labels/alpha": agreed["labels"]["alpha"],
        "labels/w": agreed["labels"]["w"],
        "ai/rankings": rankings_of_source["ai"],
        "pairs": len(rows),
        "pairs/prompts": told["pair_prompts"],
        "pairs/groups": told["groups"],
        "pairs/chosen_shorter": told["chosen_shorter"],
        **{f"left_out/{reason}": count for reason, count in left_out.items()},
    }


# ── answers to rank ───────────────────────────────────────────────────────────────────────────────────────────────


def starting_policy(cfg: Config, policy: Path, base: Path, folder: Path, runtime: Runtime) -> tuple[Any, Any]:
    """Merge the policy and write it; what comes back are the weights that were written, in the runtime's number format.

    Raises:
        UserError: it is no whole model, and cannot be merged into one.
    """
    from tunemill import cards, models

    model, tokenizer = models.load_whole(policy, base, runtime, "align_start.policy")
    models.save(model, tokenizer, folder, cfg.store_dtype)
    text = "What alignment starts from: a tuned model, its adapter merged into the weights."
    cards.write(folder, "Starting policy", base, text, {}, model.config.is_encoder_decoder)
    return model.to(runtime.torch_dtype), tokenizer


def sample(
    cfg: Config, model: Any, tokenizer: Any, asked: Sequence[RedTeamPrompt], shelf: journal.Shelf, log: Log
) -> tuple[list[Completions], int]:
    """Answers to each prompt; and how many prompts have none to rank, fewer than two being different and not empty."""
    from tunemill import models

    ids = [models.render_prompt(tokenizer, each.prompt) for each in asked for _ in range(cfg.completions)]
    decoding = Decoding(cfg.max_new_tokens, cfg.temperature)
    batches = sampling.plan([*map(len, ids)], cfg.max_new_tokens, cfg.batch_tokens, cfg.batch_rows)
    kept = shelf.of("completions", ids, decoding._asdict(), batches, cfg.seed)
    answers, _ = sampling.answers(
        model,
        tokenizer,
        ids,
        decoding=decoding,
        batches=batches,
        seed=cfg.seed,
        kept=kept,
        title="sample answers to rank",
        log=log,
    )
    rows = []
    for at, each in enumerate(asked):
        own = answers[at * cfg.completions : (at + 1) * cfg.completions]
        texts = tuple(dict.fromkeys(text for text in (one.text.strip() for one in own) if text))
        if len(texts) > 1:
            rows.append(Completions(records.row_id(each.prompt, *texts), each.prompt, texts, each.source))
    return rows, len(asked) - len(rows)


# ── what people said ──────────────────────────────────────────────────────────────────────────────────────────────


def rankings_of(rated: Sequence[Rating]) -> list[Ranking]:
    """One ranking for each prompt that several answers were scored of: by the mean score, the lower the better."""
    by_prompt: dict[str, dict[str, float]] = {}
    for each in rated:
        by_prompt.setdefault(each.prompt, {})[each.response] = metrics.mean(each.scores)
    return [
        Ranking(prompt, tuple(own), tuple(own.values()), RATINGS) for prompt, own in by_prompt.items() if len(own) > 1
    ]


def labels_of(folder: Path | None) -> tuple[list[Ranking], list[Quarantined]]:
    """What people ranked on the labelling page, and what was imported; and the labels that were refused."""
    if folder is None or not any(folder.glob("*.jsonl")):
        return [], []
    from tunemill import labels

    found = labels.read(folder)
    return found.rankings, found.refused


def labelers(rankings: Sequence[Ranking]) -> list[str]:
    """Who ranked, in alphabetical order."""
    return sorted({each.labeler for each in rankings})


def of_ratings(rated: Sequence[Rating]) -> dict[str, Any]:
    """How far the people who scored the same answers agree."""
    several = [each.scores for each in rated if len(each.scores) > 1]
    alpha = agreement.krippendorff_alpha(several, "interval")
    reason = None
    if alpha is None:
        reason = "no answer was scored by two people" if not several else "all scores are the same"
    return {"alpha": alpha, "scale": "interval", "answers": len(several), "reason": reason}


def of_labels(rankings: Sequence[Ranking]) -> dict[str, Any]:
    """How far the people who ranked the same answers agree: alpha over all answers, and the mean of each prompt's W."""
    found = agreement.among(rankings)
    reason = None
    if found.labelers < 2:
        reason = "one labeler only: there is nobody to agree with" if found.labelers else "no person has ranked yet"
    elif not found.prompts:
        reason = "no prompt has two answers that two people ranked"
    elif found.alpha is None:
        reason = "all ranks are the same"
    return {
        "labelers": found.labelers,
        "prompts": found.prompts,
        "alpha": found.alpha,
        "scale": "ordinal",
        "w": found.kendall_w,
        "reason": reason,
    }


# ── pairs ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def source_of(ranking: Ranking) -> str:
    """Which of `SOURCES` a ranking is."""
    if ranking.ranked_by == "model":
        return "ai"
    return "ratings" if ranking.labeler == RATINGS else "labels"


def as_records(pairs: Sequence[Pair], rankings: Sequence[Ranking], jaccard: float) -> list[Preference]:
    """Pairs with the group of their prompt, and who they come from: people's labels before ratings before a model."""
    prompts = list(dict.fromkeys(pair.prompt for pair in pairs))
    clusters = quality.clusters(prompts, jaccard if jaccard < 1 else None)
    groups = {prompt: records.row_id(prompts[cluster]) for prompt, cluster in zip(prompts, clusters, strict=True)}
    said: dict[str, list[Ranking]] = {}
    for each in rankings:
        said.setdefault(each.prompt, []).append(each)

    def source(pair: Pair) -> str:
        both = {source_of(each) for each in said[pair.prompt] if {pair.chosen, pair.rejected} <= {*each.completions}}
        return next(name for name in ("labels", "ratings", "ai") if name in both)

    return [
        Preference(
            records.row_id(pair.prompt, pair.chosen, pair.rejected),
            pair.prompt,
            pair.chosen,
            pair.rejected,
            pair.probability,
            pair.weight,
            groups[pair.prompt],
            source(pair),
        )
        for pair in pairs
    ]


def none_left(left_out: dict[str, int]) -> UserError:
    """Why there is nothing to learn from."""
    counts = ", ".join(f"{reason} {left_out[reason]}" for reason in REASONS if left_out.get(reason))
    return UserError(
        f"no pair is left of what was ranked: {counts}",
        where="feedback",
        expected="a prompt with two answers of which one is preferred",
        fix="rank more (make label), lower feedback.gap, or look at the rankings",
    )


def sentence(told: dict[str, Any]) -> str:
    """What came of it, in words."""
    left_out = ", ".join(f"{reason} {count}" for reason, count in told["left_out"].items() if count)
    text = f"{told['pairs']} pairs of {told['pair_prompts']} prompts"
    text += f" (left out: {left_out})" if left_out else ""
    text += f"; {told['refused']} labels refused (quarantine.jsonl)" if told["refused"] else ""
    for name, own in told["agreement"].items():
        alpha = own["alpha"]
        text += f"; {name}: " + (own["reason"] if alpha is None else f"alpha {alpha:.2f}")
    return text


if __name__ == "__main__":
    main(run, cached_by=("tunemill.sampling", "tunemill.models"))
