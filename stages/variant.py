"""Variant: what one smaller form of the tuned model still knows, on validation rows: the test rows must not choose among them.

    python -m stages.variant --candidate int8 --policy artifacts/quantize/int8/model --base artifacts/select/model \
        --validation artifacts/validate/validation.jsonl --out artifacts/variant/int8

It answers `items` rows greedily, in the runtime that serves it (llama.cpp for a GGUF file), and is asked how likely it finds the right
answers of `perplexity_items`. Of a GGUF file that is asked of the weights which the file expands to, computed with in transformers.

Writes rows.jsonl (a line for each row) and variant.json (sizes, sparsity).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from tunemill import (
    checkpoints,
    heldout,
    journal,
    llama_cpp,
    losses,
    metrics,
    models,
    records,
    sampling,
    scoring,
    serving,
    tuning,
)
from tunemill.log import Log
from tunemill.params import Params
from tunemill.records import Example
from tunemill.runtime import Runtime, release
from tunemill.stage import Metrics, main

MAKERS = ("distill", "quantize", "prune")
"""Stages that make a model smaller; each leaves <stage>.json beside the weights."""


class Config(Params):
    """What each of `variants` is asked."""

    seed: int = Field(ge=0)
    """Of the choice of rows, the same for all."""
    items: int | None = Field(ge=1)
    """Validation rows to answer, every group with its share; null takes all."""
    perplexity_items: int | None = Field(ge=1)
    """Validation rows whose right answers' likelihood is asked; null takes all."""
    max_new_tokens: int = Field(ge=1, le=4096)
    """Most tokens of an answer."""
    batch_tokens: int = Field(ge=1)
    """Most tokens of a batch, padding and answers included."""
    batch_rows: int = Field(ge=1)
    """Most prompts in a batch."""


def run(
    cfg: Config, *, policy: Path, base: Path, validation: Path, out: Path, work: Path, runtime: Runtime, log: Log
) -> Metrics:
    """Ask one variant, and write what it said and its sizes under `out`."""
    examples = records.read(validation, Example)
    asked = heldout.subset(examples, cfg.items, cfg.seed, "group")
    scored = heldout.subset(examples, cfg.perplexity_items, cfg.seed, "group")

    # 1. How likely the right answers are.
    model, tokenizer = models.load_policy(policy, base, runtime)
    kept = work / "likelihoods.jsonl"
    known = {entry["id"]: (entry["logprob"], entry["tokens"]) for entry in journal.recover(kept)}
    log.start("likelihoods", len(scored), "row", first=len(known))
    for number, each in enumerate(scored, 1):
        if each.id in known:
            continue
        logprob, tokens = likelihood(model, tuning.encode(tokenizer, each.prompt, each.completion))
        journal.append(kept, {"id": each.id, "logprob": logprob, "tokens": tokens})
        known[each.id] = logprob, tokens
        log(number)

    # 2. Sizes.
    adapter = models.is_adapter(policy)
    size = models.weight_bytes(policy) + (models.weight_bytes(base) if adapter else 0)
    maker, told = made_by(policy)
    count = int(told.get("parameters") or sum(each.numel() for each in model.parameters()))
    # Zeros of weights that nobody pruned say nothing.
    inside, everywhere = told.get("sparsity"), told.get("sparsity_all")

    # 3. Answers.
    prompts = [models.render_prompt(tokenizer, each.prompt) for each in asked]
    if models.is_gguf(policy):
        del model
        release()
        asked_for = [each.prompt for each in asked]
        served = serving.load(policy, base, runtime, asked_for, cfg.max_new_tokens, 1)
        found = in_llama(served.model, prompts, cfg.max_new_tokens, work, log)
    else:
        batches = sampling.plan(
            [len(prompt) for prompt in prompts], cfg.max_new_tokens, cfg.batch_tokens, cfg.batch_rows
        )
        found, _ = sampling.answers(
            model,
            tokenizer,
            prompts,
            decoding=sampling.Decoding(cfg.max_new_tokens),
            batches=batches,
            seed=cfg.seed,
            kept=work / "answers.jsonl",
            title="answers",
            log=log,
        )

    # 4. Score, and write.
    texts = [metrics.one_line(each.text) for each in found]
    points = metrics.rouge([each.completion for each in asked], texts)
    rows: list[dict[str, Any]] = [
        {
            "id": each.id,
            "group": each.group,
            "reference": each.completion,
            "prediction": text,
            "finished": answer.finished,
            **scoring.points(score),
        }
        for each, text, answer, score in zip(asked, texts, found, points, strict=True)
    ]
    likely = [
        {"id": each.id, "group": each.group, "logprob": known[each.id][0], "tokens": known[each.id][1]}
        for each in scored
    ]
    records.write_objects(out / "rows.jsonl", rows)
    records.write_objects(out / "likelihoods.jsonl", likely)
    perplexity = metrics.perplexity(sum(row["logprob"] for row in likely), sum(row["tokens"] for row in likely))
    facts = {
        "made_by": maker,
        "method": told.get("method", "low-rank adapter" if adapter else "whole model"),
        "runtime": serving.by(policy),
        "bytes": size,
        "parameters": count,
        "sparsity": inside,
        "sparsity_all": everywhere,
        "policy_hash": checkpoints.tree_hash(policy),
        "dtype": runtime.dtype,
    }
    checkpoints.write_json(out / "variant.json", facts)
    return {
        "bytes": size,
        "parameters": count,
        "sparsity": inside,
        "perplexity": perplexity,
        **{name: metrics.mean(row[name] for row in rows) for name in metrics.ROUGE_TYPES},
        "finished": metrics.share(row["finished"] for row in rows),
    }


def made_by(policy: Path) -> tuple[str | None, dict[str, Any]]:
    """The stage that made a variant smaller and what it told of it; none of a model as it was tuned."""
    for stage in MAKERS:
        if (policy / f"{stage}.json").is_file():
            return stage, json.loads((policy / f"{stage}.json").read_text(encoding="utf-8"))
    return None, {}


def likelihood(model: Any, row: losses.Encoded) -> tuple[float, int]:
    """Log-probability of a completion, its end included, and its tokens."""
    import torch

    batch = losses.collate([row], 0, losses.start_token(model))
    given = {name: each.to(model.device) for name, each in batch.items()}
    with torch.inference_mode():
        return float(losses.completion_logprobs(model, given, losses.virtual_tokens(model))), len(row.completion)


def in_llama(
    model: llama_cpp.Llama, prompts: Sequence[Sequence[int]], max_new_tokens: int, work: Path, log: Log
) -> list[sampling.Generation]:
    """llama.cpp's answers, going on where a killed run ended."""
    kept = work / "answers.jsonl"
    found = [sampling.Generation(**entry) for entry in journal.recover(kept)]
    log.start("answers", len(prompts), "prompt", first=len(found))
    for prompt in prompts[len(found) :]:
        (answer,) = model.answers([prompt], max_new_tokens)
        journal.append(kept, answer._asdict())
        found.append(answer)
        log(len(found))
    return found


if __name__ == "__main__":
    main(run)
