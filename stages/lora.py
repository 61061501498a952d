r"""LoRA (Hu et al. 2021): tune low-rank adapters on the training pairs, the model's own weights frozen.

python -m stages.lora --train artifacts/validate/train.jsonl --validation artifacts/validate/validation.jsonl \
        --model artifacts/select/model --out artifacts/lora
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from tunemill import tuning
from tunemill.log import Log
from tunemill.runtime import Runtime, seed_everything
from tunemill.stage import Metrics, main


class Config(tuning.Training):
    """What is tuned, on how much, how fast."""

    rank: int = Field(ge=1, le=256)
    """Rank r of the update B·A; best ranks lie between 4 and 32."""
    alpha: int = Field(ge=1, le=1024)
    """The update is scaled by alpha / rank."""
    dropout: float = Field(ge=0, lt=1)
    """Dropout on the adapter's input."""
    targets: str | tuple[str, ...]
    """Names of the adapted layers; "all-linear" takes every linear layer but the output head."""


def run(
    cfg: Config, *, train: Path, validation: Path, model: Path, out: Path, work: Path, runtime: Runtime, log: Log
) -> Metrics:
    """Tune adapters for `model` on `train`; write them, the curve and the counts under `out`."""
    from tunemill import cards, models, records

    # 1. Encode, leaving out and counting what is too long.
    tokenizer = models.load_tokenizer(model)
    pairs = [
        [(row.prompt, row.completion) for row in records.read(path, records.Example)] for path in (train, validation)
    ]
    data = tuning.prepare(cfg, tokenizer, *pairs, "lora")
    log.note(f"{len(data.train)} pairs; {data.too_long} have more than {cfg.max_tokens} tokens")

    metrics: Metrics = {}
    for seed in cfg.seeds:
        name = "adapter" if seed == cfg.seeds[0] else f"adapter-{seed}"

        def load(seed: int = seed) -> Any:
            # 2. θ = θ₀ + (alpha / rank)·B·A, with B = 0 at the start, so that step 0 is the base model.
            seed_everything(seed)  # of A, and of the dropout
            return tuning.adapt(models.load_base(model, runtime), adapter(cfg), "lora")

        # 3. Train, and save what plain peft loads.
        trained = tuning.train(load, tokenizer, data, cfg, seed, runtime=runtime, work=work / name, log=log)
        tuning.save_adapter(trained.policy, out / name)
        cards.write(
            out / name,
            "Low-rank adapter",
            model,
            f"A low-rank adapter (Hu et al. 2021, rank {cfg.rank}, alpha {cfg.alpha}) for the model named above.",
            tuning.facts(cfg, data, trained, seed),
            trained.policy.config.is_encoder_decoder,
        )
        if seed == cfg.seeds[0]:
            metrics = tuning.record(out, "lora", cfg, data, trained, runtime.dtype)
    return metrics


def adapter(cfg: Config) -> Any:
    """PEFT's configuration of the adapter."""
    from peft import LoraConfig

    return LoraConfig(
        r=cfg.rank,
        lora_alpha=cfg.alpha,
        lora_dropout=cfg.dropout,
        bias="none",
        target_modules=cfg.targets if isinstance(cfg.targets, str) else list(cfg.targets),
    )


if __name__ == "__main__":
    main(run, distributed=True)
