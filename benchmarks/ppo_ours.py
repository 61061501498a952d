"""PPO by this project's loop, for `benchmarks/ppo.py`: what `benchmarks/ppo_peer/run.py` does for TRL's, by the same options.

    python -m benchmarks.ppo_ours --model POLICY --reward REWARD --prompts PROMPTS.jsonl [--lora]

REWARD is what stage `reward` wrote. Printed is the same line of JSON, and the scale that the scores were put on besides. Without
`--lora` policy and value are full copies, and reference and reward models of their own. The monitor looks at two prompts before the
first update and after the last, off the clock. The reward is the peer's: without what stage `ppo` does about length and missing ends.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.ppo_peer.run import CLIP, GAMMA, LAMBDA, VALUE_COEFFICIENT, Clock, memory, options
from tunemill import runtime
from tunemill.log import Log

MAX_GRAD_NORM = 1.0
"""Gradients are clipped to this norm, which the peer cannot do."""


def settings(arguments: argparse.Namespace) -> Any:
    """What the benchmark asks for, as our loop is told it."""
    from tunemill import ppo

    values = {
        "mode": "adapters" if arguments.lora else "full",
        "rank": arguments.rank,
        "alpha": arguments.alpha,
        "targets": arguments.targets[0] if arguments.targets == ["all-linear"] else arguments.targets,
        "value": arguments.value,
        "prompts": arguments.batch,
        "samples": 1,
        "max_prompt_tokens": 10**6,  # none is left out
        "response_tokens": arguments.response,
        "temperature": arguments.temperature,
        "rollout_tokens": 10**6,  # all are sampled in one batch, as the peer does
        "updates": arguments.updates,
        "epochs": arguments.epochs,
        "minibatches": arguments.minibatches,
        "micro_batch": min(arguments.micro_batch, arguments.batch // arguments.minibatches),
        "learning_rate": arguments.lr,
        "value_learning_rate": arguments.lr,
        "warmup_updates": 0,
        "max_grad_norm": MAX_GRAD_NORM,
        "gamma": GAMMA,
        "lam": LAMBDA,
        "cliprange": CLIP,
        "cliprange_value": CLIP,
        "value_coef": VALUE_COEFFICIENT,
        "entropy_coef": 0.0,
        "kl": {"coef": arguments.kl_coef, "target": None, "horizon": 1, "limit": 1e9},
        "missing_eos_penalty": arguments.missing_eos_penalty or 0.0,
        "ptx_coef": 0.0,
        "monitor_items": 2,
        "monitor_updates": arguments.updates,
        "checkpoint_updates": arguments.updates,
        "seeds": [arguments.seed],
    }
    return ppo.Settings.model_validate(values)


def train(arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Run the updates; what was measured."""
    from stages import ppo as stage
    from tunemill import models, ppo, rewards

    cfg = settings(arguments)
    asked = runtime.RuntimeParams(device="cpu", dtype=arguments.dtype, threads=arguments.threads)
    machine = runtime.resolve(asked, work / "machine.json")
    runtime.seed_everything(arguments.seed)
    tokenizer = models.load_tokenizer(arguments.model)
    rows = [json.loads(line) for line in arguments.prompts.read_text().splitlines() if line.strip()]
    prompts = [(str(tokenizer.decode(ids, skip_special_tokens=True)), ids) for ids in rows]
    # The peer's reward is the reward model's plain score of the response as it stands: with its length in it, and cut off where it is.
    reward = rewards.load(arguments.reward, machine)._replace(line=None)
    rewards.ended = lambda row, finished, tokenizer: row
    actors = stage.actors(cfg, arguments.model, reward, machine)
    clock, loaded = Clock(), memory("VmRSS")

    def tell(step: int, values: dict[str, float]) -> None:
        if "kl" in values:
            clock.lap()
        else:  # the look before the first update, or the one after the last
            clock.start()

    trained = ppo.optimise(
        actors,
        tokenizer,
        prompts,
        prompts[:2],
        reward,
        cfg,
        arguments.seed,
        judge=None,
        ptx=(),
        where=arguments.reward,
        runtime=machine,
        work=work / "checkpoints",
        log=Log(listener=tell),
    )
    told = ("reward", "kl", "tokens", "finished", "ratio", "clipped")
    return {
        "peak_bytes": memory("VmHWM"),
        "loaded_bytes": loaded,
        "trained_parameters": sum(each.numel() for each in actors.parameters()),
        "seconds": [by_clock for by_clock, _ in clock.laps],
        "cpu_seconds": [of_processors for _, of_processors in clock.laps],
        "updates": [{name: row[name] for name in told} for row in trained.state.curve],
        "scale": trained.state.normal,
    }


def main() -> int:
    """Train and print one line of JSON."""
    parser = options(__doc__ or "")
    parser.add_argument("--micro-batch", type=int, default=8, help="responses in a forward pass")
    parser.add_argument(
        "--value", choices=["detached", "adapter"], default="detached", help="as ppo.value; with --lora"
    )
    arguments = parser.parse_args()
    runtime.set_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as work, contextlib.redirect_stdout(sys.stderr):
        found = train(arguments, Path(work))
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
