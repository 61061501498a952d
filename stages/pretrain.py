r"""Pretrain: go on with pre-training on the domain's raw text, all weights (Gururangan et al. 2020); off by default.

python -m stages.pretrain --candidate domain --text artifacts/validate/train.jsonl --model artifacts/select/model \
        --out artifacts/pretrain/domain

Decoder-only models predict every next token of documents put end to end; encoder-decoders fill in spans that were taken
out (T5's objective; the spans of a text are drawn once, not anew each time it is seen).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from tunemill import pretraining, trainings, tuning
from tunemill.errors import UserError
from tunemill.log import Log
from tunemill.losses import Encoded
from tunemill.runtime import Runtime
from tunemill.stage import Metrics, main


class Config(tuning.Training):
    """On how much, how fast, and what is taken out."""

    density: float = Field(gt=0, lt=0.9)
    """Encoder-decoders: share of tokens taken out; 0.15 in the paper."""
    span: float = Field(ge=1, le=50)
    """Encoder-decoders: mean length of what is taken out; 3 in the paper."""

    @field_validator("span")
    @classmethod
    def _leaves_something_between(cls, span: float, others: ValidationInfo) -> float:
        if {"density", "max_tokens"} <= others.data.keys():
            for length in range(pretraining.SHORTEST, min(others.data["max_tokens"], 4096) // 2 + 1):
                try:
                    pretraining.taken(length, others.data["density"], span)
                except ValueError as error:
                    raise ValueError(
                        f"longer spans, or a smaller density than {others.data['density']}: {error}"
                    ) from None
        return span

    store_dtype: Literal["bfloat16", "float32", "float16"]
    """Number format of the weights on disk."""


def run(cfg: Config, *, text: Path, model: Path, out: Path, work: Path, runtime: Runtime, log: Log) -> Metrics:
    """Train `model` on the documents of `text`; write the model, the curve and the counts under `out`.

    `text` is a JSONL file (field `text`, or `prompt` and `completion`), plain text with a blank line between documents, or a
    folder of .txt files of such text.
    """
    from tunemill import models

    # 1. Read the documents; every twentieth is held out.
    tokenizer = models.load_tokenizer(model)
    family = "encoder-decoder" if models.is_encoder_decoder(model) else "decoder-only"
    documents = [tokenizer(each, add_special_tokens=False)["input_ids"] for each in read(text)]
    held_out = documents[::20] if len(documents) >= 20 else []
    learnt = [each for at, each in enumerate(documents) if not held_out or at % 20]
    data = tuning.Data(
        blocks(learnt, tokenizer, family, cfg, text),
        tuning.spread(blocks(held_out, tokenizer, family, cfg, text), cfg.validation_items) if held_out else [],
        0,
    )
    log.note(f"{len(learnt)} documents, {len(data.train)} blocks of at most {cfg.max_tokens} tokens")

    def load(_: int) -> Any:
        return models.load_trainable(model, tuning.loading(cfg, runtime))

    # 2. Train all weights; 3. save what plain transformers loads.
    text = "The model named above, pre-trained further on raw text."
    kind = trainings.Kind("full", "Model adapted to a domain", text, cfg.store_dtype)
    return trainings.each_seed(
        cfg, kind, load, tokenizer, data, model=model, out=out, work=work, runtime=runtime, log=log
    )


def read(path: Path) -> list[str]:
    """The documents of a file, or of every .txt file of a folder by name, none empty.

    Raises:
        UserError: a line is no JSON object with text, a file is not UTF-8, or there is no document.
    """
    from tunemill import records

    found: list[str] = []
    if path.suffix == ".jsonl" and not path.is_dir():
        for line, row in records.read_objects(path):
            # A summary belongs before the text it summarises, as in the documents that it was taken from.
            parts = [row.get("completion"), row.get("text") or row.get("prompt")]
            if not all(each is None or isinstance(each, str) for each in parts):
                raise UserError(
                    "no text",
                    where=f"{path}:{line}",
                    expected="a field `text`, or `prompt` and `completion`, in quotation marks",
                )
            found.append("\n\n".join(each for each in parts if each).strip())
    else:
        for file in sorted(path.glob("*.txt")) if path.is_dir() else [path]:
            try:
                content = file.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"not UTF-8 (byte {error.start})", where=str(file), fix="save it as UTF-8 text"
                ) from None
            found += [each.strip() for each in content.split("\n\n")]
    kept = [each for each in found if each]
    if not kept:
        raise UserError(
            "no text",
            where=str(path),
            expected="at least one document" + (" in a file that ends in .txt" if path.is_dir() else ""),
        )
    return kept


def blocks(documents: list[list[int]], tokenizer: Any, family: str, cfg: Config, where: Path) -> list[Encoded]:
    """Documents as training pairs.

    Raises:
        UserError: the vocabulary has no sentinels, or there is too little text.
    """
    if family == "decoder-only":
        found = pretraining.causal_blocks(documents, tokenizer.eos_token_id, cfg.max_tokens)
    else:
        marks = [tokenizer.convert_tokens_to_ids(f"<extra_id_{number}>") for number in range(100)]
        known = [mark for mark in marks if mark is not None and mark != tokenizer.unk_token_id]
        if not known:
            raise UserError(
                "the vocabulary has no <extra_id_0>: nothing to mark a missing span with",
                where="params.yaml: extra.pretrain",
                expected="a tokenizer with T5's sentinels",
                exit_code=2,
            )
        # As many tokens a piece as the sentinels can mark.
        length = min(cfg.max_tokens // 2, int((len(known) - 1) * cfg.span / cfg.density))
        found = [
            pretraining.corrupt(piece, known, tokenizer.eos_token_id, cfg.density, cfg.span, f"{at}")
            for at, piece in enumerate(pretraining.pieces(documents, length))
        ]
    if not found:
        raise UserError("too little text", where=str(where), expected="documents of more than a few words")
    return found


if __name__ == "__main__":
    main(run, distributed=True)
