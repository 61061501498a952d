"""LoRA tuning: this project's against `trl sft` (as it comes, and tuned by its flags) and a plain loop, on the same pairs.

    python benchmarks/training.py artifacts/select/model artifacts/validate/train.jsonl artifacts/validate/validation.jsonl

Every variant trains the same adapter (rank 8, all linear layers) on the same pairs, each once, with the same learning rate,
in a process of its own, taking turns (A, B, C, A, …). Printed are tokens of training text a second (padding not counted, the
start of the process neither), peak memory of the process, and the held-out loss of the adapter that came out, measured the
same way for all: a speed at a worse loss would be none, and ends the command with 1. The stages set malloc so that it gives
back what is freed; the others run as one starts them, and the plain loop a second time with the stages' malloc.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from tunemill.runtime import TIGHT_MALLOC  # noqa: E402  # found through the line above

RATE, ROWS, MOST = 8e-4, 8, 192
EQUAL = 1.01
"""A loss up to this many times another one is called equal."""
TRL = (
    "--use_peft --lora_r 8 --lora_alpha 16 --lora_dropout 0 --lora_target_modules all-linear --use_cpu true --report_to none "
    f"--learning_rate {RATE} --lr_scheduler_type linear --warmup_steps 2 --per_device_train_batch_size {ROWS} --num_train_epochs 1"
)


class Variant(NamedTuple):
    """One way to train."""

    by: Literal["tunemill", "trl", "loop"]
    our_malloc: bool
    """Whether it runs with the stages' settings of malloc, or with none."""
    flags: str = ""
    """Of TRL's command line."""
    accumulation: int = 1
    """Forward passes in a step of ours, each of `ROWS` / `accumulation` pairs."""


VARIANTS = {
    "tunemill": Variant("tunemill", our_malloc=True),
    "tunemill, half batches": Variant("tunemill", our_malloc=True, accumulation=2),
    "trl sft": Variant("trl", our_malloc=False),
    # Everything that helps on a CPU: nothing computed twice, this machine's faster number format, rows of like length.
    "trl sft, tuned": Variant(
        "trl",
        our_malloc=False,
        flags="--activation_checkpointing false --bf16 {bf16} --train_sampling_strategy group_by_length",
    ),
    "plain loop": Variant("loop", our_malloc=False),
    "plain loop, our malloc": Variant("loop", our_malloc=True),
}


def ours(model: Path, pairs: Any, folder: Path, accumulation: int) -> float:
    """Train with `tunemill.tuning`; seconds."""
    from stages import lora
    from tunemill import models, tuning
    from tunemill.log import Log
    from tunemill.params import ParamsFile

    values = ParamsFile(ROOT / "params.yaml").section("lora", lora.Config).model_dump()
    steps = len(pairs) // ROWS
    values |= {"steps": steps, "learning_rate": RATE, "warmup_steps": 2}
    values |= {"batch_size": ROWS // accumulation, "accumulation": accumulation}
    cfg = lora.Config.model_validate(values | {"validation_items": 0, "checkpoint_steps": steps, "max_tokens": MOST})
    machine, tokenizer = resolved(), models.load_tokenizer(model)
    data = tuning.prepare(cfg, tokenizer, pairs, [], "lora")
    times: list[float] = []
    log = Log(listener=lambda *_: times.append(time.perf_counter()))

    def load() -> Any:
        policy = tuning.adapt(models.load_base(model, machine), lora.adapter(cfg), "lora")
        times.append(time.perf_counter())
        return policy

    trained = tuning.train(load, tokenizer, data, cfg, 1, runtime=machine, work=folder / "work", log=log)
    tuning.save_adapter(trained.policy, folder / "adapter")
    return times[-1] - times[0]


def plain(model: Path, pairs: Any, folder: Path) -> float:
    """The loop of the tutorials: batches in arrival order, padded, logits of every position; seconds."""
    import torch
    from peft import LoraConfig, get_peft_model

    from tunemill import losses, models, tuning

    machine, tokenizer = resolved(), models.load_tokenizer(model)
    rows = [tuning.encode(tokenizer, *pair) for pair in pairs]
    settings = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    policy = get_peft_model(models.load_base(model, machine), settings).train()
    optimizer = torch.optim.AdamW((each for each in policy.parameters() if each.requires_grad), lr=RATE)
    began, steps = time.perf_counter(), len(rows) // ROWS
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(step / 2, (steps - step) / (steps - 2))  # as the libraries' linear schedule
        batch = losses.collate(rows[step * ROWS : (step + 1) * ROWS], tokenizer.pad_token_id, None)
        policy(**batch, attention_mask=batch["input_ids"].ne(tokenizer.pad_token_id).long()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    seconds = time.perf_counter() - began
    policy.save_pretrained(folder / "adapter")
    return seconds


def resolved() -> Any:
    """The machine, as the stages see it."""
    from tunemill import runtime

    runtime.set_threads(2)
    runtime.seed_everything(1)
    asked = runtime.RuntimeParams(device="cpu", dtype="auto", threads=2)
    return runtime.resolve(asked, Path(tempfile.gettempdir()) / "bench-machine.json")


def chosen(model: Path, rows: Path, steps: int) -> tuple[list[tuple[str, str]], int]:
    """The pairs to train on, and their tokens."""
    from tunemill import models, records, tuning

    tokenizer = models.load_tokenizer(model)
    kept, tokens = [], 0
    for row in records.read(rows, records.Example):
        length = len(tuning.encode(tokenizer, row.prompt, row.completion))
        if length <= MOST and len(kept) < steps * ROWS:
            kept.append((row.prompt, row.completion))
            tokens += length
    return kept, tokens


def held_out_loss(model: Path, adapter: Path, rows: Path) -> float:
    """Of an adapter, on 64 validation pairs."""
    from tunemill import models, records, tuning

    tokenizer = models.load_tokenizer(model)
    pairs = [tuning.encode(tokenizer, row.prompt, row.completion) for row in records.read(rows, records.Example)]
    fitting = tuning.spread([pair for pair in pairs if len(pair) <= MOST], 64)
    policy, _ = models.load_policy(adapter, model, resolved())
    return tuning.validation_loss(policy, fitting, ROWS, tokenizer.pad_token_id)


def measure(variant: str, arguments: argparse.Namespace, place: Path) -> dict[str, float]:
    """Run one variant in a process of its own."""
    folder = Path(tempfile.mkdtemp(dir=place))
    how = VARIANTS[variant]
    if how.by == "trl":
        machine = resolved()
        text = how.flags.format(bf16=str(machine.dtype == "bfloat16").lower())
        command = [Path(sys.executable).with_name("trl"), "sft", "--model_name_or_path", arguments.model]
        command += ["--dataset_name", place / "data", "--output_dir", folder / "adapter", *TRL.split(), *text.split()]
    else:
        command = [sys.executable, __file__, arguments.model, arguments.rows, arguments.validation]
        command += ["--steps", str(arguments.steps), "--one", variant, "--folder", folder]
    with (folder / "log").open("w+") as log:
        process = subprocess.Popen(
            list(map(str, command)),
            stdout=log,
            stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1"}
            | ({"GLIBC_TUNABLES": TIGHT_MALLOC} if how.our_malloc else {}),
        )
        _, status, usage = os.wait4(process.pid, 0)
        log.seek(0)
        told = log.read()
    found = re.findall(r"'?\"?train_runtime'?\"?: '?([\d.]+)", told)
    if status or not found:
        raise SystemExit(f"{variant} ended with {status}:\n{told[-3000:]}")
    loss = held_out_loss(arguments.model, folder / "adapter", arguments.validation)
    return {"seconds": float(found[-1]), "peak_mib": usage.ru_maxrss / 1024, "held_out_loss": loss}


def main() -> int:
    """Measure and print a table and one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("rows", type=Path)
    parser.add_argument("validation", type=Path)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--variants", nargs="+", choices=[*VARIANTS], default=[*VARIANTS])
    parser.add_argument("--one", choices=[*VARIANTS], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    pairs, tokens = chosen(arguments.model, arguments.rows, arguments.steps)
    if arguments.one:
        how, given = VARIANTS[arguments.one], (arguments.model, pairs, arguments.folder)
        seconds = plain(*given) if how.by == "loop" else ours(*given, how.accumulation)
        print(json.dumps({"train_runtime": seconds}))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "data").mkdir()
        with (place / "data/train.jsonl").open("w") as file:
            for prompt, completion in pairs:
                turns = {"prompt": [("user", prompt)], "completion": [("assistant", completion)]}
                row = {key: [{"role": role, "content": text} for role, text in said] for key, said in turns.items()}
                file.write(json.dumps(row) + "\n")
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in arguments.variants}
        for _ in range(arguments.rounds):
            for name in arguments.variants:
                rounds[name].append(measure(name, arguments, place))
                print(name, rounds[name][-1], file=sys.stderr, flush=True)
    table = {
        name: {
            "tokens_per_second": tokens / statistics.median(each["seconds"] for each in found),
            **{key: statistics.median(each[key] for each in found) for key in ("peak_mib", "held_out_loss")},
        }
        for name, found in rounds.items()
    }
    first = arguments.variants[0]
    best = table[first]
    print(f"| | tokens/s | {first} is | peak MiB | {first} takes | held-out loss |\n|---|---|---|---|---|---|")
    for name, row in table.items():
        faster, smaller = best["tokens_per_second"] / row["tokens_per_second"], best["peak_mib"] / row["peak_mib"]
        print(
            f"| {name} | {row['tokens_per_second']:.0f} | {faster:.2f}x | {row['peak_mib']:.0f} | {smaller:.2f}x |"
            f" {row['held_out_loss']:.3f} |"
        )
    print(json.dumps({"rounds": arguments.rounds, "steps": arguments.steps, "tokens": tokens, **table}))
    worse = [name for name, row in table.items() if best["held_out_loss"] > EQUAL * row["held_out_loss"]]
    if worse:
        print(
            f"the held-out loss is more than 1% above that of {', '.join(worse)}: no speeds to compare", file=sys.stderr
        )
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
