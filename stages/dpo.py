r"""DPO (Rafailov et al. 2023): learn from the pairs directly, without a reward model and without drawing answers; off by default.

python -m stages.dpo --candidate harm --preferences artifacts/feedback/preferences.jsonl --model artifacts/feedback/policy \
        --out artifacts/dpo/harm

The policy itself is read as a reward, r(x, y) = β · log(π(y|x) / π_ref(y|x)), and taught the pairs of stage `feedback` as a reward
model would be (Bradley-Terry):

    L = −log σ(r(x, y_chosen) − r(x, y_rejected))

by TRL's `DPOTrainer`. A control for PPO: the same pairs and the same starting policy, no exploration. Deviations from the paper: a
low-rank adapter instead of all weights; pairs are drawn by their weights; a pair's probability is not used, TRL takes hard labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunemill import models, policy_tuning, tuning
from tunemill.log import Log
from tunemill.policy_tuning import Pair, Row, Trained
from tunemill.runtime import Runtime
from tunemill.stage import Metrics, main


class Config(policy_tuning.Pairs):
    """How the policy is tuned; see `tunemill.policy_tuning.Pairs`."""


def run(cfg: Config, *, preferences: Path, model: Path, out: Path, work: Path, runtime: Runtime, log: Log) -> Metrics:
    """Tune adapters for the policy in `model` on the pairs; write them, and how that went, under `out`."""
    policy_tuning.check(model, "dpo", runtime)
    # 1. The pairs, as token ids.
    tokenizer = models.load_tokenizer(model)
    pairs, too_long = policy_tuning.read_pairs(cfg, tokenizer, preferences, "dpo", log)

    # 2. For each seed: draw pairs, and raise the margin between their answers.
    def train(seed: int, place: Path, policy: Any) -> Trained:
        return policy_tuning.learn_pairs(
            policy,
            tokenizer,
            pairs,
            cfg,
            seed,
            trainer=lambda *given: trainer(tokenizer, *given),
            row=row,
            rows_of=rows_of,
            per_pair=1,
            runtime=runtime,
            work=place,
            log=log,
        )

    text = f"A low-rank adapter tuned by DPO (Rafailov et al. 2023, β {cfg.beta:g}) on pairs of answers, for the model named above."
    found = policy_tuning.each_seed(
        cfg, policy_tuning.Kind("dpo", text), train, model=model, out=out, work=work, runtime=runtime
    )
    return policy_tuning.pair_metrics(found, pairs, too_long)


def rows_of(pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """A row for each pair, as TRL names its columns."""
    return [{"prompt_ids": each.prompt, "chosen_ids": each.chosen, "rejected_ids": each.rejected} for each in pairs]


def row(logs: Mapping[str, float]) -> Row:
    """What the curve has of a step; rewards are those of the policy, β · log(π / π_ref)."""
    return {
        "loss": float(logs["loss"]),
        "margin": float(logs["rewards/margins"]),
        "accuracy": float(logs["rewards/accuracies"]),
        "chosen": float(logs["rewards/chosen"]),
        "rejected": float(logs["rewards/rejected"]),
    }


def trainer(tokenizer: Any, policy: Any, rows: list[dict[str, Any]], arguments: dict[str, Any]) -> Any:
    """TRL's trainer, on rows that are token ids already."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    class PairTrainer(DPOTrainer):  # type: ignore[misc]  # the library's own way to rows of one's own
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

    settings = DPOConfig(**arguments)
    tuning.one_device(settings)
    return PairTrainer(policy, args=settings, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)


if __name__ == "__main__":
    main(run, distributed=True)
