"""Multiple choice: this project's harness against `lm_eval --model hf`, the same model, questions and worked examples.

    python benchmarks/multiple_choice.py MODEL TASKS_TEST.jsonl TASKS_TRAIN.jsonl    (artifacts/select, artifacts/validate)

MMLU's questions are asked in two ways: with letters to choose among, and with the answers themselves; each behind the same
worked examples for all questions (as MMLU has them) and behind others for each (lm-eval's default, which leaves less to share).
The peer is `simple_evaluate` with lm-eval's HFLM, at the best of several batch sizes; what it spends on asking about the machine
is left out. Both run in one process, in turns (A, B, A, B, …). Printed are median seconds, their ratio, whether accuracies are
equal, and the largest difference of log-probabilities; in float32 one above 0.001, or unequal accuracies, and the command fails.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

Found = tuple[float, list[list[float]]]
"""Accuracy, and log-probabilities of each question's choices."""


def answers_themselves(item: Any) -> Any | None:
    """A question with its answers as choices instead of letters; None where they cannot be told apart."""
    found = re.fullmatch(r"(.*)\nA\. (.*)\nB\. (.*)\nC\. (.*)\nD\. (.*)\nAnswer:", item.prompt, re.DOTALL)
    if found is None:
        return None
    question, *choices = found.groups()
    return dataclasses.replace(
        item,
        task="answers",
        prompt=f"Question: {question}\nAnswer:",
        choices=tuple(choices),
        completion=choices["ABCD".index(item.completion)],
    )


def ours(model: Any, tokenizer: Any, task: dict[str, Any], arguments: argparse.Namespace) -> Found:
    """By tunemill.harness."""
    from tunemill import harness
    from tunemill.log import Log

    found = harness.run(
        model,
        tokenizer,
        [task],
        folder=None,
        shots=arguments.shots,
        limit=None,
        seed=0,
        chat=arguments.chat,
        batch_tokens=arguments.batch_tokens,
        batch_rows=arguments.batch_rows,
        kept=None,
        log=Log(),
    ).tasks[task["task"]]
    return found.metrics["acc"] or 0.0, [row["logprobs"] for row in found.rows]


def peer(model: Any, tokenizer: Any, task: dict[str, Any], arguments: argparse.Namespace, batch: int | str) -> Found:
    """By lm-eval."""
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    found: Any = evaluator.simple_evaluate(
        # In bfloat16 its log-probabilities would have three digits.
        HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch, softmax_dtype="float32"),
        tasks=[task],
        num_fewshot=arguments.shots,
        bootstrap_iters=0,
        apply_chat_template=arguments.chat,
        fewshot_random_seed=0,
        task_manager=TaskManager(include_defaults=False),
    )
    samples = found["samples"][task["task"]]
    return found["results"][task["task"]]["acc,none"], [[each[0] for each in one["filtered_resps"]] for one in samples]


def tasks_of(test: Path, train: Path, items: int) -> dict[str, dict[str, Any]]:
    """What is asked, by name."""
    from tunemill import harness, records

    rows, worked = (
        [each for each in records.read(path, records.TaskItem) if each.task == "mmlu"] for path in (test, train)
    )
    found = {}
    for name, change in (("letters", lambda each: each), ("answers", answers_themselves)):
        asked, examples = ([each for each in map(change, own) if each is not None] for own in (rows, worked))
        (task,) = harness.from_items(asked[:items], examples)
        found[f"{name}, same examples"] = task
        found[f"{name}, other examples"] = task | {"fewshot_config": {"sampler": "default"}}
    return found


def main() -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("test", type=Path, help="questions of other tasks, mmlu among them")
    parser.add_argument("train", type=Path, help="worked examples")
    parser.add_argument("--items", type=int, default=48)
    parser.add_argument("--shots", type=int, default=5)
    parser.add_argument("--chat", action="store_true", help="in the tokenizer's chat template")
    parser.add_argument("--batch-tokens", type=int, default=6000, help="ours")
    parser.add_argument("--batch-rows", type=int, default=24, help="ours")
    parser.add_argument("--batch-sizes", nargs="+", default=["8", "16", "32"], help="the peer's; auto is one")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()

    import logging

    from tunemill import runtime

    runtime.set_threads(arguments.threads)
    machine = runtime.resolve(
        runtime.RuntimeParams(device="auto", dtype=arguments.dtype, threads=arguments.threads),
        Path(tempfile.gettempdir()) / "bench-machine.json",
    )
    from lm_eval import evaluator

    from tunemill import models

    evaluator.add_env_info = lambda _: None
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    model, tokenizer = models.load_policy(arguments.model, arguments.model, machine)
    sizes = [each if each == "auto" else int(each) for each in arguments.batch_sizes]
    failed = False
    print(f"{arguments.items} questions, {arguments.shots} worked examples, {machine.device} {machine.dtype}")
    print(
        f"{'asked':<24} {'tunemill s':>10} {'lm_eval s':>10} {'batch':>5} {'ratio':>6} {'accuracy':>15} {'off by':>8}"
    )
    for name, task in tasks_of(arguments.test, arguments.train, arguments.items).items():
        # The first round warms up, and finds the peer's best batch size.
        mine: Found = ours(model, tokenizer, task, arguments)
        first = {each: timed(peer, model, tokenizer, task, arguments, each)[0] for each in sizes}
        size = min(first, key=lambda each: first[each])
        seconds: list[tuple[float, float]] = []
        for _ in range(arguments.rounds):
            a, mine = timed(ours, model, tokenizer, task, arguments)
            b, theirs = timed(peer, model, tokenizer, task, arguments, size)
            seconds.append((a, b))
        off = max(abs(x - y) for a, b in zip(mine[1], theirs[1], strict=True) for x, y in zip(a, b, strict=True))
        failed |= machine.dtype == "float32" and (off > 1e-3 or mine[0] != theirs[0])
        ratio = statistics.median(b / a for a, b in seconds)  # within a round: a machine that gets slower slows both
        print(
            f"{name:<24} {statistics.median(a for a, _ in seconds):>10.2f} {statistics.median(b for _, b in seconds):>10.2f}"
            f" {size:>5} {ratio:>6.2f} {f'{mine[0]:.4f} {theirs[0]:.4f}':>15} {off:>8.1e}",
            flush=True,
        )
    return 1 if failed else 0


def timed(run: Any, *given: Any) -> tuple[float, Any]:
    """Seconds, and what came out."""
    began = time.perf_counter()
    found = run(*given)
    return time.perf_counter() - began, found


if __name__ == "__main__":
    sys.exit(main())
