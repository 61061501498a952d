"""Aligning a policy without PPO, through TRL's trainers: what DPO, KTO, GRPO and RLOO have in common.

Off-line methods learn from pairs of answers (`Pairs`), on-line ones from their own answers and a reward (`Rollouts`). All of them tune
a low-rank adapter on the starting policy, and the reference is that policy with the adapter switched off: no second model. Set up
here is what makes TRL's trainers do the same as PPO of this project, and hard to break:

- Prompts and answers are token ids before TRL sees them, rendered as everywhere here: its own rendering puts what a chat template
  writes after an answer into the answer.
- Pairs are drawn by their weights, so that a prompt with many pairs does not outvote the others; TRL's trainers know no weights.
- Answers are drawn by `tunemill.sampling`, from the whole distribution and from numbers that belong to (seed, update): what comes out
  does not depend on where a run was resumed. The prompts of an update are those that PPO takes.
- Scores are normalised as for PPO, by the first rollout, which the starting policy wrote.
- Checkpoints are sealed with a manifest of hashes, and training continues from the newest complete one.

None of these trainers takes an encoder-decoder; PPO does.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field, model_validator

from tunemill import checkpoints, models, ppo, records, rewards, rlhf, sampling, tuning
from tunemill.errors import UserError
from tunemill.log import Log
from tunemill.losses import Encoded
from tunemill.params import Params
from tunemill.rewards import Reward
from tunemill.runtime import Runtime, out_of_memory, release, seed_everything
from tunemill.sampling import Decoding

Row = dict[str, float]
"""One line of a training curve."""


class Settings(Params):
    """What all of these stages have in their section."""

    rank: int = Field(ge=1, le=256)
    """Of the adapter."""
    alpha: int = Field(ge=1, le=1024)
    """The update is scaled by alpha / rank."""
    targets: str | tuple[str, ...]
    """Names of the adapted layers; "all-linear" takes every linear layer but the output head."""
    learning_rate: float = Field(gt=0)
    """Peak AdamW learning rate; afterwards linear to zero."""
    max_grad_norm: float = Field(gt=0)
    """Gradients are clipped to this norm."""
    seeds: tuple[int, ...] = Field(min_length=1)
    """One training for each; the outputs of the first have the plain name, the others end in `-<seed>`."""


class Pairs(Settings):
    """What an off-line method has in its section."""

    beta: float = Field(gt=0)
    """β: the larger, the closer the policy stays to the starting one."""
    warmup_steps: int = Field(ge=0)
    """Steps until the peak."""
    steps: int = Field(ge=1)
    """Optimizer steps."""
    batch_size: int = Field(ge=1)
    """Pairs in one forward pass."""
    accumulation: int = Field(ge=1)
    """Forward passes in one optimizer step; batch_size x accumulation pairs, over all processes."""
    max_tokens: int = Field(ge=16)
    """A pair with a longer answer, prompt included, is left out, and counted."""
    checkpoint_steps: int = Field(ge=1)
    """Steps between two checkpoints: what a kill can cost."""


class Rollouts(Settings):
    """What an on-line method has in its section; as far as PPO has it too, by the same names."""

    prompts: int = Field(ge=1)
    """Prompts of a rollout."""
    samples: int = Field(ge=2)
    """Responses to each: what a response is compared with are the others."""
    max_prompt_tokens: int = Field(ge=1)
    """Longer prompts are left out, and counted."""
    response_tokens: int = Field(ge=1)
    """Most tokens of a response."""
    temperature: float = Field(gt=0)
    """Responses are drawn with; policy and reference are read with it too."""
    rollout_tokens: int = Field(ge=1)
    """Most tokens of a batch that is sampled, prompts and padding included."""
    updates: int = Field(ge=1)
    """Rollouts to learn from."""
    epochs: int = Field(ge=1)
    """Passes over each."""
    minibatches: int = Field(ge=1)
    """Optimizer steps in each pass."""
    micro_batch: int = Field(ge=1)
    """Most responses in one forward pass; a smaller one takes less memory, and the step stays the same."""
    warmup_updates: int = Field(ge=0)
    """Updates until the peak of the learning rate."""
    kl_coef: float = Field(ge=0)
    """β: what a nat from the starting policy costs."""
    cliprange: float = Field(gt=0)
    """ε of the clipped loss."""
    missing_eos_penalty: float = Field(ge=0)
    """Taken off the normalised score of a response that did not end within `response_tokens`."""
    checkpoint_updates: int = Field(ge=1)
    """Updates between two checkpoints."""

    @model_validator(mode="after")
    def _whole_minibatches(self) -> Rollouts:
        if self.prompts * self.samples % self.minibatches:
            raise ValueError(
                f"{self.prompts} x {self.samples} responses of a rollout (prompts x samples) make no {self.minibatches} "
                "equal minibatches"
            )
        return self

    @property
    def steps_each(self) -> int:
        """Optimizer steps of an update."""
        return self.epochs * self.minibatches


class Kind(NamedTuple):
    """What a stage makes, and what its record and its card call that."""

    method: str
    """dpo, kto, grpo or rloo: the stage's name too."""
    text: str
    """What was done, for the card."""


class Trained(NamedTuple):
    """What came out of one training."""

    policy: Any
    """The PEFT model."""
    curve: list[Row]
    steps: int
    batch_size: int
    """Pairs, or responses, of an optimizer step."""
    micro_batch: int
    """Of them in one forward pass."""
    examples: int
    """Pairs that were learnt from, or responses that were written."""
    tokens: int
    """That were read."""
    told: Mapping[str, Any] = {}
    """What else is written down."""


Trainers = Callable[[Any, list[dict[str, Any]], dict[str, Any]], Any]
"""Policy, rows and common arguments → TRL's trainer."""


def check(model: Path, method: str, runtime: Runtime) -> None:
    """Refuse what would fail later, or teach nothing.

    Args:
        model: folder of the starting policy.
        method: the stage.
        runtime: the number format.

    Raises:
        UserError: the policy is an encoder-decoder, or the number format is none to train in.
    """
    if models.is_encoder_decoder(model):
        raise UserError(
            f"{method.upper()} cannot align an encoder-decoder: TRL has no trainer for one",
            where=str(model),
            expected="a decoder-only model",
            fix="align it with PPO, which takes both families (params.yaml: ppo)",
        )
    if runtime.dtype == "float16":
        raise UserError(
            "float16 cannot be trained in: gradients underflow without loss scaling",
            where="params.yaml: runtime.dtype",
            expected="auto, float32 or bfloat16",
            exit_code=2,
        )


def each_seed(
    cfg: Settings,
    kind: Kind,
    train: Callable[[int, Path, Any], Trained],
    *,
    model: Path,
    out: Path,
    work: Path,
    runtime: Runtime,
) -> list[Trained]:
    """Train once for each of `cfg.seeds`; write each adapter with its curve, record and card.

    Args:
        cfg: of the stage.
        kind: what is made.
        train: seed, folder for checkpoints, and the policy with its new adapter → what came out.
        model: folder of the starting policy.
        out: `adapter` of the first seed, `adapter-<seed>` of the others.
        work: folder for checkpoints.
        runtime: device and number format.

    Returns:
        What came out, without the policies.
    """
    found = []
    for seed in cfg.seeds:
        name = "adapter" if seed == cfg.seeds[0] else f"adapter-{seed}"
        seed_everything(seed)  # of the new adapter
        policy = tuning.adapt(
            models.load_base(model, runtime), models.low_rank(cfg.rank, cfg.alpha, cfg.targets), kind.method
        )
        try:
            trained = train(seed, work / name, policy)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            smaller = "batch_size, with a larger accumulation" if isinstance(cfg, Pairs) else "micro_batch"
            raise UserError(
                "memory ran out", where=f"stage {kind.method}", fix=f"set a smaller {kind.method}.{smaller}"
            ) from None
        _write(out / name, cfg, kind, trained, model, seed, runtime)
        found.append(trained._replace(policy=None))
        del trained, policy  # the next seed wants the memory
        release()
    return found


def _write(folder: Path, cfg: Settings, kind: Kind, trained: Trained, model: Path, seed: int, runtime: Runtime) -> None:
    from tunemill import cards, trainings

    trainable, total = trainings.counted(trained.policy)
    tuning.save_adapter(trained.policy, folder)
    checkpoints.write_text(folder / "updates.csv", updates_csv(trained.curve))
    checkpoints.write_json(
        folder / "training.json",
        {
            "method": kind.method,
            "steps": trained.steps,
            "batch_size": trained.batch_size,
            "micro_batch": trained.micro_batch,
            "learning_rate": cfg.learning_rate,
            "learning_rate_asked": cfg.learning_rate,
            "examples": trained.examples,
            "tasks": [],
            "tokens": trained.tokens,
            "trainable_parameters": trainable,
            "total_parameters": total,
            "dtype": runtime.dtype,
            "seeds": cfg.seeds,
            **trained.told,
        },
    )
    facts: dict[str, object] = {
        "trained parameters": f"{trainable:,}, {trainable / total:.2%} of the model's {total:,}",
        "optimizer steps": f"{trained.steps} of {trained.batch_size} {'pairs' if isinstance(cfg, Pairs) else 'responses'}",
        "peak learning rate": f"{cfg.learning_rate:g}",
        "seed": seed,
    }
    cards.write(folder, "Aligned policy", model, kind.text, facts, encoder_decoder=False)


def updates_csv(curve: Sequence[Row]) -> str:
    """A training curve as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(curve[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {name: round(each, 6) if abs(each) >= 1e-3 else float(f"{each:.4g}") for name, each in row.items()}
        for row in curve
    )
    return text.getvalue()


# ── the loop ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _arguments(
    cfg: Settings, steps: int, warmup: int, save: int, log: int, seed: int, runtime: Runtime
) -> dict[str, Any]:
    """What all of the trainers are told."""
    return {
        "max_steps": steps,
        "learning_rate": cfg.learning_rate,
        "warmup_steps": warmup,
        "weight_decay": 0.0,
        "max_grad_norm": cfg.max_grad_norm,
        "lr_scheduler_type": "linear",
        "optim": "adamw_torch",
        "eval_strategy": "no",
        "save_strategy": "steps",
        "save_steps": save,
        "save_total_limit": 2,
        "logging_steps": log,
        "logging_nan_inf_filter": False,
        "report_to": [],
        "disable_tqdm": True,
        "log_level": "error",
        "use_cpu": runtime.device == "cpu",
        "ddp_backend": "gloo" if runtime.processes > 1 and runtime.device == "cpu" else None,
        # The frozen weights are in the number format that is computed in, the adapter in float32.
        "bf16": False,
        "fp16": False,
        "activation_checkpointing": False,
        "disable_dropout": True,
        "seed": seed,
        "data_seed": seed,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": runtime.device == "cuda",
        "remove_unused_columns": False,
        "push_to_hub": False,
    }


def _fit(
    trainer: Any,
    row: Callable[[int, Mapping[str, float]], Row],
    *,
    steps: int,
    unit: Literal["step", "update"],
    each: int,
    work: Path,
    runtime: Runtime,
    log: Log,
) -> list[Row]:
    """Train from the newest complete checkpoint to the end; the curve is returned.

    Args:
        trainer: TRL's.
        row: steps that are done and what TRL logged → a line of the curve.
        steps: of the optimizer, in all.
        unit: what progress is counted in.
        each: steps of a unit.
        work: folder of the checkpoints.
        runtime: the first of several processes writes.
        log: progress.

    Raises:
        UserError: a gradient is not finite.
    """
    from transformers import PrinterCallback, TrainerCallback

    kept = work / "curve.jsonl"
    resume = checkpoints.newest(work)
    first = int(resume.name.removeprefix("checkpoint-")) if resume else 0
    told = [line for _, line in records.read_objects(kept)] if kept.is_file() else []
    curve: list[Row] = [line for line in told if line[unit] * each <= first]
    if resume and len(curve) * each < first:
        resume, first, curve = None, 0, []  # weights without their curve: not what a checkpoint of ours looks like

    class Follow(TrainerCallback):  # type: ignore[misc]  # the hook that transformers offers; it holds no logic of its own
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            if not tuning.finite(given["model"]):
                raise UserError(
                    f"the gradient of step {state.global_step + 1} is not finite",
                    where="training",
                    expected="a loss that stays finite",
                    fix="lower learning_rate or max_grad_norm, and look at the data",
                )

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs:
                curve.append({unit: state.global_step // each, **row(state.global_step, logs)})
                log(state.global_step // each, **{name: value for name, value in curve[-1].items() if name != unit})

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            tuning.barrier()  # every process has written its part
            if runtime.rank == 0:
                records.write_objects(kept, curve)
                checkpoints.seal(work / f"checkpoint-{state.global_step}")
            tuning.barrier()

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Follow())
    log.start("training", steps // each, unit, first // each)
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    return curve


def _referred(trainer: Any) -> Any:
    """Make the reference the policy with its adapter off: TRL has copied the new adapter, which is no change yet, for one."""
    if "ref" in trainer.model.peft_config:
        trainer.model.delete_adapter("ref")
    return trainer


# ── pairs ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Pair(NamedTuple):
    """Two answers to one prompt as token ids."""

    asked: str
    """The prompt's text: which prompt it is."""
    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    weight: float


def read_pairs(cfg: Pairs, tokenizer: Any, preferences: Path, section: str, log: Log) -> tuple[list[Pair], int]:
    """The pairs of stage `feedback`, and how many were left out as too long.

    Args:
        cfg: of the stage.
        tokenizer: of the starting policy.
        preferences: JSONL.
        section: of params.yaml, for messages.
        log: told how many are left.

    Raises:
        UserError: none is left, or tokenizer and chat template do not fit each other.
    """
    rows = records.read(preferences, records.Preference)
    found = []
    for row in rows:
        good, bad = (models.render_completion(tokenizer, text) for text in (row.chosen, row.rejected))
        found.append(Pair(row.prompt, models.render_prompt(tokenizer, row.prompt), good, bad, row.weight))
    if found:
        tuning.check(tokenizer, [Encoded(each.prompt, ids) for each in found for ids in (each.chosen, each.rejected)])
    kept = [each for each in found if len(each.prompt) + max(len(each.chosen), len(each.rejected)) <= cfg.max_tokens]
    if not kept:
        raise UserError(
            f"none of {len(rows)} pairs has at most {cfg.max_tokens} tokens",
            where=str(preferences),
            expected="at least one",
            fix=f"raise {section}.max_tokens, or look at what stage feedback left out (artifacts/feedback/feedback.json)",
        )
    prompts = len({each.asked for each in kept})
    log.note(f"{len(kept)} pairs of {prompts} prompts; {len(found) - len(kept)} have more than {cfg.max_tokens} tokens")
    return kept, len(found) - len(kept)


def draw(pairs: Sequence[Pair], count: int, seed: int) -> list[int]:
    """Which pairs to learn from, in this order: each as often as its weight says.

    Systematic sampling, in rounds of as many draws as there are prompts: pairs lie on a line, each as long as its weight, those of
    a prompt side by side, all in random order; marks at equal distances pick. Where the weights of every prompt's pairs add up to
    the same, as those of stage `feedback` do, a round asks every prompt exactly once.

    Args:
        pairs: with their weights.
        count: how many draws.
        seed: of the order and of the marks.
    """
    import numpy as np

    random = np.random.default_rng(seed)
    groups: dict[str, list[int]] = {}
    for at, pair in enumerate(pairs):
        groups.setdefault(pair.asked, []).append(at)
    texts = list(groups)
    drawn: list[int] = []
    while len(drawn) < count:
        order = [each for text in random.permutation(len(texts)) for each in random.permutation(groups[texts[text]])]
        ends = np.cumsum([pairs[at].weight for at in order])
        marks = (random.uniform() + np.arange(len(texts))) * ends[-1] / len(texts)
        places = np.searchsorted(ends, marks, side="right").clip(max=len(order) - 1)
        drawn += random.permutation([order[place] for place in places]).tolist()
    return drawn[:count]


def learn_pairs(
    policy: Any,
    tokenizer: Any,
    pairs: Sequence[Pair],
    cfg: Pairs,
    seed: int,
    *,
    trainer: Trainers,
    row: Callable[[Mapping[str, float]], Row],
    rows_of: Callable[[Sequence[Pair]], list[dict[str, Any]]],
    per_pair: int,
    runtime: Runtime,
    work: Path,
    log: Log,
) -> Trained:
    """Train on pairs, continuing from the newest complete checkpoint under `work`.

    Args:
        policy: the PEFT model.
        tokenizer: its tokenizer.
        pairs: from `read_pairs`.
        cfg: how.
        seed: of the draw.
        trainer: makes TRL's trainer.
        row: what TRL logged → what the curve has of it.
        rows_of: pairs of one forward pass → the trainer's rows.
        per_pair: how many rows a pair makes.
        runtime: device, number format, processes.
        work: folder for checkpoints.
        log: progress.
    """
    micro, accumulation = tuning.micro_batches(cfg.batch_size, cfg.accumulation, runtime.processes)
    step = cfg.batch_size * cfg.accumulation
    drawn = [pairs[at] for at in draw(pairs, cfg.steps * step, seed)]
    rows = [each for at in range(0, len(drawn), micro) for each in rows_of(drawn[at : at + micro])]
    arguments = {
        **_arguments(cfg, cfg.steps, cfg.warmup_steps, cfg.checkpoint_steps, 1, seed, runtime),
        "output_dir": str(work),
        "per_device_train_batch_size": micro * per_pair,
        "gradient_accumulation_steps": accumulation,
        "train_sampling_strategy": "sequential",  # the draw is the order
        "max_length": None,
        "beta": cfg.beta,
    }
    tokens = [len(each.prompt) * 2 + len(each.chosen) + len(each.rejected) for each in drawn]
    curve = _fit(
        _referred(trainer(policy, rows, arguments)),
        lambda _, logs: {**row(logs), "learning_rate": float(logs["learning_rate"])},
        steps=cfg.steps,
        unit="step",
        each=1,
        work=work,
        runtime=runtime,
        log=log,
    )
    return Trained(policy, curve, cfg.steps, step, micro, min(len(pairs), len(drawn)), sum(tokens))


def pair_metrics(found: Sequence[Trained], pairs: Sequence[Pair], too_long: int) -> dict[str, float | None]:
    """The metrics of a stage that learns from pairs: the first seed's."""
    curve = found[0].curve
    last = curve[-10:]
    return {
        "pairs": len(pairs),
        "prompts": len({each.asked for each in pairs}),
        "too_long": too_long,
        **{f"{name}/first": curve[0][name] for name in curve[0] if name not in ("step", "learning_rate")},
        **{
            f"{name}/last": sum(each[name] for each in last) / len(last)
            for name in curve[0]
            if name not in ("step", "learning_rate")
        },
    }


# ── rollouts ──────────────────────────────────────────────────────────────────────────────────────────────────────


def read_prompts(cfg: Rollouts, tokenizer: Any, prompts: Path, section: str, log: Log) -> tuple[list[str], int]:
    """Instructions to answer, and how many were left out as too long.

    Args:
        cfg: of the stage.
        tokenizer: of the starting policy.
        prompts: red-team prompts, JSONL.
        section: of params.yaml, for messages.
        log: told how many are left.

    Raises:
        UserError: none is left.
    """
    rows = records.read(prompts, records.RedTeamPrompt)
    found = [row.prompt for row in rows if row.kind == "instruction"]
    kept = [each for each in found if len(models.render_prompt(tokenizer, each)) <= cfg.max_prompt_tokens]
    if not kept:
        raise UserError(
            f"none of {len(found)} instructions has at most {cfg.max_prompt_tokens} tokens",
            where=str(prompts),
            expected="at least one",
            fix=f"raise {section}.max_prompt_tokens",
        )
    log.note(f"{len(kept)} prompts to learn on, {len(found) - len(kept)} left out as too long")
    return kept, len(found) - len(kept)


class Rolling:
    """What one training answers and how that is scored: TRL's trainers call it back.

    Attributes:
        normal: scale of the scores, from the first rollout; kept on disk, since a checkpoint comes later.
        finished: of the last rollout, whether each response ended by itself.
        update: which rollout it was, from 1.
    """

    def __init__(
        self,
        tokenizer: Any,
        reward: Reward,
        score: rewards.Drawn,
        cfg: Rollouts,
        seed: int,
        *,
        where: Path,
        runtime: Runtime,
        work: Path,
    ) -> None:
        """See `learn_rollouts`."""
        self.tokenizer, self.reward, self.score_rows = tokenizer, reward, score
        self.cfg, self.seed, self.where, self.runtime = cfg, seed, where, runtime
        self.kept = work / "normalization.json"
        self.normal = rlhf.Normalization(*json.loads(self.kept.read_text())) if self.kept.is_file() else None
        self.finished: list[bool] = []
        self.update = 0

    def tokenize(self, prompts: Sequence[str]) -> list[list[int]]:
        """Prompts as everywhere in this project."""
        return [models.render_prompt(self.tokenizer, each) for each in prompts]

    def answer(self, trainer: Any, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        """Let the policy answer, drawn from its whole distribution."""
        self.update = trainer.state.global_step // self.cfg.steps_each + 1
        policy = trainer.accelerator.unwrap_model(trainer.model)
        training = policy.training
        policy.eval()
        lengths = [len(each) for each in prompts]
        plan = sampling.plan(lengths, self.cfg.response_tokens, self.cfg.rollout_tokens, max(1, len(prompts)))
        found = {
            place: (ids, finished)
            for place, ids, finished in sampling.rollouts(
                policy.get_base_model(),
                self.tokenizer,
                prompts,
                decoding=Decoding(self.cfg.response_tokens, self.cfg.temperature),
                batches=plan,
                seed=[self.seed, self.update, self.runtime.rank],
            )
        }
        policy.train(training)
        self.finished = [found[place][1] for place in range(len(prompts))]
        return [found[place][0] for place in range(len(prompts))]

    def score(
        self, prompts: list[str], completions: list[str], completion_ids: list[list[int]], log_metric: Any, **_: Any
    ) -> list[float]:
        """Normalised scores of a rollout, the penalty for not ending taken off.

        Raises:
            UserError: a score is no number, all are the same, or the starting policy says nothing.
        """
        import torch

        if self.update == 1 and not any(each.strip() for each in completions):
            raise UserError(
                "every response of the starting policy is empty: there is nothing to reward",
                where="the policy that training starts from",
                expected="a policy that answers",
                fix="look at artifacts/feedback/completions.jsonl",
            )
        rows = [Encoded(prompt, ids) for prompt, ids in zip(self.tokenize(prompts), completion_ids, strict=True)]
        raw = rewards.checked(self.score_rows(rows, prompts, completions), completions, self.where)
        if self.normal is None:
            self.normal = self._normalization(_everybody(raw, self.runtime))
        scores = self.normal(torch.tensor(raw))
        if self.reward.shuffled:
            scores = rewards.shuffle(scores, [self.seed, self.update, self.runtime.rank])
        scores = scores - self.cfg.missing_eos_penalty * (~torch.tensor(self.finished)).float()
        log_metric("score", sum(raw) / len(raw))
        log_metric("finished", sum(self.finished) / len(self.finished))
        return [float(each) for each in scores]

    def _normalization(self, scores: Sequence[float]) -> rlhf.Normalization:
        try:
            found = rlhf.Normalization.of(scores)
        except ValueError as error:
            raise UserError(
                f"nothing can be learnt from this reward: {error}",
                where=str(self.where),
                expected="scores that differ between the starting policy's responses",
                fix="train the reward for longer (params.yaml: reward), or sample at a higher temperature",
            ) from None
        if self.runtime.rank == 0:
            checkpoints.write_json(self.kept, list(found))
        return found


def _everybody(values: list[float], runtime: Runtime) -> list[float]:
    """The values of all processes."""
    if runtime.processes == 1:
        return values
    from accelerate.utils import gather_object

    return list(gather_object(values))


def learn_rollouts(
    policy: Any,
    rolling: Rolling,
    prompts: Sequence[str],
    *,
    trainer: Callable[[Any, Rolling, list[dict[str, Any]], dict[str, Any]], Any],
    work: Path,
    log: Log,
) -> Trained:
    """Train on the policy's own answers, continuing from the newest complete checkpoint under `work`.

    Args:
        policy: the PEFT model.
        rolling: who answers, and what that is worth.
        prompts: to answer.
        trainer: makes TRL's trainer.
        work: folder for checkpoints.
        log: progress.
    """
    cfg, seed, runtime = rolling.cfg, rolling.seed, rolling.runtime
    size = cfg.prompts * cfg.samples
    micro, accumulation = micro_batches(cfg, runtime)
    steps = cfg.updates * cfg.steps_each
    rows = [
        {"prompt": prompts[at]}
        for update in range(1, cfg.updates + 1)
        for at in ppo.choose(len(prompts), cfg.prompts, seed, update)
    ]
    each = cfg.steps_each
    arguments = {
        **_arguments(cfg, steps, cfg.warmup_updates * each, cfg.checkpoint_updates * each, each, seed, runtime),
        "output_dir": str(work),
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": accumulation,
        "steps_per_generation": accumulation * cfg.minibatches,
        "num_iterations": cfg.epochs,
        "num_generations": cfg.samples,
        "max_completion_length": cfg.response_tokens,
        "temperature": cfg.temperature,
        "top_p": 1.0,
        "top_k": 0,
        "beta": cfg.kl_coef,
        "epsilon": cfg.cliprange,
        "shuffle_dataset": False,  # the rows are in order
    }

    def row(_: int, logs: Mapping[str, float]) -> Row:
        tokens = float(logs["completions/mean_length"])
        return {
            "reward": float(logs["score"]),
            "normalized": float(logs["reward"]),
            # TRL's is a mean over tokens; here, as everywhere, nats a response. RLOO's is of the policy that answered, GRPO's of the
            # one that learns, in the middle of its steps; without a penalty neither is computed.
            **({"kl": float(logs["kl"]) * tokens} if "kl" in logs else {}),
            "entropy": float(logs["entropy"]),
            "tokens": tokens,
            "finished": float(logs["finished"]),
            "clipped": float(logs["clip_ratio/region_mean"]),
            "loss": float(logs["loss"]),
            "learning_rate": float(logs["learning_rate"]),
        }

    made = _referred(trainer(policy, rolling, rows, arguments))
    curve = _fit(made, row, steps=steps, unit="update", each=each, work=work, runtime=runtime, log=log)
    told = {
        "reward": rewards.told(rolling.reward),
        "normalization": list(rolling.normal) if rolling.normal else None,
        "updates": cfg.updates,
    }
    examples = cfg.updates * size
    tokens = int(made.state.num_input_tokens_seen)
    return Trained(policy, curve, steps, size // cfg.minibatches, micro, examples, tokens, told)


def micro_batches(cfg: Rollouts, runtime: Runtime) -> tuple[int, int]:
    """(responses in one forward pass of one process, forward passes in a step)."""
    step = cfg.prompts * cfg.samples // cfg.minibatches
    if step % runtime.processes:
        raise UserError(
            f"a minibatch of {step} responses (prompts x samples / minibatches) cannot be shared by {runtime.processes} processes",
            where="params.yaml: prompts, samples, minibatches",
            expected=f"a multiple of {runtime.processes}",
            exit_code=2,
        )
    share = step // runtime.processes
    micro = max(size for size in range(1, min(cfg.micro_batch, share) + 1) if share % size == 0)
    return micro, share // micro


def rollout_metrics(found: Sequence[Trained], left_out: int) -> dict[str, float | None]:
    """The metrics of a stage that learns from its own answers: the first seed's."""
    curve = found[0].curve
    return {
        "updates": len(curve),
        "prompts/left_out": left_out,
        "kl": curve[-1].get("kl"),
        **{
            f"{name}/{which}": each[name]
            for name in ("reward", "entropy", "tokens", "finished")
            for which, each in (("first", curve[0]), ("last", curve[-1]))
        },
    }
