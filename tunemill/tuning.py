"""Supervised tuning of a causal language model on prompt–completion pairs, with the loss on the completion only.

TRL's `SFTTrainer` trains; set up here is what makes it fast on a small machine: batches of rows of like length
(little padding), completions flush right, and logits for the completions' window only. Of 8 x 190 tokens the output
layer then sees some 8 x 30 instead of all, which is most of a small model's memory and a third of its time.

Checkpoints are sealed with a manifest of hashes, and training continues from the newest complete one.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tunemill import checkpoints, losses
from tunemill.log import Log
from tunemill.losses import Encoded


class Schedule(NamedTuple):
    """How long and how fast to train."""

    steps: int
    batch_size: int
    accumulation: int
    learning_rate: float
    warmup_steps: int
    weight_decay: float
    max_grad_norm: float
    checkpoint_steps: int
    validation_steps: int
    seed: int


class Point(NamedTuple):
    """One point of the training curve; `validation_loss` is None where it was not measured."""

    step: int
    loss: float | None
    validation_loss: float | None
    learning_rate: float | None
    tokens: int


def plan_batches(lengths: Sequence[int], batch_size: int, batches: int, seed: int, window: int = 16) -> list[list[int]]:
    """Choose which rows make each batch: rows of like length together, batches in random order.

    Rows are drawn without replacement until all were used, then anew. Within each `window` batches rows are sorted by
    length, and the batches of a window are shuffled, so that no length comes first or last.

    Args:
        lengths: tokens of each row.
        batch_size: rows in a batch.
        batches: how many batches.
        seed: of the draw.
        window: batches sorted together; the larger, the less padding and the less chance.

    Returns:
        `batches` lists of `batch_size` row numbers.
    """
    import numpy as np

    if not lengths:
        raise ValueError("no rows to plan batches of")
    random = np.random.default_rng(seed)
    order: list[int] = []
    while len(order) < batches * batch_size:
        order += random.permutation(len(lengths)).tolist()
    order = order[: batches * batch_size]
    planned: list[list[int]] = []
    for first in range(0, len(order), window * batch_size):
        rows = sorted(order[first : first + window * batch_size], key=lambda row: (lengths[row], row))
        group = [rows[at : at + batch_size] for at in range(0, len(rows), batch_size)]
        planned += [group[at] for at in random.permutation(len(group))]
    return planned


def train(
    model: Any,
    tokenizer: Any,
    train_rows: Sequence[Encoded],
    validation_rows: Sequence[Encoded],
    schedule: Schedule,
    *,
    adapter: Any,
    device: str,
    work: Path,
    log: Log,
) -> tuple[Any, list[Point]]:
    """Train a model in place, continuing from the newest complete checkpoint under `work`.

    Args:
        model: causal language model; with `adapter` its own weights stay frozen.
        tokenizer: its tokenizer.
        train_rows: what to learn.
        validation_rows: what the curve is measured on; may be empty.
        schedule: steps, batch, learning rate, seed.
        adapter: a PEFT configuration, or None to train all weights.
        device: "cpu", "cuda" or "mps".
        work: folder for checkpoints.
        log: progress.

    Returns:
        The adapted model and the training curve.
    """
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    width = schedule.batch_size * schedule.accumulation
    plan = plan_batches(
        [len(row) for row in train_rows], schedule.batch_size, schedule.steps * schedule.accumulation, schedule.seed
    )
    planned = [train_rows[row] for batch in plan for row in batch]
    curve_file = work / "curve.jsonl"
    resume = checkpoints.newest(work)
    first = int(resume.name.removeprefix("checkpoint-")) if resume else 0
    points = [point for point in _read_curve(curve_file) if point.step <= first]
    if resume and max((point.step for point in points if point.loss is not None), default=0) < first:
        resume, first, points = None, 0, []  # weights without their curve: not what a checkpoint of ours looks like
    tokens_until = [0]
    for at in range(0, len(planned), width):
        tokens_until.append(tokens_until[-1] + sum(len(row) for row in planned[at : at + width]))

    class Progress(TrainerCallback):  # type: ignore[misc]  # the hook that transformers offers; it holds no logic of its own
        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            _write_curve(curve_file, points)
            checkpoints.seal(work / f"checkpoint-{state.global_step}")

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            step, logs = state.global_step, logs or {}
            if "loss" in logs:
                point = Point(step, float(logs["loss"]), None, float(logs["learning_rate"]), tokens_until[step])
                points.append(point)
                log(step, loss=point.loss or 0.0, learning_rate=point.learning_rate or 0.0, tokens=float(point.tokens))
            elif "eval_loss" in logs:
                points.append(Point(step, None, float(logs["eval_loss"]), None, tokens_until[step]))
                log(step, validation_loss=float(logs["eval_loss"]))

    class CompletionTrainer(SFTTrainer):  # type: ignore[misc]  # TRL's own way to another loss: override compute_loss
        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            return losses.completion_loss(model, inputs, num_items_in_batch)

    validating = bool(validation_rows) and schedule.validation_steps > 0
    arguments = SFTConfig(
        output_dir=str(work),
        max_steps=schedule.steps,
        per_device_train_batch_size=schedule.batch_size,
        per_device_eval_batch_size=schedule.batch_size,
        gradient_accumulation_steps=schedule.accumulation,
        learning_rate=schedule.learning_rate,
        warmup_steps=schedule.warmup_steps,
        weight_decay=schedule.weight_decay,
        max_grad_norm=schedule.max_grad_norm,
        lr_scheduler_type="linear",
        optim="adamw_torch",
        train_sampling_strategy="sequential",  # the plan above is the order
        eval_strategy="steps" if validating else "no",
        eval_steps=schedule.validation_steps or None,
        prediction_loss_only=True,
        save_strategy="steps",
        save_steps=schedule.checkpoint_steps,
        save_total_limit=2,
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to=[],
        disable_tqdm=True,
        log_level="error",
        use_cpu=device == "cpu",
        bf16=False,
        fp16=False,
        activation_checkpointing=False,
        seed=schedule.seed,
        data_seed=schedule.seed,
        dataloader_num_workers=0,
        dataloader_pin_memory=device == "cuda",
        max_length=None,
        packing=False,
        completion_only_loss=True,
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        eval_on_start=validating and resume is None,
        push_to_hub=False,
    )
    _ = arguments.device  # reading it counts the devices
    arguments._n_gpu = min(1, arguments.n_gpu)  # several would be wrapped in DataParallel, which changes the batches
    trainer = CompletionTrainer(
        model,
        args=arguments,
        processing_class=tokenizer,
        peft_config=adapter,
        train_dataset=Dataset.from_list([each._asdict() for each in planned]),
        eval_dataset=Dataset.from_list([each._asdict() for each in validation_rows]) if validating else None,
        data_collator=lambda rows: losses.collate([Encoded(**row) for row in rows], tokenizer.pad_token_id, None),
        callbacks=[Progress()],
    )
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    log.start("training", schedule.steps, "step", first)
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    return trainer.model, points


def encode(tokenizer: Any, prompt: str, completion: str) -> Encoded:
    """A pair as the policy will see it: the prompt in the chat template, the completion with its end."""
    from tunemill.models import render_completion, render_prompt

    return Encoded(render_prompt(tokenizer, prompt), render_completion(tokenizer, completion))


def spread(rows: Sequence[Encoded], most: int) -> list[Encoded]:
    """At most `most` rows, evenly spaced: the first ones may all be of one kind."""
    if len(rows) <= most:
        return list(rows)
    return [rows[at * len(rows) // most] for at in range(most)]


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


def _write_curve(path: Path, points: Sequence[Point]) -> None:
    checkpoints.write_text(path, "".join(json.dumps(point) + "\n" for point in points))


def _read_curve(path: Path) -> list[Point]:
    if not path.is_file():
        return []
    return [Point(*json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
