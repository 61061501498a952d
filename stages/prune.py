r"""Prune: take out of the tuned model what matters least, and let a low-rank update mend what that broke; off by default.

python -m stages.prune --candidate wanda --policy artifacts/lora/adapter --base artifacts/select/model \
        --train artifacts/validate/train.jsonl --validation artifacts/validate/validation.jsonl --out artifacts/prune/wanda

What goes, and why the update leaves zeros zero, stands in `tunemill.pruning`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from tunemill import checkpoints, pruning, trainings, tuning
from tunemill.blocks import Batch
from tunemill.log import Log
from tunemill.params import Params, named
from tunemill.runtime import Runtime
from tunemill.stage import Metrics, main
from tunemill.wording import plural


class Unstructured(Params):
    """Single weights become zero."""

    method: Literal["magnitude", "wanda"]
    """By |W|, compared within each matrix, or by |W| · ‖X‖, compared within each output row."""
    sparsity: float = Field(gt=0, lt=1)
    """Share of zeros among the weights of the blocks' linear layers; at 0 nothing would go, at 1 nothing would be left."""
    recover: bool
    """Whether a low-rank update is trained afterwards."""


class Structured(Params):
    """Blocks, heads and channels go."""

    method: Literal["structured"]
    """The name of the method."""
    sparsity: float = Field(gt=0, lt=1)
    """Share of the parameters of the blocks' linear layers that goes; at 0 nothing would go, at 1 nothing would be left."""
    layers: int = Field(ge=0)
    """Whole blocks among it, those of least influence; of an encoder-decoder in each half."""
    groups: int = Field(ge=0)
    """Groups of heads among it (a key's and value's with the queries that read them), in each block that is left. Feed-forward
    channels make up the rest."""
    recover: bool
    """Whether a low-rank update is trained afterwards."""


class Recovery(tuning.Training):
    """The low-rank update that is trained afterwards, and merged."""

    rank: int = Field(ge=1, le=256)
    """Of the update."""
    alpha: int = Field(ge=1, le=1024)
    """The update is scaled by alpha / rank."""
    targets: str | tuple[str, ...]
    """Names of the adapted layers; "all-linear" takes every linear layer but the output head."""


class Config(Params):
    """What is pruned how, and how it recovers."""

    variants: dict[str, Annotated[Unstructured | Structured, Field(discriminator="method")]]
    """Name of a run under `extra.prune` → what is made there."""
    calibration_items: int = Field(ge=1)
    """Training rows to see with what matters."""
    recovery: Recovery
    """What is trained afterwards, where a variant says so."""
    store_dtype: Literal["bfloat16", "float32", "float16"]
    """Number format of the weights on disk."""


def run(
    cfg: Config,
    *,
    candidate: str,
    policy: Path,
    base: Path,
    train: Path,
    validation: Path,
    out: Path,
    work: Path,
    runtime: Runtime,
    log: Log,
) -> Metrics:
    """Prune the policy as the variant says, let it recover; write the model and what is known of it under `out`."""
    from tunemill import models

    variant = named(cfg.variants, candidate, "prune.variants")
    where, training = f"prune.variants.{candidate}", cfg.recovery
    tokenizer = models.load_tokenizer(policy if (policy / "tokenizer_config.json").is_file() else base)
    data = trainings.read(training, tokenizer, train, validation, "prune.recovery", log)

    # 1. Prune, in float32; what came of it outlives a kill.
    kept = checkpoints.newest(work, "pruned-")
    if kept is None:
        model, _ = models.load_whole(policy, base, runtime, f"extra.prune.{candidate}.policy")
        told = {"perplexity_before": perplexity(model, data, tokenizer, training)}
        model, what = pruned(cfg, variant, model, tokenizer, data, where, log)
        told |= {"perplexity_pruned": perplexity(model, data, tokenizer, training), **what}

        def write(folder: Path) -> None:
            models.save(model, tokenizer, folder / "model", "float32")
            checkpoints.write_json(folder / "told.json", told)

        kept = checkpoints.save(work, "pruned-1", write)
        del model
    told = read_json(kept / "told.json")
    log.note(f"perplexity {shown(told['perplexity_before'])} before, {shown(told['perplexity_pruned'])} pruned")

    # 2. Recover: a low-rank update, which leaves zeros zero; merged.
    origin = base if models.is_adapter(policy) else policy
    text = sentence(variant, told, training.steps if variant.recover else 0)
    metrics: dict[str, float | None] = {}
    if variant.recover:
        kind = trainings.Kind("prune", "Pruned model", text, cfg.store_dtype)
        metrics = trainings.each_seed(
            training,
            kind,
            lambda _: adapted(training, kept / "model", variant, runtime),
            tokenizer,
            data,
            model=origin,
            out=out,
            work=work,
            runtime=runtime,
            log=log,
        )
    else:
        as_it_is(kept / "model", tokenizer, out / "model", cfg.store_dtype, origin, text, runtime)

    # 3. What came of it, as it lies on the disk.
    found: dict[str, float | None] = {}
    for seed in training.seeds if variant.recover else training.seeds[:1]:
        folder = out / ("model" if seed == training.seeds[0] else f"model-{seed}")
        facts = told | measured(folder, data, tokenizer, training, runtime)
        checkpoints.write_json(folder / "prune.json", {"made_by": "prune", **variant.model_dump(mode="json"), **facts})
        numbers = ("parameters", "parameters_before", "sparsity", "sparsity_all")
        scores = {f"perplexity/{at}": facts[f"perplexity_{at}"] for at in ("before", "pruned", "stored")}
        found = found or {name: facts[name] for name in numbers} | scores
    return metrics | found


def pruned(
    cfg: Config,
    variant: Unstructured | Structured,
    model: Any,
    tokenizer: Any,
    data: tuning.Data,
    where: str,
    log: Log,
) -> tuple[Any, dict[str, Any]]:
    """The pruned model, and what went."""
    from tunemill import blocks, losses

    before = sum(each.numel() for each in model.parameters())
    rows = tuning.spread(data.train, cfg.calibration_items)
    texts: list[Batch] = blocks.batches(
        rows, tokenizer.pad_token_id, losses.start_token(model), cfg.recovery.batch_size
    )
    gone: dict[str, Any] = {}
    share = variant.sparsity
    depth = sum(len(stack.blocks) for stack in blocks.stacks(model))
    if isinstance(variant, Structured):
        wanted = pruning.structure(model, variant.sparsity, variant.layers, variant.groups, where)
        log.start("pruning", depth - variant.layers * len(blocks.stacks(model)), "block")
        model, removed = pruning.prune_structure(model, wanted, texts, log)
        gone, share = removed._asdict(), wanted.share
    else:
        log.start("pruning", depth, "block")
        pruning.prune_weights(model, variant.method, variant.sparsity, texts, log)
    return model, {"removed": gone, "removed_share": share, "parameters_before": before}


def adapted(training: Recovery, folder: Path, variant: Unstructured | Structured, runtime: Runtime) -> Any:
    """The pruned model with the low-rank update that is to be trained."""
    from tunemill import models

    adapter = models.low_rank(training.rank, training.alpha, training.targets)
    if isinstance(variant, Unstructured):
        adapter = pruning.keep_zeros(adapter)
    model = models.load_trainable(folder, tuning.loading(training, runtime))
    return tuning.adapt(model, adapter, "prune.recovery")


def as_it_is(folder: Path, tokenizer: Any, out: Path, dtype: str, origin: Path, text: str, runtime: Runtime) -> None:
    """Write the pruned model without any recovery, and its card."""
    from tunemill import cards, models

    model = models.load_trainable(folder, runtime)
    models.save(model, tokenizer, out, dtype)
    cards.write(out, "Pruned model", origin, text, {}, model.config.is_encoder_decoder)


def measured(folder: Path, data: tuning.Data, tokenizer: Any, training: Recovery, runtime: Runtime) -> dict[str, Any]:
    """Zeros and parameters as the file has them, and the perplexity of what it holds."""
    from tunemill import models

    model = models.load_trainable(folder, runtime)  # what is 0 in fewer bits is 0 in float32
    sparsity = pruning.sparsity_of(model)
    return {
        "parameters": sum(each.numel() for each in model.parameters()),
        "sparsity": sparsity.linears,
        "sparsity_all": sparsity.everything,
        "perplexity_stored": perplexity(model, data, tokenizer, training),
    }


def perplexity(model: Any, data: tuning.Data, tokenizer: Any, training: Recovery) -> float | None:
    """Of the validation rows' completions; None without such rows, or where it is beyond any number."""
    from tunemill import metrics

    rows = data.validation
    if not rows:
        return None
    loss = tuning.validation_loss(model, rows, training.batch_size, tokenizer.pad_token_id)
    return metrics.perplexity(-loss, 1) if math.isfinite(loss) else None


def shown(value: float | None) -> str:
    """A perplexity for people."""
    return "unknown" if value is None else f"{value:.1f}"


def sentence(variant: Unstructured | Structured, told: dict[str, Any], steps: int) -> str:
    """What was done, for the card."""
    if isinstance(variant, Structured):
        removed = told["removed"]
        channels = max((len(each) for half in removed["channels"].values() for each in half), default=0)
        parts = [(sum(map(len, removed["layers"].values())), "block"), (variant.groups, "group"), (channels, "channel")]
        lost = "; ".join(
            plural(count, part)
            + {"block": "", "group": " of heads in each", "channel": " between its feed-forward layers"}[part]
            for count, part in parts
            if count
        )
        what = f"without {told['removed_share']:.1%} of its blocks' weights ({lost})"
    else:
        kind = "magnitude" if variant.method == "magnitude" else "Wanda (Sun et al. 2023)"
        what = f"with {variant.sparsity:.0%} of its blocks' weights set to zero by {kind}; zeros save no time by themselves"
    mended = f", then mended by a low-rank update of {steps} steps, merged" if steps else ""
    return f"The tuned model made from the one named above, {what}{mended}."


def read_json(path: Path) -> dict[str, Any]:
    """What a checkpoint says of itself."""
    import json

    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


if __name__ == "__main__":
    main(run)
