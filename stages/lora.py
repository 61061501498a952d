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

from tunemill import tuning
from tunemill.log import Log
from tunemill.runtime import Runtime, seed_everything
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
    from tunemill import cards, models, records

    # 1. Encode, leaving out and counting what is too long; mix in other tasks where they are named.
    tokenizer = models.load_tokenizer(model)
    pairs = [
        [(row.prompt, row.completion) for row in records.read(path, records.Example)] for path in (train, validation)
    ]
    data = tuning.prepare(cfg, tokenizer, *pairs, "lora")
    others = records.by_task(tasks) if tasks else {}
    data = tuning.mix(cfg, cfg.mixture, tokenizer, data, others, "lora")
    log.note(f"{len(data.train)} pairs; {data.too_long} have more than {cfg.max_tokens} tokens")

    metrics: Metrics = {}
    for seed in cfg.seeds:
        name = "adapter" if seed == cfg.seeds[0] else f"adapter-{seed}"

        def load(seed: int = seed) -> Any:
            # 2. θ = θ₀ + (alpha / rank)·B·A, with B = 0 at the start, so that step 0 is the base model.
            seed_everything(seed)  # of A, and of the dropout
            whole = cfg.quantize == "none"
            place = tuning.loading(cfg, runtime)
            base = models.load_base(model, place) if whole else models.load_quantized(model, runtime, cfg.quantize)
            return tuning.adapt(base, adapter(cfg), "lora")

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
        method = "lora" if cfg.quantize == "none" else "qlora"
        told = tuning.record(out / name, method, cfg, data, trained, runtime.dtype)
        metrics = metrics or told
        del trained  # the next seed wants the memory
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
