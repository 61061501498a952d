r"""SFT: tune all weights on the training pairs (instruction fine-tuning, Wei et al. 2022), loss on the completion only.

python -m stages.sft --train artifacts/validate/train.jsonl --validation artifacts/validate/validation.jsonl \
        --tasks artifacts/validate/tasks_train.jsonl --model artifacts/select/model --out artifacts/sft
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from tunemill import trainings, tuning
from tunemill.log import Log
from tunemill.runtime import Runtime
from tunemill.stage import Metrics, main


class Config(tuning.Training):
    """On how much, how fast, and how the result is kept."""

    mixture: tuning.Mixture
    """Other tasks to learn beside this one."""
    store_dtype: Literal["bfloat16", "float32", "float16"]
    """Number format of the tuned weights on disk."""


def run(
    cfg: Config,
    *,
    train: Path,
    validation: Path,
    tasks: Path | None = None,
    model: Path,
    out: Path,
    work: Path,
    runtime: Runtime,
    log: Log,
) -> Metrics:
    """Tune `model` on `train`; write the tuned model, the curve and the counts under `out`."""
    from tunemill import models

    # 1. Encode, leaving out and counting what is too long; mix in other tasks where they are named.
    tokenizer = models.load_tokenizer(model)
    data = trainings.read(cfg, tokenizer, train, validation, "sft", log, cfg.mixture, tasks)

    def load(_: int) -> Any:
        return models.load_trainable(model, tuning.loading(cfg, runtime))

    # 2. Train all weights, in float32: bfloat16's eight bits would swallow most updates of a small learning rate.
    # 3. Save what plain transformers loads.
    text = "All weights of the model named above, fine-tuned on prompt-completion pairs."
    kind = trainings.Kind("full", "Fine-tuned model", text, cfg.store_dtype)
    return trainings.each_seed(
        cfg, kind, load, tokenizer, data, model=model, out=out, work=work, runtime=runtime, log=log
    )


if __name__ == "__main__":
    main(run, distributed=True)
