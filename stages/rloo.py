r"""RLOO (Ahmadian et al. 2024): REINFORCE, the other answers to a prompt being the baseline; off by default.

python -m stages.rloo --candidate harm --reward artifacts/reward/harm --prompts artifacts/validate/red_team_train.jsonl \
        --model artifacts/feedback/policy --out artifacts/rloo/harm

A whole answer is one action: its reward is the score less β · KL of the answer, its advantage that reward less the mean of the other
answers to its prompt; no value, no reward for single tokens, by TRL's `RLOOTrainer`. Prompts, answers and scores are those of PPO
(`tunemill.policy_tuning`). Deviations from the paper: a low-rank adapter instead of all weights; where a rollout is learnt from in
several steps, the ratio of a whole answer is clipped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunemill import models, policy_tuning, rewards, tuning
from tunemill.log import Log
from tunemill.policy_tuning import Rolling, Trained
from tunemill.runtime import Runtime
from tunemill.stage import Metrics, main


class Config(policy_tuning.Rollouts):
    """How the policy is tuned; see `tunemill.policy_tuning.Rollouts`."""


def run(
    cfg: Config, *, reward: Path, prompts: Path, model: Path, out: Path, work: Path, runtime: Runtime, log: Log
) -> Metrics:
    """Tune adapters for the policy in `model` by the reward of its answers; write them, and how that went, under `out`."""
    policy_tuning.check(model, "rloo", runtime)
    # 1. What to answer, and what is rewarded.
    tokenizer = models.load_tokenizer(model)
    asked, left_out = policy_tuning.read_prompts(cfg, tokenizer, prompts, "rloo", log)
    wanted = rewards.load(reward, runtime)
    score = rewards.drawn(wanted, model, runtime)

    # 2. For each seed: answer, score, compare with the others, learn.
    def train(seed: int, place: Path, policy: Any) -> Trained:
        rolling = Rolling(tokenizer, wanted, score, cfg, seed, where=reward, runtime=runtime, work=place)
        return policy_tuning.learn_rollouts(policy, rolling, asked, trainer=trainer, work=place, log=log)

    text = (
        f"A low-rank adapter tuned by RLOO (Ahmadian et al. 2024) for the reward '{wanted.kind}', for the model named above: "
        f"{cfg.updates} updates of {cfg.prompts} prompts with {cfg.samples} answers each, β {cfg.kl_coef:g}."
    )
    found = policy_tuning.each_seed(
        cfg, policy_tuning.Kind("rloo", text), train, model=model, out=out, work=work, runtime=runtime
    )
    return policy_tuning.rollout_metrics(found, left_out)


def trainer(policy: Any, rolling: Rolling, rows: list[dict[str, Any]], arguments: dict[str, Any]) -> Any:
    """TRL's trainer, with this project's answers."""
    from datasets import Dataset
    from trl import RLOOConfig, RLOOTrainer

    class AnswerTrainer(RLOOTrainer):  # type: ignore[misc]  # the library's own way to other answers
        def _tokenize_prompts(self, prompts: Any) -> Any:
            return rolling.tokenize(prompts), None, {}

        def _generate_single_turn(self, prompt_ids: Any, *_: Any, **__: Any) -> Any:
            return rolling.answer(self, prompt_ids)

    settings = RLOOConfig(**arguments)
    tuning.one_device(settings)
    return AnswerTrainer(
        policy,
        reward_funcs=[rolling.score],
        args=settings,
        train_dataset=Dataset.from_list(rows),
        processing_class=rolling.tokenizer,
    )


if __name__ == "__main__":
    main(run, distributed=True)
