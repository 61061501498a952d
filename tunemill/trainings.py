"""What every tuning stage does around its training: pairs in; for each seed a model, its record and its card out."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tunemill import checkpoints, records, tuning
from tunemill.log import Log
from tunemill.runtime import Runtime, seed_everything
from tunemill.tuning import Data, Mixture, Objective, Point, Trained, Training


class Kind(NamedTuple):
    """What a stage makes, and what its record and its card call that."""

    method: str
    """Of the planner: full, lora, qlora, prompt_tuning, ia3; or of a stage that compresses: distill, prune."""
    title: str
    """Of the model card."""
    text: str
    """What it is, in a sentence; the card's table names the model it was made from."""
    store_dtype: str | None = None
    """Number format on disk of a whole model, an adapter merged into it; None: an adapter, kept as it was trained."""

    @property
    def folder(self) -> str:
        """Where the result of the first seed goes; another seed's is called `<folder>-<seed>`."""
        return "adapter" if self.store_dtype is None else "model"


def read(
    cfg: Training,
    tokenizer: Any,
    train: Path,
    validation: Path,
    section: str,
    log: Log,
    mixture: Mixture | None = None,
    tasks: Path | None = None,
) -> Data:
    """Read and encode the pairs of stage `validate`, leaving out and counting what is too long; mix in other tasks.

    Args:
        cfg: of the stage.
        tokenizer: of the model.
        train: pairs to learn, JSONL.
        validation: pairs that the curve is measured on, JSONL.
        section: of params.yaml, for messages.
        log: told how many are left.
        mixture: which other tasks, where the stage offers that.
        tasks: their pairs, JSONL.

    Raises:
        UserError: see `tuning.prepare` and `tuning.mix`.
    """
    learnt, held_out = (
        [(row.prompt, row.completion) for row in records.read(path, records.Example)] for path in (train, validation)
    )
    data = tuning.prepare(cfg, tokenizer, learnt, held_out, section)
    if mixture is not None:
        data = tuning.mix(cfg, mixture, tokenizer, data, records.by_task(tasks) if tasks else {}, section)
    log.note(f"{len(data.train)} pairs; {data.too_long} have more than {cfg.max_tokens} tokens")
    return data


def each_seed(
    cfg: Training,
    kind: Kind,
    load: Callable[[int], Any],
    tokenizer: Any,
    data: Data,
    *,
    model: Path,
    out: Path,
    work: Path,
    runtime: Runtime,
    log: Log,
    objective: Objective | None = None,
) -> dict[str, float | None]:
    """Train once for each of `cfg.seeds`, and write what came out with its record and its model card.

    Args:
        cfg: of the stage.
        kind: what is made.
        load: seed → the model with what is to be trained; chance has been seeded when it is called.
        tokenizer: of the model.
        data: what to learn.
        model: folder of the model that it starts from.
        out: `model` or `adapter` of the first seed, `model-<seed>` or `adapter-<seed>` of the others.
        work: folder for checkpoints.
        runtime: device and number format.
        log: progress.
        objective: what is minimised; the cross-entropy of the completions if left out.

    Returns:
        The first seed's metrics.
    """
    from tunemill import cards, models

    metrics: dict[str, float | None] = {}
    for seed in cfg.seeds:
        name = kind.folder if seed == cfg.seeds[0] else f"{kind.folder}-{seed}"

        def start(seed: int = seed) -> Any:
            seed_everything(seed)  # of new weights, and of dropout
            return load(seed)

        trained = tuning.train(
            start, tokenizer, data, cfg, seed, runtime=runtime, work=work / name, log=log, objective=objective
        )
        # Told before it is saved, which casts a whole model.
        told = record(out / name, kind.method, cfg, data, trained, runtime.dtype)
        metrics = metrics or told
        known, family = facts(cfg, data, trained, seed), trained.policy.config.is_encoder_decoder
        if kind.store_dtype is None:
            tuning.save_adapter(trained.policy, out / name)
        elif hasattr(trained.policy, "peft_config"):
            models.save_merged(trained.policy, tokenizer, out / name, kind.store_dtype)
        else:
            models.save(trained.policy, tokenizer, out / name, kind.store_dtype)
        cards.write(out / name, kind.title, model, kind.text, known, family)
        del trained  # the next seed wants the memory
    return metrics


def record(out: Path, method: str, cfg: Training, data: Data, trained: Trained, dtype: str) -> dict[str, float | None]:
    """Write curve.csv and training.json beside what was trained; the stage's metrics are returned.

    Args:
        out: folder of the tuned model or adapter: what is known of a training goes where its result goes.
        method: "full", "lora", "prompt_tuning", …
        cfg: of the stage.
        data: what was trained on.
        trained: of one seed.
        dtype: number format that was computed in.
    """
    trainable, total = counted(trained.policy)
    trained_on = [point.loss for point in trained.points if point.loss is not None]
    validated = [point.validation_loss for point in trained.points if point.validation_loss is not None]
    pairs = cfg.batch_size * cfg.accumulation
    examples = min(cfg.steps * pairs, len(data.train))
    checkpoints.write_text(out / "curve.csv", curve_csv(trained.points))
    checkpoints.write_json(
        out / "training.json",
        {
            "method": method,
            "steps": cfg.steps,
            "batch_size": pairs,
            "micro_batch": trained.micro_batch,
            "learning_rate": trained.learning_rate,
            "learning_rate_asked": cfg.learning_rate,
            "examples": examples,
            "tasks": list(data.tasks),
            "tokens": trained.points[-1].tokens,
            "longest_tokens": max(map(len, data.train)),
            "longest_completion": max(len(row.completion) for row in data.train),
            "trainable_parameters": trainable,
            "total_parameters": total,
            "dtype": dtype,
            "seeds": cfg.seeds,
            "planned": {"bytes": trained.planned},
        },
    )
    return {
        "train/loss_first": trained_on[0],
        "train/loss_last": sum(trained_on[-10:]) / len(trained_on[-10:]),
        "validation/loss_first": validated[0] if validated else None,
        "validation/loss_last": validated[-1] if validated else None,
        "train/tokens": trained.points[-1].tokens,
        "train/examples": examples,
        "train/too_long": data.too_long,
        "train/micro_batch": trained.micro_batch,
        "train/learning_rate": trained.learning_rate,
        "parameters/trainable": trainable,
        "parameters/share": trainable / total,
        "planned/memory_bytes": trained.planned["total"],
    }


def facts(cfg: Training, data: Data, trained: Trained, seed: int) -> dict[str, object]:
    """What a model card tells about a training."""
    trainable, total = counted(trained.policy)
    validated = [point.validation_loss for point in trained.points if point.validation_loss is not None]
    told: dict[str, object] = {
        "trained parameters": f"{trainable:,}, {trainable / total:.2%} of the model's {total:,}",
        "training pairs": f"{len(data.train):,}",
        "optimizer steps": f"{cfg.steps} of {cfg.batch_size * cfg.accumulation} pairs",
        "peak learning rate": f"{trained.learning_rate:g}",
        "seed": seed,
    }
    if validated:
        told["validation loss"] = f"{validated[0]:.3f} before, {validated[-1]:.3f} after"
    return told


def counted(policy: Any) -> tuple[int, int]:
    """(parameters that were trained, parameters of the model without what an adapter adds to it)."""
    if not hasattr(policy, "get_nb_trainable_parameters"):
        parameters = list(policy.parameters())
        return sum(each.numel() for each in parameters if each.requires_grad), sum(each.numel() for each in parameters)
    # PEFT knows that bitsandbytes keeps two weights in a byte. Nothing but the adapter is trained.
    trainable, everything = policy.get_nb_trainable_parameters()
    return int(trainable), int(everything - trainable)


def curve_csv(points: Sequence[Point]) -> str:
    """The training curve as CSV: step, loss, validation_loss, learning_rate, tokens; one line for each step."""
    steps: dict[int, Point] = {}
    for point in points:
        known = steps.get(point.step, point)
        steps[point.step] = Point(
            point.step,
            known.loss if point.loss is None else point.loss,
            known.validation_loss if point.validation_loss is None else point.validation_loss,
            known.learning_rate if point.learning_rate is None else point.learning_rate,
            point.tokens,
        )
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Point._fields)
    for _, point in sorted(steps.items()):
        writer.writerow(
            ["" if value is None else round(value, 6) for value in point[:3]]
            + ["" if point.learning_rate is None else f"{point.learning_rate:.4g}", point.tokens]
        )
    return text.getvalue()
