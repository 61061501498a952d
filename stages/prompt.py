r"""Prompt (in-context learning, Brown et al. 2020): choose a template, worked examples and a decoding on the validation rows.

python -m stages.prompt --train artifacts/validate/train.jsonl --validation artifacts/validate/validation.jsonl \
        --model artifacts/select/model --out artifacts/prompt

Every cell of the grid answers the same validation rows, and its score is the mean of one metric over them. Demonstrations
come from the training rows; the test rows are not read. The cell that is chosen was chosen on the rows its score stands
for, so that score flatters: what it is worth, `evaluate` says on the test rows.

Writes model/ (a whole checkpoint: the model's weights, a tokenizer with template and demonstrations in its chat template,
the decoding in generation_config.json, prompt.json with what was found, README.md) and grid.csv. Lines of journals in `work` keep
what was generated, batch by batch.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, model_validator

from tunemill import checkpoints, metrics, prompting, records, sampling, statistics
from tunemill.errors import UserError
from tunemill.log import Log
from tunemill.params import Params
from tunemill.records import Example
from tunemill.runtime import Runtime
from tunemill.sampling import Decoding, Generation
from tunemill.stage import Metrics, main
from tunemill.templates import Template

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]


class DecodingParams(Params):
    """How tokens are chosen."""

    max_new_tokens: int = Field(ge=1, le=4096)
    """Most tokens of an answer."""
    temperature: float = Field(ge=0, le=10)
    """Logits are divided by it; 0 takes the likeliest token every time (greedy)."""
    top_k: int = Field(ge=0)
    """Only the k likeliest tokens may be drawn; 0 is off."""
    top_p: float = Field(gt=0, le=1)
    """Only the likeliest tokens that together have this probability may be drawn; 1 is off."""


class Config(Params):
    """The grid, and what it is measured on."""

    seed: int = Field(ge=0)
    """Of the choice of demonstrations and validation rows, of what is sampled, and of the resamples."""
    templates: dict[Name, Template] = Field(min_length=1)
    """Name → text around every prompt, `{prompt}` in the prompt's place; put the plain one first: the others are compared with it."""
    shots: tuple[Annotated[int, Field(ge=0, le=6)], ...] = Field(min_length=1)
    """Numbers of demonstrations to try, 0 to 6; the first is what the others are compared with."""
    shot_tokens: int = Field(ge=1)
    """Most tokens of one demonstration, its prompt and completion together."""
    decodings: dict[Name, DecodingParams] = Field(min_length=1)
    """Name → how tokens are chosen; the first is what the others are compared with."""
    search: Literal["stepwise", "full"]
    """stepwise: templates times shots under the first decoding, then the other decodings on the best; full: the whole grid."""
    max_cells: int = Field(ge=1)
    """A larger grid is refused before anything is generated."""
    items: int = Field(ge=0)
    """Validation rows to answer in every cell, each group with its share; 0 takes all."""
    metric: Literal["rouge1", "rouge2", "rougeL"]
    """What is to be largest."""
    resamples: int = Field(ge=1000, le=1_000_000)
    """Bootstrap resamples of the intervals."""
    batch_tokens: int = Field(ge=1)
    """Most tokens of a batch, padding and answers included."""
    batch_rows: int = Field(ge=1)
    """Most prompts in a batch."""

    @model_validator(mode="after")
    def _within_bounds(self) -> Config:
        first = len(self.templates) * len(self.shots)
        cells = first * len(self.decodings) if self.search == "full" else first + len(self.decodings) - 1
        if len(set(self.shots)) < len(self.shots):
            raise ValueError("every number of shots once")
        if cells > self.max_cells:
            raise ValueError(f"a grid of at most max_cells = {self.max_cells} cells, and this one has {cells}")
        return self


class Cell(NamedTuple):
    """One way to ask and to answer."""

    template: str
    shots: int
    decoding: str


class Answered(NamedTuple):
    """What one cell gave."""

    generations: Sequence[Generation]
    scores: Sequence[float]
    """Points of each validation row."""
    prompt_tokens: float
    """Mean tokens of a prompt, template and demonstrations included."""
    halved: int


def run(
    cfg: Config, *, train: Path, validation: Path, model: Path, out: Path, work: Path, runtime: Runtime, log: Log
) -> Metrics:
    """Answer the validation rows in every cell; write the best one as a checkpoint, and the whole grid, under `out`."""
    from tunemill import models

    # 1. Validation rows, and demonstrations from the training rows.
    rows = [row for row in records.read(validation, Example) if row.completion.strip()]
    if not rows:
        raise UserError("no rows with a completion", where=str(validation), fix="validate.validation in params.yaml")
    chosen = statistics.stratified([row.id for row in rows], [row.group for row in rows], cfg.items, cfg.seed)
    rows = [rows[index] for index in chosen]
    policy, tokenizer = models.load_policy(model, model, runtime)
    shots = demonstrations(cfg, tokenizer, train)

    # 2. The grid. Where the score is the same, the simpler cell is better: fewer shots, then what comes first in the file.
    cells = [
        Cell(template, count, decoding)
        for count, template, decoding in product(sorted(cfg.shots), cfg.templates, cfg.decodings)
    ]
    plain = Cell(next(iter(cfg.templates)), cfg.shots[0], next(iter(cfg.decodings)))
    found: dict[Cell, Answered] = {}
    for cell in cells:
        if cfg.search == "full" or cell.decoding == plain.decoding:
            found[cell] = answer(cfg, cell, policy, tokenizer, rows, shots, work, log)
    best = best_of(cells, found)
    for cell in cells:
        if cfg.search == "stepwise" and cell[:2] == best[:2] and cell not in found:
            found[cell] = answer(cfg, cell, policy, tokenizer, rows, shots, work, log)
    best = best_of(cells, found)

    # 3. Intervals: whole groups are resampled, and all cells stand on the same draws.
    cells = [cell for cell in cells if cell in found]
    intervals, gain = estimates(cfg, rows, cells, found, best, plain)
    verdict = statistics.verdict(gain)
    if verdict != "better":
        log.note(f"{said(best)} is not shown to be better than {said(plain)}")

    # 4. Write the grid, and the best cell as a checkpoint that plain transformers loads.
    table = [
        {
            **cell._asdict(),
            "n": len(rows),
            **dict(zip(("score", "ci_low", "ci_high"), intervals[cell], strict=True)),
            "finished": metrics.share(each.finished for each in found[cell].generations),
            "tokens": metrics.mean(each.tokens for each in found[cell].generations),
            "prompt_tokens": found[cell].prompt_tokens,
            "chosen": cell == best,
        }
        for cell in cells
    ]
    checkpoints.write_text(out / "grid.csv", csv_text(table))
    decoding = Decoding(**cfg.decodings[best.decoding].model_dump())
    summary = {
        "metric": cfg.metric,
        "n": len(rows),
        "groups": len({row.group for row in rows}),
        "chosen": next(row for row in table if row["chosen"]),
        "plain": plain._asdict(),
        "gain": {**gain._asdict(), "verdict": verdict},
        "note": note(best, plain, verdict, cfg.metric),
    }
    template = cfg.templates[best.template]
    prompting.write_policy(model, out / "model", tokenizer, template, shots[: best.shots], decoding)
    checkpoints.write_json(
        out / "model/prompt.json",
        {
            "template": {"name": best.template, "text": template},
            "shots": shots[: best.shots],
            "decoding": decoding._asdict(),
            "found": {**summary, "cells": table, "search": cfg.search, "rouge_scorer": metrics.rouge_name()},
        },
    )
    checkpoints.write_text(
        out / "model/README.md",
        prompting.card(model, policy.config.is_encoder_decoder, template, decoding, best.shots, summary),
    )
    return {
        "cells": len(cells),
        "shots": best.shots,
        "validation/n": len(rows),
        f"validation/{cfg.metric}": intervals[best].value,
        f"validation/{cfg.metric}_plain": intervals[plain].value,
        f"validation/{cfg.metric}_gain": gain.diff,
        "validation/finished": summary["chosen"]["finished"],
        "validation/tokens": summary["chosen"]["tokens"],
        "prompt_tokens": found[best].prompt_tokens,
        "halved_batches": sum(each.halved for each in found.values()),
    }


def demonstrations(cfg: Config, tokenizer: Any, train: Path) -> tuple[prompting.Shot, ...]:
    """As many as the largest cell shows; smaller ones show the first of them.

    Raises:
        UserError: too few training rows are short enough.
    """
    try:
        return prompting.choose_shots(
            tokenizer, records.read(train, Example), max(cfg.shots), max_tokens=cfg.shot_tokens, seed=cfg.seed
        )
    except ValueError as error:
        raise UserError(
            str(error),
            where="params.yaml: prompt.shot_tokens",
            fix="raise it, or show fewer (prompt.shots)",
            exit_code=2,
        ) from None


def answer(
    cfg: Config,
    cell: Cell,
    policy: Any,
    tokenizer: Any,
    rows: Sequence[Example],
    shots: Sequence[prompting.Shot],
    work: Path,
    log: Log,
) -> Answered:
    """Answer the validation rows in one cell and score the answers, going on where the cell's journal ends.

    Raises:
        UserError: a prompt with its template and demonstrations is longer than the model's context.
    """
    template, decoding = cfg.templates[cell.template], Decoding(**cfg.decodings[cell.decoding].model_dump())
    prompts = [prompting.render(tokenizer, row.prompt, template=template, shots=shots[: cell.shots]) for row in rows]
    lengths = [len(each) for each in prompts]
    needed, context = sampling.positions(policy, max(lengths), decoding.max_new_tokens)
    if context is not None and needed > context:
        raise UserError(
            f"a prompt with {said(cell)} needs {needed} tokens, answer included",
            where="params.yaml: prompt.shots",
            expected=f"at most {context}, the model's context",
            fix="show fewer, or shorter ones (prompt.shot_tokens)",
            exit_code=2,
        )
    generations, halved = sampling.answers(
        policy,
        tokenizer,
        prompts,
        decoding=decoding,
        batches=sampling.plan(lengths, decoding.max_new_tokens, cfg.batch_tokens, cfg.batch_rows),
        seed=cfg.seed,
        kept=work / f"{'-'.join(map(str, cell))}.jsonl",
        title=said(cell),
        log=log,
    )
    scored = metrics.rouge(
        [metrics.one_line(row.completion) for row in rows], [metrics.one_line(each.text) for each in generations]
    )
    points = [float(each[cfg.metric].f1) for each in scored if each is not None]
    log.note(f"{said(cell)}: {cfg.metric} {sum(points) / len(points):.1f}")
    return Answered(generations, points, sum(lengths) / len(lengths), halved)


def best_of(cells: Sequence[Cell], found: Mapping[Cell, Answered]) -> Cell:
    """The cell with the highest mean score; of equal ones the first."""
    return max((cell for cell in cells if cell in found), key=lambda cell: sum(found[cell].scores))


def estimates(
    cfg: Config,
    rows: Sequence[Example],
    cells: Sequence[Cell],
    found: Mapping[Cell, Answered],
    best: Cell,
    plain: Cell,
) -> tuple[dict[Cell, statistics.Interval], statistics.Comparison]:
    """Each cell's mean score with its interval, and the paired difference between the best cell and the plain one."""
    import numpy as np

    table = np.column_stack([*(found[cell].scores for cell in cells), np.ones(len(rows))])  # (n, cells + 1)
    sums = statistics.cluster_sums(table, [row.group for row in rows])
    draws, total = statistics.resampled_sums(sums, cfg.resamples, cfg.seed), table.sum(axis=0)
    mean = {cell: statistics.ratio(column, len(cells)) for column, cell in enumerate(cells)}
    intervals = {cell: statistics.interval(float(mean[cell](total)), mean[cell](draws), len(sums)) for cell in cells}
    gain = statistics.compare(
        float(mean[best](total) - mean[plain](total)), mean[best](draws) - mean[plain](draws), len(sums)
    )
    return intervals, gain


def said(cell: Cell) -> str:
    """A cell in words."""
    return f"template {cell.template}, {cell.shots} shot{'' if cell.shots == 1 else 's'}, decoding {cell.decoding}"


def note(best: Cell, plain: Cell, verdict: str, metric: str) -> str:
    """What may be said of the choice."""
    if best == plain:
        return f"No cell has a higher {metric} than the plain one: {said(plain)}."
    if verdict == "better":
        return f"Better on the validation rows than the plain cell: {said(plain)}."
    return f"The highest {metric}, but not shown to be better than the plain cell: {said(plain)}."


def csv_text(table: Sequence[Mapping[str, Any]]) -> str:
    """Rows with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(table[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()


if __name__ == "__main__":
    main(run)
