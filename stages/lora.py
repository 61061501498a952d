r"""LoRA (Hu et al. 2021): tune low-rank adapters on the training pairs, the model's own weights frozen.

With `quantize: nf4` the frozen weights are kept in 4 bits while training (QLoRA, Dettmers et al. 2023); the adapter is then
merged into the unquantized ones.

python -m stages.lora --train artifacts/validate/train.jsonl --validation artifacts/validate/validation.jsonl \
        --tasks artifacts/validate/tasks_train.jsonl --model artifacts/select/model --out artifacts/lora
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from tunemill import trainings, tuning
from tunemill.log import Log
from tunemill.runtime import Runtime
from tunemill.stage import Metrics, main


class Config(tuning.Training):
    """What is tuned, on how much, how fast."""

    mixture: tuning.Mixture
    """Other tasks to learn beside this one."""
    rank: int = Field(ge=1, le=256)
    """Rank r of the update B·A; best ranks lie between 4 and 32."""
    alpha: int = Field(ge=1, le=1024)
    """The update is scaled by alpha / rank."""
    dropout: float = Field(ge=0, lt=1)
    """Dropout on the adapter's input."""
    quantize: Literal["none", "nf4", "int8"]
    """How the frozen weights are kept while training: as they are, or in few bits (QLoRA)."""
    targets: str | tuple[str, ...]
    """Names of the adapted layers; "all-linear" takes every linear layer but the output head."""


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
    """Tune adapters for `model` on `train`; write them, the curve and the counts under `out`."""
    from tunemill import models

    # 1. Encode, leaving out and counting what is too long; mix in other tasks where they are named.
    tokenizer = models.load_tokenizer(model)
    data = trainings.read(cfg, tokenizer, train, validation, "lora", log, cfg.mixture, tasks)

    def load(_: int) -> Any:
        # 2. θ = θ₀ + (alpha / rank)·B·A, with B = 0 at the start, so that step 0 is the base model.
        if cfg.quantize == "none":
            base = models.load_base(model, tuning.loading(cfg, runtime))
        else:
            base = models.load_quantized(model, runtime, cfg.quantize)
        return tuning.adapt(base, models.low_rank(cfg.rank, cfg.alpha, cfg.targets, cfg.dropout), "lora")

    # 3. Train, and save what plain peft loads.
    text = f"A low-rank adapter (Hu et al. 2021, rank {cfg.rank}, alpha {cfg.alpha}) for the model named above."
    kind = trainings.Kind("lora" if cfg.quantize == "none" else "qlora", "Low-rank adapter", text)
    return trainings.each_seed(
        cfg, kind, load, tokenizer, data, model=model, out=out, work=work, runtime=runtime, log=log
    )


if __name__ == "__main__":
    main(run, distributed=True)
