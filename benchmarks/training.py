"""LoRA training steps: this project's against TRL's `SFTTrainer` as it comes, on the same rows and adapter.

    python benchmarks/training.py MODEL TRAIN.jsonl      for instance artifacts/select/model artifacts/validate/train.jsonl

Each variant runs in a process of its own, in turns (A, B, A, B, …). Printed are median seconds for a step, peak memory, and
their ratios. The peer keeps its own collator, order and loss; gradient checkpointing, which it turns on by default, is shown
both ways.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
VARIANTS = ("tunemill", "trl", "trl-checkpointing")


def one(variant: str, model: Path, rows: Path, steps: int) -> dict[str, float]:
    """Train for some steps in this process; seconds for a step (the first left out) and peak memory."""
    from tunemill import runtime

    runtime.set_threads(2)
    machine = runtime.resolve(
        runtime.RuntimeParams(device="auto", dtype="auto", threads=2),
        Path(tempfile.gettempdir()) / "bench-machine.json",
    )
    runtime.seed_everything(1)
    from peft import LoraConfig
    from transformers import TrainerCallback

    from tunemill import models, records, tuning
    from tunemill.log import Log

    tokenizer = models.load_tokenizer(model)
    pairs = [tuning.encode(tokenizer, row.prompt, row.completion) for row in records.read(rows, records.Example)[:400]]
    pairs = [pair for pair in pairs if len(pair) <= 192][: 8 * steps]
    adapter = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    seconds: list[float] = []
    base = models.load_base(model, machine)
    with tempfile.TemporaryDirectory() as folder:
        if variant == "tunemill":
            times: list[float] = []
            log = Log(listener=lambda step, values: times.append(time.perf_counter()))
            schedule = tuning.Schedule(steps, 8, 1, 1e-4, 0, 0.0, 1.0, 10**6, 0, 1)
            tuning.train(
                base, tokenizer, pairs, [], schedule, adapter=adapter, device=machine.device, work=Path(folder), log=log
            )
            seconds = [after - before for before, after in itertools.pairwise(times)]
        else:
            from datasets import Dataset
            from trl import SFTConfig, SFTTrainer

            class Clock(TrainerCallback):
                """Notes when each step ends."""

                def on_step_end(self, *_: object, **__: object) -> None:
                    """A step is done."""
                    seconds.append(time.perf_counter())

            trainer = SFTTrainer(
                base,
                processing_class=tokenizer,
                peft_config=adapter,
                callbacks=[Clock()],
                train_dataset=Dataset.from_list([tuning._row(pair) for pair in pairs]),
                args=SFTConfig(
                    output_dir=folder,
                    max_steps=steps,
                    per_device_train_batch_size=8,
                    max_length=None,
                    bf16=False,
                    use_cpu=machine.device == "cpu",
                    activation_checkpointing=variant == "trl-checkpointing",
                    report_to=[],
                    save_strategy="no",
                    disable_tqdm=True,
                    logging_steps=1000,
                ),
            )
            trainer.train()
            seconds = [after - before for before, after in itertools.pairwise(seconds)]
    return {"seconds": statistics.median(seconds), "peak_bytes": runtime.peak_memory_bytes()}


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--one", choices=VARIANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(arguments.one, arguments.model, arguments.rows, arguments.steps)))
        return
    found: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    for _ in range(arguments.rounds):
        for name in VARIANTS:
            command = [sys.executable, __file__, str(arguments.model), str(arguments.rows), "--one", name]
            told = subprocess.run(
                [*command, "--steps", str(arguments.steps)], capture_output=True, text=True, check=True
            )
            found[name].append(json.loads(told.stdout.strip().splitlines()[-1]))
    table = {
        name: {key: statistics.median(each[key] for each in rounds) for key in ("seconds", "peak_bytes")}
        for name, rounds in found.items()
    }
    ours = table["tunemill"]
    ratios = {
        f"{key} of {name} to ours": round(values[key] / ours[key], 2)
        for name, values in table.items()
        if name != "tunemill"
        for key in ("seconds", "peak_bytes")
    }
    print(json.dumps({**table, "ratios": ratios}, indent=1))


if __name__ == "__main__":
    main()
