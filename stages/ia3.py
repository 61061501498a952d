r"""IA³ (Liu et al. 2022): tune a factor for each channel of keys, values and feed-forward activations; off by default.

python -m stages.ia3 --candidate tuned --train artifacts/validate/train.jsonl --validation artifacts/validate/validation.jsonl \
        --model artifacts/select/model --out artifacts/ia3/tuned

Some 0.04% of the parameters; the factors merge into the weights. What to copy for another of PEFT's methods: the adapter.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationInfo, field_validator

from tunemill import trainings, tuning
from tunemill.log import Log
from tunemill.runtime import Runtime
from tunemill.stage import Metrics, main


class Config(tuning.Training):
    """What is tuned, on how much, how fast."""

    targets: tuple[str, ...]
    """Layers whose output (or, for those in `feedforward`, input) is scaled; empty: PEFT's choice for the architecture."""
    feedforward: tuple[str, ...]
    """Those of `targets` that end a feed-forward block."""

    @field_validator("feedforward")
    @classmethod
    def _among_the_targets(cls, feedforward: tuple[str, ...], others: ValidationInfo) -> tuple[str, ...]:
        targets = others.data.get("targets", feedforward)
        if missing := [each for each in feedforward if each not in targets]:
            raise ValueError(f"some of targets, {list(targets)}, and {', '.join(missing)} is not among them")
        return feedforward


def run(
    cfg: Config, *, train: Path, validation: Path, model: Path, out: Path, work: Path, runtime: Runtime, log: Log
) -> Metrics:
    """Tune the factors for `model` on `train`; write them, the curve and the counts under `out`."""
    from tunemill import models

    # 1. Encode, leaving out and counting what is too long.
    tokenizer = models.load_tokenizer(model)
    data = trainings.read(cfg, tokenizer, train, validation, "ia3", log)

    def load(_: int) -> Any:
        # 2. h = l ⊙ W·x, with l = 1 at the start, so that step 0 is the base model.
        return tuning.adapt(models.load_base(model, tuning.loading(cfg, runtime)), adapter(cfg), "ia3")

    # 3. Train, and save what plain peft loads.
    text = "Factors for keys, values and feed-forward activations (Liu et al. 2022) of the model named above."
    kind = trainings.Kind("ia3", "IA³ adapter", text)
    return trainings.each_seed(
        cfg, kind, load, tokenizer, data, model=model, out=out, work=work, runtime=runtime, log=log
    )


def adapter(cfg: Config) -> Any:
    """PEFT's configuration of the adapter."""
    from peft import IA3Config

    return IA3Config(
        target_modules=list(cfg.targets) or None, feedforward_modules=list(cfg.feedforward) if cfg.targets else None
    )


if __name__ == "__main__":
    main(run, distributed=True)
