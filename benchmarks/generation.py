"""Generation: this project's against transformers' own `generate`, the same prompts, token limit and batch size.

    python benchmarks/generation.py MODEL VALIDATION.jsonl --train TRAIN.jsonl      (in artifacts/select and artifacts/validate)

Ours sorts prompts by length, computes what all of them begin with once, and drops rows that have ended. The peer takes the
prompts in the order they come, padded on the left. Both are greedy, in one process, in turns (A, B, A, B, …), for every
number of worked examples asked for; the first round warms up. Printed are median seconds and their ratio, and how many
answers are equal; fewer than 99 in 100, and the command fails: the same text is what a comparison of speeds is about.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def ours(model: Any, tokenizer: Any, prompts: Sequence[list[int]], rows: int, limit: int) -> list[str]:
    """Answers by tunemill.sampling."""
    from tunemill import sampling

    plan = sampling.plan([len(prompt) for prompt in prompts], limit, 10**9, rows)
    found: dict[int, str] = {}
    for batch in sampling.generate(model, tokenizer, prompts, max_new_tokens=limit, batches=plan):
        found |= {item: each.text for item, each in zip(batch.items, batch.generations, strict=True)}
    return [found[index] for index in range(len(prompts))]


def peer(model: Any, tokenizer: Any, prompts: Sequence[list[int]], rows: int, limit: int) -> list[str]:
    """Answers by transformers, batch after batch in the order of arrival."""
    import torch

    tokenizer.padding_side = "left"
    found: list[str] = []
    for first in range(0, len(prompts), rows):
        given = tokenizer.pad({"input_ids": list(prompts[first : first + rows])}, return_tensors="pt").to(model.device)
        with torch.inference_mode():
            ids = model.generate(**given, max_new_tokens=limit, do_sample=False)
        new = ids if model.config.is_encoder_decoder else ids[:, given["input_ids"].shape[1] :]
        found += tokenizer.batch_decode(new, skip_special_tokens=True)
    return found


def main() -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("rows", type=Path, help="prompts to answer")
    parser.add_argument("--train", type=Path, help="worked examples; needed for more than 0 shots")
    parser.add_argument("--items", type=int, default=48)
    parser.add_argument("--shots", type=int, nargs="+", default=[0, 4])
    parser.add_argument("--batch", type=int, default=16, help="prompts in a batch")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    if max(arguments.shots) and arguments.train is None:
        parser.error("--shots above 0 needs --train")

    from tunemill import runtime

    runtime.set_threads(arguments.threads)
    machine = runtime.resolve(
        runtime.RuntimeParams(device="auto", dtype="auto", threads=arguments.threads),
        Path(tempfile.gettempdir()) / "bench-machine.json",
    )
    from tunemill import models, prompting, records

    model, tokenizer = models.load_policy(arguments.model, arguments.model, machine)
    rows = records.read(arguments.rows, records.Example)[: arguments.items]
    train = records.read(arguments.train, records.Example) if arguments.train is not None else []
    variants = {"tunemill": ours, "transformers": peer}
    unequal = False
    print(
        f"{len(rows)} prompts, {arguments.batch} a batch, {arguments.new_tokens} tokens, {machine.device} {machine.dtype}"
    )
    print(f"{'shots':>5} {'tunemill s':>11} {'transformers s':>15} {'ratio':>6} {'equal answers':>14}")
    for count in arguments.shots:
        shots = prompting.choose_shots(tokenizer, train, count, max_tokens=160, seed=0)
        prompts = [prompting.render(tokenizer, row.prompt, shots=shots) for row in rows]
        seconds: dict[str, list[float]] = {name: [] for name in variants}
        texts: dict[str, list[str]] = {}
        for turn in range(1 + arguments.rounds):
            for name, answer in variants.items():
                began = time.perf_counter()
                texts[name] = answer(model, tokenizer, prompts, arguments.batch, arguments.new_tokens)
                if turn:
                    seconds[name].append(time.perf_counter() - began)
        equal = sum(a == b for a, b in zip(texts["tunemill"], texts["transformers"], strict=True))
        unequal |= equal < 0.99 * len(rows)
        mine, theirs = (statistics.median(seconds[name]) for name in variants)
        ratio = statistics.median(
            b / a for a, b in zip(seconds["tunemill"], seconds["transformers"], strict=True)
        )  # within a round: a machine that gets slower slows both
        print(f"{count:>5} {mine:>11.2f} {theirs:>15.2f} {ratio:>6.2f} {equal:>8} of {len(rows)}", flush=True)
    return 1 if unequal else 0


if __name__ == "__main__":
    sys.exit(main())
