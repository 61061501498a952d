r"""Distill (Hinton et al. 2015): teach a smaller model what the tuned one would say, token by token; off by default.

python -m stages.distill --candidate student --policy artifacts/lora/adapter --base artifacts/select/model \
        --student artifacts/select/model --train artifacts/validate/train.jsonl \
        --validation artifacts/validate/validation.jsonl --out artifacts/distill/student

The loss and where the student comes from stand in `tunemill.distillation`. All weights of the student are trained.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from tunemill import distillation, trainings, tuning
from tunemill.blocks import Half
from tunemill.log import Log
from tunemill.losses import Encoded
from tunemill.params import Params, named
from tunemill.runtime import Runtime
from tunemill.stage import Metrics, main
from tunemill.tuning import Data


class Variant(Params):
    """What the student is, and what it learns."""

    layers: int | tuple[int, ...] | None
    """How many of the teacher's blocks it gets, or which, from 0; of an encoder-decoder in each half. null: it is the model in
    `student`."""
    choose: Literal["evenly", "influence"]
    """Which, of a number: evenly spread ones, or those that change the hidden states most; the first and the last always."""
    temperature: float = Field(gt=0, le=100)
    """T: both distributions are softened by it."""
    alpha: float = Field(ge=0, le=1)
    """α of the teacher's distribution; the hard labels get 1 − α."""
    cosine: float = Field(ge=0)
    """Of the term that likens hidden states (DistilBERT); 0 leaves it out."""
    sequence_level: bool
    """Learn the teacher's own answers instead of the data's (Kim & Rush 2016)."""

    @field_validator("layers")
    @classmethod
    def _some_and_in_order(cls, layers: int | tuple[int, ...] | None) -> int | tuple[int, ...] | None:
        if isinstance(layers, int) and layers < 2:
            raise ValueError("at least 2, the first and the last")
        if isinstance(layers, tuple) and (not layers or list(layers) != sorted({*layers}) or layers[0] < 0):
            raise ValueError("numbers of blocks from 0, ascending, each once")
        return layers

    @field_validator("cosine")
    @classmethod
    def _blocks_that_belong_together(cls, cosine: float, others: ValidationInfo) -> float:
        if cosine and others.data.get("layers", 0) is None:
            raise ValueError("0 where `layers` is null: nobody knows which blocks of another model belong to which")
        return cosine


class Answers(Params):
    """How the teacher answers, for `sequence_level`."""

    max_new_tokens: int = Field(ge=1)
    """Most tokens of an answer; one that is cut there is not learnt, and counted."""
    temperature: float = Field(ge=0)
    """0 takes the likeliest token every time."""
    top_p: float = Field(gt=0, le=1)
    """Only the likeliest tokens that together have this probability."""
    batch_tokens: int = Field(ge=1)
    """Most tokens in a batch, padding and answers included."""
    batch_rows: int = Field(ge=1)
    """Most prompts in a batch."""


class Config(tuning.Training):
    """What students there are, on how much they learn and how fast, and how they are kept."""

    variants: dict[str, Variant]
    """Name of a run under `extra.distill` → what is made there."""
    student: str = Field(min_length=1)
    """Folder of a student for variants without `layers`, with the teacher's tokenizer; dvc.yaml hands it over."""
    calibration_items: int = Field(ge=1)
    """Training rows to see with what the teacher's blocks do."""
    answers: Answers
    """How the teacher answers."""
    store_dtype: Literal["bfloat16", "float32", "float16"]
    """Number format of the student's weights on disk."""


def run(
    cfg: Config,
    *,
    candidate: str,
    policy: Path,
    base: Path,
    student: Path,
    train: Path,
    validation: Path,
    out: Path,
    work: Path,
    runtime: Runtime,
    log: Log,
) -> Metrics:
    """Distill the policy into the variant's student; write it, the curve and what is known of it under `out`."""
    from tunemill import models

    variant = named(cfg.variants, candidate, "distill.variants")
    where = f"distill.variants.{candidate}.layers"
    # 1. The teacher: frozen, in float32.
    teacher, tokenizer = models.load_whole(policy, base, runtime, f"extra.distill.{candidate}.policy")
    teacher.requires_grad_(False)
    data = trainings.read(cfg, tokenizer, train, validation, "distill", log)

    # 2. The student: some of the teacher's blocks, or another model with the same tokenizer.
    kept = blocks_of(cfg, variant, teacher, tokenizer, data, where, log)
    if variant.layers is None:
        where = "distill.student"
        distillation.check_tokenizers(models.load_tokenizer(student), tokenizer, where)

    def load(_: int) -> Any:
        return start(teacher, kept, student, tuning.loading(cfg, runtime))

    first = load(0).eval()
    distillation.check_size(first, teacher, where)
    before = told_of(first, teacher, data, tokenizer.pad_token_id, cfg.batch_size)

    # 3. What it learns: the data's answers, or the teacher's own.
    unfinished = 0
    if variant.sequence_level:
        data, unfinished = own_answers(cfg, teacher, tokenizer, data, work, runtime, log)

    # 4. Train all its weights towards the teacher's distributions; save what plain transformers loads.
    weights = distillation.Weights(variant.temperature, variant.alpha, variant.cosine)
    objective = tuning.Objective(
        distillation.loss_against(teacher, weights, kept.get("decoder", ())),
        sum(each.numel() * each.element_size() for each in teacher.parameters()),
    )
    origin = base if models.is_adapter(policy) else policy
    kind = trainings.Kind("distill", "Distilled student", sentence(variant, kept, teacher), cfg.store_dtype)
    del first
    metrics = trainings.each_seed(
        cfg,
        kind,
        load,
        tokenizer,
        data,
        model=origin,
        out=out,
        work=work,
        runtime=runtime,
        log=log,
        objective=objective,
    )

    # 5. What came of it, as it lies on the disk of the process that writes.
    if runtime.rank:
        return metrics
    found: dict[str, float | None] = {}
    for seed in cfg.seeds:
        folder = out / ("model" if seed == cfg.seeds[0] else f"model-{seed}")
        made = models.load_trainable(folder, runtime)
        after = told_of(made, teacher, data, tokenizer.pad_token_id, cfg.batch_size)
        sizes = [sum(each.numel() for each in model.parameters()) for model in (made, teacher)]
        record(folder, variant, kept, sizes, unfinished, before, after)
        found = found or {
            "parameters": sizes[0],
            "parameters/share_of_teacher": sizes[0] / sizes[1],
            "answers/unfinished": unfinished,
            "perplexity/teacher": before["perplexity_teacher"],
            "perplexity/first": before["perplexity"],
            "perplexity/last": after["perplexity"],
            "kl/first": before["kl"],
            "kl/last": after["kl"],
        }
    return metrics | found


def blocks_of(
    cfg: Config, variant: Variant, teacher: Any, tokenizer: Any, data: Data, where: str, log: Log
) -> dict[Half, tuple[int, ...]]:
    """The teacher's blocks that the student gets, of each half; none where it is another model."""
    from tunemill import blocks, losses

    if variant.layers is None:
        return {}
    rows = tuning.spread(data.train, cfg.calibration_items)
    texts = blocks.batches(rows, tokenizer.pad_token_id, losses.start_token(teacher), cfg.batch_size)
    kept = distillation.choose(teacher, variant.layers, variant.choose == "influence", texts, where)
    log.note(
        "of the teacher the student has the " + "; ".join(f"{half}'s {listed(each)}" for half, each in kept.items())
    )
    return kept


def start(teacher: Any, kept: dict[Half, tuple[int, ...]], student: Path, runtime: Runtime) -> Any:
    """The student before it has learnt anything, always the same."""
    from tunemill import blocks, models

    if not kept:
        return models.load_trainable(student, runtime)
    return blocks.with_blocks(teacher, kept).requires_grad_(True).to(runtime.device)


def own_answers(
    cfg: Config, teacher: Any, tokenizer: Any, data: Data, work: Path, runtime: Runtime, log: Log
) -> tuple[Data, int]:
    """The rows that the steps need, with the teacher's answers in place of the data's; and how many it did not finish.

    Raises:
        UserError: it finishes none.
    """
    from tunemill import sampling
    from tunemill.errors import UserError
    from tunemill.models import render_completion

    rows = tuning.spread(data.train, cfg.steps * cfg.batch_size * cfg.accumulation)
    asked, prompts = cfg.answers, [row.prompt for row in rows]
    found, _ = sampling.answers(
        teacher,
        tokenizer,
        prompts,
        decoding=sampling.Decoding(asked.max_new_tokens, asked.temperature, 0, asked.top_p),
        batches=sampling.plan(list(map(len, prompts)), asked.max_new_tokens, asked.batch_tokens, asked.batch_rows),
        seed=cfg.seeds[0],
        kept=work / f"answers-{runtime.rank}.jsonl",
        title="the teacher answers",
        log=log,
    )
    learnt = [
        Encoded(row.prompt, render_completion(tokenizer, each.text))
        for row, each in zip(rows, found, strict=True)
        if each.finished and len(row.prompt) + each.tokens <= cfg.max_tokens
    ]
    if not learnt:
        raise UserError(
            f"the teacher finishes none of {len(rows)} answers within {asked.max_new_tokens} tokens (max_tokens with the prompt)",
            where="params.yaml: distill.answers.max_new_tokens",
            fix="raise both, or set sequence_level: false",
        )
    return data._replace(train=learnt), len(rows) - len(learnt)


def told_of(student: Any, teacher: Any, data: Data, pad: int, batch_size: int) -> dict[str, float | None]:
    """Perplexity of student and teacher, and how far apart they are, on the validation rows."""
    rows = data.validation
    if not rows:
        return {"perplexity": None, "perplexity_teacher": None, "kl": None}
    return {
        "perplexity": math.exp(tuning.validation_loss(student, rows, batch_size, pad)),
        "perplexity_teacher": math.exp(tuning.validation_loss(teacher, rows, batch_size, pad)),
        "kl": distillation.measured(student, teacher, rows, pad, batch_size),
    }


def record(
    folder: Path,
    variant: Variant,
    kept: dict[Half, tuple[int, ...]],
    sizes: list[int],
    unfinished: int,
    before: dict[str, float | None],
    after: dict[str, float | None],
) -> None:
    """Write distill.json beside the student."""
    from tunemill import checkpoints

    checkpoints.write_json(
        folder / "distill.json",
        {
            "made_by": "distill",
            **variant.model_dump(mode="json"),
            "kept": {half: list(each) for half, each in kept.items()},
            "parameters": sizes[0],
            "teacher_parameters": sizes[1],
            "unfinished_answers": unfinished,
            "before": before,
            "after": after,
        },
    )


def sentence(variant: Variant, kept: dict[Half, tuple[int, ...]], teacher: Any) -> str:
    """What the student is and learnt, for its card."""
    origin = "another model with its teacher's tokenizer"
    if kept:
        origin = "its teacher without some blocks: of the " + " and of the ".join(
            f"{half} it has {listed(each)}" for half, each in kept.items()
        )
    answers = "the teacher's own answers" if variant.sequence_level else "the training pairs"
    return (
        f"A student distilled (Hinton et al. 2015, T {variant.temperature:g}, α {variant.alpha:g}"
        + (f", cosine {variant.cosine:g}" if variant.cosine else "")
        + f") on {answers} from the model named above as it was tuned. It was {origin}."
    )


def listed(numbers: tuple[int, ...]) -> str:
    """Numbers of blocks, runs of them short: 0–4, 7, 9–11."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


if __name__ == "__main__":
    main(run, distributed=True)
