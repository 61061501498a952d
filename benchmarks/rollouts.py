"""Rollouts: this project's against transformers' own `generate`, the same policy, prompts, token limit and batch size.

    python benchmarks/rollouts.py artifacts/feedback/policy artifacts/validate/red_team_train.jsonl

Both sample from the whole distribution (no top-k, no top-p), with an adapter on the policy that is not merged, as PPO rolls out. Ours
sorts prompts by length, computes what all of them begin with once, and drops rows that have ended. The peer takes the prompts in the
order they come, padded on the left. In one process, in turns (A, B, A, B, …); the first round warms up. Different texts are
drawn, so that what counts is tokens a second, up to and including the one that ends a text; the mean length and the share of texts
that end stand beside it, and where these say that the two do not draw from one distribution, the command fails.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


class Drawn(NamedTuple):
    """One round of one variant."""

    lengths: list[int]
    """Tokens of each text."""
    ended: int
    """How many texts end within the limit."""
    seconds: float


def ours(
    model: Any, tokenizer: Any, prompts: Sequence[list[int]], rows: int, limit: int, seed: int
) -> list[tuple[list[int], bool]]:
    """Texts by tunemill.sampling: ids up to the end, and whether there is one."""
    from tunemill import sampling

    plan = sampling.plan([len(prompt) for prompt in prompts], limit, 10**9, rows)
    decoding = sampling.Decoding(limit, 1.0)
    return [
        (ids, ended)
        for _, ids, ended in sampling.rollouts(model, tokenizer, prompts, decoding=decoding, batches=plan, seed=[seed])
    ]


def peer(
    model: Any, tokenizer: Any, prompts: Sequence[list[int]], rows: int, limit: int, seed: int
) -> list[tuple[list[int], bool]]:
    """Texts by transformers, batch after batch in the order of arrival."""
    import torch

    from tunemill import sampling

    torch.manual_seed(seed)
    tokenizer.padding_side = "left"
    ends = sampling.end_tokens(model, tokenizer)
    found: list[tuple[list[int], bool]] = []
    for first in range(0, len(prompts), rows):
        given = tokenizer.pad({"input_ids": list(prompts[first : first + rows])}, return_tensors="pt").to(model.device)
        with torch.inference_mode():
            ids = model.generate(**given, max_new_tokens=limit, do_sample=True, temperature=1.0, top_k=0, top_p=1.0)
        new = ids if model.config.is_encoder_decoder else ids[:, given["input_ids"].shape[1] :]
        for each in new.tolist():
            length, ended = sampling.until_end(each, ends)
            found.append((each[:length], ended))
    return found


def main() -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("policy", type=Path, help="the starting policy, a whole checkpoint")
    parser.add_argument("rows", type=Path, help="prompts to answer")
    parser.add_argument("--items", type=int, default=64, help="prompts of a rollout")
    parser.add_argument("--batch", type=int, default=64, help="prompts in a batch; PPO answers all of a rollout in one")
    parser.add_argument("--new-tokens", type=int, nargs="+", default=[32])
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()

    from tunemill import runtime

    runtime.set_threads(arguments.threads)
    machine = runtime.resolve(
        runtime.RuntimeParams(device="auto", dtype="auto", threads=arguments.threads),
        Path(tempfile.gettempdir()) / "bench-machine.json",
    )
    from peft import LoraConfig, get_peft_model

    from tunemill import models, records

    tokenizer = models.load_tokenizer(arguments.policy)
    base = models.load_base(arguments.policy, machine)
    task = "SEQ_2_SEQ_LM" if base.config.is_encoder_decoder else "CAUSAL_LM"
    lora = LoraConfig(task_type=task, r=arguments.rank, lora_alpha=2 * arguments.rank, target_modules="all-linear")
    model = get_peft_model(base, lora).eval()
    read = records.read(arguments.rows, records.RedTeamPrompt)
    texts = [row.prompt for row in read if row.kind == "instruction"][: arguments.items]
    prompts = [models.render_prompt(tokenizer, text) for text in texts]
    variants = {"tunemill": ours, "transformers": peer}
    widths = f"{min(map(len, prompts))} to {max(map(len, prompts))}"
    print(
        f"{len(prompts)} prompts of {widths} tokens, {arguments.batch} a batch, LoRA {arguments.rank},"
        f" {machine.device} {machine.dtype}, {arguments.rounds} rounds"
    )
    print("tokens a second; mean tokens of a text; share of texts that end")
    print(f"{'limit':>5} {'tunemill':>24} {'transformers':>24} {'ratio':>6}")
    apart = False
    for limit in arguments.new_tokens:
        drawn: dict[str, list[Drawn]] = {name: [] for name in variants}
        for turn in range(1 + arguments.rounds):
            for name, answer in variants.items():
                began = time.perf_counter()
                found = answer(model, tokenizer, prompts, arguments.batch, limit, turn)
                seconds = time.perf_counter() - began
                if turn:
                    drawn[name].append(Drawn([len(ids) for ids, _ in found], sum(end for _, end in found), seconds))
        rates = {name: [sum(each.lengths) / each.seconds for each in rounds] for name, rounds in drawn.items()}
        # Within a round: a machine that gets slower slows both.
        ratio = statistics.median(a / b for a, b in zip(rates["tunemill"], rates["transformers"], strict=True))
        told, means, errors = [], [], []
        for name, rounds in drawn.items():
            lengths = [length for each in rounds for length in each.lengths]
            ended = sum(each.ended for each in rounds) / len(lengths)
            means.append(statistics.mean(lengths))
            errors.append(statistics.stdev(lengths) / math.sqrt(len(lengths)))
            told.append(f"{statistics.median(rates[name]):.0f}; {means[-1]:.1f}; {ended:.0%}")
        # Four standard errors: one false alarm in some ten thousand.
        apart |= abs(means[0] - means[1]) > 4 * math.hypot(*errors)
        print(f"{limit:>5} {told[0]:>24} {told[1]:>24} {ratio:>6.2f}", flush=True)
    return 1 if apart else 0


if __name__ == "__main__":
    sys.exit(main())
