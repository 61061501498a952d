r"""LoRA (Hu et al. 2021): tune low-rank adapters on the training pairs, the model's own weights frozen.

python -m stages.lora --train artifacts/validate/train.jsonl --validation artifacts/validate/validation.jsonl \
        --model artifacts/select/model --out artifacts/lora
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import Field

from tunemill.checkpoints import write_json, write_text
from tunemill.errors import UserError
from tunemill.log import Log
from tunemill.params import Params
from tunemill.runtime import Runtime, seed_everything
from tunemill.stage import Metrics, main


class Config(Params):
    """What is tuned, on how much, how fast."""

    rank: int = Field(ge=1, le=256)
    """Rank r of the update B·A; best ranks lie between 4 and 32."""
    alpha: int = Field(ge=1, le=1024)
    """The update is scaled by alpha / rank."""
    dropout: float = Field(ge=0, lt=1)
    """Dropout on the adapter's input."""
    targets: str | tuple[str, ...]
    """Names of the adapted layers; "all-linear" takes every linear layer but the output head."""
    learning_rate: float = Field(gt=0, le=1)
    """Peak AdamW learning rate."""
    warmup_steps: int = Field(ge=0)
    """Steps until the peak; afterwards linear to zero."""
    weight_decay: float = Field(ge=0, le=1)
    """AdamW weight decay."""
    max_grad_norm: float = Field(gt=0)
    """Gradients are clipped to this norm."""
    steps: int = Field(ge=1)
    """Optimiser steps."""
    batch_size: int = Field(ge=1)
    """Pairs in one forward pass."""
    accumulation: int = Field(ge=1)
    """Forward passes in one optimiser step."""
    max_tokens: int = Field(ge=16)
    """Longer pairs are left out of training (counted in the metrics)."""
    validation_items: int = Field(ge=0)
    """Pairs that the validation loss is measured on; 0 turns it off."""
    validation_steps: int = Field(ge=0)
    """Steps between two such measurements."""
    checkpoint_steps: int = Field(ge=1)
    """Steps between two checkpoints: what a kill can cost."""
    seeds: tuple[int, ...] = Field(min_length=1)
    """One training for each; the first is `adapter`, the others are `adapter-<seed>`."""


def run(
    cfg: Config, *, train: Path, validation: Path, model: Path, out: Path, work: Path, runtime: Runtime, log: Log
) -> Metrics:
    """Tune adapters for `model` on `train`; write them, the curve and the counts under `out`."""
    from tunemill import models, records, tuning

    if runtime.dtype == "float16":
        raise UserError(
            "float16 cannot be trained in: gradients underflow without loss scaling",
            where="params.yaml: runtime.dtype",
            expected="auto, float32 or bfloat16",
            exit_code=2,
        )
    # 1. Encode, leaving out and counting what is too long.
    tokenizer = models.load_tokenizer(model)
    encoded = {
        name: [tuning.encode(tokenizer, row.prompt, row.completion) for row in records.read(path, records.Example)]
        for name, path in (("train", train), ("validation", validation))
    }
    fitting = {name: [row for row in rows if len(row) <= cfg.max_tokens] for name, rows in encoded.items()}
    if not fitting["train"]:
        raise UserError(
            f"none of the {len(encoded['train'])} training pairs has at most {cfg.max_tokens} tokens",
            where="params.yaml: lora.max_tokens",
            fix="raise it, or shorten the data",
        )
    log.note(f"{len(fitting['train'])} of {len(encoded['train'])} training pairs have at most {cfg.max_tokens} tokens")

    metrics: dict[str, float | None] = {}
    for seed in cfg.seeds:
        # 2. Train: θ = θ₀ + (alpha / rank)·B·A, with B = 0 at the start, so that step 0 is the base model.
        name = "adapter" if seed == cfg.seeds[0] else f"adapter-{seed}"
        seed_everything(seed)  # the adapter's initialisation and dropout
        policy, points = tuning.train(
            models.load_base(model, runtime),
            tokenizer,
            fitting["train"],
            tuning.spread(fitting["validation"], cfg.validation_items),
            tuning.Schedule(
                cfg.steps,
                cfg.batch_size,
                cfg.accumulation,
                cfg.learning_rate,
                cfg.warmup_steps,
                cfg.weight_decay,
                cfg.max_grad_norm,
                cfg.checkpoint_steps,
                cfg.validation_steps,
                seed,
            ),
            adapter=adapter_config(cfg),
            device=runtime.device,
            work=work / name,
            log=log,
        )
        # 3. Save what plain peft loads.
        save_adapter(policy, out / name)
        if name == "adapter":
            write_text(out / "curve.csv", tuning.curve_csv(points))
            trainable = sum(each.numel() for each in policy.parameters() if each.requires_grad)
            total = sum(each.numel() for each in policy.parameters())
            losses = [point.loss for point in points if point.loss is not None]
            validated = [point.validation_loss for point in points if point.validation_loss is not None]
            metrics |= {
                "train/loss_first": losses[0],
                "train/loss_last": sum(losses[-10:]) / len(losses[-10:]),
                "validation/loss_first": validated[0] if validated else None,
                "validation/loss_last": validated[-1] if validated else None,
                "train/tokens": points[-1].tokens,
                "train/examples": min(cfg.steps * cfg.batch_size * cfg.accumulation, len(fitting["train"])),
                "train/too_long": len(encoded["train"]) - len(fitting["train"]),
                "parameters/trainable": trainable,
                "parameters/share": trainable / total,
            }
            write_json(
                out / "training.json",
                {
                    "method": "lora",
                    "steps": cfg.steps,
                    "batch_size": cfg.batch_size * cfg.accumulation,
                    "examples": metrics["train/examples"],
                    "tokens": metrics["train/tokens"],
                    "trainable_parameters": trainable,
                    "total_parameters": total,
                    "dtype": runtime.dtype,
                    "seeds": cfg.seeds,
                },
            )
    return metrics


def adapter_config(cfg: Config) -> Any:
    """PEFT's configuration of the adapter."""
    from peft import LoraConfig

    return LoraConfig(
        r=cfg.rank,
        lora_alpha=cfg.alpha,
        lora_dropout=cfg.dropout,
        task_type="CAUSAL_LM",
        bias="none",
        target_modules=cfg.targets if isinstance(cfg.targets, str) else list(cfg.targets),
    )


def save_adapter(policy: Any, folder: Path) -> None:
    """Write the adapter; the same one always gives the same bytes."""
    policy.save_pretrained(folder)
    config = folder / "adapter_config.json"
    values = json.loads(config.read_text(encoding="utf-8"))
    # PEFT writes a set in whatever order it comes, and the path of the base on this machine.
    if isinstance(values.get("target_modules"), list):
        values["target_modules"] = sorted(values["target_modules"])
    values["base_model_name_or_path"] = None
    write_json(config, values)
    (folder / "README.md").unlink(missing_ok=True)  # a card with nothing but placeholders


if __name__ == "__main__":
    main(run)
