r"""Quantize: the same model in fewer bits a weight, for what it costs in quality.

    python -m stages.quantize --candidate int8 --policy artifacts/lora/adapter --base artifacts/select/model \
        --train artifacts/validate/train.jsonl --out artifacts/quantize/int8

After training: weights alone (int8, nf4, gguf), or weights and activations (int8-dynamic, int8-static), with SmoothQuant where asked.
Static ranges of activations, and SmoothQuant, are calibrated on training pairs. With `qat` the model first learns on with weights
that are rounded as it computes, `qat.steps` steps long (`tunemill.quantization`).

int8 is saved through torchao and nf4 through bitsandbytes: plain transformers loads both. GGUF is what llama.cpp runs, tokenizer and
chat template included. What is small here is measured by stage `compress`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from tunemill import cards, checkpoints, gguf_export, models, quantization, records, tuning
from tunemill.log import Log
from tunemill.losses import Encoded
from tunemill.params import Params, named
from tunemill.runtime import Runtime
from tunemill.stage import Metrics, main

GROUP = 32
"""Weights that share a scale in GGUF's blocks, which four bits are learnt for."""
LOADING = """from pathlib import Path

from tunemill import models  # transformers 5.23 does not read ranges of activations
from tunemill.runtime import Runtime

folder = Path("<this folder>")
model, tokenizer = models.load_policy(folder, folder, Runtime("cpu", "float32", threads=2))"""
"""How what plain transformers cannot load is loaded."""


class Variant(Params):
    """One way to quantize."""

    method: quantization.Method
    """What is rounded to what: see `tunemill.quantization`; gguf writes a file for llama.cpp."""
    type: gguf_export.Type | None = None
    """Format of the matrices of a GGUF file."""
    smooth: float | None = Field(default=None, gt=0, lt=1)
    """SmoothQuant's α: how much of what is difficult about activations goes to the weights; null is without."""
    qat: bool = False
    """Whether the model first learns on with rounded weights."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.type is None) == (self.method == "gguf"):
            raise ValueError("`type` belongs to the method gguf, which needs it")
        if self.smooth is not None and self.method not in ("int8-dynamic", "int8-static"):
            raise ValueError("`smooth` belongs to methods that round activations: int8-dynamic, int8-static")
        if self.qat and self.method == "nf4":
            raise ValueError(
                "`qat` rounds to evenly spaced values, and nf4 does not: choose gguf with a type of 4 bits"
            )
        return self

    @property
    def calibrated(self) -> bool:
        """Whether it needs calibration rows."""
        return self.method in quantization.CALIBRATED or self.smooth is not None

    @property
    def name(self) -> str:
        """What people call it."""
        name = f"GGUF {self.type}" if self.method == "gguf" else quantization.NAMES[self.method]
        name += "" if self.smooth is None else f", SmoothQuant {self.smooth:g}"
        return name + (", learnt on while rounded" if self.qat else "")


class Config(Params):
    """How each of `extra.quantize` is made."""

    variants: dict[str, Variant]
    """Its name in `extra.quantize` → how."""
    calibration_items: int = Field(ge=0)
    """Training pairs that show what activations there are."""
    qat: tuning.Training
    """The training with rounded weights, of one seed."""

    @model_validator(mode="after")
    def _can_be_made(self) -> Self:
        blind = [name for name, each in self.variants.items() if each.calibrated]
        if blind and not self.calibration_items:
            raise ValueError(f"calibration_items is 0, and {', '.join(blind)} must have seen activations")
        if len(self.qat.seeds) != 1:
            raise ValueError("qat.seeds: one seed, since a variant is one model")
        return self


def run(
    cfg: Config,
    *,
    policy: Path,
    base: Path,
    train: Path,
    validation: Path,
    candidate: str,
    out: Path,
    work: Path,
    runtime: Runtime,
    log: Log,
) -> Metrics:
    """Quantize a policy; write it as `model` under `out`, with quantize.json beside the weights."""
    variant = named(cfg.variants, candidate, "quantize.variants")
    folder, exact = out / "model", replace(runtime, device="cpu", dtype="float32")

    # 1. The model in full precision, an adapter merged.
    model, tokenizer = models.load_whole(policy, base, exact, f"extra.quantize.{candidate}.policy")
    count = sum(each.numel() for each in model.parameters())

    # 2. Learn on with rounded weights.
    if variant.qat:
        learnt, held_out = (
            [(row.prompt, row.completion) for row in records.read(path, records.Example)]
            for path in (train, validation)
        )
        data = tuning.prepare(cfg.qat, tokenizer, learnt, held_out, "quantize.qat")
        bits: Literal[4, 8] = 8 if variant.method.startswith("int8") or variant.type == "Q8_0" else 4

        def rounded() -> Any:
            fresh, _ = models.load_policy(policy, base, exact)
            return quantization.rounded(fresh, bits, GROUP)

        del model
        trained = tuning.train(rounded, tokenizer, data, cfg.qat, cfg.qat.seeds[0], runtime=runtime, work=work, log=log)
        model = quantization.unrounded(trained.policy).to(exact.device).eval()

    # 3. What the layers are given.
    ranges, shown = None, 0
    if variant.calibrated:
        rows = calibration(cfg, tokenizer, train)
        shown = len(rows)
        log.note(f"calibrating on {shown} training pairs")
        ranges = quantization.calibrate(model, rows)

    # 4. Round, and write.
    log.note(f"{variant.name}, {count:,} parameters")
    if variant.method == "gguf":
        assert variant.type is not None
        models.save_gguf(model, tokenizer, folder, variant.type, f"{candidate}-{variant.type}")
    elif variant.method == "nf4":
        models.save(model, tokenizer, work / "full", "float32")
        models.save_nf4(work / "full", tokenizer, folder, exact)
    else:
        settings = quantization.quantize_int8(model, variant.method, ranges, variant.smooth)
        models.save_int8(model, tokenizer, folder, settings)
    size = models.weight_bytes(folder)
    facts = {
        "method": variant.name,
        "runtime": "llama.cpp" if variant.method == "gguf" else "transformers",
        "parameters": count,
        "bytes": size,
        "float32_bytes": 4 * count,
        "calibration_rows": shown,
    }
    checkpoints.write_json(folder / "quantize.json", facts)
    told = {"Method": variant.name, "Parameters": f"{count:,}", "Weights": f"{size:,} bytes"}
    told |= {"Calibrated on": f"{shown} training pairs"} if shown else {}
    text = f"The model named above, tuned, in fewer bits: {variant.name}."
    loading = LOADING if variant.method == "int8-static" else None
    cards.write(folder, "Quantized model", base, text, told, models.is_encoder_decoder(folder), loading)
    return {
        "parameters": count,
        "bytes": size,
        "bytes_per_float32": size / (4 * count),
        "calibration_rows": shown,
    }


def calibration(cfg: Config, tokenizer: Any, train: Path) -> list[Encoded]:
    """Training pairs as the model reads them, the same ones each time, spread over the file."""
    rows = (
        [(each.prompt, each.completion) for each in records.read(train, records.Example)]
        if cfg.calibration_items
        else []
    )
    encoded = [tuning.encode(tokenizer, *pair) for pair in rows]
    fitting = [each for each in encoded if len(each) <= cfg.qat.max_tokens]
    return tuning.spread(fitting, cfg.calibration_items)


if __name__ == "__main__":
    main(run)
