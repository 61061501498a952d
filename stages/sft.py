r"""SFT: tune all weights on the training pairs (instruction fine-tuning, Wei et al. 2022), loss on the completion only.

python -m stages.sft --train artifacts/validate/train.jsonl --validation artifacts/validate/validation.jsonl \
        --tasks artifacts/validate/tasks_train.jsonl --model artifacts/select/model --out artifacts/sft
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from tunemill import tuning
from tunemill.log import Log
from tunemill.runtime import Runtime, seed_everything
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
    from tunemill import cards, models, records

    # 1. Encode, leaving out and counting what is too long; mix in other tasks where they are named.
    tokenizer = models.load_tokenizer(model)
    pairs = [
        [(row.prompt, row.completion) for row in records.read(path, records.Example)] for path in (train, validation)
    ]
    data = tuning.prepare(cfg, tokenizer, *pairs, "sft")
    others = records.by_task(tasks) if tasks else {}
    data = tuning.mix(cfg, cfg.mixture, tokenizer, data, others, "sft")
    log.note(f"{len(data.train)} pairs; {data.too_long} have more than {cfg.max_tokens} tokens")

    metrics: Metrics = {}
    for seed in cfg.seeds:
        name = "model" if seed == cfg.seeds[0] else f"model-{seed}"

        def load(seed: int = seed) -> Any:
            seed_everything(seed)  # of the dropout, where the model has any
            return models.load_trainable(model, tuning.loading(cfg, runtime))

        # 2. Train all weights, in float32: bfloat16's eight bits would swallow most updates of a small learning rate.
        trained = tuning.train(load, tokenizer, data, cfg, seed, runtime=runtime, work=work / name, log=log)

        # 3. Save what plain transformers loads.
        told = tuning.record(out / name, "full", cfg, data, trained, runtime.dtype)
        metrics = metrics or told
        facts = tuning.facts(cfg, data, trained, seed)
        models.save(trained.policy, tokenizer, out / name, cfg.store_dtype)
        cards.write(
            out / name,
            "Fine-tuned model",
            model,
            "All weights of the model named above, fine-tuned on prompt-completion pairs.",
            facts,
            trained.policy.config.is_encoder_decoder,
        )
        del trained  # the next seed wants the memory
    return metrics


if __name__ == "__main__":
    main(run, distributed=True)
