r"""KTO (Ethayarajh et al. 2024): learn from answers that are good or bad, each by itself; off by default.

python -m stages.kto --candidate harm --preferences artifacts/feedback/preferences.jsonl --model artifacts/feedback/policy \
        --out artifacts/kto/harm

Needs no pairs, only a verdict on each answer; here the pairs of stage `feedback` are taken apart, so that it learns from the same
as DPO does. With r(x, y) = β · log(π(y|x) / π_ref(y|x)) and z the divergence β · KL(π ‖ π_ref), estimated from answers to other
prompts:

    L = 1 − σ(r − z) of a good answer,  1 − σ(z − r) of a bad one

by TRL's `KTOTrainer`. Good and bad answers are equally many, so their weights are 1. Deviations from the paper: a low-rank adapter
instead of all weights; pairs are drawn by their weights; z is estimated within one forward pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from tunemill import models, policy_tuning, tuning
from tunemill.log import Log
from tunemill.policy_tuning import Pair, Row, Trained
from tunemill.runtime import Runtime
from tunemill.stage import Metrics, main


class Config(policy_tuning.Pairs):
    """How the policy is tuned; see `tunemill.policy_tuning.Pairs`."""

    batch_size: int = Field(ge=2)
    """Pairs in one forward pass; at least two, since the divergence is estimated from other prompts' answers."""


def run(cfg: Config, *, preferences: Path, model: Path, out: Path, work: Path, runtime: Runtime, log: Log) -> Metrics:
    """Tune adapters for the policy in `model` on the answers; write them, and how that went, under `out`."""
    policy_tuning.check(model, "kto", runtime)
    # 1. The pairs, as token ids.
    tokenizer = models.load_tokenizer(model)
    pairs, too_long = policy_tuning.read_pairs(cfg, tokenizer, preferences, "kto", log)

    # 2. For each seed: draw pairs, and raise the good answers above the divergence, the bad ones below.
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
            per_pair=2,
            runtime=runtime,
            work=place,
            log=log,
        )

    text = (
        f"A low-rank adapter tuned by KTO (Ethayarajh et al. 2024, β {cfg.beta:g}) on good and bad answers, for the model "
        "named above."
    )
    found = policy_tuning.each_seed(
        cfg, policy_tuning.Kind("kto", text), train, model=model, out=out, work=work, runtime=runtime
    )
    return policy_tuning.pair_metrics(found, pairs, too_long)


def rows_of(pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """The good answers of a forward pass, then the bad ones; each with the answer before it, which is one to another prompt."""
    answers = [(each.prompt, each.chosen, True) for each in pairs] + [
        (each.prompt, each.rejected, False) for each in pairs
    ]
    before = [answers[-1], *answers[:-1]]
    return [
        {"prompt_ids": prompt, "completion_ids": ids, "KL_completion_ids": other, "label": good}
        for (prompt, ids, good), (_, other, _) in zip(answers, before, strict=True)
    ]


def row(logs: Mapping[str, float]) -> Row:
    """What the curve has of a step; rewards are those of the policy, β · log(π / π_ref)."""
    return {
        "loss": float(logs["loss"]),
        "margin": float(logs["rewards/margins"]),
        "chosen": float(logs["rewards/chosen"]),
        "rejected": float(logs["rewards/rejected"]),
        "kl": float(logs["kl"]),
    }


def trainer(tokenizer: Any, policy: Any, rows: list[dict[str, Any]], arguments: dict[str, Any]) -> Any:
    """TRL's trainer, on rows that are token ids already."""
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer

    class AnswerTrainer(KTOTrainer):  # type: ignore[misc]  # the library's own way to rows of one's own
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

    settings = KTOConfig(**arguments)
    tuning.one_device(settings)
    return AnswerTrainer(policy, args=settings, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)


if __name__ == "__main__":
    main(run, distributed=True)
