r"""RL-CAI, its first half: AI feedback by a constitution on pairs of answers, as soft labels; off without a run in `extra`.

    python -m stages.rl_cai --candidate cai --constitution constitution.yaml --model artifacts/sl_cai/cai/model \
        --reward artifacts/reward/harm --start artifacts/feedback/policy --people artifacts/feedback/preferences.jsonl \
        --prompts artifacts/validate/red_team_train.jsonl --out artifacts/rl_cai/cai

Constitutional AI's reinforcement learning from AI feedback (Bai et al. 2022, section 4): the SL-CAI model gives two answers to each
prompt, and a judge says by a principle, drawn anew for each pair, how likely one of them is the better one (`tunemill.ai_labels`).
These soft labels, mixed with pairs that people compared, go to stage `reward`, which learns them by
−[p·log σ(Δ) + (1−p)·log σ(−Δ)], and its preference model to stage `ppo`: the same two stages as for human feedback, run once more
(`extra.reward` and `extra.ppo`).

Who judges is `rl_cai.judge`: the SL-CAI model itself, another one, one of a hub or behind an endpoint, or the reward model that learnt
what people said, which scores the answers one by one and knows no principle. First the judge is asked about pairs that people
compared; one whose agreement with them is not shown to be above chance, at equal length too, is refused, with the figures.

Deviations from the paper: both orders are asked; the human pairs are about harm, since these are what there is (the paper mixes in
pairs about helpfulness).

Writes preferences.jsonl (all pairs, soft), completions.jsonl (the model's answers), labels.jsonl (what the judge said of each pair),
quality.jsonl (and of people's) and feedback.json (counts, and how good the labels are).
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field

from tunemill import ai_labels, checkpoints, feedback, journal, metrics, quality, records, statistics
from tunemill import constitution as principles
from tunemill.ai_labels import Label
from tunemill.constitution import Constitution
from tunemill.errors import UserError
from tunemill.log import Log
from tunemill.params import Params
from tunemill.records import Completions, Preference, RedTeamPrompt
from tunemill.runtime import Runtime, release
from tunemill.sampling import Decoding
from tunemill.stage import Metrics, main


class Judge(feedback.Source):
    """Who says which of two answers is the better one."""

    model: Literal["self", "folder", "hub", "endpoint", "reward"]  # type: ignore[assignment]  # one more than a source that writes
    """Who it is: the SL-CAI model itself, the model in `folder`, the one of `hub`, the one behind `endpoint`, or the reward model."""


class Config(Params):
    """What is asked, and who judges."""

    seed: int = Field(ge=0)
    """Of the choice of prompts and principles, of what is sampled, and of the resamples."""
    prompts: int = Field(ge=2)
    """Prompts to answer twice."""
    max_new_tokens: int = Field(ge=1, le=4096)
    """Longest answer."""
    temperature: float = Field(gt=0)
    """Of the answers; nothing is cut off the distribution."""
    judge: Judge
    """Who says which answer is the better one."""
    shots: int | None = Field(ge=0)
    """Worked examples of the constitution that it is shown, of those meant for red-team prompts; null shows all."""
    thoughts: bool
    """Whether the judge thinks aloud first; its labels are clamped to 40-60% then."""
    thought_tokens: int = Field(ge=1, le=4096)
    """Longest thought."""
    unproven: Literal["refuse", "use"]
    """What becomes of a judge that is not shown to be above chance: it is refused, or used all the same, to see the stages work."""
    quality_pairs: int = Field(ge=0)
    """Pairs that people compared which the judge is asked about first, every group with its share; 0 takes all."""
    people: float = Field(ge=0, le=10)
    """Weight of people's pairs in the mixture, beside 1 for the judge's; 0 leaves them out."""
    people_prompts: int = Field(ge=0)
    """Prompts whose pairs people compared that are mixed in; 0 takes all. The judge is tested on the others, too."""
    near_duplicate: float = Field(gt=0, le=1)
    """Prompts at least this alike (Jaccard similarity of their words) are one group; 1: only equal ones."""
    resamples: int = Field(ge=100)
    """Bootstrap resamples of groups, for the intervals."""
    batch_tokens: int = Field(ge=1)
    """Most tokens of a batch, padding included."""
    batch_rows: int = Field(ge=1)
    """Most prompts in it."""


class Asked(NamedTuple):
    """Two answers, and the principle that they are compared by."""

    prompt: str
    a: str
    b: str
    principle: str


SOURCES = ("ratings", "labels", "ai")
"""What pairs are made of: people's scores, people's rankings, the judge's labels."""

Ask = Callable[[Sequence[Asked], str], list[Label]]
"""Pairs and a title for the log → the label of each."""


def run(
    cfg: Config,
    *,
    constitution: Path,
    model: Path,
    reward: Path | None = None,
    start: Path | None = None,
    people: Path | None = None,
    prompts: Path,
    out: Path,
    work: Path,
    cache: Path | None = None,
    runtime: Runtime,
    log: Log,
) -> Metrics:
    """Sample pairs of answers from `model`, label them by `constitution`, and write them under `out` with people's."""
    # 1. The constitution, and what people compared.
    rules = principles.read(constitution)
    principles.needs(rules, ["red_team"], constitution)
    compared = records.read(people, Preference) if people is not None else []
    shelf = journal.Shelf(cache or work, dataclasses.asdict(runtime), cfg.batch_tokens, cfg.batch_rows)
    asking = feedback.Asking(shelf, cache or work, cfg.batch_tokens, cfg.batch_rows, runtime, log)

    # 2. The judge, on pairs that people compared: refused where it is not shown to be better than chance.
    who, ask = judge(cfg, rules, model, asking, reward, start)
    known = out_of_fold(reward) if cfg.judge.model == "reward" and reward is not None else {}
    tested = sample_of(cfg, compared)
    labels = tested_labels(cfg, rules, tested, known, ask)
    found = ai_labels.quality(
        labels,
        [(each.chosen, each.rejected) for each in tested],
        [each.weight for each in tested],
        [each.group for each in tested],
        cfg.resamples,
        cfg.seed,
    )
    name = str(who["name"])
    log.note(ai_labels.sentence(name, found))
    if cfg.unproven == "refuse":
        ai_labels.check(name, found, "rl_cai.judge")
    elif not found.proven:
        log.note("it is not shown to be better than chance, and used all the same: rl_cai.unproven")

    # 3. Two answers of the SL-CAI model to each prompt.
    sampled, alike = answers(cfg, feedback.open_source(cfg.judge.itself, model, "rl_cai.judge", asking), prompts)
    if not sampled:
        raise UserError(
            f"no prompt has two different answers, of {alike} that were asked",
            where="params.yaml: rl_cai",
            expected="pairs of answers to compare",
            fix="raise rl_cai.prompts, max_new_tokens or temperature",
        )
    release()

    # 4. A soft label for each pair, by one principle each.
    asked = [
        Asked(each.prompt, *each.completions, principles.draw(rules, "red_team", cfg.seed, each.prompt, 0))
        for each in sampled
    ]
    given = ask(asked, "label the pairs")
    shelf.tidy()

    # 5. The mixture: the judge's pairs, and people's.
    groups = grouped([each.prompt for each in asked], compared, cfg.near_duplicate)
    own = [
        pair
        for each, label in zip(asked, given, strict=True)
        if label.p is not None
        and (pair := ai_labels.preference(each.prompt, each.a, each.b, label.p, groups[each.prompt], 1.0)) is not None
    ]
    human = [
        dataclasses.replace(each, weight=each.weight * cfg.people, group=groups[each.prompt])
        for each in mixed_in(cfg, compared)
    ]
    if not own:
        raise UserError(
            f"no usable label of the {len(asked)} pairs",
            where="params.yaml: rl_cai.judge",
            expected="a judge that prefers one of two answers",
            fix="look at labels.jsonl of a run with another judge, or name another model",
        )
    records.write(out / "preferences.jsonl", [*own, *human])
    records.write(out / "completions.jsonl", sampled)
    records.write_objects(out / "labels.jsonl", [row(each, label) for each, label in zip(asked, given, strict=True)])
    records.write_objects(
        out / "quality.jsonl",
        [{"id": each.id, "group": each.group, **label._asdict()} for each, label in zip(tested, labels, strict=True)],
    )
    told = counted(cfg, who, found, asked, given, own, human, alike)
    checkpoints.write_json(out / "feedback.json", told)
    log.note(
        f"{len(own)} pairs by {name}, {len(human)} by people; of the judge's the better answer has "
        f"{told['label']['mean_probability']:.2f} on average"
    )
    return flat(told)


# ── who judges ────────────────────────────────────────────────────────────────────────────────────────────────────


def judge(
    cfg: Config,
    rules: Constitution,
    policy: Path,
    asking: feedback.Asking,
    reward: Path | None,
    start: Path | None,
) -> tuple[dict[str, Any], Ask]:
    """(who judges, how it is asked).

    Raises:
        UserError: the reward model is to judge and none is named, or the model is not there.
    """
    if cfg.judge.model != "reward":
        voice = feedback.open_source(cfg.judge, policy, "rl_cai.judge", asking)
        return voice.told, lambda pairs, title: by_model(cfg, rules, voice, pairs, title)
    from tunemill import rewards

    if reward is None or start is None:
        raise UserError(
            "no reward model to judge",
            where="params.yaml: rl_cai.judge.model",
            expected="a run that names one (--reward), and the policy that it sits on (--start)",
            fix="name them in dvc.yaml and extra.rl_cai, or let another model judge",
            exit_code=2,
        )
    wanted = rewards.load(reward, asking.runtime)
    rewards.able_to_choose(wanted, reward)
    score = rewards.scorer(wanted, start, asking.runtime)

    def ask(pairs: Sequence[Asked], title: str) -> list[Label]:
        asking.log.note(f"{title}: {len(pairs)} pairs by the reward model")
        texts = [each.a for each in pairs] + [each.b for each in pairs]
        found = rewards.checked(score([each.prompt for each in pairs] * 2, texts), texts, reward)
        return [ai_labels.of_rewards(*both) for both in zip(found[: len(pairs)], found[len(pairs) :], strict=True)]

    return {"kind": "reward", "name": "the reward model"}, ask


def by_model(
    cfg: Config, rules: Constitution, voice: feedback.Model, pairs: Sequence[Asked], title: str
) -> list[Label]:
    """Both orders of every pair, by a model that reads; with a thought before the label where that is asked."""
    orders = [order for each in pairs for order in ((each.a, each.b), (each.b, each.a))]
    about = [each for each in pairs for _ in range(2)]
    if cfg.thoughts:
        questions = [
            principles.thought(rules, each.principle, each.prompt, *order)
            for each, order in zip(about, orders, strict=True)
        ]
        said = voice.write(questions, Decoding(cfg.thought_tokens, cfg.temperature), cfg.seed, f"{title}: thoughts")
        asked = [
            principles.verdict(rules, question, made.text.strip() or "…")  # no endpoint takes an empty message
            for question, made in zip(questions, said, strict=True)
        ]
    else:
        asked = [
            principles.comparison(rules, "red_team", each.principle, each.prompt, *order, shots=cfg.shots)
            for each, order in zip(about, orders, strict=True)
        ]
    p = [each.p for each in voice.choose(asked, title)]
    return [ai_labels.of_orders(*both, thought=cfg.thoughts) for both in zip(p[::2], p[1::2], strict=True)]


def out_of_fold(reward: Path) -> dict[str, float]:
    """Pair → what the reward model makes of the answer that people prefer more than of the other one, where it had not learnt the pair.

    As it labels: with length taken out where that is taken off its scores. The models of the folds that say so are shorter trainings
    than the one that labels, if `reward.fold_steps` is less than `reward.steps`.

    Raises:
        UserError: the reward model has no such figures, so nobody could say how good it is.
    """
    import csv

    from tunemill import rewards

    path = reward / "margins.csv"
    if not path.is_file():
        raise UserError(
            "nothing tells how good this reward is",
            where=str(path),
            expected="margins.csv, which stage `reward` writes when it measures a reward model",
            fix="let a reward model of stage `reward` judge, or another model",
            exit_code=2,
        )
    column = "margin" if rewards.describe(reward).length is None else "controlled"
    with path.open(encoding="utf-8", newline="") as file:
        return {each["id"]: float(each[column]) for each in csv.DictReader(file) if each[column]}


def sample_of(cfg: Config, compared: Sequence[Preference]) -> list[Preference]:
    """People's pairs that the judge is tested on."""
    mine = [each for each in compared if each.source != "ai"]
    if not cfg.quality_pairs or len(mine) <= cfg.quality_pairs:
        return mine
    chosen = statistics.stratified(
        [each.id for each in mine], [each.group for each in mine], cfg.quality_pairs, cfg.seed
    )
    return [mine[at] for at in chosen]


def mixed_in(cfg: Config, compared: Sequence[Preference]) -> list[Preference]:
    """People's pairs that are learnt beside the judge's: all those of a prompt, or none."""
    mine = [each for each in compared if each.source != "ai"] if cfg.people else []
    taken = {each.prompt for each in records.draw(mine, cfg.people_prompts or len(mine), cfg.seed)}
    return [each for each in mine if each.prompt in taken]


def tested_labels(
    cfg: Config, rules: Constitution, tested: Sequence[Preference], known: dict[str, float], ask: Ask
) -> list[Label]:
    """What the judge makes of people's pairs; a reward model, which has learnt them, by what it made of them before it had."""
    if cfg.judge.model == "reward":
        return [
            ai_labels.of_rewards(known[each.id], 0.0) if each.id in known else ai_labels.UNUSABLE for each in tested
        ]
    return ask(
        [
            Asked(
                each.prompt,
                each.chosen,
                each.rejected,
                principles.draw(rules, "red_team", cfg.seed, each.prompt + each.id, 0),
            )
            for each in tested
        ],
        "pairs that people compared",
    )


# ── the pairs ─────────────────────────────────────────────────────────────────────────────────────────────────────


def answers(cfg: Config, policy: feedback.Model, prompts: Path) -> tuple[list[Completions], int]:
    """Two different answers to each prompt; and how many prompts have none, theirs being the same or empty."""
    rows = [each for each in records.read(prompts, RedTeamPrompt) if each.kind == "instruction"]
    chosen = records.draw(rows, cfg.prompts, cfg.seed)
    made = policy.write(
        [each.prompt for each in chosen for _ in range(2)],
        Decoding(cfg.max_new_tokens, cfg.temperature),
        cfg.seed,
        "two answers to each prompt",
    )
    texts = [each.text.strip() for each in made]
    found = [
        Completions(records.row_id(each.prompt, first, second), each.prompt, (first, second), each.source)
        for each, first, second in zip(chosen, texts[::2], texts[1::2], strict=True)
        if first and second and first != second
    ]
    return found, len(chosen) - len(found)


def grouped(prompts: Sequence[str], compared: Sequence[Preference], jaccard: float) -> dict[str, str]:
    """Prompt → group of near duplicates, over the judge's prompts and people's together; people's own groups stay whole."""
    texts = list(dict.fromkeys([*prompts, *(each.prompt for each in compared)]))
    group_of = {each.prompt: each.group for each in compared}
    together = quality.joined(
        quality.clusters(texts, jaccard if jaccard < 1 else None), labels([group_of.get(text, text) for text in texts])
    )
    return {text: records.row_id(texts[cluster]) for text, cluster in zip(texts, together, strict=True)}


def labels(names: Sequence[str]) -> list[int]:
    """The place where each name stands first."""
    first: dict[str, int] = {}
    return [first.setdefault(name, at) for at, name in enumerate(names)]


def row(asked: Asked, label: Label) -> dict[str, Any]:
    """A row of labels.jsonl."""
    told = {**asked._asdict(), **label._asdict(), "contradictory": label.contradictory}
    return told | ({"principle": None} if label.a_first is None and label.p is not None else {})  # read one by one


# ── what is told ──────────────────────────────────────────────────────────────────────────────────────────────────


def counted(
    cfg: Config,
    who: dict[str, Any],
    found: ai_labels.Quality,
    asked: Sequence[Asked],
    given: Sequence[Label],
    own: Sequence[Preference],
    human: Sequence[Preference],
    alike: int,
) -> dict[str, Any]:
    """feedback.json: the keys of stage `feedback`, and the judge's."""
    rows = [*own, *human]
    biases = [each.position_bias for each in given if each.position_bias is not None]
    return {
        "prompts": {"asked": len(asked) + alike, "too_alike": alike, "to_rank": 0},
        "pairs": len(rows),
        "pairs_of": {name: sum(each.source == name for each in rows) for name in SOURCES},
        "pair_prompts": len({each.prompt for each in rows}),
        "groups": len({each.group for each in rows}),
        "left_out": {
            "tie": sum(each.p == 0.5 for each in given),
            "unusable": sum(each.p is None for each in given),
        },
        "chosen_shorter": metrics.mean(len(each.chosen.split()) < len(each.rejected.split()) for each in rows),
        "agreement": {},
        "judge": {
            **who,
            "thoughts": cfg.thoughts and cfg.judge.model != "reward",
            # The reward model knows no principles.
            "principles": dict(Counter(each.principle for each in asked)) if cfg.judge.model != "reward" else {},
            "quality": found.told(),
        },
        "label": {
            "pairs": len(own),
            "mean_probability": metrics.mean(each.probability for each in own),
            "position_bias": metrics.mean(biases),
            "contradictory": metrics.mean(each.contradictory for each in given) if biases else None,
        },
    }


def flat(told: dict[str, Any]) -> dict[str, float | None]:
    """The stage's metrics."""
    measured = told["judge"]["quality"]
    return {
        "pairs": told["pairs"],
        "pairs/ai": told["pairs_of"]["ai"],
        "pairs/people": told["pairs"] - told["pairs_of"]["ai"],
        "pairs/prompts": told["pair_prompts"],
        "pairs/groups": told["groups"],
        "pairs/chosen_shorter": told["chosen_shorter"],
        "left_out/tie": told["left_out"]["tie"],
        "left_out/unusable": told["left_out"]["unusable"],
        "prompts/too_alike": told["prompts"]["too_alike"],
        "judge/pairs": measured["pairs"],
        "judge/unusable": measured["unusable"],
        "judge/agreement": measured["agreement"]["value"],
        "judge/agreement_low": measured["agreement"]["low"],
        "judge/agreement_high": measured["agreement"]["high"],
        "judge/same_length": measured["same_length"]["value"],
        "judge/same_length_low": measured["same_length"]["low"],
        "judge/same_length_high": measured["same_length"]["high"],
        "judge/same_length_pairs": measured["same_length_pairs"],
        "judge/nll": measured["nll"],
        "judge/ece": measured["ece"]["value"] if measured["ece"] else None,
        "judge/position_bias": measured["position_bias"],
        "judge/contradictory": measured["contradictory"],
        "label/mean_probability": told["label"]["mean_probability"],
        "label/position_bias": told["label"]["position_bias"],
        "label/contradictory": told["label"]["contradictory"],
    }


if __name__ == "__main__":
    main(run, cached_by=("tunemill.feedback",))
