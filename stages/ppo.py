r"""PPO: optimise the tuned policy against a reward, tethered to where it started, and stop before the reward is gamed.

    python -m stages.ppo --policy artifacts/feedback/policy --reward artifacts/reward/harm \
        --prompts artifacts/validate/red_team_train.jsonl --monitored artifacts/validate/red_team_monitor.jsonl \
        --harm artifacts/harm --train artifacts/validate/train.jsonl --feedback artifacts/feedback/feedback.json \
        --out artifacts/ppo/harm --candidate harm

Reinforcement learning from human feedback as in Ouyang et al. (2022, section 3.5): the policy π starts as the tuned model π_ref,
answers prompts, and is moved towards answers that the reward r likes, with Schulman et al.'s (2017) clipped losses:

    maximise  E[ r(x, y) − β · log(π(y|x) / π_ref(y|x)) ]

`tunemill/ppo.py` has the loop, `tunemill/rlhf.py` its maths, `tunemill/backbone.py` how one frozen model plays policy, value,
reward and reference. Every few updates the policy is looked at on prompts that it is not trained on, by a judge of another kind than
the reward; the policy that this judge likes best, within the limit of the KL divergence, is the one that is written. That may be
the one at the start: then nothing has been gained, and the files say so.

Writes adapter/ (or model/), of further seeds adapter-<seed>/; beside its weights each has updates.csv (every update),
monitor.csv (every look), samples.jsonl (the start's and the policy's answers side by side), training.json and ppo.json (alarms,
which update was kept).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from tunemill import backbone, checkpoints, monitoring, ppo, records, rewards, toxicity
from tunemill.errors import UserError
from tunemill.log import Log
from tunemill.ppo import Settings, Trained
from tunemill.records import Example, RedTeamPrompt
from tunemill.rewards import Reward
from tunemill.runtime import Runtime, release, seed_everything
from tunemill.stage import Metrics, main


class Config(Settings):
    """How the policy is optimised; see `tunemill.ppo.Settings`."""

    store_dtype: Literal["float32", "bfloat16", "float16"]
    """Number format on disk of a policy that was trained in full."""


def run(
    cfg: Config,
    *,
    policy: Path,
    reward: Path,
    prompts: Path,
    monitored: Path | None = None,
    harm: Path | None = None,
    train: Path | None = None,
    feedback: Path | None = None,
    out: Path,
    work: Path,
    runtime: Runtime,
    log: Log,
) -> Metrics:
    """Optimise `policy` for `reward` on `prompts`; write it, and how that went, under `out`."""
    from tunemill import models

    if runtime.dtype == "float16":
        raise UserError(
            "float16 cannot be trained in: gradients underflow without loss scaling",
            where="params.yaml: runtime.dtype",
            expected="auto, float32 or bfloat16",
            exit_code=2,
        )
    # 1. What to answer, what to be watched on, and what is rewarded.
    tokenizer = models.load_tokenizer(policy)
    asked, left_out = readable(records.read(prompts, RedTeamPrompt), tokenizer, cfg.max_prompt_tokens)
    watched, _ = readable(records.read(monitored, RedTeamPrompt) if monitored else [], tokenizer, cfg.max_prompt_tokens)
    if not watched:  # some of those to train on are set aside
        asked, watched = asked[cfg.monitor_items :], asked[: cfg.monitor_items]
    watched = watched[: cfg.monitor_items]
    if not asked or len(watched) < 2:
        raise UserError(
            f"{len(asked)} prompts to train on and {len(watched)} to be monitored on, of at most {cfg.max_prompt_tokens} tokens",
            where=str(prompts),
            expected="at least one of the former and two of the latter",
            fix="raise ppo.max_prompt_tokens, or lower ppo.monitor_items",
        )
    wanted = rewards.load(reward, runtime)
    if wanted.model is not None:
        backbone.check(wanted.model, tokenizer, policy)
    judge = toxicity.monitor(harm, runtime) if harm is not None else None
    pairs = task_pairs(train, tokenizer) if cfg.ptx_coef else []
    log.note(
        f"{len(asked)} prompts to learn on, {left_out} left out as too long, {len(watched)} to be monitored on "
        f"{'by a judge' if judge else 'without a judge'}; reward: {wanted.kind}"
    )

    # 2. For each seed: the four roles, then PPO. The policy starts as the reference, to the last bit.
    metrics: dict[str, float | None] = {}
    for seed in cfg.seeds:
        folder = "adapter" if cfg.mode == "adapters" else "model"
        name = folder if seed == cfg.seeds[0] else f"{folder}-{seed}"
        seed_everything(seed)  # of new adapters
        trained = ppo.optimise(
            actors(cfg, policy, wanted, runtime),
            tokenizer,
            asked,
            watched,
            wanted,
            cfg,
            seed,
            judge=judge,
            ptx=pairs,
            where=reward,
            runtime=runtime,
            work=work / name,
            log=log,
        )
        told = write(
            cfg, trained, wanted, [text for text, _ in watched], tokenizer, policy, out / name, seed, runtime, log
        )
        bring_along(wanted, feedback, out / name)
        if seed == cfg.seeds[0]:
            metrics = {**told, "prompts/left_out": left_out}
        else:
            metrics |= {f"seed_{seed}/{key}": value for key, value in told.items()}
        del trained  # the next seed wants the memory
        release()
    return metrics


def bring_along(reward: Reward, feedback: Path | None, folder: Path) -> None:
    """Keep beside a policy what is known of the reward model that it learnt from, and of what people said: the report tells it."""
    known = {"feedback.json": feedback}
    if reward.model is not None and not reward.shuffled:
        known |= {
            "reward.json": reward.model / "reward.json",
            "reward_histogram.csv": reward.model / "histogram.csv",
            "reward_reliability.csv": reward.model / "reliability.csv",
        }
    if all(path is None or path.is_file() for path in known.values()):  # one made by hand has no figures
        for name, path in known.items():
            if path is not None:
                checkpoints.write_text(folder / name, path.read_text(encoding="utf-8"))


def readable(rows: Sequence[RedTeamPrompt], tokenizer: Any, most: int) -> tuple[list[tuple[str, list[int]]], int]:
    """Instructions as text and as ids, and how many were left out for having more than `most` tokens."""
    from tunemill import models

    found = [(row.prompt, models.render_prompt(tokenizer, row.prompt)) for row in rows if row.kind == "instruction"]
    kept = [each for each in found if len(each[1]) <= most]
    return kept, len(found) - len(kept)


def task_pairs(train: Path | None, tokenizer: Any) -> list[Any]:
    """The task's own training pairs, encoded.

    Raises:
        UserError: none were given.
    """
    from tunemill import tuning

    if train is None:
        raise UserError(
            "no training pairs to mix in", where="params.yaml: ppo.ptx_coef", fix="pass --train", exit_code=2
        )
    return [tuning.encode(tokenizer, row.prompt, row.completion) for row in records.read(train, Example)]


def actors(cfg: Config, start: Path, reward: Reward, runtime: Runtime) -> backbone.Actors:
    """Policy, value, reward and reference at the start."""
    from tunemill import models

    detached = cfg.value == "detached"
    if cfg.mode == "full":
        return backbone.separate(start, reward.model, runtime, detached=detached)
    adapter = models.low_rank(cfg.rank, cfg.alpha, cfg.targets)
    return backbone.share(start, reward.model, adapter, runtime, detached=detached)


def write(
    cfg: Config,
    trained: Trained,
    reward: Reward,
    asked: Sequence[str],
    tokenizer: Any,
    start: Path,
    folder: Path,
    seed: int,
    runtime: Runtime,
    log: Log,
) -> dict[str, float | None]:
    """Write the policy that is kept, its curves, samples and card; the metrics are returned."""
    from tunemill import cards, models, tuning

    state = trained.state
    first = state.points[0]
    kept = next(each for each in state.points if each.update == state.kept)
    if state.kept == 0:
        log.note("no later policy did better by the monitor: what is written is the starting policy")

    # 3. The policy.
    if trained.actors.shared is None:
        models.save(trained.actors.separate["policy"], tokenizer, folder, cfg.store_dtype)
    else:
        tuning.save_adapter(trained.actors.shared, folder, "policy")
        models.save_tokenizer(tokenizer, folder)
    # 4. How it went.
    checkpoints.write_text(folder / "updates.csv", ppo.updates_csv(state))
    checkpoints.write_text(folder / "monitor.csv", ppo.monitor_csv(state))
    both = zip(asked, state.answers[0], state.answers[state.kept], strict=True)
    records.write_objects(
        folder / "samples.jsonl",
        (
            {
                "prompt": prompt,
                "before": before,
                "after": after,
                "reward": [first.rewards[at], kept.rewards[at]],
                "harm": [first.harms[at], kept.harms[at]],
            }
            for at, (prompt, before, after) in enumerate(both)
        ),
    )
    facts = {
        "reward": rewards.told(reward),
        "kept": state.kept,
        "updates": state.update,
        "asked_updates": cfg.updates,
        "stopped": state.stopped,
        "alarms": [each._asdict() for each in state.alarms],
        "kl": kept.kl,
        "kl_limit": cfg.kl.limit,
        "kl_coef": state.kl_coef,
        "normalization": list(state.normal) if state.normal else None,
        "reward_change": _change(first.rewards, kept.rewards),
        "harm_change": _change(first.harms, kept.harms),
        "monitored": len(asked),
        "seed": seed,
    }
    checkpoints.write_json(folder / "ppo.json", facts)
    trainable = sum(each.numel() for each in trained.actors.policy_parameters())
    checkpoints.write_json(
        folder / "training.json",
        {
            "method": "ppo",
            "steps": state.update * cfg.epochs * cfg.minibatches,
            "learning_rate": cfg.learning_rate,
            "examples": state.update * cfg.prompts * cfg.samples,
            "trainable_parameters": trainable,
            "dtype": runtime.dtype,
            "seeds": cfg.seeds,
            "tasks": [],
        },
    )
    text = (
        f"A policy optimised by PPO (Schulman et al. 2017; Ouyang et al. 2022) for the reward '{reward.kind}', starting from the "
        "model named above."
    )
    told: dict[str, object] = {
        "updates": f"{state.update} of {cfg.updates}; kept is the policy after {state.kept}",
        "KL divergence": f"{kept.kl:.2f} nats a response (limit {cfg.kl.limit:g})",
        "alarms": "; ".join(each.text for each in state.alarms) or "none",
        "seed": seed,
    }
    cards.write(folder, "Aligned policy", start, text, told, trained.actors.config.is_encoder_decoder)
    return figures(trained, cfg)


def _change(before: Sequence[float | None], after: Sequence[float | None]) -> list[float] | None:
    """A paired difference and its standard error, as JSON has it."""
    found = monitoring.change(before, after)
    return None if found is None else list(found)


def figures(trained: Trained, cfg: Config) -> dict[str, float | None]:
    """The stage's metrics."""
    state = trained.state
    first, last = state.curve[0] if state.curve else {}, state.curve[-1] if state.curve else {}
    start = state.points[0]
    kept = next(each for each in state.points if each.update == state.kept)
    reward, harm = monitoring.change(start.rewards, kept.rewards), monitoring.change(start.harms, kept.harms)
    return {
        "updates": state.update,
        "kept_update": state.kept,
        "stopped": int(state.stopped is not None),
        "alarms": len(state.alarms),
        "kl": kept.kl,
        "kl_coef": state.kl_coef,
        "reward/first": first.get("reward"),
        "reward/last": last.get("reward"),
        "entropy/first": first.get("entropy"),
        "entropy/last": last.get("entropy"),
        "tokens/first": first.get("tokens"),
        "tokens/last": last.get("tokens"),
        "monitor/reward_start": monitoring.mean(start.rewards),
        "monitor/reward": monitoring.mean(kept.rewards),
        "monitor/reward_change": reward.mean if reward else None,
        "monitor/reward_change_error": reward.error if reward else None,
        "monitor/harm_start": monitoring.mean(start.harms),
        "monitor/harm": monitoring.mean(kept.harms),
        "monitor/harm_change": harm.mean if harm else None,
        "monitor/harm_change_error": harm.error if harm else None,
        "monitor/tokens_start": monitoring.mean(start.lengths),
        "monitor/tokens": monitoring.mean(kept.lengths),
        "monitor/perplexity_start": start.perplexity,
        "monitor/perplexity": kept.perplexity,
        "monitor/repetition": monitoring.mean(kept.repetitions),
        "monitor/silent": kept.silent,
    }


if __name__ == "__main__":
    main(run, distributed=True)
