"""PPO: this project's loop against `trl.experimental.ppo` of TRL 1.12.0, the last release that has one.

    python benchmarks/ppo.py artifacts/feedback/policy artifacts/reward/harm artifacts/validate/red_team_train.jsonl

Both start from the same policy and answer the same prompts, in as many updates with as many prompts, epochs and minibatches, with
the same reward, rates, clips and longest response, each run in a process of its own, in turns (A, B, C, A, …). The peer has an
environment of its own, made on first use under work/benchmarks/ppo_peer; what is known to differ stands in
`benchmarks/ppo_peer/run.py`. Its reward is the reward model as a classifier with the adapter merged, on the scale that ours
measures at its first rollout. Printed are the peak memory of the process, seconds and processor seconds of an update (generation
to last step; loading, checkpoints and the monitor's looks apart; the fastest run counts, of it the median), and the reward at the
KL divergence that all reached, from a fit of reward against √KL (Gao et al. 2023), with its standard error: with few updates that
is mostly noise. Where ours is shared adapters with the value a head on the policy's states, as the stage comes, it is the one that
others are set against: the value with an adapter of its own, full copies of the four models, and LoRA. The
stages set malloc so that it gives back what is freed, and so does ours here; the peer runs as one starts it, and with that too.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from tunemill import install  # noqa: E402  # found through the line above
from tunemill.runtime import TIGHT_MALLOC  # noqa: E402

PEER = ROOT / "benchmarks" / "ppo_peer"


class Variant(NamedTuple):
    """One way to run PPO."""

    ours: bool
    lora: bool
    """Whether LoRA weights are trained, or full copies."""
    our_malloc: bool
    """Whether it runs with the stages' settings of malloc, or with none."""
    value: str = "adapter"
    """Of ours: weights of its own for the value, as the peer has them, or a head on the policy's states, the stage's default."""


VARIANTS = {
    "tunemill": Variant(ours=True, lora=True, our_malloc=True, value="detached"),
    "tunemill, value adapter": Variant(ours=True, lora=True, our_malloc=True),
    "tunemill, full copies": Variant(ours=True, lora=False, our_malloc=True),
    "trl, full copies": Variant(ours=False, lora=False, our_malloc=False),
    "trl, lora": Variant(ours=False, lora=True, our_malloc=False),
    "trl, lora, our malloc": Variant(ours=False, lora=True, our_malloc=True),
}
USUAL = ("tunemill", "trl, full copies", "trl, lora")


# ── What both are given ─────────────────────────────────────────────────────────────────────────────────────────────


def environment() -> Path:
    """The peer's Python, in an environment with exactly what its requirements name; made where there is none yet."""
    place, wanted = ROOT / "work" / "benchmarks" / "ppo_peer", PEER / "requirements.txt"
    python, stamp = place / "bin" / "python", place / "installed"
    digest = hashlib.sha256(wanted.read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == digest:
        return python
    print("making the peer's environment (some minutes)", file=sys.stderr, flush=True)
    shutil.rmtree(place, ignore_errors=True)
    subprocess.run([install.interpreter(), "-m", "venv", place], check=True)
    uv, settings = install.get_uv(place), os.environ.copy()
    if uv is None:
        command = [python, "-m", "pip", "install", "--quiet"]
    else:
        command = [uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", python]
        command += ["--index-strategy", "unsafe-best-match"]
        settings |= install.uv_environment(install.pip_settings(python), os.environ)
    subprocess.run([*command, "-r", wanted], check=True, env=settings, stdout=sys.stderr)
    stamp.write_text(digest)
    return python


def classifier(policy: Path, reward: Path, out: Path) -> None:
    """Write a reward model as the sequence classifier that TRL reads: adapter merged, head on top."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    from tunemill import backbone

    model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32)
    head = backbone.read_head(reward, model.config)
    merged = PeftModel.from_pretrained(model, reward / "adapter").merge_and_unload()
    scorer = AutoModelForSequenceClassification.from_pretrained(policy, dtype=torch.float32, num_labels=1)
    body = scorer.base_model_prefix
    getattr(scorer, body).load_state_dict(getattr(merged, body).state_dict())
    with torch.no_grad():
        scorer.score.weight.copy_(head[None])
    scorer.save_pretrained(out)


def prompts(policy: Path, rows: Path, count: int, most: int) -> list[list[int]]:
    """Token ids of the first so many prompts of at most `most` tokens, as the policy expects them."""
    from tunemill import models, records

    tokenizer = models.load_tokenizer(policy)
    read = records.read(rows, records.RedTeamPrompt)
    found = [models.render_prompt(tokenizer, row.prompt) for row in read if row.kind == "instruction"]
    kept = [each for each in found if len(each) <= most]
    if len(kept) < count:
        raise SystemExit(f"{rows} has {len(kept)} prompts of at most {most} tokens: {count} are needed")
    return kept[:count]


# ── Measure ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def measure(
    variant: str, arguments: argparse.Namespace, seed: int, place: Path, python: Path, scale: Sequence[float] | None
) -> dict[str, Any]:
    """Run one variant in a process of its own.

    Args:
        variant: which.
        arguments: of the command line.
        seed: of this round.
        place: folder with the prompts and the classifier.
        python: of the peer's environment.
        scale: mean and standard deviation of the scores of our first rollout; None before there was one.
    """
    how = VARIANTS[variant]
    if how.ours:
        command = [sys.executable, "-m", "benchmarks.ppo_ours", "--reward", arguments.reward]
        command += ["--micro-batch", arguments.micro_batch, "--value", how.value]
    else:
        command = [python, PEER / "run.py", "--reward", place / "classifier"]
        if scale is not None:
            command += [f"--mean={scale[0]}", f"--std={scale[1]}"]
    command += ["--model", arguments.policy, "--prompts", place / "prompts.jsonl"]
    for name in ("updates", "batch", "response", "epochs", "minibatches", "rank", "alpha", "dtype", "threads"):
        command += [f"--{name}", getattr(arguments, name)]
    command += ["--seed", seed, "--lr", arguments.lr if how.lora else arguments.full_lr, "--kl-coef", arguments.kl_coef]
    command += ["--missing-eos-penalty", arguments.missing_eos_penalty]
    told = subprocess.run(
        [*map(str, command), *(["--lora"] if how.lora else [])],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": str(arguments.threads), "HF_HUB_OFFLINE": "1"}
        | ({"GLIBC_TUNABLES": TIGHT_MALLOC} if how.our_malloc else {}),
        capture_output=True,
        text=True,
    )
    if told.returncode:
        raise SystemExit(f"{variant} ended with {told.returncode}:\n{told.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(told.stdout.splitlines()[-1])
    return found


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Of all runs of a variant: the least memory, and seconds of the fastest; its first update, which warms up, counts too."""
    fastest = min(runs, key=lambda run: statistics.median(run["seconds"]))
    return {
        "peak_mib": min(run["peak_bytes"] for run in runs) / 2**20,
        "seconds": statistics.median(fastest["seconds"]),
        "cpu_seconds": min(statistics.median(run["cpu_seconds"]) for run in runs),
        "tokens": statistics.mean(row["tokens"] for run in runs for row in run["updates"]),
        "reward": statistics.mean(run["updates"][-1]["reward"] for run in runs),
        "kl": statistics.mean(run["updates"][-1]["kl"] for run in runs),
    }


def reward_at(runs: Sequence[dict[str, Any]], kl: float) -> tuple[float, float]:
    """Reward at a KL divergence, by least squares of reward against √KL over all updates of all runs.

    Returns:
        The reward and its standard error, as if the updates were independent; NaN for too few of them.
    """
    rows = [row for run in runs for row in run["updates"]]
    roots = [math.sqrt(max(0.0, row["kl"])) for row in rows]
    rewards = [row["reward"] for row in rows]
    if len(rows) < 3 or max(roots) - min(roots) < 1e-6:
        return math.nan, math.nan
    slope, start = statistics.linear_regression(roots, rewards)
    left = sum((reward - start - slope * root) ** 2 for root, reward in zip(roots, rewards, strict=True)) / (
        len(rows) - 2
    )
    middle = statistics.fmean(roots)
    leverage = 1 / len(rows) + (math.sqrt(kl) - middle) ** 2 / sum((root - middle) ** 2 for root in roots)
    return start + slope * math.sqrt(kl), math.sqrt(left * leverage)


def main() -> int:
    """Measure and print a table and one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("policy", type=Path, help="the starting policy, a whole checkpoint of a decoder-only model")
    parser.add_argument("reward", type=Path, help="what stage `reward` wrote")
    parser.add_argument("rows", type=Path, help="prompts to answer")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--updates", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16, help="prompts, and responses, of an update")
    parser.add_argument("--response", type=int, default=32, help="most tokens of a response")
    parser.add_argument("--prompt", type=int, default=64, help="most tokens of a prompt")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--minibatches", type=int, default=2)
    parser.add_argument(
        "--micro-batch", type=int, default=8, help="responses in a forward pass of ours; the peer's is a minibatch"
    )
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--alpha", type=int, default=16)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=17, help="of the first round; each has its own")
    parser.add_argument("--lr", type=float, default=1e-4, help="of LoRA")
    parser.add_argument("--full-lr", type=float, default=3e-6, help="of full copies")
    parser.add_argument("--kl-coef", type=float, default=0.05)
    parser.add_argument("--missing-eos-penalty", type=float, default=0.0)
    parser.add_argument("--variants", nargs="+", choices=[*VARIANTS], default=[*USUAL])
    arguments = parser.parse_args()
    for name in ("policy", "reward", "rows"):  # the variants run in the project's folder
        setattr(arguments, name, getattr(arguments, name).resolve())
    asked = prompts(arguments.policy, arguments.rows, arguments.updates * arguments.batch, arguments.prompt)
    python = environment()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "prompts.jsonl").write_text("".join(f"{json.dumps(ids)}\n" for ids in asked))
        classifier(arguments.policy, arguments.reward, place / "classifier")
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in arguments.variants}
        scale = None
        for turn in range(arguments.rounds):
            for name in arguments.variants:
                found = measure(name, arguments, arguments.seed + turn, place, python, scale)
                scale = found.get("scale", scale)
                runs[name].append(found)
                print(name, found, file=sys.stderr, flush=True)
    table = {name: summary(found) for name, found in runs.items()}
    reached = max(0.0, min(row["kl"] for row in table.values()))
    for name, row in table.items():
        row["reward_at_equal_kl"], row["reward_error"] = reward_at(runs[name], reached)
    first = arguments.variants[0]
    best = table[first]
    size = f"{arguments.updates} updates of {arguments.batch} prompts, at most {arguments.response} tokens each"
    print(f"{size}, {arguments.dtype}, {arguments.threads} threads")
    print(
        f"| | peak MiB | {first} takes | s/update | {first} takes | CPU s/update | reward at KL {reached:.2g} | last KL |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name, row in table.items():
        smaller, shorter = best["peak_mib"] / row["peak_mib"], best["seconds"] / row["seconds"]
        print(
            f"| {name} | {row['peak_mib']:.0f} | {smaller:.2f}x | {row['seconds']:.1f} | {shorter:.2f}x |"
            f" {row['cpu_seconds']:.1f} | {row['reward_at_equal_kl']:.3f} ± {row['reward_error']:.3f} | {row['kl']:.3f} |"
        )
    defined = {
        name: {key: value if math.isfinite(value) else None for key, value in row.items()}
        for name, row in table.items()
    }
    print(json.dumps({"rounds": arguments.rounds, "updates": arguments.updates, "scale": scale, **defined}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
