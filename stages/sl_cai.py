r"""SL-CAI: the model criticises and revises its own answers by a constitution, and is tuned on the revisions.

    python -m stages.sl_cai --candidate cai --constitution constitution.yaml --model artifacts/feedback/policy \
        --reward artifacts/reward/harm --prompts artifacts/validate/red_team_train.jsonl \
        --harmless artifacts/validate/harmless_train.jsonl \
        --train artifacts/validate/train.jsonl --out artifacts/sl_cai/cai

The supervised half of Constitutional AI (Bai et al. 2022, section 3): answers to prompts that provoke harm, rounds of critique and
revision (`tunemill.critiques`) each by a principle drawn from the constitution (`tunemill.constitution`), then fine-tuning on the
revisions of every round, mixed with helpful samples so that the model does not just learn to refuse.

Who criticises is `sl_cai.critic`: the model itself, another one, one of a hub or behind an endpoint. Where the critic is small, its
revisions are often no better than what they revise; with `pick` the reward model says which are, and only those are learnt from.

Deviations from the paper: what is fine-tuned is the instruct-tuned starting policy of alignment, not a pre-trained model, by a low-rank
adapter that is merged afterwards; the reward model picks; revisions are left out for reasons that the paper's model gave none for;
by default critiques and revisions are sampled at a temperature below 1, and without worked examples, which a small critic imitates.

Writes model/, of further seeds model-<seed>/; beside the weights each has training.json, curve.csv and cai.json (what was left out and
why), and chains.jsonl with every prompt, answer, critique and revision. examples.jsonl has what was learnt.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from tunemill import (
    checkpoints,
    constitution,
    critiques,
    feedback,
    journal,
    records,
    refusals,
    tuning,
)
from tunemill.constitution import Constitution, Kind
from tunemill.critiques import Chain
from tunemill.errors import UserError
from tunemill.log import Log
from tunemill.params import Params
from tunemill.records import Example, HarmlessPrompt, RedTeamPrompt
from tunemill.runtime import Runtime, release
from tunemill.sampling import Decoding
from tunemill.stage import Metrics, main

if TYPE_CHECKING:
    from tunemill.rewards import Reward

OWN = "the model's own answers"
REVISIONS = "revisions"
TASK = "the task's training pairs"


class Counts(Params):
    """How many prompts of each kind are answered, criticised and revised."""

    red_team: int = Field(ge=1)
    """Prompts that provoke harm."""
    harmless: int = Field(ge=0)
    """Everyday questions."""
    task: int = Field(ge=0)
    """Prompts of the use case."""


class Helpful(Params):
    """Helpful samples to learn beside the revisions."""

    harmless: int = Field(ge=0)
    """Everyday questions with the starting model's own answers, those that refuse left out."""
    task: int = Field(ge=0)
    """Training pairs of the use case."""


class Config(tuning.Training):
    """What is asked, who criticises, and how the model is tuned on it."""

    seed: int = Field(ge=0)
    """Of the choice of prompts and principles, and of what is sampled."""
    prompts: Counts
    """What is answered, criticised and revised."""
    rounds: int = Field(ge=1, le=16)
    """Critiques and revisions of each answer; 4 in the paper."""
    critic: feedback.Source
    """Who criticises and revises."""
    shots: int | None = Field(ge=0)
    """Worked examples of the constitution that it is shown, of those meant for the prompt at hand; null shows all."""
    pick: bool
    """Whether the reward model leaves out revisions that it does not like better than what they revise."""
    temperature: float = Field(gt=0)
    """Of answers; 1 in the paper."""
    critic_temperature: float = Field(gt=0)
    """Of critiques and revisions; 1 in the paper, which a small critic is incoherent at."""
    answer_tokens: int = Field(ge=1, le=4096)
    """Longest answer."""
    critique_tokens: int = Field(ge=1, le=4096)
    """Longest critique."""
    revision_tokens: int = Field(ge=1, le=4096)
    """Longest revision; what does not end within it is left out."""
    helpful: Helpful
    """What is learnt beside the revisions."""
    rank: int = Field(ge=1, le=256)
    """Rank r of the update B·A."""
    alpha: int = Field(ge=1, le=1024)
    """The update is scaled by alpha / rank."""
    targets: str | tuple[str, ...]
    """Names of the adapted layers; "all-linear" takes every linear layer but the output head."""
    store_dtype: Literal["bfloat16", "float32", "float16"]
    """Number format of the tuned weights on disk."""
    batch_tokens: int = Field(ge=1)
    """Most tokens of a batch that is generated, padding included."""
    batch_rows: int = Field(ge=1)
    """Most conversations in it."""


def run(
    cfg: Config,
    *,
    constitution: Path,
    model: Path,
    reward: Path | None = None,
    prompts: Path,
    harmless: Path | None = None,
    train: Path | None = None,
    out: Path,
    work: Path,
    cache: Path | None = None,
    runtime: Runtime,
    log: Log,
) -> Metrics:
    """Criticise and revise the answers of `model` by `constitution`, tune it on the revisions, and write it under `out`."""
    from tunemill import models, rewards, trainings

    # 1. The constitution, the prompts, and who picks: a mistake in them is told before anything is computed.
    rules = read_rules(constitution, cfg)
    chains = drawn(cfg, prompts, harmless, train)
    if cfg.pick and reward is None:
        raise UserError(
            "nobody picks among the revisions",
            where="params.yaml: sl_cai.pick",
            expected="a reward model that the run names (--reward)",
            fix="name one, or set pick: false",
            exit_code=2,
        )
    wanted = rewards.load(reward, runtime) if cfg.pick and reward is not None else None

    # 2. The first answers, by the model that is to be tuned.
    shelf = journal.Shelf(cache or work, dataclasses.asdict(runtime), cfg.batch_tokens, cfg.batch_rows)
    asking = feedback.Asking(shelf, cache or work, cfg.batch_tokens, cfg.batch_rows, runtime, log)
    log.note(
        f"{len(chains)} prompts: "
        + ", ".join(f"{count} {kind}" for kind, count in critiques.of_each_kind(chains).items())
    )
    helpful = answer(
        cfg, feedback.open_source(cfg.critic.itself, model, "sl_cai.critic", asking), chains, harmless, train
    )
    release()

    # 3. Rounds of critique and revision.
    answered = [each for each in chains if each.answer]
    critic = criticise(
        cfg,
        rules,
        feedback.open_source(cfg.critic, model, "sl_cai.critic", asking),
        answered,
        picker(wanted, model, reward, runtime),
    )
    release()
    shelf.tidy()
    learnt = [(each, answer, REVISIONS) for each in answered for answer in each.fit]
    counted = critiques.counts(answered)
    log.note(critiques.sentence(counted))
    if not learnt:
        raise UserError(
            f"none of the {sum(each['revisions'] for each in counted)} revisions is fit to learn from: {critiques.reasons(counted)}",
            where="params.yaml: sl_cai",
            expected="revisions that end, differ from what they revise, and are liked better",
            fix="name a larger model as critic, or raise revision_tokens"
            + (", or set pick: false" if cfg.pick else ""),
        )
    told: dict[str, Any] = {
        "critic": critic,
        "picker": rewards.told(wanted) if wanted is not None else None,
        "constitution": {name: each.critique for name, each in rules.principles.items()},
        "prompts": critiques.of_each_kind(chains),
        "unanswered": len(chains) - len(answered),
        "rounds": counted,
        "kinds": critiques.by_kind(chains),
        "revisions": len(learnt),
        "helpful": {name: sum(source == name for *_, source in helpful) for name in (OWN, TASK)},
        "unhelpful": cfg.helpful.harmless + cfg.helpful.task - len(helpful),
        "scores": critiques.scores(chains),
    }

    # 4. What is learnt: the revisions of every round, and helpful samples.
    rows = [
        *(example(each.prompt, answer, f"{source} of {each.source}") for each, answer, source in learnt),
        *(example(prompt, answer, source) for prompt, answer, source in helpful),
    ]
    records.write(out / "examples.jsonl", rows)
    records.write_objects(out / "chains.jsonl", (each.told() for each in chains))

    # 5. Tune a low-rank adapter on it, and merge it: reward model and PPO of rl_cai sit on exactly these weights.
    tokenizer = models.load_tokenizer(model)
    data = tuning.prepare(cfg, tokenizer, [(each.prompt, each.completion) for each in rows], [], "sl_cai")
    text = (
        "The model named above, tuned on revisions of its own answers by a constitution (SL-CAI, Bai et al. 2022, section 3); "
        "the low-rank adapter is merged into the weights."
    )
    found = trainings.each_seed(
        cfg,
        trainings.Kind("sl_cai", "Model tuned on its own revisions", text, cfg.store_dtype),
        lambda _: tuning.adapt(
            models.load_base(model, tuning.loading(cfg, runtime)),
            models.low_rank(cfg.rank, cfg.alpha, cfg.targets),
            "sl_cai",
        ),
        tokenizer,
        data,
        model=model,
        out=out,
        work=work,
        runtime=runtime,
        log=log,
    )
    for seed in cfg.seeds:
        folder = out / ("model" if seed == cfg.seeds[0] else f"model-{seed}")
        checkpoints.write_json(folder / "cai.json", told)
        checkpoints.write_text(folder / "chains.jsonl", (out / "chains.jsonl").read_text(encoding="utf-8"))
    return flat(told) | found


# ── what is asked ─────────────────────────────────────────────────────────────────────────────────────────────────


def read_rules(path: Path, cfg: Config) -> Constitution:
    """The constitution; it says something about every kind of prompt that is asked.

    Raises:
        UserError: see `constitution.read` and `constitution.needs`.
    """
    rules = constitution.read(path)
    constitution.needs(rules, [kind for kind in constitution.KINDS if getattr(cfg.prompts, kind)], path)
    return rules


def drawn(cfg: Config, prompts: Path, harmless: Path | None, train: Path | None) -> list[Chain]:
    """A chain without an answer for each prompt that is asked.

    Raises:
        UserError: prompts of a kind are asked, and there are none.
    """
    found: list[tuple[Kind, str, str, str]] = [
        ("red_team", each.id, each.prompt, each.source)
        for each in records.draw(
            [row for row in records.read(prompts, RedTeamPrompt) if row.kind == "instruction"],
            cfg.prompts.red_team,
            cfg.seed,
        )
    ]
    everyday = records.read(harmless, HarmlessPrompt) if harmless is not None and cfg.prompts.harmless else []
    found += [
        ("harmless", each.id, each.prompt, each.source)
        for each in records.draw(everyday, cfg.prompts.harmless, cfg.seed)
    ]
    pairs = records.read(train, Example) if train is not None and cfg.prompts.task else []
    found += [("task", each.id, each.prompt, each.source) for each in records.draw(pairs, cfg.prompts.task, cfg.seed)]
    for kind, path in (("red_team", prompts), ("harmless", harmless), ("task", train)):
        if getattr(cfg.prompts, kind) and not any(each[0] == kind for each in found):
            raise UserError(
                f"no {kind} prompts to ask",
                where=str(path) if path else f"params.yaml: sl_cai.prompts.{kind}",
                expected="at least one",
                fix=f"set sl_cai.prompts.{kind}: 0"
                if kind != "red_team"
                else "leave some to train with under validate.red_team, or name a set under collect.red_team",
            )
    return [Chain(id, kind, prompt, source, "") for kind, id, prompt, source in found]


def answer(
    cfg: Config, policy: feedback.Model, chains: Sequence[Chain], harmless: Path | None, train: Path | None
) -> list[tuple[str, str, str]]:
    """Give each chain its first answer; helpful samples come back: (prompt, answer, where it is from)."""
    made = policy.write(
        [each.prompt for each in chains],
        Decoding(cfg.answer_tokens, cfg.temperature),
        seed_of(cfg.seed, "answers"),
        "answers",
    )
    for each, written in zip(chains, made, strict=True):
        each.answer = written.text.strip()
    return helpful_samples(cfg, policy, harmless, train, {each.prompt for each in chains})


def criticise(
    cfg: Config, rules: Constitution, critic: feedback.Model, chains: Sequence[Chain], score: critiques.Score | None
) -> dict[str, Any]:
    """Put the chains through all rounds; who criticised comes back, as it is written down."""

    def writing(most: int) -> critiques.Write:
        decoding = Decoding(most, cfg.critic_temperature)
        return lambda asked, title: critic.write(asked, decoding, seed_of(cfg.seed, title), title)

    critiques.run(
        chains,
        rules,
        cfg.rounds,
        cfg.seed,
        writing(cfg.critique_tokens),
        writing(cfg.revision_tokens),
        score,
        cfg.shots,
    )
    return critic.told


def helpful_samples(
    cfg: Config, policy: feedback.Model, harmless: Path | None, train: Path | None, asked: set[str]
) -> list[tuple[str, str, str]]:
    """(prompt, answer, where it is from): everyday questions with the model's own answers, and training pairs of the use case.

    Answers that refuse, are empty or did not end are left out, as are questions that there are not.
    """
    everyday = records.read(harmless, HarmlessPrompt) if harmless is not None and cfg.helpful.harmless else []
    fresh = records.draw([each for each in everyday if each.prompt not in asked], cfg.helpful.harmless, cfg.seed)
    title = "helpful answers"
    written = (
        policy.write(
            [each.prompt for each in fresh],
            Decoding(cfg.answer_tokens, cfg.temperature),
            seed_of(cfg.seed, title),
            title,
        )
        if fresh
        else []
    )
    answers = [each.text.strip() for each in written]
    pairs = records.read(train, Example) if train is not None and cfg.helpful.task else []
    return [
        *(
            (each.prompt, answer, OWN)
            for each, answer, made in zip(fresh, answers, written, strict=True)
            if made.finished and answer and refusals.phrases([answer]) == [0.0]
        ),
        *(
            (each.prompt, each.completion, TASK)
            for each in records.draw([each for each in pairs if each.prompt not in asked], cfg.helpful.task, cfg.seed)
        ),
    ]


def picker(wanted: Reward | None, model: Path, folder: Path | None, runtime: Runtime) -> critiques.Score | None:
    """Who says whether a revision is better than what it revises; None: nobody."""
    from tunemill import rewards

    if wanted is None or folder is None:
        return None
    rewards.able_to_choose(wanted, folder)
    score = rewards.scorer(wanted, model, runtime)
    return lambda asked, answered: rewards.checked(score(asked, answered), answered, folder)


def example(prompt: str, answer: str, source: str) -> Example:
    """A pair to learn."""
    row = records.row_id(prompt, answer)
    return Example(row, prompt, answer, records.row_id(prompt), None, source)


def seed_of(seed: int, title: str) -> int:
    """A seed of its own for each thing that is sampled."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{title}".encode()).digest()[:4])


# ── what is told ──────────────────────────────────────────────────────────────────────────────────────────────────


def flat(told: Mapping[str, Any]) -> dict[str, float | None]:
    """The stage's metrics."""
    counted = told["rounds"]
    return {
        **{f"prompts/{kind}": told["prompts"].get(kind, 0) for kind in constitution.KINDS},
        "revisions": sum(each["revisions"] for each in counted),
        "revisions/fit": sum(each["fit"] for each in counted),
        **{f"left_out/{name.replace(' ', '_')}": sum(each[name] for each in counted) for name in critiques.REASONS},
        "helpful/own": told["helpful"][OWN],
        "helpful/task": told["helpful"][TASK],
        "helpful/left_out": told["unhelpful"],
        "prompts/unanswered": told["unanswered"],
        "score/before": told["scores"]["before"],
        "score/after": told["scores"]["after"],
    }


if __name__ == "__main__":
    main(run, cached_by=("tunemill.feedback",))
